"""Statements as PostgreSQL's own parser reads them, and what the rules ask of them: which tables, joined how."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from pglast import ast
from pglast.enums import A_Expr_Kind, BoolExprType, SubLinkType

from app.models import metadata

KEY = "refid"
TABLES: Mapping[str, frozenset[str]] = {
    table.name: frozenset(column.name for column in table.columns) for table in metadata.tables.values()
}
ABOUT_A_PAYMENT = frozenset(
    table.name for table in metadata.tables.values() if next(iter(table.primary_key.columns)).name == KEY
)
"""Those that a Citus cluster distributes by refid."""

Query: TypeAlias = ast.SelectStmt | ast.UpdateStmt | ast.DeleteStmt
JOINING = (SubLinkType.EXISTS_SUBLINK, SubLinkType.ANY_SUBLINK)
N = TypeVar("N", bound=ast.Node)


def nodes(tree: object, *, without: tuple[type, ...] = ()) -> Iterator[ast.Node]:
    """Yield every node of `tree`, outer ones first; what is below one of the types `without` is left out."""
    if isinstance(tree, tuple | list):
        for each in tree:
            yield from nodes(each, without=without)
    elif isinstance(tree, ast.Node):
        yield tree
        if not isinstance(tree, without):
            for name in tree:
                yield from nodes(getattr(tree, name), without=without)


def of_kind(tree: object, kind: type[N], *, without: tuple[type, ...] = ()) -> Iterator[N]:
    """Yield every node of `tree` that is a `kind`."""
    return (node for node in nodes(tree, without=without) if isinstance(node, kind))


def table_names(tree: object) -> set[str]:
    """Return the names that stand in `tree` where a table can stand."""
    return {str(each.relname) for each in of_kind(tree, ast.RangeVar)}


def conjuncts(condition: object) -> Iterator[ast.Node]:
    """Yield the parts of `condition` that all must hold."""
    if isinstance(condition, ast.BoolExpr) and condition.boolop == BoolExprType.AND_EXPR:
        for each in condition.args or ():
            yield from conjuncts(each)
    elif isinstance(condition, ast.Node):
        yield condition


def bare(node: object) -> object:
    """Return `node` without casts."""
    while isinstance(node, ast.TypeCast):
        node = node.arg
    return node


def is_given(node: object) -> bool:
    """Whether `node` is known before the statement runs: a parameter, a constant, or an array of these."""
    node = bare(node)
    if isinstance(node, ast.A_ArrayExpr):
        return all(is_given(each) for each in node.elements or ())
    return isinstance(node, ast.ParamRef | ast.A_Const)


def column(node: object) -> tuple[str, str] | None:
    """Return the table (empty where it is not said) and the name of a column, or None where `node` is none."""
    if not isinstance(node, ast.ColumnRef):
        return None
    fields = node.fields or ()
    words = [str(each.sval) for each in fields if isinstance(each, ast.String)]
    return (words[-2] if len(words) > 1 else "", words[-1]) if len(words) == len(fields) else None


@dataclass
class Level:
    """One query with what EXISTS and IN join to it: its relations, and which of them have the same refid."""

    payments: set[str] = field(default_factory=set)
    """The relations that hold rows about payments."""
    others: set[str] = field(default_factory=set)
    single: set[str] = field(default_factory=set)
    """The relations that are of one refid, which is known before."""
    listed: set[str] = field(default_factory=set)
    """The relations that are of some refids, which are known before."""
    same: list[tuple[str, str]] = field(default_factory=list)
    merged: list[ast.Node] = field(default_factory=list)
    """The queries that EXISTS and IN have brought in."""
    alone: bool = False

    @classmethod
    def of(cls, query: Query, holding: set[str], *, alone: bool = False) -> "Level":
        """Read `query`, if `alone` without what EXISTS and IN join to it.

        `holding` are the names of WITH queries that hold rows about payments.
        """
        level = cls(alone=alone)
        level._read(query, holding)
        return level

    def _read(self, query: Query, holding: set[str]) -> None:
        if isinstance(query, ast.SelectStmt):
            sources = query.fromClause
        else:
            sources = (
                query.relation,
                *((query.fromClause if isinstance(query, ast.UpdateStmt) else query.usingClause) or ()),
            )
        for source in sources or ():
            self._add(source, holding)
        self._hold(query.whereClause, holding)

    def _add(self, source: object, holding: set[str]) -> set[str]:
        """Add one item of a FROM and return its relations."""
        if isinstance(source, ast.JoinExpr):
            left, right = self._add(source.larg, holding), self._add(source.rarg, holding)
            if any(each.sval == KEY for each in source.usingClause or ()):
                self.same += [(one, other) for one in left for other in right]
            self._hold(source.quals, holding)
            return left | right
        alias = getattr(source, "alias", None)
        name = alias.aliasname if alias else getattr(source, "relname", "")
        while name in self.payments | self.others:
            name += "'"  # the same name further in: what is said of it is said of one of them
        if isinstance(source, ast.RangeVar):
            holds = source.relname in ABOUT_A_PAYMENT | holding
        else:
            holds = bool(table_names(source) & (ABOUT_A_PAYMENT | holding))
        (self.payments if holds else self.others).add(name)
        return {name}

    def _hold(self, condition: object, holding: set[str]) -> None:
        for each in conjuncts(condition):
            if isinstance(each, ast.A_Expr) and each.name and each.name[-1].sval == "=":
                self._equal(each)
        for link in of_kind(condition, ast.SubLink, without=(ast.SubLink,)):
            query = link.subselect
            if self.alone or link.subLinkType not in JOINING or not isinstance(query, ast.SelectStmt):
                continue
            self.merged.append(query)
            self._read(query, holding)
            if link.subLinkType == SubLinkType.ANY_SUBLINK and query.targetList:
                self._join(self._keyed(link.testexpr), self._keyed(query.targetList[0].val))

    def _equal(self, equation: ast.A_Expr) -> None:
        left, right = equation.lexpr, equation.rexpr
        for one, other in ((left, right), (right, left)):
            name = self._keyed(one)
            if name and equation.kind == A_Expr_Kind.AEXPR_OP and is_given(other):
                self.single.add(name)
                number = getattr(bare(other), "number", None)
                self.same += [(name, f"${number}")] if number else []
            elif (name and isinstance(other, tuple) and all(is_given(each) for each in other)) or (
                name and equation.kind == A_Expr_Kind.AEXPR_OP_ANY and is_given(other)
            ):
                self.listed.add(name)
        if equation.kind == A_Expr_Kind.AEXPR_OP:
            self._join(self._keyed(left), self._keyed(right))

    def _keyed(self, node: object) -> str | None:
        """Return the relation whose refid `node` is; without a name it is clear where there is one relation only."""
        table, name = column(bare(node)) or ("", "")
        if name != KEY:
            return None
        relations = self.payments | self.others
        return table or (next(iter(relations)) if len(relations) == 1 else None)

    def _join(self, one: str | None, other: str | None) -> None:
        if one and other and one != other:
            self.same.append((one, other))

    def joined(self, name: str) -> set[str]:
        """Return all that has the same refid as the relation `name`."""
        found, before = {name}, set[str]()
        while found != before:
            before = set(found)
            found |= {each for pair in self.same if found & set(pair) for each in pair}
        return found
