"""kill -9 at every step of a start, a postback and a check: nothing is paid twice, lost or made up.

A proxy stands before PostgreSQL and one before K-Pay, and every chunk of bytes that passes is a step: the service is
killed before a step (its request goes nowhere), within it (the request arrives, nobody hears the answer) or after it
(the answer goes nowhere). A dry run of each scenario tells its steps; each of them then kills a service of its own.

KPAYD_TEST_SEED sets the order of the points, what payers do and which callers ask again.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from app.macs import RETURL, Macs
from app.orders import derived_refid
from bench.chaos import gathered
from bench.history import converged, violations
from tests.conftest import QUICK
from tests.faults.victims import CLIENT, ON_HOLD, Chain, Point, points, running_chain
from tests.given import Postgres
from tests.support import SECRET_KEY, Simulator, eventually, new_refid, payment, query, run_service

SEED = int(os.environ.get("KPAYD_TEST_SEED", "34"))
ATTEMPTS = 10
"""How often a point is tried whose steps came in another order than in the dry run (a timer went off between)."""
CONVERGE_SECONDS = 60.0

PAID_AT_ONCE = "250780000007"


class Scenario:
    """One thing that a service does: `ready` makes what it needs, `act` lets it happen."""

    arguments: Sequence[str] = ("serve",)
    more: Mapping[str, str] = {}
    truth = "01"
    """What the payer does. One scenario has one: a success takes steps that a refusal does not."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain

    def ready(self) -> str:
        """Return the refid of the payment that the next act is about."""
        return self.chain.decided(new_refid(), self.truth)

    def act(self, refid: str) -> None:
        """Let it happen, as far as it comes."""
        raise NotImplementedError

    def after(self, refid: str) -> None:
        """Do what the outside does afterwards."""


class StartPaid(Scenario):
    """A start by Idempotency-Key and orderid that K-Pay answers with "paid"."""

    def ready(self) -> str:
        """Return the refid that belongs to the next key."""
        self.key = new_refid()
        return derived_refid(CLIENT, self.key)

    def act(self, refid: str) -> None:
        """Start."""
        self.chain.start(refid, payment(PAID_AT_ONCE, orderid=self.key), {"Idempotency-Key": self.key})


class StartOpen(Scenario):
    """A start by refid that K-Pay takes in; its payer decides when the service is dead."""

    def ready(self) -> str:
        """Return a new refid."""
        return new_refid()

    def act(self, refid: str) -> None:
        """Start."""
        self.chain.start(refid, payment(ON_HOLD, refid=refid), {})

    def after(self, refid: str) -> None:
        """Let the payer decide, where K-Pay has heard of the payment."""
        if self.chain.simulator.ledger(refid) is not None:
            self.chain.simulator.settle(refid, self.chain.chance.choice(["01", "02"]), postback=False)


class Check(Scenario):
    """A check that a caller asks for; K-Pay says no."""

    truth = "02"

    def act(self, refid: str) -> None:
        """Ask."""
        self.chain.call("check", refid, f"/v1/payments/{refid}/check")


class Postback(Scenario):
    """K-Pay's true postback, which wakes a check."""

    def act(self, refid: str) -> None:
        """Tell what is so."""
        known = self.chain.simulator.ledger(refid) or {}
        body = {name: known[name] for name in ("tid", "refid", "momtransactionid", "statusid", "statusdesc")}
        path = f"/kpay/returl/{refid}/{Macs([SECRET_KEY]).make(RETURL, refid)}"
        self.chain.call("postback", refid, path, content=httpx2.Request("POST", "http://x", json=body).read())


class DecidingPostback(Postback):
    """The same under `CONFIRM=never`: the postback itself decides."""

    more: Mapping[str, str] = {"CONFIRM": "never"}


class ClaimedCheck(Scenario):
    """A check that a worker claims, its payment made by a service that is in no danger."""

    arguments = ("worker",)
    # A lease lasts ten seconds longer: what a dead worker had claimed must not come back in the middle of this.
    more: Mapping[str, str] = {"GATEWAY_TIMEOUT": "25"}

    def ready(self) -> str:
        """Wait until nothing is left to claim."""
        due = "SELECT FROM payments WHERE next_check_at < now() + interval '2 s' AND (leased_until > now()) IS NOT TRUE"
        eventually(lambda: not query(self.chain.database_url, due), seconds=20)
        return new_refid()

    def act(self, refid: str) -> None:
        """Make a payment and wait until a worker has been asked to bring its end, or died of it."""
        self.chain.decided(refid, self.truth)
        end = "SELECT FROM payments WHERE refid = $1 AND status IN ('succeeded', 'failed')"
        eventually(lambda: self.chain.trap.sprung or query(self.chain.database_url, end, refid), seconds=20, every=0.05)


