"""Infers whether a matrix contains counts (integers or not) or logarithms of normalised counts, and their base.

No single criterion is sufficient, so several are tried, the strictest first:

- *Steps.* Scaled counts of a cell are multiples of one count, and so are log-normalised values once the right logarithm
  is undone.
- *Sums.* Normalised cells all have the same sum, before the logarithm is taken and after it is undone.
- *Size.* No value exceeds the logarithm of a million counts per million.
- *Integers* remain if only some counts were corrected or distributed.
- *Records*: the name of the layer, and the record of :func:`scanpy.pp.log1p`.
- *Depth.* In cells with more counts, an expressed gene has more counts but a smaller fraction of them; and values that
  are not logarithms have widely varying sums when exponentiated.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scgalore.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import scipy.sparse as sp
    from numpy.typing import NDArray

    from scgalore.data.matrix import CellMatrix

__all__ = ["LARGEST_SHARE", "Scale", "is_called_counts", "log_base_of", "recorded_base", "scale_of", "to_log1p"]

LARGEST_SHARE = 1e6
"""Largest usual target sum of normalisation: counts per million."""

Kind = Literal["counts", "log1p", "neither"]

_SAMPLE = 512  # number of cells examined
_BASES = (math.e, 2.0, 10.0)
_TOO_LARGE = 80  # exp of larger values exceeds float32
_FEWEST_CELLS, _FEWEST_STEPS = 5, 8
_ONE_SUM = 0.02  # maximum relative spread of sums that count as equal
_DIFFERENT = 1e-3  # minimum relative spread of sums that count as different
_TIED = 0.2  # fraction of equal values that corrected counts never reach
_LOGS = re.compile(r"log|norm|^data$|^scale", re.IGNORECASE)
_COUNTS = re.compile(r"count|^raw|umi|splic|soupx|decont|ambient|cellbender|correct", re.IGNORECASE)


@dataclass(frozen=True)
class Scale:
    """Inferred type of the values.

    Attributes
    ----------
    kind
        ``"counts"``, which may have decimals, or ``"log1p"``; anything else is rejected.
    reason
        Reason, as the end of a sentence: "... contains counts, since all values are integers".
    base
        Base of the logarithm; e for counts.
    normalised
        Whether values are normalised for sequencing depth: logarithms, and counts that were scaled to the same sum.
    one_count
        Value of one count in a typical cell; ``None`` if unknown.
    sure
        Whether nothing else is likely.
    doubt
        Evidence against it, as a sentence; empty if there is none.
    """

    kind: Kind
    reason: str
    base: float = math.e
    normalised: bool = False
    one_count: float | None = None
    sure: bool = True
    doubt: str = ""


def recorded_base(uns: Mapping[str, Any]) -> float | None:
    """Base of the logarithm that ``uns["log1p"]`` records: e for natural ones; ``None`` if nothing is recorded.

    Scanpy writes ``{"base": None}``, which files of older versions store as ``{}``. Any value that is not a dictionary
    is read as natural logarithms.

    Raises
    ------
    DataError
        If the base is not a number above 1.
    """
    if "log1p" not in uns:
        return None
    record = uns["log1p"]
    base = record.get("base") if hasattr(record, "get") else None
    values = np.asarray([] if base is None else base, dtype=object).ravel()
    if (
        len(values) == 0
        or len(values) == 1
        and (values[0] is None or str(values[0]).lower() in ("", "none", "nan", "e"))
    ):
        return math.e
    try:
        (number,) = values.astype(np.float64).tolist()
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 1):
        msg = (
            f"adata.uns['log1p'] records base={base!r}; expected a number above 1, or None for natural logarithms. Correct it: "
            "adata.uns['log1p'] = {'base': None}."
        )
        raise DataError(msg)
    return float(number)


def is_called_counts(layer: str | None) -> bool:
    """Whether the name of a layer indicates counts, such as ``"counts"`` and ``"soupX"``, but not ``"logcounts"``."""
    return layer is not None and not _LOGS.search(layer) and bool(_COUNTS.search(layer))


def to_log1p(base: float) -> dict[str, float | None]:
    """Value of ``uns["log1p"]`` for logarithms to a base, as written by scanpy."""
    return {"base": None if base == math.e else base}


def scale_of(
    matrix: CellMatrix, *, uns: Mapping[str, Any] | None = None, layer: str | None = None, data_type: str | None = None
) -> Scale:
    """Infer the type of the values of a matrix from some of its cells.

    Parameters
    ----------
    matrix
        Matrix without negative, NaN and infinite values.
    uns
        ``uns`` of its AnnData.
    layer
        Name of the layer; ``None`` for ``X``.
    data_type
        ``"counts"`` or ``"log1p"`` if passed by the user.

    Raises
    ------
    DataError
        If the values are neither, contradict ``data_type``, or ``uns["log1p"]`` is damaged.
    """
    summary, base = matrix.summary(), recorded_base(uns or {})
    if summary.n_fractional:
        found = _found(_Signs.of(matrix, summary.max, base), base, layer)
    else:
        found = Scale("counts", "all values are integers", one_count=1.0)
    if data_type is None:
        if found.kind == "neither":
            msg = (
                f"{matrix.name} contains neither counts nor their logarithms: {found.reason}. Pass a layer= with counts, "
                "or data_type='log1p' to use the values unchanged."
            )
            raise DataError(msg)
        return found
    if data_type == "log1p" and summary.max > _TOO_LARGE:
        msg = (
            f"data_type='log1p' was passed, but {matrix.name} contains values up to {summary.max:.4g}, which cannot be logarithms of "
            "counts. Pass data_type='counts', or a layer= with logarithms."
        )
        raise DataError(msg)
    said = f"data_type={data_type!r} was passed"
    if found.kind == data_type:
        return replace(found, reason=said, sure=True, doubt="")
    doubt = f"it appears to contain {_WHAT[found.kind]}, since {found.reason}" if found.sure else ""
    if data_type == "counts":
        return Scale("counts", said, doubt=doubt)
    return Scale("log1p", said, base=base or math.e, normalised=True, doubt=doubt)


def log_base_of(matrix: CellMatrix, **signs: Any) -> float | None:
    """Base of the logarithms in a matrix, ``None`` for counts; arguments as for :func:`scale_of`."""
    scale = scale_of(matrix, **signs)
    return None if scale.kind == "counts" else scale.base


@dataclass(frozen=True)
class _Steps:
    """Values of a cell as multiples of its smallest value, on one scale."""

    share: float  # fraction of integers among the multiples below 5.5
    error: float  # root mean square of their distances from whole numbers
    fit: bool

    @classmethod
    def of(cls, cells: list[NDArray[np.float64]]) -> _Steps:
        ratios = [values[1:] / values[0] for values in cells]
        ratio = np.concatenate([np.zeros(0), *ratios])
        ratio = ratio[ratio < 5.5]
        whole = np.rint(ratio)
        distance = np.abs(ratio - whole)
        near = (distance < 0.02) & (whole > 1)
        if len(ratio) < _FEWEST_STEPS:
            return cls(0.0, math.inf, fit=False)
        share = float(near.mean())
        # Logarithms or squares of multiples can be multiples, but then 2 is rarer among them than 3.
        has_two = 2 * int((near & (whole == 2)).sum()) >= max(int((near & (whole == 3)).sum()), 1)
        return cls(
            share, float(np.sqrt(np.mean(distance[near] ** 2))) if near.any() else math.inf, share > 0.8 and has_two
        )


@dataclass(frozen=True)
class _Signs:
    """Statistics of some cells of a matrix."""

    rows: sp.csr_matrix = field(repr=False)
    scales: tuple[str | float, ...]
    largest: float

    @classmethod
    def of(cls, matrix: CellMatrix, largest: float, base: float | None) -> _Signs:
        sample = np.unique(np.linspace(0, matrix.n_obs - 1, min(_SAMPLE, matrix.n_obs)).astype(np.int64))
        rows = matrix.rows(sample)
        bases = [one for one in dict.fromkeys((base or math.e, *_BASES)) if largest * math.log(one) < _TOO_LARGE]
        return cls(rows[np.flatnonzero(np.diff(rows.indptr))], ("counts", *bases, "square roots"), largest)

    @cached_property
    def _distinct(self) -> list[NDArray[np.float32]]:
        indptr = self.rows.indptr
        return [np.unique(self.rows.data[start:stop]) for start, stop in zip(indptr[:-1], indptr[1:], strict=True)]

    @cached_property
    def steps(self) -> dict[str | float, _Steps]:
        """Steps by scale; undoing a logarithm keeps distinct values distinct."""
        cells = [values.astype(np.float64) for values in self._distinct]
        return {name: _Steps.of([_undone(values, name) for values in cells]) for name in self.scales}

    def sums(self, scale: str | float) -> NDArray[np.float64]:
        values = _undone(self.rows.data.astype(np.float64), scale)
        return np.add.reduceat(values, self.rows.indptr[:-1]) if len(values) else np.zeros(0)

    @cached_property
    def spreads(self) -> dict[str | float, float]:
        """Spread of the cells' sums on each scale, relative to the median and robust to outliers."""
        if self.rows.shape[0] < _FEWEST_CELLS:
            return {}
        middle = {name: np.median(self.sums(name)) for name in self.scales}
        return {name: float(1.4826 * np.median(np.abs(self.sums(name) / middle[name] - 1))) for name in self.scales}

    @cached_property
    def ties(self) -> float:
        """Fraction of the other values of a cell that equal its smallest, which would be single counts."""
        smallest = np.repeat([values[0] for values in self._distinct], np.diff(self.rows.indptr))
        n_others = self.rows.nnz - self.rows.shape[0]
        return ((self.rows.data == smallest).sum() - self.rows.shape[0]) / n_others if n_others else 0.0

    @cached_property
    def whole(self) -> float:
        """Fraction of integers among the values above 1.5."""
        values = self.rows.data[self.rows.data > 1.5]
        return float((values == np.rint(values)).mean()) if len(values) >= 20 else 0.0

    @cached_property
    def slope(self) -> float:
        """Elasticity of a cell's mean with its number of genes: positive for counts, negative otherwise; NaN if unknown."""
        n_genes = np.diff(self.rows.indptr)
        if len(n_genes) < 4 * _FEWEST_CELLS or np.ptp(n_genes) == 0:
            return math.nan
        return float(np.polyfit(np.log(n_genes), np.log(self.sums("counts") / n_genes), 1)[0])

    @cached_property
    def wildness(self) -> float:
        """Ratio of the sums of large cells to the typical sum if the values were natural logarithms; NaN if unknown."""
        if math.e not in self.scales or self.rows.shape[0] < 4 * _FEWEST_CELLS:
            return math.nan
        sums = self.sums(math.e)
        return float(np.percentile(sums, 95) / np.median(sums))


