"""Scores of predicted mean expression, one per row; a row is a perturbation in a context."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Values = NDArray[np.float64]

__all__ = ["METRICS", "Means", "Metric"]

# Predictions are stored as float32: an effect this small relative to its profile is a rounding error, and the
# correlation of rounding errors is random.
_ROUNDING = 4 * float(np.finfo(np.float32).eps)

_SAME = 5e-4
"""A profile that differs from the centroid by no more than this in every gene equals the centroid to three decimals;
the remainder would be compared by its direction, however small it is."""


@dataclass(frozen=True)
class Means:
    """Predicted and real mean expression, row by row.

    Attributes
    ----------
    genes
        Names of the columns.
    perturbations
        Name of each row's perturbation.
    perturbed
        Perturbed genes of each row.
    contexts
        Index of the context (cell type or line) of each row, int64 ``(n,)``. Rows are ranked within their
        context.
    predicted, real
        Mean log-normalised expression, float64 ``(n, n_genes)``.
    predicted_control, real_control
        Mean of the control cells for comparison, ``(n, n_genes)``.
    centroid
        Mean of the training perturbations of the row's context, ``(n, n_genes)``; ``None`` without training
        perturbations.
    pooled
        Mean of all perturbations of the row's context, ``(n, n_genes)``.
    weights
        Weight of each gene in each row, from 0 to 1, ``(n, n_genes)``; see
        :func:`scgalore.perturb.scores.reference.gene_weights`.
    """

    genes: tuple[str, ...]
    perturbations: tuple[str, ...]
    perturbed: tuple[tuple[str, ...], ...]
    contexts: NDArray[np.int64] = field(repr=False)
    predicted: Values = field(repr=False)
    real: Values = field(repr=False)
    predicted_control: Values = field(repr=False)
    real_control: Values = field(repr=False)
    centroid: Values | None = field(default=None, repr=False)
    pooled: Values | None = field(default=None, repr=False)
    weights: Values | None = field(default=None, repr=False)

    def part(self, row: int, columns: NDArray[np.int64]) -> Means:
        """Select one row and some of the genes."""

        def of(values: Values | None) -> Any:
            return None if values is None else values[row : row + 1, columns]

        return Means(
            genes=tuple(self.genes[i] for i in columns),
            perturbations=self.perturbations[row : row + 1],
            perturbed=self.perturbed[row : row + 1],
            contexts=self.contexts[row : row + 1],
            predicted=of(self.predicted),
            real=of(self.real),
            predicted_control=of(self.predicted_control),
            real_control=of(self.real_control),
            centroid=of(self.centroid),
            pooled=of(self.pooled),
            weights=of(self.weights),
        )

    @property
    def predicted_effect(self) -> Values:
        """Predicted mean minus its control."""
        return self.predicted - self.predicted_control

    @property
    def real_effect(self) -> Values:
        """Real mean minus its control."""
        return self.real - self.real_control


@dataclass(frozen=True)
class Metric:
    """Description of a metric.

    Attributes
    ----------
    name
        Name in tables.
    best
        Value of a perfect prediction; ``None`` for a count, which is neither good nor bad.
    needs
        Whether it is computed from mean expression or from the cells themselves.
    chance
        Expected value of a prediction without information on the perturbation; ``None`` if it depends on the data.
    undefined
        Value that replaces NaN in means over perturbations; ``None`` excludes NaN.
    halves
        How the agreement of two halves of the real cells is corrected to two full experiments; ``None`` if this is not
        possible. See :func:`scgalore.perturb.scores.summary.full_depth`.
    compute
        Scores of all rows, ``(n,)``; ``None`` for those that need cells.
    """

    name: str
    best: float | None
    needs: Literal["means", "cells"]
    chance: float | None
    undefined: float | None
    halves: Literal["reliability", "residual", "square", "absolute"] | None
    compute: Callable[[Means], Values] | None = field(default=None, repr=False)


def _pearson(x: Values, y: Values, *, x_profile: Values, y_profile: Values) -> Values:
    """Row-wise Pearson correlation; NaN if a side is constant up to rounding of its profile."""
    x, y = (side - side.mean(axis=1, keepdims=True) for side in (x, y))
    norms = [np.linalg.norm(side, axis=1) for side in (x, y)]
    constant = [
        norm <= _ROUNDING * np.linalg.norm(profile, axis=1)
        for norm, profile in zip(norms, (x_profile, y_profile), strict=True)
    ]
    r = np.full(len(x), np.nan)
    fine = ~(constant[0] | constant[1])
    r[fine] = (x[fine] * y[fine]).sum(axis=1) / (norms[0][fine] * norms[1][fine])
    return np.clip(r, -1, 1)


def _pearson_delta(means: Means) -> Values:
    return _pearson(means.predicted_effect, means.real_effect, x_profile=means.predicted, y_profile=means.real)


def _pearson_centroid(means: Means) -> Values:
    if means.centroid is None:
        return np.full(len(means.real), np.nan)
    away = [side - means.centroid for side in (means.predicted, means.real)]
    r = _pearson(*away, x_profile=means.predicted, y_profile=means.real)
    r[np.min([np.abs(side).max(axis=1) for side in away], axis=0) <= _SAME] = np.nan
    return r


def _mse(means: Means) -> Values:
    return ((means.predicted - means.real) ** 2).mean(axis=1)


def _mae(means: Means) -> Values:
    return np.abs(means.predicted - means.real).mean(axis=1)


def _mse_delta(means: Means) -> Values:
    return ((means.predicted_effect - means.real_effect) ** 2).mean(axis=1)


def _mae_delta(means: Means) -> Values:
    return np.abs(means.predicted_effect - means.real_effect).mean(axis=1)


def _divided(numerator: Values, denominator: Values) -> Values:
    result = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=result, where=denominator > 0)


def _wmse(means: Means) -> Values:
    if means.weights is None:
        return np.full(len(means.real), np.nan)
    w = means.weights
    return _divided((w * (means.predicted - means.real) ** 2).sum(axis=1), w.sum(axis=1))


def _r2w_delta(means: Means) -> Values:
    if means.weights is None or means.pooled is None:
        return np.full(len(means.real), np.nan)
    w = means.weights
    deviation = means.real - means.pooled
    mean = _divided((w * deviation).sum(axis=1), w.sum(axis=1))[:, None]
    spread = np.nan_to_num((w * (deviation - mean) ** 2).sum(axis=1))
    return 1 - _divided((w * (means.predicted - means.real) ** 2).sum(axis=1), spread)


def _unit(x: Values) -> Values:
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norm > 0, norm, 1)


def _without_target(compute: Callable[[Means], Values]) -> Callable[[Means], Values]:
    """Score of each row without the genes perturbed in it."""

    def of_others(means: Means) -> Values:
        scores = np.full(len(means.real), np.nan)
        column = {gene: i for i, gene in enumerate(means.genes)}
        for row, genes in enumerate(means.perturbed):
            kept = np.setdiff1d(np.arange(len(means.genes)), [column[gene] for gene in genes if gene in column])
            scores[row] = compute(means.part(row, kept))[0]
        return scores

    return of_others


def _distances(metric: str, x: Values, y: Values) -> Values:
    """Distances ``(len(x), len(y))``; a zero vector is at cosine distance 1 from everything."""
    if metric == "cosine":
        return np.clip(1 - _unit(x) @ _unit(y).T, 0, 2)
    from scipy.spatial.distance import cdist  # slow to import

    return cdist(x, y, {"l1": "cityblock", "l2": "euclidean"}[metric])


def _discrimination(means: Means, metric: str) -> Values:
    """Rank of the true perturbation as in cell-eval: divided by n, ties by position, without the perturbed gene."""
    scores = np.empty(len(means.real))
    column = {gene: i for i, gene in enumerate(means.genes)}
    for context in np.unique(means.contexts):
        rows = np.flatnonzero(means.contexts == context)
        real, predicted = means.real_effect[rows], means.predicted_effect[rows]
        for i, row in enumerate(rows):
            kept = np.arange(len(means.genes)) != column.get(means.perturbations[row], -1)
            distances = _distances(metric, predicted[i : i + 1, kept], real[:, kept])[0]
            # The sort is not stable, as in cell-eval, so ties are ordered identically.
            scores[row] = 1 - np.flatnonzero(np.argsort(distances) == i)[0] / len(rows)
    return scores


def _discrimination_l1(means: Means) -> Values:
    return _discrimination(means, "l1")


def _discrimination_l2(means: Means) -> Values:
    return _discrimination(means, "l2")


def _discrimination_cosine(means: Means) -> Values:
    return _discrimination(means, "cosine")


def _pds_cosine(means: Means) -> Values:
    """Fraction of other perturbations that are farther from the prediction than the true one; ties count half."""
    scores = np.full(len(means.real), np.nan)
    targets = {gene for genes in means.perturbed for gene in genes}
    # Targets of all perturbations are excluded: excluding only each row's own target would reveal the row by its
    # missing gene.
    kept = np.array([gene not in targets for gene in means.genes], dtype=bool)
    effects = []
    for effect, profile in ((means.predicted_effect, means.predicted), (means.real_effect, means.real)):
        nothing = np.linalg.norm(effect, axis=1) <= _ROUNDING * np.linalg.norm(profile, axis=1)
        effects.append(np.where(nothing[:, None], 0, effect)[:, kept])
    for context in np.unique(means.contexts):
        rows = np.flatnonzero(means.contexts == context)
        if len(rows) < 2:
            continue
        distances = _distances("cosine", effects[0][rows], effects[1][rows])
        # Equal perturbations may differ by rounding after normalisation.
        distances = np.round(distances, 12)
        own = np.diag(distances)[:, None]
        nearer = (distances < own).sum(axis=1) + 0.5 * ((distances == own).sum(axis=1) - 1)
        scores[rows] = 1 - nearer / (len(rows) - 1)
    return scores


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("pearson_delta", 1.0, "means", 0.0, 0.0, "reliability", _pearson_delta),
        Metric("pearson_centroid", 1.0, "means", 0.0, 0.0, "reliability", _pearson_centroid),
        Metric("mse", 0.0, "means", None, None, "square", _mse),
        Metric("mae", 0.0, "means", None, None, "absolute", _mae),
        Metric("mse_delta", 0.0, "means", None, None, "square", _mse_delta),
        Metric("mae_delta", 0.0, "means", None, None, "absolute", _mae_delta),
        Metric("pearson_delta_without_target", 1.0, "means", 0.0, 0.0, "reliability", _without_target(_pearson_delta)),
        Metric(
            "pearson_centroid_without_target", 1.0, "means", 0.0, 0.0, "reliability", _without_target(_pearson_centroid)
        ),
        Metric("mse_without_target", 0.0, "means", None, None, "square", _without_target(_mse)),
        Metric("wmse", 0.0, "means", None, None, "square", _wmse),
        Metric("r2w_delta", 1.0, "means", None, None, "residual", _r2w_delta),
        Metric("pds_cosine", 1.0, "means", 0.5, 0.5, "reliability", _pds_cosine),
        Metric("discrimination_score_l1", 1.0, "means", 0.5, None, "reliability", _discrimination_l1),
        Metric("discrimination_score_l2", 1.0, "means", 0.5, None, "reliability", _discrimination_l2),
        Metric("discrimination_score_cosine", 1.0, "means", 0.5, None, "reliability", _discrimination_cosine),
    )
}
"""Metrics of means, by name. Those of differential expression are in :data:`scgalore.perturb.scores.differential.METRICS`."""
