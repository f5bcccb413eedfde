"""Reads and postbacks leave nothing for Python's garbage collector: while it undoes rings, every other call waits."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from app.dev.laptop import free_port
from tests.support import Service, Simulator, answers, eventually, kpayd, settings

CALLS = 200
_COUNTS_ON_SIGNAL = """
import gc, os, pathlib, signal

found = 0

def count(phase, info):
    global found
    found += info.get("collected", 0)

def tell(*_):
    gc.collect()
    with pathlib.Path(os.environ["FOUND"]).open("a") as file:
        file.write(f"{found}\\n")

gc.callbacks.append(count)
signal.signal(signal.SIGUSR1, tell)
"""


@dataclass(frozen=True)
class Looked:
    """A service that says on SIGUSR1 how much its collector has found."""

    service: Service
    found: Path

    def garbage(self) -> int:
        """Collect, and return how many objects the collector has found so far, of its own accord or for us."""
        before = self._lines()
        self.service.process.child.send_signal(signal.SIGUSR1)
        return int(eventually(lambda: self._lines()[len(before) :], every=0.02)[0])

    def _lines(self) -> list[str]:
        return self.found.read_text().splitlines()


@pytest.fixture(scope="module")
def looked(
    new_database: Callable[[], str], simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Looked]:
    """Run a service that does nothing between calls."""
    folder, url, port = tmp_path_factory.mktemp("collector"), new_database(), free_port()
    (folder / "sitecustomize.py").write_text(_COUNTS_ON_SIGNAL)
    found = folder / "found"
    found.touch()
    env = settings(url, f"{simulator.url}/", port, {})
    seen = {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}
    with kpayd(folder, env | seen | {"FOUND": str(found)}, "serve", "--no-worker", "--port", str(port)) as process:
        answers(process, f"http://127.0.0.1:{port}/healthz")
        service = Service(process, f"http://127.0.0.1:{port}", url, env)
        with service.http:
            yield Looked(service, found)


def plain(service: Service, refid: str, _: int) -> httpx2.Response:
    """Read a payment."""
    return service.http.get(f"/v1/payments/{refid}")


def by_the_framework(service: Service, refid: str, _: int) -> httpx2.Response:
    """Read a payment by the route that knows how to wait."""
    return service.http.get(f"/v1/payments/{refid}", params={"wait": 0})


def postback(service: Service, refid: str, number: int) -> httpx2.Response:
    """Send a postback that nobody has sent before."""
    return service.http.post(service.returl(refid), json={"refid": refid, "statusid": "03", "statusdesc": str(number)})


def refused(service: Service, refid: str, _: int) -> httpx2.Response:
    """Ask for a payment that is not there."""
    return service.http.get(f"/v1/payments/{refid}x")


@pytest.mark.parametrize("call", [plain, by_the_framework, postback, refused])
def test_a_call_is_gone_when_it_is_answered(
    call: Callable[[Service, str, int], httpx2.Response], looked: Looked
) -> None:
    """Not one object is left for each call."""
    service = looked.service
    refid = service.start("250780000005")["refid"]
    expected = call(service, refid, -1).status_code  # whatever is made once is made now
    assert expected == (404 if call is refused else 200)
    before = looked.garbage()
    for number in range(CALLS):
        assert call(service, refid, number).status_code == expected
    assert looked.garbage() - before < CALLS
