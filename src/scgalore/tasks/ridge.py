"""Ridge regression with many outputs, each with its own penalty: proteins from RNA, and their residuals from embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from scgalore.data.cells import gene_names
from scgalore.data.expression import LogExpression
from scgalore.genes.identifiers import standardise
from scgalore.tasks.folds import left_out, make_folds, sample
from scgalore.tasks.linear import MAX_CELLS, MAX_SPAN, basis_of, gene_scale
from scgalore.tasks.linear_model import LinearModel

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore.data.reading import Reading
    from scgalore.data.split import Split

    Array = NDArray[Any]

__all__ = ["GENE_PENALTIES", "RidgeFit", "fit_ridge", "held_out_ridge", "ridges"]

GENE_PENALTIES = np.logspace(0, 5, 16)
"""Candidate penalties, for unscaled log-normalised genes: with unit variance, rare genes would dominate."""


def ridges(x: Array, y: Array, penalties: Array) -> tuple[Array, Array, Array]:
    """Fit a ridge regression to each output, with a penalty chosen by leave-one-out.

    All penalties share one eigendecomposition; leave-one-out errors are computed from the residuals (Golub, Heath and
    Wahba, Technometrics 1979).

    Parameters
    ----------
    x, y
        Features ``(n, n_features)`` and outputs ``(n, n_outputs)``.
    penalties
        Candidate penalties, which are added to the squared norm of each direction of the features.

    Returns
    -------
    Coefficients ``(n_features, n_outputs)``, intercepts and penalties ``(n_outputs,)``, all float64.
    """
    of_x, of_y = x.mean(axis=0, dtype=np.float64), y.mean(axis=0, dtype=np.float64)
    centred, outputs = x - of_x, y - of_y
    size, directions = np.linalg.eigh(centred.T @ centred)
    size, along = np.maximum(size, 0), centred @ directions
    target, square = along.T @ outputs, np.square(along)
    lowest = np.full(y.shape[1], np.inf)
    strength = np.full(y.shape[1], penalties[0], dtype=np.float64)
    for penalty in penalties:
        shrink = 1 / (size + penalty)
        left = 1 - 1 / len(x) - square @ shrink  # ratio of the residual to the leave-one-out error
        error = np.square((outputs - along @ (shrink[:, None] * target)) / left[:, None]).mean(axis=0)
        strength[error < lowest] = penalty
        lowest = np.minimum(lowest, error)
    coef = directions @ (target / (size[:, None] + strength))
    return coef, of_y - of_x @ coef, strength


def held_out_ridge(x: Array, y: Array, folds: NDArray[np.int64], penalties: Array) -> NDArray[np.float32]:
    """Predict each cell by :func:`ridges` fitted to the other folds, float32 ``(n, n_outputs)``.

    Parameters
    ----------
    x, y, penalties
        As for :func:`ridges`.
    folds
        Result of :func:`~scgalore.tasks.folds.make_folds`.
    """

    def predict(fold: int, others: NDArray[np.bool_], inside: NDArray[np.int64]) -> Array:
        coef, intercept, _ = ridges(x[others], y[others], penalties)
        return x[inside] @ coef + intercept

    return left_out(folds, predict)


@dataclass(frozen=True)
class RidgeFit:
    """Ridge regressions of several values per cell on its genes.

    Attributes
    ----------
    model
        Fitted to all training and validation cells.
    predicted
        Cross-validated outputs for all cells, float32 ``(n_obs, n_outputs)``, as in
        :class:`~scgalore.tasks.linear.LinearFit`.
    penalty
        Penalty of each output, ``(n_outputs,)``.
    cells, folds
        Rows that the model was fitted to, int64 ``(n,)``, and the fold of each.
    """

    model: LinearModel = field(repr=False)
    predicted: NDArray[np.float32] = field(repr=False)
    penalty: NDArray[np.float64]
    cells: NDArray[np.int64] = field(repr=False)
    folds: NDArray[np.int64] = field(repr=False)


def fit_ridge(
    adata: AnnData, reading: Reading, values: NDArray[np.floating], split: Split, *, seed: int = 0
) -> RidgeFit:
    """Fit ridge regressions on log-normalised expression.

    Parameters
    ----------
    adata, reading
        Cells, and how to read them; cells other than those of training and validation are only predicted.
    values
        Values of each cell, ``(n_obs, n_outputs)``.
    split
        Training, validation and test cells.
    seed
        Seed for the folds.
    """
    expression = LogExpression.from_adata(adata, reading, log_base=math.e)
    names = standardise(gene_names(adata, reading.gene_symbols), reading.species)
    _, unique = np.unique(names, return_index=True)  # first of several columns of one name
    rng, alike = np.random.default_rng(seed), np.zeros(adata.n_obs, dtype=np.int64)
    cells = sample(split.known, alike, MAX_CELLS, rng)
    folds = make_folds(np.isin(cells, split.train), alike[cells], rng)
    x, y = expression.rows(cells)[:, unique], values[cells].astype(np.float64)
    mean = np.asarray(x.mean(axis=0), dtype=np.float64).ravel()
    span = sample(np.arange(len(cells)), alike[cells], MAX_SPAN, rng)
    basis = basis_of(x[span].toarray() - mean, gene_scale(x, mean, scaled=False))
    features = (x @ basis - mean @ basis).astype(np.float64)
    weights, intercept, penalty = ridges(features, y, GENE_PENALTIES)
    model = LinearModel.from_coefficients((names[i] for i in unique), x, basis @ weights, intercept)
    predicted = model.of_expression(expression, names)
    predicted[cells] = held_out_ridge(features, y, folds, GENE_PENALTIES)
    return RidgeFit(model, predicted, penalty, cells, folds)
