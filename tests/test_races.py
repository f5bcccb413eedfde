"""Races over one row: each test fails when its guard (row lock, lease, mac, unique key) is taken out."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
import pytest
from sqlalchemy import text

from app.bell import Bell
from app.breaker import Breaker
from app.database import Database, open_database
from app.domain import Evidence, Failure, FailureCode, Rules, Says, Source
from app.inbox import Inbox, Postback
from app.intake import Intake, Policy
from app.kpay import client as kpay
from app.kpay.unseen import Unseen
from app.models import Row
from app.orders import NewPayment, Terms, record
from app.raw import Raw
from app.reconcile import Reconciler
from app.worker import background
from tests.support import query
from tests.unit.servers import says, serving

ORDER = NewPayment(
    amount=4200,
    currency="RWF",
    pmethod="momo",
    bankid="63510",
    msisdn="250788312934",
    email="a@example.rw",
    details="order",
    cname="KANEZA",
    cnumber="250788312934",
    redirecturl="https://shop.example.rw/done",
)
TERMS = Terms("pay.example.rw", 30, 86_400, 10)
POLICY = Policy(Rules(120, (10,), (2,)), frozenset())
PAID = Evidence(Source.CHECKSTATUS, Says.PAID, tid="A1", momtransactionid="1", statusid="01")
NOT_PAID = Evidence(
    Source.CHECKSTATUS, Says.NOT_PAID, tid="A1", statusid="02", failure=Failure(FailureCode.DECLINED, "no", "02")
)


@pytest.fixture
def url(new_database: Callable[[], str]) -> str:
    """Return a fresh database."""
    return new_database()


@asynccontextmanager
async def databases(url: str, count: int) -> AsyncIterator[list[Database]]:
    """Yield several pools, as several processes would have them."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_database(url, pool=2)) for _ in range(count)]


def test_fault_10_contradicting_evidence_at_the_same_moment(url: str) -> None:
    """Eight who say paid and not paid at once make one success, never left, and a timeline without gaps."""

    async def run() -> None:
        async with databases(url, 8) as pools:
            intakes = [Intake(pool, POLICY, Bell()) for pool in pools]
            for _ in range(60):
                row, _ = await record(pools[0], ORDER, "shop", None, TERMS)
                said = [PAID, NOT_PAID] * 4
                random.shuffle(said)
                racers: list[Awaitable[object]] = [
                    intake.take_in(row.refid, evidence, Raw(Source.CHECKSTATUS, f"{i}".encode(), ""))
                    for i, (intake, evidence) in enumerate(zip(intakes, said, strict=True))
                ]
                await asyncio.gather(*racers)

    asyncio.run(run())
    assert {row["status"] for row in query(url, "SELECT DISTINCT status FROM payments")} == {"succeeded"}
    successes = "SELECT count(*) AS n FROM events WHERE type = 'payment.succeeded' GROUP BY refid"
    assert {row["n"] for row in query(url, successes)} == {1}
    gaps = """SELECT refid FROM events JOIN payments USING (refid) GROUP BY refid, last_seq
              HAVING count(*) <> last_seq OR max(seq) <> last_seq OR count(*) < 9"""
    assert not query(url, gaps)


def test_one_of_many_recorders_sends(url: str) -> None:
    """30 rounds of 8 processes record the same refid: one is told that it is the first, all get the same payment."""

    async def run() -> list[list[bool]]:
        rounds = []
        async with databases(url, 8) as pools:
            for number in range(30):
                order = NewPayment(**{name: getattr(ORDER, name) for name in ORDER.__slots__} | {"refid": f"r{number}"})
                racers = [record(pool, order, "shop", None, TERMS) for pool in pools]
                rounds.append([fresh for _, fresh in await asyncio.gather(*racers)])
        return rounds

    assert all(sum(fresh) == 1 for fresh in asyncio.run(run()))


def reconciler(pool: Database, gateway: kpay.KPay, *, concurrency: int) -> Reconciler:
    """Return one that asks about the payments of `TERMS`."""
    return Reconciler(
        database=pool,
        intake=Intake(pool, POLICY, Bell()),
        kpay=gateway,
        bell=Bell(),
        unseen=Unseen(),
        gateway=TERMS.gateway,
        gateway_timeout=30,
        concurrency=concurrency,
        breaker=Breaker(),
    )


