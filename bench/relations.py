"""What PostgreSQL tells of tables and indexes: their size, and how many updates spared the indexes (HOT)."""

from collections.abc import Mapping

from tests.support import query

Updates = Mapping[str, tuple[int, int]]
"""Updates of each table since its statistics began: those that were HOT, and all."""

_SIZES = """
SELECT c.relname AS name, c.relkind = 'i' AS is_index, coalesce(t.relname, c.relname) AS of,
    CASE c.relkind WHEN 'i' THEN pg_relation_size(c.oid) ELSE pg_table_size(c.oid) END AS bytes
FROM pg_class AS c LEFT JOIN pg_index AS i ON i.indexrelid = c.oid LEFT JOIN pg_class AS t ON t.oid = i.indrelid
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'i')
ORDER BY 3, 2, 1
"""
_UPDATES = "SELECT relname, n_tup_hot_upd, n_tup_upd FROM pg_stat_user_tables"


def sizes(url: str) -> Mapping[str, int]:
    """Return the bytes of every table (with its TOAST, without its indexes) and index, each table before its own."""
    return {row["name"]: row["bytes"] for row in query(url, _SIZES)}


def updates(url: str) -> Updates:
    """Return the updates of every table; what a connection has just done may be missing for a second."""
    return {name: (hot, every) for name, hot, every in query(url, _UPDATES)}


def updated(before: Updates, after: Updates) -> Mapping[str, str]:
    """Return for every table the share of its updates in between that were HOT, or a dash where there were none."""
    shares = {}
    for table, (hot, every) in after.items():
        early_hot, early = before.get(table, (0, 0))
        shares[table] = f"{(hot - early_hot) / (every - early):.2f}" if every > early else "-"
    return shares
