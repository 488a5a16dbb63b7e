"""Binning of expression: the non-zero values of each cell are binned by their own quantiles.

The quantiles of a cell are computed from its non-zero values only, so the result is independent of the scale of a cell.
Values equal to several edges (a count of 1 often has more than half of the values) may be in any of the tied bins:
``"upper"`` uses the highest, as in training of the released scGPT weights; ``"random"`` distributes them
evenly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from scgalore.data.ragged import argsort_rows
from scgalore.errors import DataError, OptionError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Ties", "bin_edges", "bin_rows", "bin_values", "check_binning"]

Ties = Literal["upper", "random"]


def check_binning(n_bins: int, ties: str) -> None:
    """Raise an error for an invalid number of bins or tie rule."""
    if n_bins < 3:
        msg = f"n_bins={n_bins}: at least 3 are needed (0 for zeros and two for the expressed genes); scGPT uses 51."
        raise OptionError(msg)
    if ties not in get_args(Ties):
        msg = f"ties={ties!r} is not one of {', '.join(map(repr, get_args(Ties)))}."
        raise OptionError(msg)


def bin_edges(x: ArrayLike, n_bins: int = 51) -> NDArray[np.float64]:
    """Edges of the bins of one cell: bit-identical to ``np.quantile(x, np.linspace(0, 1, n_bins - 1))``.

    Parameters
    ----------
    x
        Non-zero values of the cell.
    n_bins
        Number of bins, including the bin for zeros.
    """
    check_binning(n_bins, "upper")
    values = np.sort(np.asarray(x).ravel())
    if not len(values):
        msg = "A cell without a non-zero value has no bin edges."
        raise DataError(msg)
    indptr = np.array([0, len(values)])
    *_, edges = _interpolate(values, indptr, *_virtual(indptr, n_bins))
    return edges.ravel()


def bin_values(
    x: ArrayLike, n_bins: int = 51, *, ties: Ties = "upper", u: ArrayLike | None = None
) -> NDArray[np.int64]:
    """Bins of the non-zero values of one cell.

    Parameters
    ----------
    x
        Non-zero, finite values of the cell.
    n_bins
        Number of bins, including the bin for zeros.
    ties
        Choice between tied bins.
    u
        One number in [0, 1) per value, required for ``ties="random"``.

    Returns
    -------
    int64 array in ``1 .. n_bins - 1``.
    """
    values = np.asarray(x).ravel()
    return bin_rows(values, np.array([0, len(values)]), n_bins, ties=ties, u=u)


def bin_rows(
    data: NDArray[Any],
    indptr: NDArray[np.integer],
    n_bins: int = 51,
    *,
    ties: Ties = "upper",
    u: ArrayLike | None = None,
) -> NDArray[np.int64]:
    """Bins of many cells in CSR arrays, each cell by its own quantiles.

    Parameters
    ----------
    data
        Non-zero, finite values of all cells, concatenated.
    indptr
        Start of each cell; one longer than the number of cells.
    n_bins
        Number of bins, including the bin for zeros.
    ties
        Choice between tied bins.
    u
        One number in [0, 1) per value, required for ``ties="random"``.

    Returns
    -------
    int64 array in ``1 .. n_bins - 1``, aligned with ``data``.
    """
    check_binning(n_bins, ties)
    if ties == "random" and u is None:
        msg = 'ties="random" needs u, one number in [0, 1) per value (see scgalore.data.hashing.uniforms).'
        raise OptionError(msg)
    order = argsort_rows(_as_keys(data), indptr)
    ordered = data[order]
    filled = np.flatnonzero(np.diff(indptr))
    bounds = np.append(indptr[filled], indptr[-1:])
    below, t = _virtual(bounds, n_bins)
    a, b, edges = _interpolate(ordered, bounds, below, t)
    # An edge lies between the two values that it is interpolated from, so it need not be searched for; where it equals
    # one of them, values count as above it from the first of the equal ones on, or from behind the last.
    runs, run = _runs(ordered, bounds)
    left = np.empty(len(data), dtype=np.int64)
    left[order] = _count_up(np.where(edges <= a, runs[run[below]], below + 1), bounds)
    if ties == "upper":
        return left
    after = np.minimum(below + 1, bounds[1:, None] - 1)
    above = np.where(edges <= a, runs[run[below] + 1], np.where(edges < b, below + 1, runs[run[after] + 1]))
    right = np.empty_like(left)
    right[order] = _count_up(above, bounds)
    digits: NDArray[np.int64] = np.ceil(np.asarray(u) * (right - left) + left).astype(np.int64)
    # A draw within rounding of 1 would land one bin below the tied ones, and so in the bin of the zeros.
    return np.maximum(digits, np.minimum(right + 1, left))


def _as_keys(data: NDArray[Any]) -> NDArray[Any]:
    """Integers in the order of the values; uint32 for float32, which sorts fastest."""
    if data.dtype != np.float32:
        return data
    bits = data.view(np.int32)
    # The bits of positive floats are ordered as integers. The sign is flipped, and with it all bits of negative ones.
    return (bits ^ ((bits >> 31) | np.int32(-(2**31)))).view(np.uint32)


def _runs(ordered: NDArray[Any], indptr: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Start of each run of equal values of a cell, with the end of the last; and the index of each value's run."""
    new = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    new[indptr[:-1]] = True
    return np.append(np.flatnonzero(new), len(ordered)), np.cumsum(new) - 1


def _count_up(at: NDArray[np.int64], indptr: NDArray[np.integer]) -> NDArray[np.int64]:
    """Number of edges at or before each sorted value."""
    bounds = np.concatenate((indptr[:-1, None], at, indptr[1:, None]), axis=1)
    digits = np.broadcast_to(np.arange(at.shape[1] + 1), (len(at), at.shape[1] + 1))
    return np.repeat(digits.ravel(), np.diff(bounds, axis=1).ravel())


def _virtual(indptr: NDArray[np.integer], n_bins: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Position of the value at or below each quantile, and the offset of the quantile from it, ``(b, n_bins - 1)``."""
    virtual = (np.diff(indptr)[:, None] - 1) * np.linspace(0, 1, n_bins - 1)
    below = np.floor(virtual)
    return (indptr[:-1, None] + below).astype(np.int64), virtual - below


def _interpolate(
    ordered: NDArray[Any], indptr: NDArray[np.integer], below: NDArray[np.int64], t: NDArray[np.float64]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]]:
    """The two values around each quantile, and the quantile; requires non-empty cells."""
    # Order and dtype of all operations are those of np.quantile(method="linear").
    a = ordered[below]
    b = ordered[np.minimum(below + 1, indptr[1:, None] - 1)]
    step = b - a
    edges: NDArray[np.float64] = np.where(t >= 0.5, b - step * (1 - t), a + step * t)
    return a, b, edges