def test_fault_43_a_due_payment_is_leased_once(url: str) -> None:
    """Six claimants take 300 due payments between them, and none of them twice."""

    async def run() -> list[str]:
        endpoint = kpay.Endpoint("http://127.0.0.1:9/", "u", "p")
        async with databases(url, 6) as pools, kpay.connect(endpoint) as gateway:
            for _ in range(300):
                await record(pools[0], ORDER, "shop", None, TERMS)
            query_later = "UPDATE payments SET next_check_at = now() - interval '1 minute'"
            await asyncio.to_thread(query, url, query_later)
            claimants = [reconciler(pool, gateway, concurrency=50) for pool in pools]
            claims = await asyncio.gather(*(claimant._claim(100) for _ in range(10) for claimant in claimants))
        return [claim.refid for claimed in claims for claim in claimed]

    claimed = asyncio.run(run())
    assert len(claimed) == len(set(claimed)) == 300


def test_what_is_due_from_before_the_last_look_is_found_all_the_same(url: str) -> None:
    """A look begins where the last one did, or two seconds ago; what is due for longer is found two seconds later."""

    async def run() -> None:
        endpoint = kpay.Endpoint("http://127.0.0.1:9/", "u", "p")
        async with databases(url, 1) as (pool,), kpay.connect(endpoint) as gateway:
            claimant, found = reconciler(pool, gateway, concurrency=50), []
            rows = [(await record(pool, ORDER, "shop", None, TERMS))[0].refid for _ in range(4)]
            for refid, ago, wait in zip(rows, (0, 1, 3_600, 0), (0, 0, 0, 2.1), strict=True):
                late = "UPDATE payments SET next_check_at = now() - $2 * interval '1 second' WHERE refid = $1"
                await asyncio.to_thread(query, url, late, refid, ago)
                await asyncio.sleep(wait)
                found.append([claim.refid for claim in await claimant._claim(100)])
        assert found == [[rows[0]], [rows[1]], [], sorted(rows[2:])]

    asyncio.run(run())


def test_a_payment_whose_time_is_up_is_asked_about_before_it_expires(url: str) -> None:
    """While K-Pay answers, the clock alone ends nothing: the payer may have paid in the last moment."""

    async def run() -> None:
        endpoint = kpay.Endpoint("http://127.0.0.1:9/", "u", "p")
        async with databases(url, 1) as (pool,), kpay.connect(endpoint) as gateway:
            row, _ = await record(pool, ORDER, "shop", None, TERMS)
            up = "UPDATE payments SET next_check_at = now(), expires_at = now() WHERE refid = $1 RETURNING status"
            [[status]] = await asyncio.to_thread(query, url, up, row.refid)
            claims = await reconciler(pool, gateway, concurrency=50)._claim(100)
            assert [claim.refid for claim in claims] == [row.refid]
            assert await asyncio.to_thread(query, url, "SELECT status FROM payments") == [(status,)]

    asyncio.run(run())


def test_a_payer_asks_for_nothing_once_a_failure_is_a_week_old(url: str) -> None:
    """Whoever keeps a payer's link may have K-Pay asked about a failed payment for seven days, and no longer."""

    async def run() -> None:
        endpoint = kpay.Endpoint("http://127.0.0.1:9/", "u", "p")
        over = "UPDATE payments SET status = 'failed', failure_code = 'declined', failure_detail = 'no', "
        over += "next_check_at = NULL, final_at = now() - $2 * interval '1 day' WHERE refid = $1 RETURNING *"
        asked = "SELECT count(*) FROM events WHERE refid = $1 AND source = 'checkstatus'"
        async with databases(url, 1) as (pool,), kpay.connect(endpoint) as gateway:
            claimant = reconciler(pool, gateway, concurrency=50)
            for days, questions in ((6, 1), (8, 0)):
                row, _ = await record(pool, ORDER, "shop", None, TERMS)
                await asyncio.to_thread(query, url, over, row.refid, days)
                await claimant.look(row, 0)
                assert await asyncio.to_thread(query, url, asked, row.refid) == [(questions,)]

    asyncio.run(run())


def test_a_check_that_a_postback_asked_for_meanwhile_is_due_at_once(url: str) -> None:
    """Where K-Pay takes three seconds to answer and a postback comes in between, the next look finds the payment."""

    async def run() -> None:
        endpoint = kpay.Endpoint("http://127.0.0.1:9/", "u", "p")
        async with databases(url, 1) as (pool,), kpay.connect(endpoint) as gateway:
            claimant = reconciler(pool, gateway, concurrency=50)
            asked, other = [(await record(pool, ORDER, "shop", None, TERMS))[0].refid for _ in range(2)]
            due = "UPDATE payments SET next_check_at = now(), wake_step = 0 WHERE refid = $1"
            await asyncio.to_thread(query, url, due, asked)
            [claim] = await claimant._claim(100)
            await asyncio.to_thread(query, url, due, asked)  # as a postback does
            await asyncio.sleep(3)
            await asyncio.to_thread(query, url, due, other)
            assert [each.refid for each in await claimant._claim(100)] == [other]
            pending = Evidence(Source.CHECKSTATUS, Says.PENDING, tid="A1", asked_at=claim.at)
            await Intake(pool, POLICY, Bell()).take_in(asked, pending, Raw(Source.CHECKSTATUS, b"pending", ""))
            assert [each.refid for each in await claimant._claim(100)] == [asked]

    asyncio.run(run())


