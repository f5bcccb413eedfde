"""Citus: where the tables are placed. There is no cluster here: a stand-in extension notes what it is told to do."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from app.cluster import PLACES, placing
from app.models import metadata
from app.schema import migrate
from tests.statements.syntax import ABOUT_A_PAYMENT
from tests.support import query

LOCAL = {"feed", "client_events"}

CONTROL = "default_version = '1.0'\nrelocatable = false\nschema = public\n"
SCRIPT = """
CREATE TABLE pg_dist_partition (logicalrelid regclass PRIMARY KEY, partmethod "char", told text);
CREATE FUNCTION create_distributed_table(table_name regclass, distribution_column text,
    distribution_type text DEFAULT 'hash', colocate_with text DEFAULT 'default', shard_count int DEFAULT NULL)
RETURNS void LANGUAGE sql AS
$$ INSERT INTO pg_dist_partition VALUES (table_name, 'h', distribution_column || ' ' || colocate_with) $$;
CREATE FUNCTION create_reference_table(table_name regclass) RETURNS void LANGUAGE sql AS
$$ INSERT INTO pg_dist_partition VALUES (table_name, 'n', 'everywhere') $$;
"""


def test_every_table_has_its_place() -> None:
    """A new table is placed, or said to stay; those about payments are placed by refid, beside their payment."""
    assert set(PLACES) | LOCAL == set(metadata.tables)
    assert not set(PLACES) & LOCAL
    assert {name for name, call in PLACES.items() if "'refid'" in call} == ABOUT_A_PAYMENT
    assert next(iter(PLACES)) == "payments"
    for name in ABOUT_A_PAYMENT - {"payments"}:
        assert PLACES[name].endswith("colocate_with => 'payments')")


def test_what_is_placed_stays_where_it_is() -> None:
    """Only what is not in the catalogue is placed; with all of it there, nothing is done."""
    assert placing([]) == [f"SELECT {call}" for call in PLACES.values()]
    assert placing(["payments", "clients", "somebody_elses"]) == [
        f"SELECT {PLACES[name]}" for name in ("events", "deliveries", "evidence", "bodies", "claims")
    ]
    assert placing([*PLACES]) == []


@pytest.fixture
def stand_in(single: str) -> Iterator[str]:
    """Return a migrated database with an extension that is called `citus`, and is none."""
    url = single
    if not query(url, "SELECT 1 FROM pg_settings WHERE name = 'extension_control_path'"):
        pytest.skip("before version 18, PostgreSQL takes extensions from its own folder only")
    with tempfile.TemporaryDirectory(prefix="kpayd-citus-") as name:
        folder = Path(name, "extension")
        folder.mkdir()
        folder.parent.chmod(0o755)  # the server runs as somebody else where we are root
        (folder / "citus.control").write_text(CONTROL)
        (folder / "citus--1.0.sql").write_text(SCRIPT)
        query(url, f"ALTER DATABASE {urlsplit(url).path[1:]} SET extension_control_path = '{name}:$system'")
        if not query(url, "SELECT 1 FROM pg_available_extensions WHERE name = 'citus' AND default_version = '1.0'"):
            pytest.skip("the server is on another machine")
        query(url, "CREATE EXTENSION citus")
        yield url


def test_migrating_places_the_tables_where_citus_is(stand_in: str) -> None:
    """`kpayd migrate` places each table once where the extension is; a second run finds nothing left to do."""
    for _ in range(2):
        migrate(stand_in)
        told = {row[0]: row[1] for row in query(stand_in, "SELECT logicalrelid::text, told FROM pg_dist_partition")}
        assert told == {
            "payments": "refid none",
            "events": "refid payments",
            "deliveries": "refid payments",
            "evidence": "refid payments",
            "bodies": "refid payments",
            "claims": "value none",
            "clients": "everywhere",
        }


def test_one_postgresql_is_left_as_it_is(single: str) -> None:
    """Without the extension `kpayd migrate` asks for it, and does nothing more."""
    migrate(single)
    assert query(single, "SELECT to_regclass('pg_dist_partition') AS it")[0]["it"] is None