def _undone(values: NDArray[np.float64], scale: str | float) -> NDArray[np.float64]:
    """Values as they were before a logarithm to this base, or a square root, was taken."""
    if isinstance(scale, float):
        return np.expm1(values * math.log(scale))
    return np.square(values) if scale == "square roots" else values


_WHAT = {"counts": "counts", "log1p": "logarithms", "neither": "neither counts nor logarithms"}


def _found(signs: _Signs, base: float | None, layer: str | None) -> Scale:
    """Result of the strictest criterion that applies."""
    scale = _by_steps(signs) or _by_sums(signs) or _by_size(signs, base)
    return _by_records(signs, base, layer) if scale is None else _checked(scale, base, layer)


def _by_steps(signs: _Signs) -> Scale | None:
    fitting = sorted((steps.error, str(name), name) for name, steps in signs.steps.items() if steps.fit)
    if not fitting or len(fitting) > 1 and fitting[1][0] < 2 * fitting[0][0]:
        return None
    return _named(signs, fitting[0][2], "the values of a cell are multiples of its smallest value")


def _by_sums(signs: _Signs) -> Scale | None:
    spreads = sorted((spread, str(name), name) for name, spread in signs.spreads.items())
    if len(spreads) < 2 or spreads[0][0] > _ONE_SUM or spreads[1][0] < max(5 * spreads[0][0], _DIFFERENT):
        return None
    name = spreads[0][2]
    if name == "counts" and signs.ties > _TIED:
        return None  # scaled after the logarithm was taken
    return _named(signs, name, "every cell has the same sum")