def test_fault_44_checks_that_end_while_others_are_claimed_make_room_all_the_same(url: str) -> None:
    """A claim waits for a lock, whatever was asked ends meanwhile, and what it brings hangs: all others are asked."""
    rows: list[str] = []

    async def run() -> set[str]:
        async def behave(writer: asyncio.StreamWriter) -> None:
            if server.requests[-1].json["refid"] == rows[4]:
                await asyncio.sleep(10)
            await says({"statusid": "03"})(writer)

        async with (
            databases(url, 1) as (pool,),
            serving(behave) as server,
            kpay.connect(server.endpoint(timeout=4)) as gateway,
        ):
            for number in range(20):
                rows.append((await record(pool, ORDER, "shop", None, TERMS))[0].refid)
                due = "UPDATE payments SET next_check_at = now() - $2 * interval '1 second' WHERE refid = $1"
                await asyncio.to_thread(query, url, due, rows[-1], 60 - number)
            other = await asyncpg.connect(url)
            stopping = asyncio.Event()
            async with other.transaction():
                await other.execute("SELECT FROM payments WHERE refid = $1 FOR UPDATE", rows[4])
                running = asyncio.create_task(reconciler(pool, gateway, concurrency=2).run(stopping))
                await asyncio.sleep(1)
            await other.close()
            await asyncio.sleep(2)
            asked = {str(request.json["refid"]) for request in server.requests}
            stopping.set()
            await running
            return asked

    assert asyncio.run(run()) == set(rows)