def play(scenario: Scenario) -> None:
    """Run a scenario dry, then once for each of its points, each time to the death of a service."""
    chain, victim = scenario.chain, None
    steps: Sequence[str] = ()
    left: list[tuple[Point | None, int]] = [(None, 0)]
    try:
        while left:
            point, attempt = left.pop()
            if victim is None:
                victim = chain.fork(*scenario.arguments, more=scenario.more)
                if scenario.arguments[0] == "serve":
                    chain.repeat_some()
                # Once without danger: connections are made, statements prepared, the caller's key is known.
                warm = scenario.ready()
                chain.trap.arm(warm, None, victim.kill)
                scenario.act(warm)
                chain.trap.disarm()
                scenario.after(warm)
            refid = scenario.ready()
            chain.trap.arm(refid, point, victim.kill)
            scenario.act(refid)
            seen = chain.trap.disarm()
            if chain.trap.sprung:
                victim.end()
                victim = None
            scenario.after(refid)
            if point is None and seen != steps:
                steps, left = seen, [(None, attempt + 1)]  # until two in a row are the same
            elif point is None:
                left = [(each, 1) for each in points(steps)]
                chain.chance.shuffle(left)
            elif not chain.trap.sprung or seen != steps[: point.step + 1]:
                assert attempt < ATTEMPTS, f"{scenario}: not {steps[: point.step + 1]} but {seen}"
                left.insert(0, (point, attempt + 1))
            else:
                chain.killed += 1
    finally:
        chain.trap.disarm()
        if victim is not None:
            victim.end()
    assert [step for step in steps if "K-Pay" in step] in ([], ["asks K-Pay", "K-Pay tells"]), steps
    if isinstance(scenario, StartPaid | StartOpen):
        committed = steps[: steps.index("asks K-Pay")][-2:]
        assert committed == ["asks PostgreSQL to commit", "PostgreSQL tells"], steps


def run_chain(chain: Chain, scenarios: Sequence[type[Scenario]]) -> None:
    """Play scenarios one after another."""
    for each in scenarios:
        beside = chain.fork("serve", trapped=False) if each is ClaimedCheck else None
        try:
            play(each(chain))
        finally:
            if beside is not None:
                beside.end()


CHAINS: Sequence[Sequence[type[Scenario]]] = (
    (StartPaid, StartOpen),
    (ClaimedCheck, Check, Postback, DecidingPostback),
)


@pytest.mark.timeout(600)
def test_fault_34_killed_at_every_step_of_a_start_a_postback_and_a_check(
    tmp_path: Path, new_database: Callable[[], str], postgres: Postgres, simulator: Simulator
) -> None:
    """Killed at any step of a start, a postback or a check: one charge at most, nothing lost, K-Pay's truth in the end.

    A step is one message to PostgreSQL or K-Pay, or its answer. Callers who got no answer ask again, or do not.
    """
    print(f"KPAYD_TEST_SEED={SEED}")  # noqa: T201 - shown where it fails
    with ExitStack() as stack:
        chains = [
            stack.enter_context(running_chain(tmp_path / f"{n}", new_database(), postgres, simulator, SEED))
            for n in range(len(CHAINS))
        ]
        with ThreadPoolExecutor(len(chains)) as pool:
            for done in [pool.submit(run_chain, *each) for each in zip(chains, CHAINS, strict=True)]:
                done.result()
        for chain in chains:
            stack.enter_context(run_service(tmp_path, chain.database_url, simulator, QUICK, port=chain.port))
            for start in list(chain.unheard):
                chain.start(*start)
        for chain in chains:
            deadline = time.monotonic() + CONVERGE_SECONDS
            while list(converged(gathered(chain.database_url, simulator, chain.calls))):
                if time.monotonic() > deadline:
                    break  # what follows tells which
                time.sleep(0.5)
            found = gathered(chain.database_url, simulator, chain.calls)
            assert violations(found) == []
            print(f"{chain.killed} killed, {len(found.stored)} payments")  # noqa: T201 - shown by -s
