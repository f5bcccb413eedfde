"""The lint of statements: for each rule one that keeps it and one that breaks it, and the schema's own rules."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Column, ForeignKey, Index, MetaData, PrimaryKeyConstraint, Table, Text, text
from sqlalchemy.dialects.postgresql import ExcludeConstraint

from app.database import Prepared, open_database
from app.models import metadata
from tests.statements.capture import sitecustomize as capture
from tests.statements.keys import wrong_in_database, wrong_in_models
from tests.statements.rules import (
    CONFLICT,
    COUPLED,
    EXCEPTIONS,
    JOIN,
    LOCK,
    SCALAR,
    UNNAMED,
    UNREADABLE,
    VOLATILE,
    broken,
)
from tests.statements.syntax import ABOUT_A_PAYMENT
from tests.support import query

GOOD = (
    "SELECT refid FROM payments WHERE refid = $1::VARCHAR FOR UPDATE SKIP LOCKED",
    "SELECT * FROM payments AS p WHERE p.refid = $1 AND p.attempt = $2 FOR UPDATE",
    "SELECT last FROM feed WHERE id = 1 FOR UPDATE",
    "UPDATE payments SET leased_until = now() + CAST($1 AS interval) WHERE payments.refid = ANY (CAST($2 AS text[]))",
    "UPDATE payments SET final_at = CURRENT_TIMESTAMP WHERE refid IN ($1, $2)",
    "INSERT INTO bodies (refid, digest) VALUES ($1, $2) ON CONFLICT (refid, digest) DO UPDATE SET source = 'x'",
    "INSERT INTO events (refid, seq, created_at) VALUES ($1, $2, clock_timestamp())",
    "SELECT refid FROM payments WHERE created_at = (SELECT max(e.created_at) FROM events AS e)",
    "SELECT * FROM payments JOIN events ON payments.refid = events.refid WHERE events.client = $1",
    "SELECT * FROM payments JOIN events USING (refid)",
    "SELECT * FROM payments AS p, events AS e WHERE p.refid = $1 AND e.refid = $1",
    "SELECT * FROM payments WHERE payments.refid IN (SELECT events.refid FROM events)",
    "SELECT * FROM deliveries JOIN clients ON clients.name = deliveries.client",
    (
        "SELECT * FROM events AS e JOIN (SELECT refid, max(seq) AS seq FROM deliveries GROUP BY refid) AS d"
        " ON d.refid = e.refid"
    ),
    "UPDATE events SET position = 1 FROM unnest($1::text[]) AS given (refid) WHERE events.refid = given.refid",
    "DELETE FROM deliveries USING payments AS p WHERE deliveries.refid = p.refid",
    "UPDATE clients SET revoked_at = now() WHERE name = $1",
    "CREATE TABLE more (refid text PRIMARY KEY)",
    "SELECT (SELECT d.x FROM pg_attrdef AS d WHERE d.adrelid = c.oid) FROM pg_class AS c",
    """
    WITH item AS (SELECT * FROM unnest($1::text[]) AS t (refid)),
    fresh AS (INSERT INTO bodies (refid) SELECT refid FROM item RETURNING refid)
    UPDATE payments AS p SET last_seq = 1 FROM item AS i LEFT JOIN fresh ON fresh.refid = i.refid
    WHERE p.refid = i.refid
    """,
)

BAD = (
    (LOCK, "SELECT refid FROM payments WHERE next_check_at < now() LIMIT 9 FOR UPDATE SKIP LOCKED"),
    (LOCK, "SELECT refid FROM payments WHERE refid = ANY ($1) FOR UPDATE"),
    (VOLATILE, "UPDATE payments SET next_check_at = clock_timestamp() WHERE refid = $1"),
    (VOLATILE, "UPDATE payments SET amount = 1 WHERE refid = $1 AND amount > random()"),
    (VOLATILE, "UPDATE payments SET attempt = md5(CAST(gen_random_uuid() AS text)) WHERE refid = $1"),
    (VOLATILE, "WITH x AS (UPDATE events SET position = nextval('s') WHERE refid = $1 RETURNING 1) SELECT * FROM x"),
    (CONFLICT, "INSERT INTO bodies (refid) VALUES ($1) ON CONFLICT (refid) DO UPDATE SET created_at = now()"),
    (CONFLICT, "INSERT INTO feed (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET since = CURRENT_TIMESTAMP"),
    (SCALAR, "SELECT (SELECT max(e.seq) FROM events AS e WHERE e.refid = p.refid) FROM payments AS p"),
    (SCALAR, "SELECT (SELECT count(*) FROM bodies WHERE digest = fingerprint) FROM payments"),
    (JOIN, "SELECT * FROM payments JOIN events ON payments.client = events.client"),
    (JOIN, "SELECT * FROM payments, events WHERE payments.refid = events.refid OR events.seq = 1"),
    (JOIN, "SELECT * FROM payments AS p, events AS e WHERE p.refid = $1 AND e.refid = $2"),
    (JOIN, "SELECT * FROM payments AS p WHERE EXISTS (SELECT 1 FROM payments WHERE payments.tid = p.tid)"),
    (JOIN, "SELECT * FROM payments WHERE EXISTS (SELECT 1 FROM payments WHERE payments.refid = $1)"),
    (JOIN, "SELECT * FROM payments WHERE payments.client IN (SELECT events.client FROM events)"),
    (JOIN, "WITH e AS (SELECT * FROM events) SELECT * FROM payments AS p JOIN e ON e.client = p.client"),
    (UNNAMED, "UPDATE payments SET status = $1 WHERE tid = $2"),
    (UNNAMED, "UPDATE payments SET status = $1 WHERE refid = $2 OR tid = $3"),
    (UNNAMED, "DELETE FROM bodies WHERE created_at < $1"),
    (UNNAMED, "DELETE FROM bodies"),
    (COUPLED, "CREATE TRIGGER t AFTER INSERT ON payments FOR EACH ROW EXECUTE FUNCTION f()"),
    (COUPLED, "CREATE RULE r AS ON DELETE TO payments DO INSTEAD NOTHING"),
    (COUPLED, "ALTER TABLE events ADD CONSTRAINT f FOREIGN KEY (refid) REFERENCES payments (refid) NOT VALID"),
    (COUPLED, "CREATE TABLE more (refid text REFERENCES payments)"),
    (UNREADABLE, "SELECT FROM WHERE"),
)


@pytest.mark.parametrize("statement", GOOD)
def test_a_statement_that_runs_on_citus_breaks_no_rule(statement: str) -> None:
    """What Citus takes is let through."""
    assert broken(statement) == []


@pytest.mark.parametrize(("rule", "statement"), BAD)
def test_a_statement_that_does_not_breaks_its_rule(rule: str, statement: str) -> None:
    """What Citus refuses, or sends to every shard, is found, and for nothing else."""
    assert broken(statement) == [rule]


def test_the_tables_about_payments_are_those_that_refid_leads() -> None:
    """Which tables are distributed follows from their primary keys."""
    assert {*ABOUT_A_PAYMENT} == {"payments", "events", "deliveries", "bodies", "evidence"}


def test_an_exception_has_a_reason_and_lets_one_rule_go() -> None:
    """A statement that is known is let through for the rule that it is known for, and without the list it is not."""
    statement = (
        "DELETE FROM bodies WHERE (bodies.refid, bodies.digest) > ($1, $2) AND bodies.created_at < $3"
        " AND NOT (EXISTS (SELECT * FROM payments WHERE payments.refid = bodies.refid))"
    )
    assert broken(statement) == []
    assert broken(statement, ()) == [UNNAMED]
    assert broken(statement.replace("payments.refid = bodies.refid", "true")) == [JOIN]
    assert all(each.reason for each in EXCEPTIONS)


def test_what_is_unique_about_a_payment_has_its_refid(new_database: Callable[[], str]) -> None:
    """Models and migrations alike: no key of a table about payments is without refid, and nothing couples tables."""
    assert wrong_in_models(metadata) == []
    assert wrong_in_database(new_database()) == []


def test_a_schema_that_citus_refuses_is_seen_in_the_models() -> None:
    """The test above can fail: a unique tid, an exclusion and a foreign key in the models are found."""
    models = MetaData()
    payments = Table("payments", models, Column("refid", Text), Column("tid", Text), PrimaryKeyConstraint("refid"))
    Index("payments_tid_key", payments.c.tid, unique=True)
    events = Table("events", models, Column("refid", Text, ForeignKey("payments.refid"), primary_key=True))
    events.append_constraint(ExcludeConstraint((events.c.refid, "=")))
    evidence = Table("evidence", models, Column("refid", Text), Column("digest", Text, primary_key=True))
    evidence.append_constraint(ExcludeConstraint((evidence.c.digest, "=")))
    assert sorted(wrong_in_models(models)) == [
        "events: foreign key",
        "evidence: ['digest'] without refid",
        "evidence: ['digest'] without refid",
        "payments: ['tid'] without refid",
    ]


def test_a_schema_that_citus_refuses_is_seen_in_the_database(new_database: Callable[[], str]) -> None:
    """The same of a catalogue: refid among the columns that an index only carries along is not enough."""
    url = new_database()
    for statement in (
        "CREATE UNIQUE INDEX payments_tid_key ON payments (tid) INCLUDE (refid)",
        "CREATE UNIQUE INDEX payments_good_key ON payments (tid, refid)",
        "ALTER TABLE evidence ADD CONSTRAINT once EXCLUDE (digest WITH =)",
        "ALTER TABLE events ADD CONSTRAINT of_payment FOREIGN KEY (refid) REFERENCES payments",
        "CREATE RULE kept AS ON DELETE TO payments DO INSTEAD NOTHING",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "CREATE TRIGGER t AFTER INSERT ON payments FOR EACH ROW EXECUTE FUNCTION f()",
    ):
        query(url, statement)
    assert sorted(wrong_in_database(url)) == [
        "events: foreign key of_payment",
        "evidence: once without refid",
        "payments: payments_tid_key without refid",
        "payments: rule kept",
        "payments: trigger t",
    ]


def test_what_a_child_sends_is_noted_though_it_is_killed(tmp_path: Path) -> None:
    """A process that imports SQLAlchemy notes each statement once, at once, without its parameters."""
    script = (
        "import os\n"
        "from sqlalchemy import create_engine, text\n"
        "with create_engine('sqlite://').connect() as connection:\n"
        "    for number in (1, 2):\n"
        "        connection.execute(text('SELECT :secret'), {'secret': number})\n"
        "    connection.execute(text('SELECT 2'))\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", script], check=False, env=os.environ | {capture.FOLDER: str(tmp_path)}
    )
    assert child.returncode == -9
    noted = [line for path in tmp_path.iterdir() for line in path.read_text().splitlines()]
    assert noted == ['"SELECT ?"', '"SELECT 2"']


def test_what_goes_by_the_driver_is_noted(new_database: Callable[[], str]) -> None:
    """A statement that SQLAlchemy never sees is looked at like any other one."""
    statement, url = "SELECT 'by the driver itself' AS words", new_database()

    async def sent() -> None:
        async with open_database(url, pool=1) as database, database.direct() as connection:
            assert [row.words for row in await Prepared(text(statement)).fetch(connection)] == ["by the driver itself"]

    asyncio.run(sent())
    noted = Path(os.environ[capture.FOLDER], f"{os.getpid()}.jsonl").read_text().splitlines()
    assert json.dumps(statement) in noted
