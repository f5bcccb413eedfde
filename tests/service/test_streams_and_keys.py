"""What an adversary found of streams, waits and notifications, and does not find any more."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx2

from tests.conftest import QUICK
from tests.receiver import Got, run_receiver
from tests.support import Json, Service, Simulator, eventually, new_refid, payment, query, run_command, run_service

NEVER_ACTS = "250780000005"
ORDER = "SELECT refid, seq, position FROM events WHERE position IS NOT NULL ORDER BY position"


def hooked(service: Service, name: str, url: str) -> httpx2.Client:
    """Return a new client's HTTP client; it is notified at `url`."""
    key = service.new_key(name)
    env = {**service.env, "KPAYD_WEBHOOK_HOSTS": "127.0.0.1"}
    assert run_command(env, "clients", "webhook", name, url).returncode == 0
    return service.client(key)


def test_a_revoked_key_ends_its_streams_and_waits(service: Service) -> None:
    """After revoking, a stream that is open shows no further event and ends, and a call that waits is 401."""
    name = f"revoked-{new_refid()}"
    with service.client(service.new_key(name)) as http:
        refid = http.post("/v1/payments", json=payment(NEVER_ACTS)).json()["refid"]
        ended, waited = threading.Event(), []

        def listen() -> None:
            with http.stream("GET", "/v1/events/stream") as stream:
                for _ in stream.iter_raw():
                    pass
            ended.set()

        def wait() -> None:
            waited.append(http.get(f"/v1/payments/{refid}", params={"wait": 14}).status_code)

        threads = [threading.Thread(target=each) for each in (listen, wait)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        assert run_command(service.env, "clients", "revoke", name).returncode == 0
        for thread in threads:
            thread.join(24)  # by its next heartbeat
        assert ended.is_set()
        assert waited == [httpx2.codes.UNAUTHORIZED]


def test_fault_49_two_clients_of_one_host_delay_each_other_by_nothing(
    new_database: Callable[[], str], simulator: Simulator, tmp_path: Path
) -> None:
    """A receiver that hangs holds up no other client's, though both stand behind one host and port."""
    more = QUICK | {"WEBHOOK_HOSTS": "127.0.0.1", "WEBHOOK_TIMEOUT": "6", "WEBHOOK_CONCURRENCY": "4"}

    def answer(got: Got) -> tuple[int, dict[str, str]]:
        if got.path == "/slow":
            time.sleep(8)
        return 200, {}

    with run_receiver(answer) as receiver, run_service(tmp_path, new_database(), simulator, more) as service:
        base = receiver.url.removesuffix("/hook")
        with hooked(service, "slow", f"{base}/slow") as slow, hooked(service, "fast", f"{base}/fast") as fast:
            time.sleep(1.5)
            for _ in range(6):
                slow.post("/v1/payments", json=payment(NEVER_ACTS)).raise_for_status()
            eventually(lambda: sum(got.path == "/slow" for got in receiver.got) >= 4)
            refid = fast.post("/v1/payments", json=payment(NEVER_ACTS)).json()["refid"]
            began = time.monotonic()
            eventually(lambda: receiver.of(refid), seconds=15, every=0.02)
            assert time.monotonic() - began < 4


def test_what_an_old_url_answers_late_says_nothing_of_the_new_one(
    new_database: Callable[[], str], simulator: Simulator, tmp_path: Path
) -> None:
    """A 410 that comes after the URL was changed does not disable the new one."""
    moved = threading.Event()

    def gone(_: Got) -> tuple[int, dict[str, str]]:
        moved.wait(12)
        return 410, {}

    more = QUICK | {"WEBHOOK_HOSTS": "127.0.0.1", "WEBHOOK_SCHEDULE": "0.2,0.3", "WEBHOOK_TIMEOUT": "15"}
    with (
        run_receiver(gone) as old,
        run_receiver() as new,
        run_service(tmp_path, new_database(), simulator, more) as service,
        hooked(service, "moving", old.url) as http,
    ):
        time.sleep(1.5)
        refid = http.post("/v1/payments", json=payment(NEVER_ACTS)).json()["refid"]
        eventually(lambda: old.got)
        env = {**service.env, "KPAYD_WEBHOOK_HOSTS": "127.0.0.1"}
        assert run_command(env, "clients", "webhook", "moving", new.url).returncode == 0
        moved.set()
        eventually(lambda: new.of(refid), seconds=20)
        sql = "SELECT webhook_disabled_at FROM clients WHERE name = 'moving'"
        assert query(service.database_url, sql)[0][0] is None


def test_history_does_not_hold_up_the_news(
    new_database: Callable[[], str], simulator: Simulator, tmp_path: Path
) -> None:
    """Events from before there was a feed come into it after what happens now, and nobody is notified of them."""
    url = new_database()
    with run_receiver() as receiver:
        with run_service(tmp_path, url, simulator, QUICK, "--no-worker") as service:
            old: Json = service.start(NEVER_ACTS)
        query(url, "UPDATE events SET created_at = created_at - interval '1 day'")
        many = "SELECT 'h' || n, 1, 'payment.created', 'caller', 'created', now() - interval '1 day' FROM {}"
        columns = "(refid, seq, type, source, status, created_at)"
        names = ", ".join(
            row[0]
            for row in query(
                url,
                "SELECT column_name FROM information_schema.columns "
                "WHERE table_name = 'payments' AND column_name <> 'refid'",
            )
        )
        query(
            url,
            f"INSERT INTO payments (refid, {names}) SELECT 'h' || n, {names} FROM payments, "  # noqa: S608 - our own
            "generate_series(1, 3000) AS n WHERE refid = $1",
            old["refid"],
        )
        query(url, f"INSERT INTO events {columns} {many.format('generate_series(1, 3000) AS n')}")
        env = {"WEBHOOK_HOSTS": "127.0.0.1"}
        with (
            run_service(tmp_path, url, simulator, QUICK | env, "--no-worker") as service,
            hooked(service, "newcomer", receiver.url) as http,
        ):
            new = http.post("/v1/payments", json=payment(NEVER_ACTS)).json()["refid"]
        with run_service(tmp_path, url, simulator, QUICK | env):
            eventually(lambda: receiver.of(new), seconds=20)
            eventually(lambda: len(query(url, ORDER)) >= 3000, seconds=30)
        positions = query(url, ORDER)
        assert positions[0]["refid"] == new
        assert [row["position"] for row in positions] == list(range(1, len(positions) + 1))
        assert {got.json["data"]["refid"] for got in receiver.got} == {new}


def test_a_feed_whose_row_is_missing_goes_on_where_it_was(
    new_database: Callable[[], str], simulator: Simulator, tmp_path: Path
) -> None:
    """Data restored without the feed's own row: positions go on after the last one, and no process ends."""
    url = new_database()
    with run_service(tmp_path, url, simulator, QUICK) as service:
        first = service.start(NEVER_ACTS)["refid"]
        eventually(lambda: len(query(url, ORDER)) == 2)
        query(url, "DELETE FROM feed")
        second = service.start(NEVER_ACTS)["refid"]
        eventually(lambda: len(query(url, ORDER)) == 4)
        assert [row["position"] for row in query(url, ORDER)] == [1, 2, 3, 4]
        items = service.http.get("/v1/events").json()["items"]
        assert [item["refid"] for item in items] == [first, first, second, second]
