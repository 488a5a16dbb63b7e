"""Folds of training cells, so that each cell is predicted by a model that has not seen it."""

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
    """Fold of each cell, int64 ``(n,)``.

    Parameters
    ----------
    train
        Training cells, ``(n,)``, which get a fold below :data:`N_FOLDS`, with equal shares of each stratum; the others are
        :data:`VALIDATION`.
    strata
        Class of each cell, ``(n,)``.
    rng
        Draws the folds.
    """
    order = rng.permutation(np.flatnonzero(train))
    folds = np.full(len(train), VALIDATION)
    folds[order[np.argsort(strata[order], kind="stable")]] = np.arange(len(order)) % N_FOLDS
    return folds


def left_out(
    folds: NDArray[np.int64], predict: Callable[[int, NDArray[np.bool_], NDArray[np.int64]], NDArray[Any]]
) -> NDArray[np.float32]:
    """Outputs for each cell of a model that was fitted without its fold and without validation cells, float32 ``(n, n_outputs)``.

    Parameters
    ----------
    folds
        From :func:`make_folds`.
    predict
        Given a fold, the cells to fit to ``(n,)`` and the row numbers of the cells to predict, gives their outputs.
    """
    found, order = [], []
    for fold in np.unique(folds):
        inside, others = np.flatnonzero(folds == fold), (folds != fold) & (folds != VALIDATION)
        found.append(np.asarray(predict(int(fold), others, inside), dtype=np.float32))
        order.append(inside)
    return np.concatenate(found)[np.argsort(np.concatenate(order))]


def sample(rows: NDArray[np.int64], strata: NDArray[np.integer], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """About ``n`` of the rows at most, the same share of each stratum and two of each at least, sorted.

    Parameters
    ----------
    rows
        Row numbers, sorted.
    strata
        Class of each cell that a row number can name.
    n
        How many to take.
    rng
        Draws them.
    """
    if len(rows) <= n:
        return rows
    order = rng.permutation(len(rows))
    order = order[np.argsort(strata[rows[order]], kind="stable")]
    _, start, size = np.unique(strata[rows[order]], return_index=True, return_counts=True)
    taken = np.maximum(np.minimum(size, 2), np.floor(size * n / len(rows))).astype(np.int64)
    return np.sort(rows[np.concatenate([order[s : s + k] for s, k in zip(start, taken, strict=True)])])
