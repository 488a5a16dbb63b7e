"""Baselines that models are compared with, and priors that they correct: fitted combinations of rules in :data:`RULES`.

A :class:`Recipe` defines rules and their weights, and whether the effect on the perturbed gene itself is modelled
separately. Fitted to measured perturbations it becomes an :class:`Effects`, which predicts any perturbation.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from scgalore.errors import DataError, OptionError
from scgalore.perturb.baselines.own import OwnGene, fit_own, target_columns
from scgalore.perturb.baselines.rules import RULES, Perturbed, Rule, target_vectors
from scgalore.perturb.labels.parsing import canonical_name, subject_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from numpy.typing import NDArray

    from scgalore.perturb.labels.profiles import Profiles

    Values = NDArray[np.float64]

__all__ = [
    "BASELINES",
    "COMPOUND_BASELINES",
    "COMPOUND_PRIORS",
    "NO_EFFECT",
    "OWN_GENE",
    "PRIORS",
    "QUESTIONS",
    "READ_VECTORS",
    "RULE_SETS",
    "Effects",
    "Fitted",
    "Recipe",
    "RuleSet",
    "fit_rule",
    "held_out_effects",
    "prior_of",
]

QUESTIONS = ("measured", "seen", "unseen")
"""Evidence on a perturbation to predict: it was measured; one of its genes was perturbed, or its compound was given at
another dose; neither."""

SUB_ADDITIVE = 0.7
"""Effect of several perturbed genes as a fraction of the sum of single effects, if no such perturbation was measured.
The best value was 0.64 for 126 doubles of Norman et al. as pseudobulk and 0.92 for five of them as cells, 0.57 and 0.65
on two other screens."""

LEAVE_ONE_OUT, N_FOLDS = 40, 10
"""Up to this number of perturbations, each is its own fold; otherwise there are ``N_FOLDS``."""


@dataclass(frozen=True)
class Fitted:
    """A recipe, fitted to the rows of one context.

    Attributes
    ----------
    rules
        Rules, fitted to effects without those on the perturbed genes themselves if ``own`` models these.
    weights
        Weights of the rules for each of :data:`QUESTIONS`, float64 ``(3, len(rules))``.
    perturbed
        Genes of the perturbations in the fit, or compounds at any dose.
    measured
        Canonical names of these perturbations.
    own
        Change of a perturbed gene itself.
    control
        Default control mean of each measured gene, ``(n_genes,)``.
    several
        Factor for unmeasured perturbations of several genes.
    """

    rules: tuple[Rule, ...]
    weights: Values
    perturbed: frozenset[str] = field(repr=False, default=frozenset())
    measured: frozenset[str] = field(repr=False, default=frozenset())
    own: OwnGene = OwnGene()
    control: Values | None = field(repr=False, default=None)
    several: float = 1.0

    def question(self, genes: Perturbed) -> str:
        """The entry of :data:`QUESTIONS` that applies to a perturbation."""
        if canonical_name(genes) in self.measured:
            return "measured"
        return "unseen" if self.perturbed.isdisjoint(map(subject_of, genes)) else "seen"

    def terms(self, genes: Perturbed, control: Values | None = None) -> Values:
        """Predictions of each rule given control expression, ``(len(rules), n_genes)``."""
        factor = self.several if len(genes) > 1 and self.question(genes) != "measured" else 1.0
        return factor * np.array([rule.predict(genes, control) for rule in self.rules])

    def predict(self, genes: Perturbed, control: Values | None = None) -> Values:
        """Effect on all but the perturbed genes themselves, ``(n_genes,)``."""
        weights = self.weights[QUESTIONS.index(self.question(genes))]
        return np.asarray(weights @ self.terms(genes, control))


@dataclass(frozen=True)
class Effects:
    """A recipe fitted within each context, and on all contexts for those without training perturbations.

    Attributes
    ----------
    name
        Name of the recipe.
    genes
        Names of the measured genes, the columns of an effect.
    pooled
        Fit to all rows.
    by_context
        Fits to the rows of each context.
    """

    name: str
    genes: tuple[str, ...] = field(repr=False)
    pooled: Fitted
    by_context: dict[str, Fitted] = field(default_factory=dict)

    def predict(self, genes: Perturbed, context: str = "", *, control: Values | None = None) -> Values:
        """Effect of perturbing some genes on mean log-normalised expression.

        Parameters
        ----------
        genes
            Perturbed genes, in any order, or one compound at a dose.
        context
            Cell type or line.
        control
            Mean expression of the control cells, float64 ``(n_genes,)``; by default that of the training data. The
            change of a perturbed gene's own expression depends on it.

        Returns
        -------
        float64 ``(n_genes,)``.
        """
        fitted = self.of(context)
        control = fitted.control if control is None else control
        effect = fitted.predict(genes, control)
        columns = self.own_columns(genes)
        if not columns or control is None:
            return effect
        return np.asarray(effect + fitted.own.effects([columns], control[None])[0])

    def predict_rows(self, rows: Profiles) -> Values:
        """Effects of rows, given the controls of their contexts, ``(n, n_genes)``."""
        out = np.zeros_like(rows.means)
        for i, (genes, context) in enumerate(zip(rows.perturbed, rows.contexts, strict=True)):
            out[i] = self.predict(genes, rows.context_names[context], control=rows.control_means[context])
        return out

    def of(self, context: str) -> Fitted:
        """Fit that is used for a context."""
        return self.by_context.get(context, self.pooled)

    def knowing(self, vectors: pd.DataFrame) -> Effects:
        """Return effects with vectors of additional compounds, one row per compound."""

        def of(fitted: Fitted) -> Fitted:
            return replace(fitted, rules=tuple(rule.knowing(vectors) for rule in fitted.rules))

        by_context = {context: of(fitted) for context, fitted in self.by_context.items()}
        return replace(self, pooled=of(self.pooled), by_context=by_context)

    def known(self, context: str = "") -> frozenset[str]:
        """Genes or compounds in the fit that is used for this context."""
        return self.of(context).perturbed

    def own_columns(self, genes: Perturbed) -> list[int]:
        """Columns of the perturbed genes themselves."""
        return [self._place[gene] for gene in genes if gene in self._place]

    @cached_property
    def _place(self) -> dict[str, int]:
        return {gene: column for column, gene in enumerate(self.genes)}


@dataclass(frozen=True)
class Recipe:
    """Rules to fit, and how they are combined.

    Attributes
    ----------
    name
        Name of the recipe.
    rules
        Names of :data:`RULES`.
    weights
        Weights of the rules for each of :data:`QUESTIONS`, float64 ``(3, len(rules))``; by default 1.
    own
        Whether the change of the perturbed gene itself is modelled separately: rules are fitted to the remainder, and
        both are added in predictions.
    sub_additive
        Whether unmeasured effects of several genes are assumed to be smaller than their sum.
    """

    name: str
    rules: tuple[str, ...]
    weights: Values | None = field(default=None, repr=False)
    own: bool = False
    sub_additive: bool = False

    def fit(self, train: Profiles, *, embeddings: pd.DataFrame | None = None) -> Effects:
        """Fit all rules.

        Parameters
        ----------
        train
            Rows to fit to.
        embeddings
            Vectors for rules that use them: one row per gene or compound.

        Raises
        ------
        DataError
            If there are no perturbations to fit to.
        OptionError
            If a rule is not available for genes or compounds.
        """
        if len(train) == 0:
            msg = "There are no perturbations to fit a baseline to. Check the split: adata.uns['split']['train']."
            raise DataError(msg)
        kind = RULE_SETS[train.kind]
        foreign = [rule for rule in self.rules if rule not in kind.rules]
        if foreign:
            msg = f"The baseline {foreign[0]!r} is not available for {train.kind} perturbations; choose one of {', '.join(map(repr, kind.rules))}."
            raise OptionError(msg)
        table = target_vectors(train, embeddings) if "linear" in self.rules else embeddings
        everything = np.arange(len(train))
        # Rules that model contexts are fitted once, to all contexts.
        joint = {rule: RULES[rule](train, train.effects, _noise(train), table) for rule in self.rules if rule in JOINT}
        weights = np.ones((len(QUESTIONS), len(self.rules))) if self.weights is None else self.weights

        def fitted(rows: NDArray[np.int64]) -> Fitted:
            part = train.take(rows)
            own = fit_own(part) if self.own and kind.own else OwnGene()
            columns = target_columns(part.perturbed, part.genes)
            effects = part.effects - own.effects(columns, part.controls)
            noise = _noise(part)
            combined = any(len(genes) > 1 for genes in part.perturbed)
            known = train if kind.joint else part
            return Fitted(
                rules=tuple(joint.get(rule) or RULES[rule](part, effects, noise, table) for rule in self.rules),
                weights=weights,
                perturbed=frozenset(subject_of(gene) for genes in known.perturbed for gene in genes),
                measured=frozenset(known.perturbations),
                own=own,
                control=train.control_means[np.unique(part.contexts)].mean(axis=0),
                several=1.0 if combined or not self.sub_additive else SUB_ADDITIVE,
            )

        present = np.unique(train.contexts)
        by_context = {train.context_names[c]: fitted(np.flatnonzero(train.contexts == c)) for c in present}
        pooled = next(iter(by_context.values())) if len(present) == 1 else fitted(everything)
        return Effects(self.name, train.genes, pooled, by_context)


NO_EFFECT, OWN_GENE = "control mean", "training mean + own gene"

BASELINES: tuple[str, ...] = (NO_EFFECT, "training mean", OWN_GENE, "additive", "matching mean", "ridge", "linear")
"""Baselines for gene perturbations."""

PRIORS: tuple[str, ...] = ("mixed", "additive", "matching mean", "ridge", "linear")
"""Priors for gene perturbations, each with the effect on the perturbed gene itself; ``"chosen"`` selects one of them."""

COMPOUND_BASELINES: tuple[str, ...] = (
    NO_EFFECT,
    "training mean",
    "dose mean",
    "matching mean",
    "dose interpolation",
    "vector ridge",
)
"""Baselines for compounds."""

COMPOUND_PRIORS: tuple[str, ...] = ("dose response", "dose mean", "matching mean", "dose interpolation", "vector ridge")
"""Priors for compounds; ``"chosen"`` selects one of them."""

JOINT = frozenset({"dose response"})
"""Rules that model contexts."""

READ_VECTORS = frozenset({"linear", "vector ridge", "dose response"})
"""Rules that use vectors of genes or compounds."""


@dataclass(frozen=True)
class RuleSet:
    """Rules for one kind of perturbation.

    Attributes
    ----------
    baselines
        Baselines that a model is compared with.
    priors
        Priors that it can correct; the first is the default.
    stacked
        Candidate rules, and the rules of a stack.
    own
        Whether the perturbed gene itself is modelled separately, since it is one of the measured genes.
    joint
        Whether perturbations measured in any context count as known in all contexts.
    """

    baselines: tuple[str, ...]
    priors: tuple[str, ...]
    stacked: tuple[str, ...]
    own: bool
    joint: bool

    @property
    def rules(self) -> tuple[str, ...]:
        """All rules of the set."""
        return tuple(dict.fromkeys((*self.baselines, *self.priors, *self.stacked)))


RULE_SETS: Mapping[str, RuleSet] = {
    "gene": RuleSet(
        BASELINES, PRIORS, ("training mean", "matching mean", "ridge", "linear", "mixed"), own=True, joint=False
    ),
    "compound": RuleSet(
        COMPOUND_BASELINES,
        COMPOUND_PRIORS,
        ("training mean", "dose mean", "matching mean", "dose interpolation", "vector ridge", "dose response"),
        own=False,
        joint=True,
    ),
}
"""Rules by :attr:`Profiles.kind`."""

RECIPES: Mapping[str, Recipe] = {
    **{name: Recipe(name, (name,)) for name in RULES},
    OWN_GENE: Recipe(OWN_GENE, ("training mean",), own=True),
}


def fit_rule(name: str, train: Profiles, *, embeddings: pd.DataFrame | None = None) -> Effects:
    """Fit a rule to measured perturbations.

    Parameters
    ----------
    name
        ``"control mean"``: no effect. ``"training mean"``: mean over all training perturbations, with equal weight.
        ``"training mean + own gene"``: in addition, the effect on the perturbed gene itself, if measured, as a function
        of its control expression.
        ``"additive"``: sum of the genes' single effects, 0 for genes that were not measured alone. ``"matching mean"``:
        their average, with the training mean for such genes (Systema, doi:10.1038/s41587-025-02777-8). ``"ridge"``:
        regression on indicators of the genes, with the penalty chosen by leave-one-out. ``"linear"``: the bilinear
        model of Ahlmann-Eltze et al., doi:10.1038/s41592-025-02772-6, with 10 components and penalties of 0.1.
        ``"mixed"``: shrunken additive effects of genes, with variances by restricted maximum likelihood (Henderson
        1975, doi:10.2307/2529430).

        For compounds, ``"matching mean"`` is the mean over the doses of the compound. ``"dose mean"``: mean over all
        compounds at the dose, interpolated linearly in the logarithm of the dose.
        ``"dose interpolation"``: the same for the compound itself, if it was measured. ``"vector ridge"``: regression
        on the logarithm of the dose, ten principal components of the vectors, and their products. ``"dose response"``:
        a Gaussian process over compounds, vectors, doses and contexts, with variances by maximum likelihood.
    train
        Rows to fit to.
    embeddings
        Vectors of compounds, one row per compound; or of genes for ``"linear"``, one row per gene, by default the
        principal scores of the measured genes, which unmeasured genes do not have. Without vectors for two
        perturbations the rule falls back to the training mean.

    Raises
    ------
    OptionError
        If the rule does not exist.
    DataError
        If there are no perturbations to fit to.
    """
    return _recipe(name).fit(train, embeddings=embeddings)


def prior_of(name: str) -> Recipe:
    """Recipe of a prior: a rule with the effect on the perturbed gene itself, sub-additive if unmeasured.

    Parameters
    ----------
    name
        Name of the rule.
    """
    return replace(_recipe(name), own=True, sub_additive=True)


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        msg = f"There is no baseline {name!r}; choose one of {', '.join(map(repr, RECIPES))}."
        raise OptionError(msg)
    return RECIPES[name]


def folds_of(names: tuple[str, ...], *, seed: int = 0) -> list[NDArray[np.int64]]:
    """Positions to hold out together: rows of one name are never separated; with few names, each is a fold.

    Parameters
    ----------
    names
        Name of each row.
    seed
        Random seed.
    """
    unique, place = np.unique(names, return_inverse=True)
    n = len(unique) if len(unique) <= LEAVE_ONE_OUT else N_FOLDS
    fold = np.arange(len(unique)) % n
    if n < len(unique):
        fold = np.random.default_rng(seed).permutation(fold)
    return [np.flatnonzero(fold[place] == i) for i in range(n)]


def held_out_effects(recipe: Recipe, train: Profiles, *, embeddings: pd.DataFrame | None = None) -> Values:
    """Cross-validated predictions of a recipe for each perturbation.

    Parameters
    ----------
    recipe
        Recipe with its weights.
    train, embeddings
        As for :meth:`Recipe.fit`.

    Returns
    -------
    float64 ``(n, n_genes)``, in the order of ``train``; 0 if there is nothing else to fit to. A single compound is held
    out context by context.
    """
    out = np.zeros_like(train.means)
    names = train.perturbations
    if RULE_SETS[train.kind].joint and len(set(names)) == 1:
        names = tuple(train.context_names[context] for context in train.contexts)
    for held in folds_of(names):
        others = np.setdiff1d(np.arange(len(train)), held)
        if len(others):
            out[held] = recipe.fit(train.take(others), embeddings=embeddings).predict_rows(train.take(held))
    return out


def _noise(profiles: Profiles) -> Values:
    """Sampling variance of each row's mean, averaged over genes."""
    return np.asarray((profiles.variances / profiles.n_cells[:, None]).mean(axis=1))
