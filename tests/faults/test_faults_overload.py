"""More calls than can be served: what can be is, the rest is told to come again, and nobody waits for nothing."""

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import QUICK
from tests.faults.offer import Line, get, offer, post
from tests.support import Service, Simulator, bodies, eventually, hush, metric, run_service


@pytest.fixture(scope="module")
def service(
    new_database: Callable[[], str], simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Run a service that is asked too much of."""
    with run_service(tmp_path_factory.mktemp("overload"), new_database(), simulator, QUICK) as service:
        yield service


def port_of(service: Service) -> int:
    """Return the port that the service listens on."""
    return int(service.url.rpartition(":")[2])


def reads(service: Service, refid: str) -> Callable[[], bytes]:
    """Return a maker of requests for a payment's timeline: dear enough that whoever offers twice of it keeps up."""
    request = get(f"/v1/payments/{refid}/events", service.key)
    return lambda: request


def postbacks(service: Service, refids: list[str]) -> Callable[[], bytes]:
    """Return a maker of postbacks, all different, of each payment in turn."""
    turn, number = itertools.cycle(refids), itertools.count()

    def make() -> bytes:
        refid = next(turn)
        return post(
            service.returl(refid),
            json.dumps({"refid": refid, "statusid": "03", "statusdesc": f"{next(number)}"}).encode(),
        )

    return make


def capacity(service: Service, refid: str) -> float:
    """Return how many reads a second the service answers to callers who wait for their turn."""
    request, seconds = reads(service, refid)(), 2.0

    async def caller(until: float) -> int:
        line, count = Line(port_of(service)), 0
        while time.monotonic() < until:
            await line.ask(request)
            count += 1
        line.hang_up()
        return count

    async def measure() -> int:
        return sum(await asyncio.gather(*(caller(time.monotonic() + seconds) for _ in range(8))))

    return asyncio.run(measure()) / seconds


@pytest.mark.timeout(180)
def test_fault_41_at_twice_its_capacity_the_service_answers_what_it_can(service: Service) -> None:
    """Offered twice the reads it can serve it answers many, says 503 to the rest, and stores every postback at once."""
    refids = [service.start("250780000005")["refid"] for _ in range(20)]
    hush(service)
    rate, seconds = capacity(service, refids[0]), 6.0
    alive = get("/healthz", service.key)
    calls = [(2 * rate, reads(service, refids[0])), (15.0, postbacks(service, refids)), (2.0, lambda: alive)]
    read, posted, living = asyncio.run(offer(port_of(service), calls, seconds=seconds))

    assert set(read.statuses) == {200, 503}, read.statuses
    assert read.without_retry_after == 0
    assert read.statuses[200] > 0.2 * rate * seconds
    assert read.percentile(95) < 5
    assert set(posted.statuses) == {200}, posted.statuses
    # Six seconds, when one new connection was taken in a turn of the loop; a tenth since.
    assert posted.percentile(95) < 3
    assert set(living.statuses) == {200}, living.statuses
    assert metric(service, 'kpayd_shed_total{kind="read"}') > 0
    assert len([body for refid in refids for body in bodies(service, refid)]) == posted.statuses[200]

    eventually(lambda: all(service.http.get(f"/v1/payments/{refids[0]}").status_code == 200 for _ in range(20)))
    assert service.read(service.start()["refid"], wait=15)["status"] == "succeeded"
