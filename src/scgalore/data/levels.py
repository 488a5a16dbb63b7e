"""Expression as classes of its logarithm, the input of scBERT."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["TARGET_SUM", "expression_classes"]

TARGET_SUM = 1e4

_ROUNDING = 2e-6  # rounding error of a logarithm in float32 at an edge


def expression_classes(
    values: ArrayLike, indptr: NDArray[np.integer], n_classes: int, *, log_base: float | None = None
) -> NDArray[np.int64]:
    """``min(floor(log2(1 + x)), n_classes - 1)`` of counts ``x`` normalised to 10,000 per cell.

    Parameters
    ----------
    values
        Counts, or ``log(1 + c x)`` with any ``c`` per cell, of all cells, concatenated, ``(n,)``.
    indptr
        Start of each cell.
    n_classes
        Number of classes.
    log_base
        Base of the logarithm; ``None`` for counts.

    Returns
    -------
    int64 ``(n,)``.
    """
    x = np.asarray(values, dtype=np.float64)
    if log_base is not None:
        x = np.expm1(x * math.log(log_base))
    cell = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    depth = np.bincount(cell, weights=x, minlength=len(indptr) - 1)[cell]
    # Products, so that counts on an edge are compared as integers.
    scaled = x * (TARGET_SUM if log_base is None else TARGET_SUM * (1 + _ROUNDING))
    classes = np.zeros(len(x), dtype=np.int64)
    for least in range(1, n_classes):
        classes += scaled >= (2.0**least - 1) * depth
    return classes
