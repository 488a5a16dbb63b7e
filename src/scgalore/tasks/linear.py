"""The linear model that a network corrects: logistic or ridge regression on the log-normalised expression of all genes.

Both are fitted to rotated expression. A penalised linear model depends on the cells only through their inner products,
so its coefficients are a linear combination of the training cells. Fitting the weights of this combination is exact, and
its size is the number of cells instead of genes. Above :data:`MAX_SPAN` cells, coefficients are combinations of this
number of cells.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import log_softmax
from threadpoolctl import threadpool_limits

from scgalore._options import Option, choice
from scgalore.data.cells import gene_names
from scgalore.data.expression import LogExpression
from scgalore.genes.identifiers import standardise
from scgalore.tasks.folds import N_FOLDS, left_out, make_folds, sample
from scgalore.tasks.linear_model import LinearModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import scipy.sparse as sp
    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore.data.reading import Reading
    from scgalore.data.split import Split
    from scgalore.nn.base import CellOutput

    Array = NDArray[Any]
    Solve = Callable[[Array, Array, float], tuple[Array, Array]]

__all__ = [
    "PRIOR",
    "PRIOR_ALONE",
    "LinearFit",
    "Logistic",
    "basis_of",
    "fit_classes",
    "fit_values",
    "gene_scale",
    "with_held_out_prior",
    "with_prior",
]

PRIOR = Option(
    "prior",
    choice("linear", "none"),
    "Simple model that the network corrects: linear is a logistic or ridge regression on all genes, and the network is used "
    "only if it predicts validation cells better; none trains the network alone. A stream of files has none.",
    "linear",
)
PRIOR_ALONE = "its linear model alone"
"""Name of the linear model in reports."""

ROUGH, EXACT = 1e-3, 1e-4
"""Tolerances of the search and of the final fit."""
MAX_SPAN = 2_000
"""Maximum number of cells in the linear combinations that coefficients are."""
MAX_CELLS = 20_000
"""Maximum number of cells to fit; larger data are sampled within classes."""
MAX_CHOICE = 4_000
"""Maximum number of cells used to select scaling and penalty."""
# Inverse strength of the penalty, as C in scikit-learn; the search increases it and stops when the loss increases.
PENALTIES = {False: (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0), True: (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)}
RARE = -5.0
"""Logit of a class without training cells, relative to the least likely other one."""


def with_prior(
    output: CellOutput, head: str, prior: LinearModel | None, adata: AnnData, reading: Reading
) -> CellOutput:
    """Add predictions of the linear model to the outputs of a head, which corrects them.

    Parameters
    ----------
    output
        Output of the network.
    head
        Name of the head.
    prior
        The linear model; ``None`` adds nothing.
    adata, reading
        The same cells, and how to read them.
    """
    return output if prior is None else _add(output, head, prior.predict(adata, reading))


def with_held_out_prior(output: CellOutput, head: str, targets: Mapping[str, Array]) -> CellOutput:
    """Add ``targets["prior"]``, if present, to the outputs of a head; it is predicted by models not trained on the cell.

    Parameters
    ----------
    output, head
        As for :func:`with_prior`.
    targets
        Arrays of the cells of a training run; ``prior`` is computed by
        :meth:`scgalore.tasks.cells.CellTask.prepare`.
    """
    return _add(output, head, targets["prior"]) if "prior" in targets else output


def _add(output: CellOutput, head: str, of_prior: Array) -> CellOutput:
    return replace(output, heads={**output.heads, head: output.heads[head] + of_prior})


@dataclass(frozen=True)
class LinearFit:
    """A fitted model, and predictions for all cells by models that were not fitted to them.

    Attributes
    ----------
    model
        Model fitted to all training and validation cells.
    predicted
        Outputs for all cells, float32 ``(n_obs, n_outputs)``, of models that were not fitted to the cell: for training
        cells, models fitted to other training cells; for validation cells, a model fitted to all training cells.
    table
        One row per candidate: ``scaled``, ``penalty`` (inverse strength), ``loss`` on left-out training cells,
        ``chosen``.
    scaled, penalty
        Selected scaling and penalty.
    cells, folds
        Rows that the model was fitted to, int64 ``(n,)``, and the fold of each, from
        :func:`~scgalore.tasks.folds.make_folds`.
    unlabelled
        Changes by cells without labels, from :func:`~scgalore.tasks.unlabelled.fit_unlabelled`; empty without
        any.
    """

    model: LinearModel = field(repr=False)
    predicted: NDArray[np.float32] = field(repr=False)
    table: pd.DataFrame = field(repr=False)
    scaled: bool
    penalty: float
    cells: NDArray[np.int64] = field(repr=False)
    folds: NDArray[np.int64] = field(repr=False)
    unlabelled: dict[str, Any] = field(default_factory=dict, repr=False)


def fit_classes(
    adata: AnnData,
    reading: Reading,
    codes: NDArray[np.integer],
    split: Split,
    *,
    n_classes: int,
    weights: tuple[float, ...] | None = None,
    seed: int = 0,
) -> LinearFit:
    """Fit a multinomial logistic regression; scaling of the genes and penalty are chosen by cross-validation.

    Parameters
    ----------
    adata, reading
        Cells, and how to read them; cells other than those of training and validation are only predicted.
    codes
        Class of each cell, ``(n_obs,)``; only classes of training and validation cells are used.
    split
        Scaling and penalty are chosen on training cells alone.
    n_classes
        Number of classes. A class without cells gets a low logit.
    weights
        Weight of each class in the loss; ``None`` gives all cells the same weight.
    seed
        Seed of the folds.
    """
    of_class = np.ones(n_classes) if weights is None else np.array(weights)

    def loss(outputs: Array, y: Array) -> float:
        return float(np.average(-log_softmax(outputs, axis=1)[np.arange(len(y)), y], weights=of_class[y]))

    return _fit(adata, reading, codes, codes, split, lambda tolerance: Logistic(of_class, tolerance), loss, seed)


def fit_values(
    adata: AnnData,
    reading: Reading,
    values: NDArray[np.floating],
    split: Split,
    *,
    seed: int = 0,
) -> LinearFit:
    """Fit a ridge regression; parameters as for :func:`fit_classes`.

    Parameters
    ----------
    adata, reading, split, seed
        As for :func:`fit_classes`.
    values
        Value of each cell, ``(n_obs,)``, with a variance of about 1.
    """

    def loss(outputs: Array, y: Array) -> float:
        return float(np.mean((outputs[:, 0] - y) ** 2))

    return _fit(adata, reading, values, np.zeros(len(values), dtype=np.int64), split, lambda _: _ridge, loss, seed)


def _fit(
    adata: AnnData,
    reading: Reading,
    target: Array,
    strata: NDArray[np.integer],
    split: Split,
    solver: Callable[[float], Solve],
    loss: Callable[[Array, Array], float],
    seed: int,
) -> LinearFit:
    expression = LogExpression.from_adata(adata, reading, log_base=math.e)
    names = standardise(gene_names(adata, reading.gene_symbols), reading.species)
    _, unique = np.unique(names, return_index=True)  # the first of columns with the same name
    rng = np.random.default_rng(seed)
    cells = sample(split.known, strata, MAX_CELLS, rng)
    y, train = target[cells], np.isin(cells, split.train)
    folds = make_folds(train, strata[cells], rng)
    x = expression.rows(cells)[:, unique]
    mean = np.asarray(x.mean(axis=0), dtype=np.float64).ravel()
    scales = {scaled: gene_scale(x, mean, scaled=scaled) for scaled in PENALTIES}
    span = sample(np.arange(len(cells)), strata[cells], MAX_SPAN, rng)
    judged = sample(np.flatnonzero(train), strata[cells], MAX_CHOICE, rng)
    rows: list[dict[str, float | bool]] = []
    best: tuple[float, bool, float, Array, Array] | None = None
    for scaled in PENALTIES:
        basis = basis_of((x[span].toarray() - mean) / scales[scaled], scales[scaled])
        features = x @ basis - (mean @ basis).astype(np.float32)
        rough = [solver(ROUGH) for _ in range(N_FOLDS)]
        lowest, worse = math.inf, 0
        for penalty in PENALTIES[scaled]:
            held_out = _left_out(features[judged], y[judged], folds[judged], rough, penalty)
            found = loss(held_out, y[judged])
            rows.append({"scaled": scaled, "penalty": penalty, "loss": found})
            if best is None or found < best[0]:
                best = (found, scaled, penalty, basis, features)
            worse = 0 if found < lowest else worse + 1
            lowest = min(lowest, found)
            if worse == 2:
                break
    assert best is not None
    _, scaled, penalty, basis, features = best
    weights, intercept = solver(EXACT)(features, y, penalty)
    model = LinearModel.from_coefficients((names[i] for i in unique), x, basis @ weights, intercept)
    predicted = model.of_expression(expression, names)
    exact = [solver(EXACT) for _ in range(N_FOLDS + 1)]
    predicted[cells] = _left_out(features, y, folds, exact, penalty)
    table = pd.DataFrame(rows)
    table["chosen"] = (table["scaled"] == scaled) & (table["penalty"] == penalty)
    return LinearFit(model, predicted, table, scaled, penalty, cells, folds)


def gene_scale(x: sp.csr_matrix, mean: NDArray[np.float64], *, scaled: bool) -> NDArray[np.float64]:
    """Divisor of each gene, float64 ``(n_genes,)``; infinite for constant genes.

    A constant gene is not informative, and must not have large values in other cells.

    Parameters
    ----------
    x, mean
        Expression of the fitted cells, and its mean.
    scaled
        Whether genes are scaled to unit variance.
    """
    square = np.asarray(x.multiply(x).mean(axis=0), dtype=np.float64).ravel()
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return np.where(std < 1e-6, np.inf, std if scaled else 1.0)


def basis_of(x: NDArray[np.floating], scale: NDArray[np.float64]) -> NDArray[np.float32]:
    """Basis of the span of the cells, float32 ``(n_genes, n_directions)``, to multiply unscaled expression with.

    Parameters
    ----------
    x
        Expression, centred and divided by the scale, ``(n, n_genes)``.
    scale
        Scale of each gene, ``(n_genes,)``; genes with an infinite scale are excluded.
    """
    centred = x.astype(np.float32)
    size, directions = np.linalg.eigh((centred @ centred.T).astype(np.float64))
    kept = size > size.max(initial=0) * 1e-6
    basis = centred.T @ (directions[:, kept] / np.sqrt(size[kept])).astype(np.float32)
    return (basis / scale[:, None]).astype(np.float32)


def _left_out(
    x: Array, y: Array, folds: NDArray[np.int64], solvers: list[Solve], penalty: float
) -> NDArray[np.float32]:
    def predict(fold: int, others: NDArray[np.bool_], inside: NDArray[np.int64]) -> Array:
        weights, intercept = solvers[fold](x[others], y[others], penalty)
        return x[inside] @ weights + intercept

    return left_out(folds, predict)


class Logistic:
    """Fits a logistic regression; further fits, to the same cells with other penalties, start from the previous one."""

    def __init__(self, of_class: NDArray[np.float64], tolerance: float) -> None:
        from sklearn.linear_model import LogisticRegression

        self.of_class = of_class
        self.classifier = LogisticRegression(max_iter=500, tol=tolerance, warm_start=True)

    def __call__(self, x: Array, y: Array, penalty: float, weight: Array | float = 1.0) -> tuple[Array, Array]:
        """Coefficients ``(n_features, n_classes)`` and intercepts; ``weight`` is the weight of each cell, in addition to that of its class."""
        from sklearn.exceptions import ConvergenceWarning

        present, n_classes = np.unique(y), len(self.of_class)
        weights, intercept = np.zeros((x.shape[1], n_classes)), np.zeros(n_classes)
        if len(present) == 1:
            intercept[:] = RARE
            intercept[present] = 0.0
            return weights, intercept
        # Products of an iteration are small, and threads of BLAS that wait for each other keep processors busy.
        with warnings.catch_warnings(), threadpool_limits(1, user_api="blas"):
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = self.classifier.set_params(C=penalty).fit(x, y, sample_weight=self.of_class[y] * weight)
        if len(present) == 2:  # one row of coefficients, for the second class
            weights[:, present] = found.coef_.T * [-0.5, 0.5]
            intercept[present] = found.intercept_[0] * np.array([-0.5, 0.5])
        else:
            weights[:, present], intercept[present] = found.coef_.T, found.intercept_
        intercept[np.setdiff1d(np.arange(n_classes), present)] = intercept[present].min() + RARE
        return weights, intercept


def _ridge(x: Array, y: Array, penalty: float) -> tuple[Array, Array]:
    from sklearn.linear_model import Ridge

    found = Ridge(alpha=1 / penalty).fit(x.astype(np.float64), y)
    return found.coef_[:, None], np.atleast_1d(found.intercept_)
