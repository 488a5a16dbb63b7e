"""Folds of training cells, so that each cell is predicted by a model that was not fitted to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["N_FOLDS", "VALIDATION", "left_out", "make_folds", "sample"]

N_FOLDS = 5
VALIDATION = N_FOLDS
"""Fold of validation cells: predicted by a model of all training cells, and no model that predicts another fold sees them."""


def make_folds(train: NDArray[np.bool_], strata: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.int64]:
    """Assign each cell to a fold, int64 ``(n,)``.

    Parameters
    ----------
    train
        Whether each cell is a training cell, ``(n,)``. Training cells get folds from 0 to :data:`N_FOLDS` - 1, each with an
        equal fraction of each stratum; other cells get :data:`VALIDATION`.
    strata
        Class of each cell, ``(n,)``.
    rng
        Random generator of the folds.
    """
    order = rng.permutation(np.flatnonzero(train))
    folds = np.full(len(train), VALIDATION)
    folds[order[np.argsort(strata[order], kind="stable")]] = np.arange(len(order)) % N_FOLDS
    return folds


def left_out(
    folds: NDArray[np.int64], predict: Callable[[int, NDArray[np.bool_], NDArray[np.int64]], NDArray[Any]]
) -> NDArray[np.float32]:
    """Outputs for each cell by a model fitted without its fold and without validation cells, float32 ``(n, n_outputs)``.

    Parameters
    ----------
    folds
        Result of :func:`make_folds`.
    predict
        Function of a fold, the cells to fit to ``(n,)`` and the row numbers of the cells to predict, which returns their
        outputs.
    """
    found, order = [], []
    for fold in np.unique(folds):
        inside, others = np.flatnonzero(folds == fold), (folds != fold) & (folds != VALIDATION)
        found.append(np.asarray(predict(int(fold), others, inside), dtype=np.float32))
        order.append(inside)
    return np.concatenate(found)[np.argsort(np.concatenate(order))]


def sample(rows: NDArray[np.int64], strata: NDArray[np.integer], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Sample about ``n`` rows: the same fraction of each stratum, at least two rows of each; sorted.

    Parameters
    ----------
    rows
        Row numbers, sorted.
    strata
        Class of each cell, by row number.
    n
        Approximate maximum number of rows.
    rng
        Random generator.
    """
    if len(rows) <= n:
        return rows
    order = rng.permutation(len(rows))
    order = order[np.argsort(strata[rows[order]], kind="stable")]
    _, start, size = np.unique(strata[rows[order]], return_index=True, return_counts=True)
    taken = np.maximum(np.minimum(size, 2), np.floor(size * n / len(rows))).astype(np.int64)
    return np.sort(rows[np.concatenate([order[s : s + k] for s, k in zip(start, taken, strict=True)])])
