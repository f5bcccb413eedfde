"""The rules that keep one PostgreSQL and a Citus cluster possible with the same statements, as a lint.

Why each stands is in docs/scaling.md. What is listed in `EXCEPTIONS` breaks a rule and runs on Citus all the same.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pglast import ast, parse_sql
from pglast.enums import ConstrType
from pglast.parser import ParseError

from tests.statements.syntax import (
    ABOUT_A_PAYMENT,
    JOINING,
    TABLES,
    Level,
    column,
    of_kind,
    table_names,
)

UNREADABLE = "PostgreSQL's parser does not take it"
LOCK = "rows about payments are locked by `refid = parameter` only, with or without SKIP LOCKED"
VOLATILE = "an UPDATE or DELETE calls now() and no other function in its SET and WHERE"
CONFLICT = "ON CONFLICT DO UPDATE SET calls no function"
SCALAR = "a scalar subquery does not depend on the query around it"
JOIN = "tables about payments are joined on refid"
UNNAMED = "an UPDATE or DELETE of rows about payments names their refids"
COUPLED = "no triggers, rules or foreign keys"

_STABLE = {"now"}
"""What may be called in an UPDATE. A list of the harmless: nobody remembers all that is volatile."""


@dataclass(frozen=True)
class Known:
    """Statements (those that `pattern` finds) that break `rule`, and the reason why that is no harm."""

    rule: str
    pattern: str
    reason: str


EXCEPTIONS: Sequence[Known] = (
    Known(
        UNNAMED,
        r"DELETE FROM (bodies|evidence) WHERE \(\1\.refid, \1\.digest\) > .+ AND NOT \(EXISTS",
        "kpayd prune walks the primary key in ranges: every shard deletes its own, once a day, and is joined on refid",
    ),
)


def broken(statement: str, exceptions: Sequence[Known] = EXCEPTIONS) -> Sequence[str]:
    """Return the rules that `statement` breaks."""
    known = {each.rule for each in exceptions if re.search(each.pattern, " ".join(statement.split()))}
    try:
        tree = [each.stmt for each in parse_sql(statement) if each.stmt is not None]
    except ParseError:
        return [UNREADABLE]
    return sorted(set(_broken(tree)) - known)


def _broken(tree: Sequence[ast.Node]) -> Iterator[str]:
    if any(_couples(each) for each in of_kind(tree, ast.Node)):
        yield COUPLED
    if not table_names(tree) & set(TABLES):
        return  # the catalogue, other people's tables
    if any(_depends(each) for each in of_kind(tree, ast.SubLink)):
        yield SCALAR
    for conflict in of_kind(tree, ast.OnConflictClause):
        if [*of_kind(conflict.targetList, ast.FuncCall), *of_kind(conflict.targetList, ast.SQLValueFunction)]:
            yield CONFLICT
    yield from _broken_by_queries(tree, _holding(tree))


def _broken_by_queries(tree: Sequence[ast.Node], holding: set[str]) -> Iterator[str]:
    selects, changes = list(of_kind(tree, ast.SelectStmt)), _changes(tree)
    levels = [(query, Level.of(query, holding)) for query in (*selects, *changes)]
    merged = [each for _, level in levels for each in level.merged]
    if any(_is_apart(level) for query, level in levels if not any(query is each for each in merged)):
        yield JOIN
    if any(query.lockingClause and _is_many(Level.of(query, holding)) for query in selects):
        yield LOCK
    for change in changes:
        values = change.targetList if isinstance(change, ast.UpdateStmt) else ()
        called = of_kind((values, change.whereClause), ast.FuncCall)
        if any(not each.funcname or each.funcname[-1].sval not in _STABLE for each in called):
            yield VOLATILE
        if _is_unnamed(change, Level.of(change, holding, alone=True)):
            yield UNNAMED


def _changes(tree: object) -> Sequence[ast.UpdateStmt | ast.DeleteStmt]:
    return (*of_kind(tree, ast.UpdateStmt), *of_kind(tree, ast.DeleteStmt))


def _couples(node: ast.Node) -> bool:
    foreign = isinstance(node, ast.Constraint) and node.contype == ConstrType.CONSTR_FOREIGN
    return foreign or isinstance(node, ast.CreateTrigStmt | ast.RuleStmt)


def _holding(tree: Sequence[ast.Node]) -> set[str]:
    """Return the names of the WITH queries that hold rows about payments, directly or through one before."""
    holding: set[str] = set()
    for each in of_kind(tree, ast.CommonTableExpr):
        if table_names(each.ctequery) & (ABOUT_A_PAYMENT | holding):
            holding.add(str(each.ctename))
    return holding


def _is_apart(level: Level) -> bool:
    """Whether there are two relations about payments that need not be about the same payment."""
    return bool(level.payments) and not level.payments <= level.joined(next(iter(level.payments)))


def _is_many(level: Level) -> bool:
    """Whether rows of more than one payment may be meant."""
    return not level.payments <= level.single


def _is_unnamed(query: ast.UpdateStmt | ast.DeleteStmt, level: Level) -> bool:
    """Whether rows about payments are changed whose refids nobody has said; a join says them."""
    table = query.relation
    if table is None or table.relname not in ABOUT_A_PAYMENT:
        return False
    name = str(table.alias.aliasname if table.alias else table.relname)
    return name not in level.single | level.listed and level.joined(name) == {name}


def _depends(link: ast.SubLink) -> bool:
    """Whether a scalar subquery speaks of a relation that is not its own."""
    if link.subLinkType in JOINING:
        return False
    tables = list(of_kind(link.subselect, ast.RangeVar))
    aliases = {str(each.aliasname) for each in of_kind(link.subselect, ast.Alias)}
    names = aliases | {str(each.relname) for each in tables if not each.alias}
    columns = {name for each in tables for name in TABLES.get(str(each.relname), ())}
    is_clear = all(each.relname in TABLES for each in tables)
    for found in map(column, of_kind(link.subselect, ast.ColumnRef)):
        table, name = found or ("", "")
        if (table and table not in names) or (name and not table and is_clear and name not in columns | aliases):
            return True
    return False
