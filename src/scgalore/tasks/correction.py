"""Initial correction of a linear model by a network: the last layer of its head, fitted to the errors of that model.

All other layers have their initial weights, so this is a convex problem with a unique solution, found in
seconds; training continues from there. The layer is centred, since another intercept reduces accuracy on cells of other
donors and assays. Fitting the head first prevents fine-tuning from distorting the embedding (Kumar et al.,
"Fine-tuning can distort pretrained features", ICLR 2022).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.special import log_softmax

from scgalore.nn.base import set_last_layer
from scgalore.tasks.folds import N_FOLDS, VALIDATION, left_out

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scgalore.data.cells import TokenCells
    from scgalore.tasks.base import TaskModel
    from scgalore.train.config import TrainConfig

    Array = NDArray[Any]
    Solve = Callable[[Array, Array, Array, float], Array]
    """Coefficients from centred features, outputs of the linear model, targets and inverse strength of the penalty."""

__all__ = ["Correction", "fit_correction", "last_inputs", "ridge_after", "softmax_after"]

PENALTIES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Inverse strengths, from the strongest penalty; the search stops after two that are worse."""


@dataclass(frozen=True)
class Correction:
    """Last layer of a head.

    Attributes
    ----------
    weight
        float32 ``(n_outputs, n_features)``.
    bias
        float32 ``(n_outputs,)``.
    held_out
        Cross-validated correction of the outputs of each cell, float32 ``(n, n_outputs)``.
    gain, gain_error
        Mean reduction of the loss per cell by ``held_out``, and its standard error.
    penalty
        Chosen inverse strength of the penalty.
    """

    weight: NDArray[np.float32] = field(repr=False)
    bias: NDArray[np.float32] = field(repr=False)
    held_out: NDArray[np.float32] = field(repr=False)
    gain: float
    gain_error: float
    penalty: float

    @property
    def helps(self) -> bool:
        """Whether left-out cells are predicted better by more than two standard errors.

        Smaller gains are often lost on cells of other donors and assays.
        """
        return self.gain > 2 * self.gain_error


def fit_correction(
    features: NDArray[np.float32],
    predicted: NDArray[np.float32],
    target: Array,
    folds: NDArray[np.int64],
    make_solver: Callable[[], Solve],
    loss: Callable[[Array, Array], Array],
) -> Correction:
    """Fit the last layer, with a penalty chosen on training cells.

    Parameters
    ----------
    features
        Inputs of the last layer, ``(n, n_features)``.
    predicted
        Cross-validated outputs of the linear model, ``(n, n_outputs)``.
    target
        Class or value of each cell, ``(n,)``.
    folds
        Result of :func:`~scgalore.tasks.folds.make_folds`.
    make_solver
        Creates a solver for the coefficients; each is used for one set of cells, from the strongest penalty to the
        weakest.
    loss
        Loss of each cell, from outputs and targets.
    """
    mean = features.mean(axis=0)
    scale = math.sqrt(float(np.square(features - mean).mean())) or 1.0
    x, offset = ((features - mean) / scale).astype(np.float64), predicted.astype(np.float64)
    solvers = [make_solver() for _ in range(N_FOLDS + 1)]
    train = np.flatnonzero(folds != VALIDATION)

    def added(rows: NDArray[np.int64], penalty: float) -> NDArray[np.float32]:
        def predict(fold: int, others: NDArray[np.bool_], inside: NDArray[np.int64]) -> Array:
            fitted = rows[others]
            return x[rows[inside]] @ solvers[fold](x[fitted], offset[fitted], target[fitted], penalty)

        return left_out(folds[rows], predict)

    best, worse = (math.inf, PENALTIES[0]), 0
    for penalty in PENALTIES:
        found = float(loss(offset[train] + added(train, penalty), target[train]).mean())
        worse = worse + 1 if found >= best[0] else 0
        best = min(best, (found, penalty))
        if worse == 2:
            break
    held_out = added(np.arange(len(x)), best[1])
    gains = loss(offset, target) - loss(offset + held_out, target)
    error = float(gains.std(ddof=1)) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
    weight = make_solver()(x, offset, target, best[1]).T / scale
    layer = (weight.astype(np.float32), (-weight @ mean).astype(np.float32))
    return Correction(*layer, held_out, float(gains.mean()), error, best[1])


def last_inputs(
    model: TaskModel, cells: TokenCells, rows: NDArray[np.int64], name: str, n_outputs: int, config: TrainConfig
) -> NDArray[np.float32]:
    """Inputs of the last layer of a head with initial weights, float32 ``(len(rows), n_inputs)``.

    Parameters
    ----------
    model
        Model; its network is unchanged afterwards.
    cells, rows
        Cells to run.
    name, n_outputs
        Name and size of the head.
    config
        Seed of the head, and device.
    """
    network = model.network
    heads = network.cell_heads
    *below, weight, _ = network.fresh_heads({name: n_outputs}, seed=config.seed)[name].parameters()
    probe = network.fresh_heads({name: weight.shape[1]}, seed=config.seed)[name]
    with torch.no_grad():
        for own, new in zip(probe.parameters(), below, strict=False):
            own.copy_(new)
    set_last_layer(probe, torch.eye(weight.shape[1]), 0.0)
    try:
        network.put_heads({name: probe})
        return model.run(cells, rows=rows, accelerator=config.accelerator).heads[name]
    finally:
        network.put_heads(heads)


def softmax_after(of_class: NDArray[np.float64]) -> Solve:
    """Create a solver of multinomial logistic regression with logits as offset and class weights ``(n_classes,)``."""
    from scipy.optimize import minimize  # slow to import

    start: list[Array] = []

    def solve(x: Array, offset: Array, y: Array, penalty: float) -> Array:
        shape = (x.shape[1], offset.shape[1])
        truth, weight = np.eye(shape[1])[y], of_class[y][:, None]

        def value(flat: Array) -> tuple[float, Array]:
            coef = flat.reshape(shape)
            log_p = log_softmax(offset + x @ coef, axis=1)
            gradient = x.T @ (weight * (np.exp(log_p) - truth)) + coef / penalty
            return -float((weight * truth * log_p).sum()) + float(np.square(coef).sum()) / (
                2 * penalty
            ), gradient.ravel()

        first = start[-1] if start else np.zeros(shape[0] * shape[1])
        found = minimize(
            value, first, jac=True, method="L-BFGS-B", options={"maxiter": 200, "ftol": 1e-7, "gtol": 1e-3}
        )
        start[:] = [found.x]
        return found.x.reshape(shape)

    return solve


def ridge_after(x: Array, offset: Array, y: Array, penalty: float) -> Array:
    """Ridge regression on the residuals of known values."""
    from sklearn.linear_model import Ridge

    return Ridge(alpha=1 / penalty, fit_intercept=False).fit(x, y - offset[:, 0]).coef_[:, None]
