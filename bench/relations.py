"""What PostgreSQL tells of tables and indexes: their size, and how many updates spared the indexes (HOT)."""

from collections.abc import Mapping

from tests.support import query

Updates = Mapping[str, tuple[int, int]]
"""Updates of each table since its statistics began: those that were HOT, and all."""

# Of a table in months, and of its indexes, all parts together.
_SIZES = """
SELECT w.relname AS name, w.relkind IN ('i', 'I') AS is_index, coalesce(t.relname, w.relname) AS of,
    sum(CASE c.relkind WHEN 'i' THEN pg_relation_size(c.oid) ELSE pg_table_size(c.oid) END)::bigint AS bytes
FROM pg_class AS c LEFT JOIN pg_inherits AS p ON p.inhrelid = c.oid
    JOIN pg_class AS w ON w.oid = coalesce(p.inhparent, c.oid)
    LEFT JOIN pg_index AS i ON i.indexrelid = w.oid LEFT JOIN pg_class AS t ON t.oid = i.indrelid
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'i')
GROUP BY 1, 2, 3 ORDER BY 3, 2, 1
"""
_UPDATES = """
SELECT coalesce(p.inhparent::regclass::text, s.relname) AS name, sum(n_tup_hot_upd)::bigint, sum(n_tup_upd)::bigint
FROM pg_stat_user_tables AS s LEFT JOIN pg_inherits AS p ON p.inhrelid = s.relid GROUP BY 1
"""


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
