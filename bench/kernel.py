"""What the kernel tells: the CPU time and memory of whole process trees, and the machine that all of it ran on."""

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class _Stat:
    parent: int
    own: int
    """Ticks of the process itself, its system calls included."""
    gone: int
    """Ticks of its children that have ended and were waited for."""
    pages: int


def _stat(pid: int) -> _Stat | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    own, gone = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
    return _Stat(int(fields[1]), own, gone, int(fields[21]))


def _tree(root: int) -> Iterator[_Stat]:
    """Yield the process `root` and all its living descendants."""
    numbers = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    stats = {number: stat for number in numbers if (stat := _stat(number)) is not None}
    wanted = [root]
    while wanted:
        number = wanted.pop()
        if number in stats:
            yield stats[number]
            wanted += [child for child, stat in stats.items() if stat.parent == number]


def tree_cpu(root: int) -> float:
    """Return the CPU seconds of a process and its descendants, those that have ended included."""
    while True:
        before = _stat(root)
        ticks = sum(stat.own + stat.gone for stat in _tree(root))
        after = _stat(root)
        # A child that ended meanwhile may have been seen nowhere: neither by itself nor among those that are gone.
        if before is None or after is None or before.gone == after.gone:
            return ticks / TICKS


def process_cpu(pid: int) -> float:
    """Return the CPU seconds of one process, to the nanosecond."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def tree_megabytes(root: int) -> float:
    """Return the resident memory of a process and its descendants; pages that they share count more than once."""
    return sum(stat.pages for stat in _tree(root)) * _PAGE / 1e6


def peak_megabytes(pid: int) -> float:
    """Return the most resident memory that a process has had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))


def machine() -> str:
    """Return this machine in one line: cores, CPU model, memory, kernel."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    gigabytes = os.sysconf("SC_PHYS_PAGES") * _PAGE / 1e9
    return f"{os.cpu_count()} cores, {model}, {gigabytes:.0f} GB, {platform.system()} {platform.release()}"
