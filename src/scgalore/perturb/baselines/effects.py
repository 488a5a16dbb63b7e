"""Effects of perturbations by simple rules: the baselines every model stands beside, and the priors it starts from.

All of them add or average one row a gene, so all of them become the same thing, a :class:`GeneEffects`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from scgalore.errors import DataError, OptionError
from scgalore.perturb.baselines.mixed import fit_mixed, mixed_held_out
from scgalore.perturb.labels.parsing import canonical_name

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from scgalore.perturb.labels.profiles import Profiles

__all__ = ["BASELINES", "PRIORS", "Effects", "GeneEffects", "fit_effects", "held_out_effects"]

Perturbed = tuple[str, ...]

N_COMPONENTS = 10
RIDGE = 0.1
"""Of the linear baseline, as its authors set them."""


@dataclass(frozen=True)
class GeneEffects:
    """Effect of a perturbation as a sum, or a mean, over its genes.

    Attributes
    ----------
    intercept
        Part of every effect, ``(n_genes,)``.
    unknown
        Row of a gene that has none, ``(n_genes,)``.
    names
        Names of the rows: genes, and perturbations of several genes that were measured as such.
    rows
        Their effects, ``(len(names), n_genes)``.
    average
        Whether the rows of a perturbation's genes are averaged.
    perturbed
        Genes of the perturbations it was fitted to.
    """

    intercept: NDArray[np.float64] = field(repr=False)
    unknown: NDArray[np.float64] = field(repr=False)
    names: tuple[str, ...] = ()
    rows: NDArray[np.float64] = field(repr=False, default_factory=lambda: np.empty((0, 0)))
    average: bool = False
    perturbed: frozenset[str] = field(repr=False, default=frozenset())

    def predict(self, genes: Perturbed) -> NDArray[np.float64]:
        """Effect on mean log-normalised expression, ``(n_genes,)``; 0 for no gene."""
        if not genes:
            return np.zeros_like(self.intercept)
        place = {name: i for i, name in enumerate(self.names)}
        whole = place.get(canonical_name(genes))
        if whole is not None:
            return self.intercept + self.rows[whole]
        parts = [self.rows[place[gene]] if gene in place else self.unknown for gene in genes]
        total = np.sum(parts, axis=0)
        return self.intercept + (total / len(parts) if self.average else total)


Fit = Callable[[list[Perturbed], "NDArray[np.float64]", "NDArray[np.float64]", "pd.DataFrame | None"], GeneEffects]


def _control_mean(
    perturbed: list[Perturbed], effects: NDArray[np.float64], noise: NDArray[np.float64], table: pd.DataFrame | None
) -> GeneEffects:
    nothing = np.zeros(effects.shape[1])
    return GeneEffects(nothing, nothing)


def _training_mean(
    perturbed: list[Perturbed], effects: NDArray[np.float64], noise: NDArray[np.float64], table: pd.DataFrame | None
) -> GeneEffects:
    return GeneEffects(effects.mean(axis=0), np.zeros(effects.shape[1]))


def _additive(
    perturbed: list[Perturbed], effects: NDArray[np.float64], noise: NDArray[np.float64], table: pd.DataFrame | None
) -> GeneEffects:
    nothing = np.zeros(effects.shape[1])
    return GeneEffects(nothing, nothing, *_by_name(map(canonical_name, perturbed), effects))


def _matching_mean(
    perturbed: list[Perturbed], effects: NDArray[np.float64], noise: NDArray[np.float64], table: pd.DataFrame | None
) -> GeneEffects:
    names, rows = _by_name(map(canonical_name, perturbed), effects)
    return GeneEffects(np.zeros(effects.shape[1]), effects.mean(axis=0), names, rows, average=True)


def _ridge(
    perturbed: list[Perturbed], effects: NDArray[np.float64], noise: NDArray[np.float64], table: pd.DataFrame | None
) -> GeneEffects:
    from sklearn.linear_model import RidgeCV

    genes = sorted({gene for part in perturbed for gene in part})
    present = np.array([[gene in part for gene in genes] for part in perturbed], dtype=np.float64)
    nothing = np.zeros(effects.shape[1])
    if len(perturbed) < 3:  # too few to leave one out
        return _training_mean(perturbed, effects, noise, table)
    penalties = np.geomspace(1e-2, 1e2, 13)
    if present.sum(axis=0).max() == 1:
        # Every penalty leaves the same error where no gene is perturbed twice, and rounding would choose.
        penalties = penalties[:1]
    model = RidgeCV(alphas=penalties).fit(present, effects)
    weights = model.coef_.reshape(effects.shape[1], len(genes)).T
    return GeneEffects(np.broadcast_to(model.intercept_, nothing.shape).copy(), nothing, tuple(genes), weights)


def _linear(
    perturbed: list[Perturbed], effects: NDArray[np.float64], noise: NDArray[np.float64], table: pd.DataFrame | None
) -> GeneEffects:
    mean, nothing = effects.mean(axis=0), np.zeros(effects.shape[1])
    if table is None:
        return GeneEffects(mean, nothing)
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


def _mixed(
    perturbed: list[Perturbed], effects: NDArray[np.float64], noise: NDArray[np.float64], table: pd.DataFrame | None
) -> GeneEffects:
    mean, names, rows = fit_mixed(perturbed, effects, noise)
    return GeneEffects(np.zeros_like(mean), mean, *_by_name(names, rows))


def _by_name(names: Iterable[str], rows: NDArray[np.float64]) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """One row a name: a perturbation that was measured in several contexts counts with their mean."""
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
}

BASELINES: tuple[str, ...] = ("control mean", "training mean", "additive", "matching mean", "ridge", "linear")
"""Rules a model is scored beside."""

PRIORS: tuple[str, ...] = ("mixed", "additive", "ridge", "linear")
"""Rules a model can start from."""


@dataclass(frozen=True)
class Effects:
    """A rule fitted within each context, and on all of them together for contexts without training perturbations.

    Attributes
    ----------
    name
        Which rule.
    genes
        Names of the measured genes, the columns of an effect.
    pooled
        Fitted on everything.
    by_context
        Fitted on the rows of one context.
    """

    name: str
    genes: tuple[str, ...] = field(repr=False)
    pooled: GeneEffects
    by_context: dict[str, GeneEffects] = field(default_factory=dict)

    def predict(self, genes: Perturbed, context: str = "") -> NDArray[np.float64]:
        """Effect of perturbing some genes on mean log-normalised expression.

        Parameters
        ----------
        genes
            Perturbed genes; the order does not matter.
        context
            Cell type or line.

        Returns
        -------
        float64 ``(n_genes,)``.
        """
        return self.by_context.get(context, self.pooled).predict(genes)

    def known(self, context: str = "") -> frozenset[str]:
        """Genes it has learnt from, where it predicts for this context."""
        return self.by_context.get(context, self.pooled).perturbed


def fit_effects(name: str, train: Profiles, *, embeddings: pd.DataFrame | None = None) -> Effects:
    """Fit a rule to measured perturbations.

    Parameters
    ----------
    name
        ``"control mean"``: no effect. ``"training mean"``: that of all training perturbations, each counting alike.
        ``"additive"``: sum of the genes' single effects, 0 for genes that were not measured alone. ``"matching mean"``:
        their average, with the training mean for genes without (Systema, doi:10.1038/s41587-025-02777-8). ``"ridge"``:
        regression on indicators of the genes, its penalty chosen by leaving one perturbation out. ``"linear"``: the bilinear
        model of Ahlmann-Eltze et al., doi:10.1038/s41592-025-02772-6, with 10 components and penalties of 0.1.
        ``"mixed"``: additive effects of genes, shrunken as far as
        the data ask for, with the variances of highest restricted likelihood (Henderson 1975, doi:10.2307/2529430).
    train
        Rows to fit to.
    embeddings
        Vectors of genes for ``"linear"``, one row a gene; when left out, the principal scores of the measured genes, which
        genes that are not measured do not have. Without vectors for two perturbations the rule falls back to the training mean.

    Raises
    ------
    OptionError
        If there is no such rule.
    DataError
        If there is nothing to fit to.
    """
    if name not in RULES:
        msg = f"There is no rule {name!r}; choose one of {', '.join(map(repr, RULES))}."
        raise OptionError(msg)
    if len(train) == 0:
        msg = "No perturbation is there to fit a baseline to. Check the split: adata.uns['split']['train']."
        raise DataError(msg)
    table = _target_vectors(train, embeddings) if name == "linear" else None
    fit = RULES[name]

    def fitted(rows: NDArray[np.int64]) -> GeneEffects:
        part = train.take(rows)
        known = frozenset(gene for genes in part.perturbed for gene in genes)
        return replace(fit(list(part.perturbed), part.effects, _noise(part), table), perturbed=known)

    present = np.unique(train.contexts)
    by_context = {train.context_names[c]: fitted(np.flatnonzero(train.contexts == c)) for c in present}
    pooled = next(iter(by_context.values())) if len(present) == 1 else fitted(np.arange(len(train)))
    return Effects(name, train.genes, pooled, by_context)


def held_out_effects(name: str, train: Profiles, *, embeddings: pd.DataFrame | None = None) -> NDArray[np.float64]:
    """What a rule says of each perturbation when it is fitted to the others of its context.

    Parameters
    ----------
    name, train, embeddings
        As for :func:`fit_effects`.

    Returns
    -------
    float64 ``(n, n_genes)``, in the order of ``train``; no effect where a context has one perturbation only.
    """
    out = np.zeros_like(train.means)
    for context in np.unique(train.contexts):
        rows = np.flatnonzero(train.contexts == context)
        part = train.take(rows)
        if len(rows) == 1:
            continue
        if name == "mixed":
            out[rows] = mixed_held_out(list(part.perturbed), part.effects, _noise(part))
            continue
        for i in range(len(rows)):
            others = np.delete(np.arange(len(rows)), i)
            rule = fit_effects(name, part.take(others), embeddings=embeddings)
            out[rows[i]] = rule.predict(part.perturbed[i], part.context_names[context])
    return out


def _noise(profiles: Profiles) -> NDArray[np.float64]:
    """Sampling variance of each row's mean, averaged over genes."""
    return (profiles.variances / profiles.n_cells[:, None]).mean(axis=1)


def _target_vectors(train: Profiles, embeddings: pd.DataFrame | None) -> pd.DataFrame:
    import pandas as pd

    if embeddings is None:
        scores = _principal_scores(train.effects.T, N_COMPONENTS)
        return pd.DataFrame(scores, index=list(train.genes))
    scores = _principal_scores(embeddings.to_numpy(np.float64), N_COMPONENTS)
    return pd.DataFrame(scores, index=embeddings.index)


def _principal_scores(x: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    return u[:, :n] * s[:n]
