"""The rules of the schema: what is unique about a payment is unique with its refid, and nothing couples two tables."""

from collections.abc import Iterator, Sequence

from sqlalchemy import MetaData, PrimaryKeyConstraint, UniqueConstraint
from sqlalchemy.dialects.postgresql import ExcludeConstraint

from tests.statements.syntax import ABOUT_A_PAYMENT, KEY
from tests.support import query

_UNIQUE = (PrimaryKeyConstraint, UniqueConstraint, ExcludeConstraint)


def wrong_in_models(metadata: MetaData) -> Sequence[str]:
    """Return the keys of tables about payments that lack refid, and all that couples tables."""
    keys = [(table, columns) for table, columns in _keys(metadata) if table in ABOUT_A_PAYMENT]
    lacking = [f"{table}: {sorted(columns)} without {KEY}" for table, columns in keys if KEY not in columns]
    return lacking + [f"{table.name}: foreign key" for table in metadata.tables.values() if table.foreign_keys]


def _keys(metadata: MetaData) -> Iterator[tuple[str, set[str]]]:
    for table in metadata.tables.values():
        unique = [each for each in table.constraints if isinstance(each, _UNIQUE)]
        for each in (*unique, *(index for index in table.indexes if index.unique)):
            yield table.name, {column.name for column in each.columns}


_KEYS = """
SELECT c.relname || ': ' || i.relname || ' without refid' AS wrong
FROM pg_index AS x JOIN pg_class AS c ON c.oid = x.indrelid JOIN pg_class AS i ON i.oid = x.indexrelid
WHERE (x.indisunique OR x.indisexclusion) AND c.relname = ANY (CAST($1 AS text[])) AND NOT EXISTS (
    SELECT FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname = 'refid'
        AND a.attnum = ANY ((CAST(x.indkey AS int2[]))[0:x.indnkeyatts - 1]))
"""
_COUPLED = """
SELECT tgrelid::regclass || ': trigger ' || tgname AS wrong FROM pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT tablename || ': rule ' || rulename FROM pg_rules WHERE schemaname = current_schema()
UNION ALL SELECT conrelid::regclass || ': foreign key ' || conname FROM pg_constraint WHERE contype = 'f'
"""


def wrong_in_database(url: str) -> Sequence[str]:
    """Return the same of a database, as its catalogue has it."""
    rows = [*query(url, _KEYS, sorted(ABOUT_A_PAYMENT)), *query(url, _COUPLED)]
    return [str(row["wrong"]) for row in rows]
