"""Expression as ranks: each cell's non-zero values cut at their own quantiles.

The quantiles of a cell come from its non-zero values alone, so the result does not change when a cell is scaled.
Values equal to several edges (a count of 1 is often more than half of a cell) may go to any of the tied bins:
``"upper"`` takes the highest, which is what the released scGPT weights were trained with; ``"random"`` spreads them
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
    """Refuse a number of bins or a tie rule that does not exist."""
    if n_bins < 3:
        msg = f"n_bins={n_bins}: at least 3 are needed (0 for zeros and two for the expressed genes); scGPT uses 51."
        raise OptionError(msg)
    if ties not in get_args(Ties):
        msg = f"ties={ties!r} is not one of {', '.join(map(repr, get_args(Ties)))}."
        raise OptionError(msg)


def bin_edges(x: ArrayLike, n_bins: int = 51) -> NDArray[np.float64]:
    """Edges of the bins of one cell: ``np.quantile(x, np.linspace(0, 1, n_bins - 1))``, to the last bit.

    Parameters
    ----------
    x
        Non-zero values of the cell.
    n_bins
        Number of bins, the one for zeros included.
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
        Number of bins, the one for zeros included.
    ties
        Which of several tied bins a value gets.
    u
        One number in [0, 1) a value, needed for ``ties="random"``.

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
    """Bins of many cells held as CSR arrays, each cell by its own quantiles.

    Parameters
    ----------
    data
        Non-zero, finite values, one cell after the other.
    indptr
        Where each cell starts; one longer than the number of cells.
    n_bins
        Number of bins, the one for zeros included.
    ties
        Which of several tied bins a value gets.
    u
        One number in [0, 1) a value, needed for ``ties="random"``.

    Returns
    -------
    int64 array in ``1 .. n_bins - 1``, aligned with ``data``.
    """
    check_binning(n_bins, ties)
    if ties == "random" and u is None:
        msg = 'ties="random" needs u, one number in [0, 1) for each value (scgalore.data.hashing.uniforms makes them).'
        raise OptionError(msg)
    order = argsort_rows(_as_keys(data), indptr)
    ordered = data[order]
    filled = np.flatnonzero(np.diff(indptr))
    bounds = np.append(indptr[filled], indptr[-1:])
    below, t = _virtual(bounds, n_bins)
    a, b, edges = _interpolate(ordered, bounds, below, t)
    # An edge lies between the two values that it is interpolated from, so it need not be searched for; where it equals one
    # of them, values count as above it from the first of the equal ones on, or from behind the last.
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
    """Numbers that are ordered as the values are; uint32 for float32, which sorts fastest."""
    if data.dtype != np.float32:
        return data
    bits = data.view(np.int32)
    # The bits of positive floats are ordered as integers. The sign is flipped, and with it all bits of negative ones.
    return (bits ^ ((bits >> 31) | np.int32(-(2**31)))).view(np.uint32)


def _runs(ordered: NDArray[Any], indptr: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each run of equal values of a cell starts, with the end of the last; and the number of each value's run."""
    new = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    new[indptr[:-1]] = True
    return np.append(np.flatnonzero(new), len(ordered)), np.cumsum(new) - 1


def _count_up(at: NDArray[np.int64], indptr: NDArray[np.integer]) -> NDArray[np.int64]:
    """Give each sorted value the number of edges that fall at or before it."""
    bounds = np.concatenate((indptr[:-1, None], at, indptr[1:, None]), axis=1)
    digits = np.broadcast_to(np.arange(at.shape[1] + 1), (len(at), at.shape[1] + 1))
    return np.repeat(digits.ravel(), np.diff(bounds, axis=1).ravel())


def _virtual(indptr: NDArray[np.integer], n_bins: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Position of the value at or below each quantile, and how far beyond it the quantile lies, ``(b, n_bins - 1)``."""
    virtual = (np.diff(indptr)[:, None] - 1) * np.linspace(0, 1, n_bins - 1)
    below = np.floor(virtual)
    return (indptr[:-1, None] + below).astype(np.int64), virtual - below


def _interpolate(
    ordered: NDArray[Any], indptr: NDArray[np.integer], below: NDArray[np.int64], t: NDArray[np.float64]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]]:
    """The two values around each quantile, and the quantile; no cell may be empty."""
    # The arithmetic, down to the order and dtype of each operation, is that of np.quantile(method="linear").
    a = ordered[below]
    b = ordered[np.minimum(below + 1, indptr[1:, None] - 1)]
    step = b - a
    edges: NDArray[np.float64] = np.where(t >= 0.5, b - step * (1 - t), a + step * t)
    return a, b, edges
