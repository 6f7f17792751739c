"""Screening: which rows of a table of predictions fulfil conditions such as `gap > 1.5 and e_hull <= 0.05`.

A condition compares names of columns and numbers by < <= > >= == !=, also in a chain (`1 < gap < 3`), joined by and,
or, not and brackets. A name that is not a plain word stands in quotes: `"elastic anisotropy" > 1`. A number that is nan
is not known: neither a comparison with it nor its opposite holds.
"""

from __future__ import annotations

import ast
import difflib
import operator
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from ase.data import atomic_numbers

from lrpot.errors import ConfigError, ShapeError

Table = Mapping[str, np.ndarray]

# Where a condition holds, and where it does not (n,); where something is not known neither is true.
_Truth = tuple[np.ndarray, np.ndarray]

_COMPARISONS: dict[type[ast.cmpop], Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


def select(
    table: Table,
    conditions: str | Sequence[str] = (),
    *,
    elements: Sequence[Collection[str]] | None = None,
    contains: Collection[str] = (),
    only: Collection[str] = (),
    without: Collection[str] = (),
    top: int | None = None,
    sort: str | None = None,
) -> np.ndarray:
    """Numbers of the rows that fulfil all conditions, the best first.

    Everything is checked on a table without rows too, hence before anything is predicted.

    The order is that of the column that the first comparison with a number names: large numbers first after > and >=,
    small ones after < and <= (`1 < gap < 3` begins with gap > 1, so large gaps come first). `sort` says it otherwise.
    Rows with equal numbers stay in the order of the table, and so do all rows if nothing names a column to sort by;
    numbers that are not known come last.

    Args:
        table: columns (n,) by name.
        conditions: see above; all of them must hold.
        elements: of each row, symbols; needed by the next three.
        contains: elements that must all be there.
        only: elements besides which none may be there.
        without: elements that must not be there.
        top: how many rows at most.
        sort: a column, ascending, or with a minus sign before it descending.
    Returns:
        (m,) row numbers.
    Raises:
        ConfigError: a condition cannot be read, or names an unknown column or element.
        ShapeError: columns differ in length.
    """
    table = {name: np.asarray(values, dtype=float) for name, values in table.items()}
    n = _length(table, elements)
    if top is not None and top < 1:
        raise ConfigError(f"top = {top}: choose 1 or more")
    conditions = [conditions] if isinstance(conditions, str) else conditions
    trees = [_parse(condition) for condition in conditions]
    chosen = _of_elements(elements, n, contains, only, without)
    for condition, tree in zip(conditions, trees, strict=True):
        chosen &= _Reader(condition, table, n).truth(tree)[0]
    rows = np.flatnonzero(chosen)
    if sort is not None:
        column, sign = _sort_column(sort, table)
    else:
        column, sign = next(filter(None, map(_first_limit, trees)), ("", 1))
    if column:
        rows = rows[np.argsort(sign * table[column][rows], kind="stable")]
    return rows[:top]


def _parse(condition: str) -> ast.expr:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a backslash in a name is the user's own
            return ast.parse(condition.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(
            f"condition {_shown(condition)} cannot be read; write it as gap > 1.5 and e_hull <= 0.05, with == for "
            'equal, and names that are not plain words in quotes: "elastic anisotropy" > 1'
        ) from error


class _Reader:
    """One condition, and the table that it is about."""

    def __init__(self, condition: str, table: Table, n: int) -> None:
        self.condition = condition
        self.table = table
        self.n = n

    def truth(self, node: ast.expr) -> _Truth:
        if isinstance(node, ast.BoolOp):
            parts = [self.truth(value) for value in node.values]
            of_yes, of_no = (np.all, np.any) if isinstance(node.op, ast.And) else (np.any, np.all)
            return of_yes([yes for yes, _ in parts], axis=0), of_no([no for _, no in parts], axis=0)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yes, no = self.truth(node.operand)
            return no, yes
        if isinstance(node, ast.Compare):
            return self._comparison(node)
        raise self._unreadable(node, "is no comparison")

    def _comparison(self, node: ast.Compare) -> _Truth:
        sides = [node.left, *node.comparators]
        if not any(_column(side) for side in sides):
            raise self._unreadable(node, "compares no column")
        values = [self._values(side) for side in sides]
        yes, no = np.ones(self.n, dtype=bool), np.zeros(self.n, dtype=bool)
        for operation, left, right in zip(node.ops, values, values[1:], strict=False):
            if type(operation) not in _COMPARISONS:
                raise self._unreadable(node, "has another comparison than < <= > >= == !=")
            known = ~np.isnan(left) & ~np.isnan(right)
            holds = _COMPARISONS[type(operation)](left, right)
            yes &= holds & known
            no |= ~holds & known
        return yes, no

    def _values(self, node: ast.expr) -> np.ndarray:
        name, number = _column(node), _number(node)
        if number is not None:
            return np.full(self.n, number)
        if name is None:
            raise self._unreadable(node, "is neither a column nor a number")
        if name not in self.table:
            raise ConfigError(f"condition {_shown(self.condition)}: {_unknown_column(name, self.table)}")
        return self.table[name]

    def _unreadable(self, node: ast.expr, why: str) -> ConfigError:
        part = ast.get_source_segment(self.condition.strip(), node) or self.condition
        return ConfigError(
            f"condition {_shown(self.condition)}: {_shown(part)} {why}; compare columns with numbers, as in gap > 1.5"
        )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:97] + "...")