def test_fault_44_a_claim_that_stood_in_line_too_long_is_given_up(url: str) -> None:
    """K-Pay takes so long for one answer that the next claim's lease would run out under way: it is not asked."""

    async def slow(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(10.5)
        await says({"statusid": "03"})(writer)

    async def run() -> list[str]:
        async with (
            databases(url, 1) as (pool,),
            serving(slow) as server,
            kpay.connect(server.endpoint(timeout=30)) as gateway,
        ):
            for _ in range(2):
                await record(pool, ORDER, "shop", None, TERMS)
            await asyncio.to_thread(query, url, "UPDATE payments SET next_check_at = now() - interval '1 minute'")
            stopping = asyncio.Event()
            running = asyncio.create_task(reconciler(pool, gateway, concurrency=1).run(stopping))
            await asyncio.sleep(12)
            stopping.set()
            await running
            return [str(request.json["refid"]) for request in server.requests]

    asked = asyncio.run(run())
    leased = query(url, "SELECT refid FROM payments WHERE leased_until > now()")
    assert len(asked) == 1
    assert [row["refid"] in asked for row in leased] == [False]


def test_fault_03_the_same_postback_from_many_processes_is_one_effect(url: str) -> None:
    """A hundred copies of one postback at four listeners are one effect, and none of a hundred others is lost."""

    async def run() -> str:
        async with AsyncExitStack() as stack:
            pools = await stack.enter_async_context(databases(url, 4))
            row, _ = await record(pools[0], ORDER, "shop", None, TERMS)
            inboxes = [Inbox(pool, Bell()) for pool in pools]
            await stack.enter_async_context(background(*(inbox.run() for inbox in inboxes)))
            same = [Postback(row.refid, PAID, Raw(Source.POSTBACK, b"same", "")) for _ in range(100)]
            others = [Postback(row.refid, PAID, Raw(Source.POSTBACK, f"{n}".encode(), "")) for n in range(100)]
            puts = [inboxes[n % 4].put(each) for n, each in enumerate([*same, *others])]
            assert all(stored is not None for stored in await asyncio.gather(*puts))
        return str(row.refid)

    refid = asyncio.run(run())
    entries = query(url, "SELECT seq FROM events WHERE refid = $1 ORDER BY seq", refid)
    assert [row["seq"] for row in entries] == list(range(1, 103))
    assert query(url, "SELECT count(*) AS n FROM bodies")[0]["n"] == 101


def test_nobody_waits_longer_than_two_seconds_and_the_inbox_goes_on(url: str) -> None:
    """Behind others of a payment that is locked a postback is given up in time; sent again, it is stored after all."""

    async def run() -> tuple[list[object], float, Row | None]:
        async with databases(url, 3) as (pool, other, holder):
            row, _ = await record(pool, ORDER, "shop", None, TERMS)
            *before, last = (Postback(row.refid, PAID, Raw(Source.POSTBACK, said, "")) for said in (b"1", b"2", b"3"))
            inbox, clock = Inbox(other, Bell()), asyncio.get_running_loop().time
            async with background(inbox.run()), holder.engine.connect() as connection:
                await connection.execute(text("SELECT 1 FROM payments WHERE refid = :of FOR UPDATE"), {"of": row.refid})
                puts = [asyncio.create_task(inbox.put(each)) for each in before]
                await asyncio.sleep(0.5)
                began = clock()
                puts.append(asyncio.create_task(inbox.put(last)))
                given_up = await asyncio.gather(*puts, return_exceptions=True)
                waited = clock() - began
                again = asyncio.create_task(inbox.put(last))
                await asyncio.sleep(0)
                await connection.rollback()
                return list(given_up), waited, await again

    given_up, waited, stored = asyncio.run(run())
    assert [type(each) for each in given_up] == [TimeoutError] * 3
    assert 1.9 < waited < 3.2
    assert stored is not None
    assert len(query(url, "SELECT 1 FROM bodies WHERE body = '3'")) == 1


def test_who_hangs_up_takes_nobody_along_and_leaves_the_postback(url: str) -> None:
    """Of two senders of one postback the first hangs up, and the only one of another: both postbacks are stored."""

    async def run() -> Row | None:
        async with databases(url, 1) as (pool,):
            row, _ = await record(pool, ORDER, "shop", None, TERMS)
            twice, once = (Postback(row.refid, PAID, Raw(Source.POSTBACK, said, "")) for said in (b"twice", b"once"))
            inbox = Inbox(pool, Bell())
            first, stays, alone = (asyncio.create_task(inbox.put(each)) for each in (twice, twice, once))
            await asyncio.sleep(0)
            first.cancel()
            alone.cancel()
            await asyncio.sleep(0)
            async with background(inbox.run()):
                stored = await stays
                await inbox.put(twice)  # in line behind the others
                return stored

    assert asyncio.run(run()) is not None
    assert query(url, "SELECT count(*) AS n FROM bodies")[0]["n"] == 2


def test_a_poisoned_row_fails_alone(url: str) -> None:
    """A postback that PostgreSQL refuses fails by itself; those that shared its statement are stored."""

    async def run() -> list[object]:
        async with databases(url, 1) as (pool,):
            rows = [(await record(pool, ORDER, "shop", None, TERMS))[0] for _ in range(5)]
            inbox = Inbox(pool, Bell())
            good = [Postback(row.refid, PAID, Raw(Source.POSTBACK, b"good", "")) for row in rows[1:]]
            bad = Postback(rows[0].refid, PAID, Raw(Source.POSTBACK, b"bad", "a\0content type"))
            puts = [asyncio.create_task(inbox.put(each)) for each in (bad, *good)]
            await asyncio.sleep(0)
            async with background(inbox.run()):
                return list(await asyncio.gather(*puts, return_exceptions=True))

    failed, *stored = asyncio.run(run())
    assert isinstance(failed, Exception)
    assert not any(isinstance(each, Exception) for each in stored)
    assert query(url, "SELECT count(*) AS n FROM bodies")[0]["n"] == 4


def test_one_momtransactionid_on_two_payments_at_once(url: str) -> None:
    """20 pairs learn the same momtransactionid at the same moment: both of each pair ask for a review."""

    async def run() -> None:
        async with databases(url, 2) as pools:
            intakes = [Intake(pool, POLICY, Bell()) for pool in pools]
            for number in range(20):
                rows = [(await record(pools[0], ORDER, "shop", None, TERMS))[0] for _ in range(2)]
                said = Evidence(Source.CHECKSTATUS, Says.PAID, tid="A", momtransactionid=f"m{number}", statusid="01")
                await asyncio.gather(
                    *(intake.take_in(row.refid, said) for intake, row in zip(intakes, rows, strict=True))
                )

    asyncio.run(run())
    flagged = query(url, "SELECT refid FROM payments WHERE review_reasons = '{momtransactionid_shared}'")
    assert len(flagged) == 40


def test_fault_41_callers_get_their_connections_in_turn(url: str) -> None:
    """40 callers want one of two connections, and come back for more: none is overtaken until it fails."""

    async def run() -> None:
        async with open_database(url, pool=2) as database:

            async def call() -> None:
                for _ in range(20):
                    async with database.autocommit() as connection:
                        await connection.execute(text("SELECT pg_sleep(0.004)"))

            await asyncio.gather(*(call() for _ in range(40)))

    asyncio.run(run())
