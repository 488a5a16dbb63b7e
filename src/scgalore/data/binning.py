"""Expression as ranks: each cell's non-zero values cut at their own quantiles.

The quantiles of a cell come from its non-zero values alone, so the result does not change when a cell is scaled.
Values equal to several edges (a count of 1 is often more than half of a cell) may go to any of the tied bins:
``"upper"`` takes the highest, which is what the released scGPT weights were trained with; ``"random"`` spreads them
evenly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

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
    return _edges_of_sorted(values, np.array([0, len(values)]), n_bins).ravel()


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
    filled = np.flatnonzero(np.diff(indptr))
    starts, stops = indptr[filled].tolist(), indptr[filled + 1].tolist()
    ordered = data.copy()
    for start, stop in zip(starts, stops, strict=True):
        ordered[start:stop].sort()
    edges = _edges_of_sorted(ordered, np.append(indptr[filled], indptr[-1:]), n_bins)
    left = np.empty(len(data), dtype=np.int64)
    for row, start, stop in zip(edges, starts, stops, strict=True):
        left[start:stop] = row.searchsorted(data[start:stop], side="right")
    if ties == "upper":
        return left
    if u is None:
        msg = 'ties="random" needs u, one number in [0, 1) for each value (scgalore.data.hashing.uniforms makes them).'
        raise OptionError(msg)
    right = np.empty_like(left)
    for row, start, stop in zip(edges, starts, stops, strict=True):
        right[start:stop] = row.searchsorted(data[start:stop], side="left")
    digits: NDArray[np.int64] = np.ceil(np.asarray(u) * (right - left) + left).astype(np.int64)
    # A draw within rounding of 1 would land one bin below the tied ones, and so in the bin of the zeros.
    return np.maximum(digits, np.minimum(right + 1, left))


def _edges_of_sorted(ordered: NDArray[Any], indptr: NDArray[np.integer], n_bins: int) -> NDArray[np.float64]:
    """Quantile edges, shape ``(b, n_bins - 1)``, of cells whose values are sorted; no cell may be empty."""
    # The arithmetic, down to the order and dtype of each operation, is that of np.quantile(method="linear").
    last = np.diff(indptr)[:, None] - 1
    virtual = last * np.linspace(0, 1, n_bins - 1)
    below = np.floor(virtual)
    t = virtual - below
    at = indptr[:-1, None] + below.astype(np.int64)
    a = ordered[at]
    b = ordered[np.minimum(at + 1, indptr[:-1, None] + last)]
    step = b - a
    edges: NDArray[np.float64] = np.where(t >= 0.5, b - step * (1 - t), a + step * t)
    return edges