def _by_size(signs: _Signs, base: float | None) -> Scale | None:
    limit = math.log1p(LARGEST_SHARE) / math.log(base or math.e)
    if signs.whole > 0.05:
        return Scale("counts", f"{signs.whole:.0%} of the values above 1 are integers", one_count=1.0)
    if signs.largest <= limit:
        return None
    if signs.ties > _TIED:
        return Scale(
            "neither",
            f"values reach {signs.largest:.4g} and are not multiples of the most frequent value of a cell",
        )
    return Scale(
        "counts", f"values reach {signs.largest:.4g}, and no logarithm of normalised counts exceeds {limit:.1f}"
    )


def _by_records(signs: _Signs, base: float | None, layer: str | None) -> Scale:
    if layer is not None and _LOGS.search(layer):
        return Scale("log1p", f"the layer is called {layer!r}", base or math.e, normalised=True)
    if is_called_counts(layer):
        return Scale("counts", f"the layer is called {layer!r}")
    if base is not None:
        return Scale("log1p", "adata.uns['log1p'] records them", base, normalised=True)
    return _by_depth(signs)


def _named(signs: _Signs, name: str | float, what: str) -> Scale:
    if name == "square roots":
        return Scale("neither", f"after squaring, {what}, so these appear to be square roots")
    if isinstance(name, float):
        return Scale("log1p", f"once the logarithm{_to(name)} is undone, {what}", name, normalised=True)
    smallest = np.median(np.minimum.reduceat(signs.rows.data, signs.rows.indptr[:-1]))
    normalised = signs.spreads.get("counts", 1.0) < _ONE_SUM
    one_count = float(smallest) if signs.steps["counts"].fit else None
    return Scale("counts", what, normalised=normalised, one_count=one_count)


def _checked(scale: Scale, base: float | None, layer: str | None) -> Scale:
    """Add evidence against the result from the records."""
    doubt = ""
    if scale.kind == "log1p" and base not in (None, scale.base):
        doubt = f"adata.uns['log1p'] records logarithms{_to(base or math.e)}"
    elif scale.kind == "counts" and base is not None and layer is None:
        doubt = "adata.uns['log1p'] records that logarithms were taken"
    return replace(scale, doubt=doubt)


def _by_depth(signs: _Signs) -> Scale:
    counts = (signs.slope > 0.1) + (signs.wildness > 4)
    logs = (signs.slope < -0.1) + (signs.wildness < 1.6)
    sure = 2 in (counts, logs)
    if signs.ties > _TIED:  # counts would be multiples of the repeated value
        counts, sure = -1, False
    if counts > logs or counts == logs and signs.slope > -0.1 and signs.wildness > 2:
        return Scale(
            "counts",
            "cells with more genes have larger values, or their sums would vary too much if they were logarithms",
            sure=sure,
        )
    return Scale("log1p", "values are small and not larger in cells with more genes", normalised=True, sure=sure)


def _to(base: float) -> str:
    return "" if base == math.e else f" to base {base:g}"
