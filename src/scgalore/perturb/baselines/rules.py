"""Effects of perturbations by simple rules.

Rules for genes add or average one row per gene, and are all fitted to a :class:`GeneEffects`. Rules for compounds
depend on the dose, and are a :class:`~scgalore.perturb.baselines.dose.DoseEffects`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from scgalore.perturb.baselines.dose import DOSE_RULES, DoseEffects
from scgalore.perturb.baselines.mixed import fit_mixed
from scgalore.perturb.labels.parsing import canonical_name, subject_of

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from scgalore.perturb.labels.profiles import Profiles

    Values = NDArray[np.float64]

__all__ = ["RULES", "Fit", "GeneEffects", "Perturbed", "Rule", "target_vectors"]

Perturbed = tuple[str, ...]

N_COMPONENTS = 10
RIDGE = 0.1
"""Settings of the linear baseline, as chosen by its authors."""


@dataclass(frozen=True)
class GeneEffects:
    """Effect of a perturbation as a sum or mean over its genes.

    Attributes
    ----------
    intercept
        Common part of all effects, ``(n_genes,)``.
    unknown
        Effect of a gene without a row, ``(n_genes,)``.
    names
        Names of the rows: genes, and measured perturbations of several genes.
    rows
        Effects, ``(len(names), n_genes)``.
    average
        Whether the rows of a perturbation's genes are averaged.
    """

    intercept: NDArray[np.float64] = field(repr=False)
    unknown: NDArray[np.float64] = field(repr=False)
    names: tuple[str, ...] = ()
    rows: NDArray[np.float64] = field(repr=False, default_factory=lambda: np.empty((0, 0)))
    average: bool = False

    def knowing(self, vectors: pd.DataFrame) -> GeneEffects:
        """Return itself, since predictions do not use vectors."""
        return self

    def predict(self, genes: Perturbed, control: Values | None = None) -> Values:
        """Effect on mean log-normalised expression, ``(n_genes,)``; 0 for no gene, independent of ``control``."""
        if not genes:
            return np.zeros_like(self.intercept)
        place = {name: i for i, name in enumerate(self.names)}
        whole = place.get(subject_of(canonical_name(genes)))
        if whole is not None:
            return self.intercept + self.rows[whole]
        parts = [self.rows[place[gene]] if gene in place else self.unknown for gene in genes]
        total = np.sum(parts, axis=0)
        return self.intercept + (total / len(parts) if self.average else total)


Rule = GeneEffects | DoseEffects

Fit = Callable[["Profiles", "Values", "Values", "pd.DataFrame | None"], Rule]
"""Arguments: rows, their effects to fit, their sampling variances, and vectors of genes or compounds."""


def _control_mean(train: Profiles, effects: Values, noise: Values, table: pd.DataFrame | None) -> GeneEffects:
    nothing = np.zeros(effects.shape[1])
    return GeneEffects(nothing, nothing)


def _training_mean(train: Profiles, effects: Values, noise: Values, table: pd.DataFrame | None) -> GeneEffects:
    return GeneEffects(effects.mean(axis=0), np.zeros(effects.shape[1]))


def _additive(train: Profiles, effects: Values, noise: Values, table: pd.DataFrame | None) -> GeneEffects:
    nothing = np.zeros(effects.shape[1])
    return GeneEffects(nothing, nothing, *_by_name(map(canonical_name, train.perturbed), effects))


def _matching_mean(train: Profiles, effects: Values, noise: Values, table: pd.DataFrame | None) -> GeneEffects:
    names, rows = _by_name((subject_of(canonical_name(part)) for part in train.perturbed), effects)
    return GeneEffects(np.zeros(effects.shape[1]), effects.mean(axis=0), names, rows, average=True)


def _ridge(train: Profiles, effects: Values, noise: Values, table: pd.DataFrame | None) -> GeneEffects:
    from sklearn.linear_model import RidgeCV

    perturbed = list(train.perturbed)
    genes = sorted({gene for part in perturbed for gene in part})
    present = np.array([[gene in part for gene in genes] for part in perturbed], dtype=np.float64)
    nothing = np.zeros(effects.shape[1])
    if len(perturbed) < 3:  # too few to leave one out
        return _training_mean(train, effects, noise, table)
    penalties = np.geomspace(1e-2, 1e2, 13)
    if present.sum(axis=0).max() == 1:
        # If no gene is perturbed twice, all penalties have the same error and rounding would decide.
        penalties = penalties[:1]
    model = RidgeCV(alphas=penalties).fit(present, effects)
    weights = model.coef_.reshape(effects.shape[1], len(genes)).T
    return GeneEffects(np.broadcast_to(model.intercept_, nothing.shape).copy(), nothing, tuple(genes), weights)


def _linear(train: Profiles, effects: Values, noise: Values, table: pd.DataFrame | None) -> GeneEffects:
    mean, nothing = effects.mean(axis=0), np.zeros(effects.shape[1])
    if table is None:
        return GeneEffects(mean, nothing)
    perturbed = list(train.perturbed)
    known = set(table.index)
    taking_part = [i for i, part in enumerate(perturbed) if known.issuperset(part)]
    if len(taking_part) < 2:
        return GeneEffects(mean, nothing)
    of_targets = table.to_numpy(np.float64)
    place = {name: i for i, name in enumerate(table.index)}
    p = np.array([sum(of_targets[place[gene]] for gene in perturbed[i]) for i in taking_part])  # (n, k)
    y = (effects[taking_part] - mean).T  # (n_genes, n)
    g = _principal_scores(effects.T, N_COMPONENTS)  # (n_genes, k')
    left = np.linalg.solve(g.T @ g + RIDGE * np.eye(g.shape[1]), g.T @ y)  # (k', n)
    weights = left @ p @ np.linalg.inv(p.T @ p + RIDGE * np.eye(p.shape[1]))  # (k', k)
    return GeneEffects(mean, nothing, tuple(map(str, table.index)), of_targets @ weights.T @ g.T)


def _mixed(train: Profiles, effects: Values, noise: Values, table: pd.DataFrame | None) -> GeneEffects:
    mean, names, rows = fit_mixed(list(train.perturbed), effects, noise)
    return GeneEffects(np.zeros_like(mean), mean, *_by_name(names, rows))


def _by_name(names: Iterable[str], rows: NDArray[np.float64]) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """One row per name: the mean over contexts of each perturbation."""
    unique, place = np.unique(list(names), return_inverse=True)
    sums = np.zeros((len(unique), rows.shape[1]))
    np.add.at(sums, place, rows)
    return tuple(map(str, unique)), sums / np.bincount(place)[:, None]


RULES: Mapping[str, Fit] = {
    "control mean": _control_mean,
    "training mean": _training_mean,
    "additive": _additive,
    "matching mean": _matching_mean,
    "ridge": _ridge,
    "linear": _linear,
    "mixed": _mixed,
    **DOSE_RULES,
}


def target_vectors(train: Profiles, embeddings: pd.DataFrame | None) -> pd.DataFrame:
    """Vectors of genes for the linear rule: principal scores of embeddings or, by default, of the measured genes."""
    import pandas as pd

    if embeddings is None:
        scores = _principal_scores(train.effects.T, N_COMPONENTS)
        return pd.DataFrame(scores, index=list(train.genes))
    scores = _principal_scores(embeddings.to_numpy(np.float64), N_COMPONENTS)
    return pd.DataFrame(scores, index=embeddings.index)


def _principal_scores(x: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    return u[:, :n] * s[:n]
