"""Figures: samples, their medians with minimum and maximum, and the tables that tell them."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field


class BenchError(Exception):
    """Something could not be measured; the message says why, and what to do."""


class Refused(BenchError):  # noqa: N818 - the name says what it is
    """Not every request was answered 2xx: this measurement counts for nothing."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement: what was done, in which time, and what it cost. CPU in seconds, latencies in milliseconds."""

    requests: int
    seconds: float
    server_cpu: float | None
    postgres_cpu: float
    p50: float | None = None
    p99: float | None = None

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds

    @property
    def server_each(self) -> float | None:
        """Microseconds of the server's CPU for one request."""
        return None if self.server_cpu is None else self.server_cpu / self.requests * 1e6

    @property
    def postgres_each(self) -> float:
        """Microseconds of PostgreSQL's CPU for one request."""
        return self.postgres_cpu / self.requests * 1e6


Runs = Mapping[str, Sequence[Sample]]
"""The samples of each contender, in the order of the rounds."""


@dataclass
class Section:
    """One table of the report, with what must be known to read it."""

    title: str
    head: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Return it as Markdown."""
        lines = [f"## {self.title}", "", _row(self.head), _row(["---"] * len(self.head))]
        lines += [_row(row) for row in self.rows]
        if self.notes:
            lines += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines) + "\n"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def spread(values: Sequence[float | None], form: Callable[[float], str]) -> str:
    """Return median (minimum to maximum), or a dash where there is nothing."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    middle = form(statistics.median(known))
    return middle if len(known) == 1 else f"{middle} ({form(min(known))} to {form(max(known))})"


def whole(value: float) -> str:
    """Return a number without decimals."""
    return f"{value:,.0f}"


def one(value: float) -> str:
    """Return a number with one decimal."""
    return f"{value:,.1f}"


def two(value: float) -> str:
    """Return a number with two decimals."""
    return f"{value:.2f}"


def ratios(runs: Runs, name: str, beside: str) -> Sequence[float]:
    """Return the rates of `name` by those of `beside`, round by round: both had the machine at the same hour."""
    return [one.rate / other.rate for one, other in zip(runs[name], runs[beside], strict=True)]


RATE_HEAD = ("what", "connections", "a second", "of {}", "CPU of the server, µs each", "CPU of PostgreSQL, µs each")
LATENCY_HEAD = ("p50, ms", "p99, ms")


def rate_head(beside: str) -> Sequence[str]:
    """Return the head of a table of rates beside `beside`."""
    return [cell.format(beside) for cell in (*RATE_HEAD, *LATENCY_HEAD)]


def rate_rows(runs: Runs, beside: str, connections: int) -> Sequence[Sequence[str]]:
    """Return a row for each contender; rates are compared with those of `beside`."""
    return [
        [
            name,
            str(connections),
            spread([sample.rate for sample in samples], whole),
            spread(ratios(runs, name, beside), two) if beside in runs else "-",
            spread([sample.server_each for sample in samples], whole),
            spread([sample.postgres_each for sample in samples], whole),
            spread([sample.p50 for sample in samples], two),
            spread([sample.p99 for sample in samples], two),
        ]
        for name, samples in runs.items()
    ]