def _column(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return None


def _number(node: ast.AST) -> float | None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _number(node.operand)
        return -value if value is not None and isinstance(node.op, ast.USub) else value
    # True is an int to Python, but no number to compare with
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        return float(node.value)
    return None


def _first_limit(node: ast.expr, above: int = -1) -> tuple[str, int] | None:
    """The column of the first comparison with a number by < or >, and the sign by which its best rows come first.

    Args:
        above: the sign after >, which `not` turns round.
    """
    if isinstance(node, ast.BoolOp):
        return next(filter(None, (_first_limit(value, above) for value in node.values)), None)
    if isinstance(node, ast.UnaryOp):
        return _first_limit(node.operand, -above)
    if not isinstance(node, ast.Compare):
        return None
    sides = [node.left, *node.comparators]
    for operation, left, right in zip(node.ops, sides, sides[1:], strict=False):
        if isinstance(operation, (ast.Eq, ast.NotEq)):
            continue
        sign = above if isinstance(operation, (ast.Gt, ast.GtE)) else -above
        for name, other, towards in ((_column(left), right, sign), (_column(right), left, -sign)):
            if name is not None and _number(other) is not None:
                return name, towards
    return None


def _sort_column(sort: str, table: Table) -> tuple[str, int]:
    if sort in table:
        return sort, 1
    if sort.startswith("-") and sort[1:] in table:
        return sort[1:], -1
    raise ConfigError(f"sort {sort!r}: {_unknown_column(sort.removeprefix('-'), table)}")


def _unknown_column(name: str, table: Table) -> str:
    near = difflib.get_close_matches(name, table, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(table)}"
    return f"there is no column {name}; {hint}"


def _length(table: Table, elements: Sequence[Collection[str]] | None) -> int:
    lengths = {name: values.shape for name, values in table.items()}
    if elements is not None:
        lengths["elements"] = (len(elements),)
    if len(set(lengths.values())) != 1 or len(next(iter(lengths.values()))) != 1:
        raise ShapeError(f"columns of a table must all be (n,), but they are {lengths}")
    return next(iter(lengths.values()))[0]


def _of_elements(
    elements: Sequence[Collection[str]] | None,
    n: int,
    contains: Collection[str],
    only: Collection[str],
    without: Collection[str],
) -> np.ndarray:
    wanted = {"contains": set(contains), "only": set(only), "without": set(without)}
    if not any(wanted.values()):
        return np.ones(n, dtype=bool)
    for what, symbols in wanted.items():
        unknown = sorted(symbols - (atomic_numbers.keys() - {"X"}))
        if unknown:
            raise ConfigError(f"{what}: {unknown[0]} is no element; give symbols such as Li,O,P")
    if elements is None:
        raise ConfigError("the table does not say which elements a row has; leave out contains, only and without")
    return np.array(
        [
            wanted["contains"] <= own and (not wanted["only"] or own <= wanted["only"]) and not wanted["without"] & own
            for own in map(set, elements)
        ],
        dtype=bool,
    )
