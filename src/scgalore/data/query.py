"""Selects cells by a query on ``obs``, such as ``is_primary_data and disease == 'normal'``.

The syntax is that of :meth:`pandas.DataFrame.query`, restricted to expressions that cannot run code or access anything
but the table: comparisons, ``and``, ``or``, ``not``, ``in``, parentheses, literals, arithmetic, and column names. The
text is parsed but never evaluated by Python, so it may come from a file or the command line.
"""

from __future__ import annotations

import ast
import operator
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgalore._words import few
from scgalore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

__all__ = ["Query"]

LONGEST = 10_000
"""Maximum number of characters of a query."""

_COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_COMPUTED: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}

# Names in backticks can be any text; backticks within quotes belong to the text.
_QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|`([^`]+)`""")


@dataclass(frozen=True)
class Query:
    """Parsed query.

    Attributes
    ----------
    text
        The query as passed.
    columns
        Unique names of the columns it reads.
    """

    text: str
    columns: tuple[str, ...]
    _tree: ast.expr
    _names: Mapping[str, str]

    @classmethod
    def of(cls, text: str) -> Query:
        """Parse a query.

        Parameters
        ----------
        text
            For example ``"is_primary_data and disease in ['normal', 'COVID-19'] and n_genes > 500"``. Put column names
            that are not valid Python names in backticks.

        Raises
        ------
        OptionError
            If it is not a valid query.
        """
        if not isinstance(text, str) or not text.strip():
            msg = f"where={text!r}: it must be a query on obs, such as \"is_primary_data and disease == 'normal'\"."
            raise OptionError(msg)
        if len(text) > LONGEST:
            raise OptionError(
                _wrong(f"{text[:60]}...", f"it has {len(text):,} characters, expected at most {LONGEST:,}")
            )
        names: dict[str, str] = {}

        def named(found: re.Match[str]) -> str:
            if found[1] is None:
                return found[0]
            names[key := f"_in_backticks_{len(names)}"] = found[1]
            return f" {key} "

        try:
            tree = ast.parse(_QUOTED.sub(named, text).strip(), mode="eval").body
            read = _Checked(text, names)
            read.check(tree)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            if isinstance(error, OptionError):
                raise
            what = (
                error.msg
                if isinstance(error, SyntaxError)
                else "it is nested too deeply or contains invalid characters"
            )
            raise OptionError(
                _wrong(text, f"{what}. Put names that are not valid Python names in `backticks`")
            ) from error
        if not read.columns:
            raise OptionError(_wrong(text, "it contains no column of obs"))
        return cls(text, tuple(dict.fromkeys(read.columns)), tree, names)

    def rows(self, columns: Mapping[str, pd.Series]) -> NDArray[np.bool_]:
        """Select cells, bool ``(n_obs,)``. Comparisons with a missing value are false, except ``!=`` and ``not in``.

        Parameters
        ----------
        columns
            Values of each column in :attr:`columns`, one per cell.

        Raises
        ------
        OptionError
            If the query compares incompatible values.
        """
        n_obs = len(next(iter(columns.values())))
        with np.errstate(all="ignore"):
            found = _Evaluated(self.text, self._names, columns, n_obs).truth(self._tree)
        return np.broadcast_to(found, n_obs).copy()


def _wrong(text: str, what: str) -> str:
    return f"where={text!r}: {what}."


class _Checked:
    """Rejects unsupported expressions and collects the columns."""

    def __init__(self, text: str, names: Mapping[str, str]) -> None:
        self.text, self.names = text, names
        self.columns: list[str] = []

    def check(self, node: ast.AST) -> None:
        match node:
            case ast.Name(id=name):
                self.columns.append(self.names.get(name, name))
                return
            case ast.Constant(value=value) if isinstance(value, str | int | float | None):
                return
            case ast.List(elts=parts) | ast.Tuple(elts=parts):
                if not all(isinstance(part, ast.Constant | ast.UnaryOp) for part in parts):
                    self.refuse(node, "a list can only contain literals")
            case ast.BoolOp(values=parts):
                pass
            case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.UAdd(), operand=part):
                parts = [part]
            case (
                ast.BinOp(left=left, op=ast.BitAnd() | ast.BitOr() | ast.BitXor())
                | ast.UnaryOp(op=ast.Invert(), operand=left)
            ):
                self.refuse(node, "use and, or and not")
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _COMPUTED:
                parts = [left, right]
            case ast.Compare(left=left, ops=ops, comparators=others):
                parts = [left, *others]
                for compared, right in zip(ops, others, strict=True):
                    if isinstance(compared, ast.In | ast.NotIn) != isinstance(right, ast.List | ast.Tuple):
                        self.refuse(node, "lists of literals can only follow in or not in")
                    if not isinstance(compared, ast.In | ast.NotIn) and type(compared) not in _COMPARED:
                        self.refuse(node, "use == or !=")
                if isinstance(left, ast.List | ast.Tuple):
                    self.refuse(node, "use a list only after in or not in")
            case _:
                self.refuse(
                    node,
                    "only comparisons, and, or, not, in, parentheses, literals and arithmetic with columns are supported",
                )
        for part in parts:
            self.check(part)

    def refuse(self, node: ast.AST, what: str) -> None:
        raise OptionError(_wrong(self.text, f"{ast.unparse(node)!r} is not allowed: {what}"))


@dataclass(frozen=True)
class _Evaluated:
    """Values of the parts of a checked query."""

    text: str
    names: Mapping[str, str]
    columns: Mapping[str, pd.Series]
    n_obs: int

    def truth(self, node: ast.expr) -> NDArray[np.bool_]:
        """Evaluate a boolean expression."""
        match node:
            case ast.BoolOp(op=op, values=parts):
                join = np.logical_and if isinstance(op, ast.And) else np.logical_or
                return join.reduce([np.broadcast_to(self.truth(part), self.n_obs) for part in parts])
            case ast.UnaryOp(op=ast.Not(), operand=part):
                return ~self.truth(part)
            case ast.Compare(left=left, ops=ops, comparators=others):
                pairs = zip([left, *others[:-1]], ops, others, strict=True)
                return np.logical_and.reduce([self.compared(*pair) for pair in pairs])
        value = self.value(node)
        if isinstance(value, bool):
            return np.full(self.n_obs, value)
        if isinstance(value, pd.Series) and all(isinstance(one, bool | np.bool_) for one in value.dropna().unique()):
            return value.astype("boolean").fillna(value=False).to_numpy(dtype=bool)
        raise OptionError(_wrong(self.text, f"{self._shown(node)} is not boolean; compare it with a value"))

    def value(self, node: ast.expr) -> Any:
        """Evaluate a number, a string or a column."""
        match node:
            case ast.Name(id=name):
                return _plain(self.columns[self.names.get(name, name)])
            case ast.Constant(value=value):
                return value
            case ast.BinOp(left=left, op=op, right=right):
                return _COMPUTED[type(op)](self.number(left), self.number(right))
            case ast.UnaryOp(op=op, operand=part) if type(op) in _SIGNS:
                return _SIGNS[type(op)](self.number(part))
        return pd.Series(self.truth(node))

    def number(self, node: ast.expr) -> Any:
        value = self.value(node)
        if isinstance(value, int | float) or isinstance(value, pd.Series) and pd.api.types.is_numeric_dtype(value):
            return value
        raise OptionError(_wrong(self.text, f"{self._shown(node)} is not a number"))

    def compared(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> NDArray[np.bool_]:
        of = self.value(left)
        of = (
            of
            if isinstance(of, pd.Series)
            else pd.Series(np.repeat(np.array([of], dtype=object), self.n_obs)).infer_objects()
        )
        if isinstance(right, ast.List | ast.Tuple):
            found = of.isin([self.value(part) for part in right.elts]).to_numpy()
            return ~found if isinstance(op, ast.NotIn) else found
        to = self.value(right)
        try:
            with np.errstate(all="ignore"):
                found = _COMPARED[type(op)](of, to)
        except TypeError as error:
            what = f"{self._shown(left)} cannot be compared with {self._shown(right)}: {error}"
            raise OptionError(_wrong(self.text, what)) from error
        return pd.Series(found).astype("boolean").fillna(value=isinstance(op, ast.NotEq)).to_numpy(dtype=bool)

    def _shown(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            key = self.names.get(node.id, node.id)
            return f"the column {key!r}, which contains {few(list(map(str, self.columns[key].dropna().unique()[:5])))},"
        return repr(ast.unparse(node))


def _plain(column: pd.Series) -> pd.Series:
    """Convert a categorical column to plain values, which can be compared with each other and with another column."""
    column = column.reset_index(drop=True)
    if not isinstance(column.dtype, pd.CategoricalDtype):
        return column
    categories = column.cat.categories
    if pd.api.types.is_numeric_dtype(categories) and not pd.api.types.is_bool_dtype(categories):
        return column.astype("float64") if column.isna().any() else column.astype(categories.dtype)
    return column.astype(object)
