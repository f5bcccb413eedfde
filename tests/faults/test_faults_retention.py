"""Personal data does not pile up: `kpayd prune` takes it out and leaves what finance and disputes need."""

import json
from collections.abc import Callable

import pytest

from tests.conftest import QUICK
from tests.support import Json, Service, Simulator, eventually, payment, query, run_command, run_service

PAYER = {"number": "250788765432", "email": "uwase.private@example.rw", "cname": "UWASE PRIVATE", "details": "pills"}
AGE = """UPDATE payments SET created_at = created_at - interval '400 days', final_at = final_at - interval '400 days'
         WHERE refid = ANY($1::text[])"""


def rows(url: str) -> str:
    """Return every row about payments as text: what a dump would show."""
    tables = ("payments", "events", "bodies", "evidence", "claims")
    parts = [str(query(url, f"SELECT t::text, encode(t::text::bytea, 'escape') FROM {name} t")) for name in tables]  # noqa: S608
    said = query(url, "SELECT body FROM bodies UNION ALL SELECT body FROM evidence")
    return "".join([*parts, *(row["body"].decode() for row in said)])


def _ended(service: Service, **more: object) -> Json:
    wanted = {"email": PAYER["email"], "cname": PAYER["cname"], "details": PAYER["details"]} | more
    refid = service.start(PAYER["number"], metadata={"note": "private"}, **wanted)["refid"]
    return service.read(refid, wait=15)


def test_fault_63_old_payments_lose_their_personal_data(
    new_database: Callable[[], str], simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of a payment that is long over the payer's data and the raw bodies go, and what finance needs stays readable."""
    folder = tmp_path_factory.mktemp("prune")
    with run_service(folder, new_database(), simulator, QUICK) as service:
        url = service.database_url
        old, reviewed, young = (_ended(service, refid=name) for name in ("old", "reviewed", "young"))
        key = {"Idempotency-Key": "order 7"}
        by_key = service.http.post("/v1/payments", json=payment(), headers=key).json()["refid"]
        still_open = service.start("250780000005")["refid"]
        service.read(by_key, wait=15)
        eventually(lambda: not query(url, "SELECT 1 FROM payments WHERE status = 'created'"))
        query(url, "UPDATE payments SET review_reasons = '{contradiction}' WHERE refid = 'reviewed'")
        query(url, AGE, ["old", "reviewed", by_key, still_open])
        query(
            url,
            """INSERT INTO bodies (refid, digest, month, source, body, content_type, created_at)
               VALUES ('stray', 'x', '-infinity', 'postback', '250788765432', '', now() - interval '400 days')""",
        )
        # What the version before kept, in its own table: of a payment that is over, and of none.
        before = (
            "INSERT INTO evidence (refid, digest, source, body, content_type, created_at) SELECT refid, digest, source"
        )
        query(url, f"{before}, body, '', created_at FROM bodies WHERE refid IN ('old', 'young', 'stray')")

        counted = run_command(service.env, "prune", "--older-than", "365", "--dry-run", "--json")
        assert json.loads(counted.stdout) == {"payments": 2, "strays": 2, "months": 0, "left": []}
        assert run_command(service.env, "prune", "--older-than", "365", "--json").stdout == counted.stdout
        again = run_command(service.env, "prune", "--older-than", "365")
        assert "0 payments lost" in again.stdout

        after = service.read("old")
        kept = ("refid", "amount", "currency", "pmethod", "bankid", "status", "tid", "momtransactionid", "statusid")
        assert [after[name] for name in kept] == [old[name] for name in kept]
        assert {after[name] for name in ("msisdn", "email", "cname", "cnumber", "details", "redirecturl")} == {""}
        assert (after["metadata"], after["payaccount"]) == ({}, None)
        assert "payment.succeeded" in [event["type"] for event in service.events("old")]
        # Left alone: what asks for a review, what is young and what is open.
        assert service.read("reviewed")["msisdn"] == reviewed["msisdn"] == young["msisdn"]
        assert service.read("young")["email"] == PAYER["email"]
        assert service.read(still_open)["email"]
        # The same key is the same payment for ever, and K-Pay's late word finds its payment.
        again_by_key = service.http.post("/v1/payments", json=payment(), headers=key)
        assert (again_by_key.status_code, again_by_key.json()["refid"]) == (200, by_key)
        assert service.postback("old", statusid="01").json()["reply"] == "OK"
        # What comes late makes it one to prune again; the same words again are no news.
        assert service.postback("old", statusid="01").json()["reply"] == "OK"
        query(url, "UPDATE payments SET next_check_at = NULL WHERE refid = 'old'")
        assert json.loads(run_command(service.env, "prune", "--older-than", "365", "--json").stdout)["payments"] == 1
        said = len(service.events("old"))
        assert service.postback("old", statusid="01").json()["reply"] == "OK"
        assert len(service.events("old")) == said
        query(url, "DELETE FROM payments WHERE refid IN ('reviewed', 'young')")
        query(url, "DELETE FROM bodies WHERE refid IN ('reviewed', 'young')")
        query(url, "DELETE FROM evidence WHERE refid = 'young'")
        query(url, "DELETE FROM events WHERE refid IN ('reviewed', 'young')")
        left = rows(url)
        assert not [word for word in PAYER.values() if word in left]


def test_fault_63_nothing_young_can_be_pruned() -> None:
    """An age under 30 days is refused with a clear word: a slip of the finger must not cost a dispute its evidence."""
    env = {"KPAYD_DATABASE_URL": "postgresql://127.0.0.1:9/none"}
    refused = run_command(env, "prune", "--older-than", "3")
    assert refused.returncode == 2
    assert "30" in refused.stderr
