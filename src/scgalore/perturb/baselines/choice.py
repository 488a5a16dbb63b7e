"""Choose the rules of a prior by cross-validation on training perturbations.

Perturbations are held out in two ways: one by one, and together with all others of one of their genes, as for unknown
genes. Rules are compared separately for perturbations of genes with other perturbations (``"seen"``) and of genes
without (``"unseen"``), since one is not informative about the other: with singles only, any mean is adequate for unseen
genes, and there are no doubles to show that it is not for doubles. Compounds are held out likewise, at one dose and at
all doses. The criterion is the squared error of the effect. The default rule (``"mixed"``; for compounds ``"dose
response"``) is replaced only by one that is better by two standard errors, since a dozen perturbations are easily
predicted better by chance.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgalore.perturb.baselines.effects import NO_EFFECT, QUESTIONS, RULE_SETS, Fitted, Recipe, RuleSet, folds_of
from scgalore.perturb.labels.parsing import subject_of
from scgalore.perturb.scores.metrics import METRICS, Means

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scgalore.perturb.labels.profiles import Profiles

    Values = NDArray[np.float64]

__all__ = ["CHOSEN", "COLUMNS", "Choice", "candidates_of", "choose_prior"]

CHOSEN = "chosen"

STACK, OWN_ONLY = "stack", "own gene"

REFERENCES = (NO_EFFECT, "training mean without own gene")
"""References in the table that cannot be chosen, since candidates include them with zero weights."""


def candidates_of(rules: RuleSet) -> dict[str, tuple[str, ...]]:
    """Rules of each candidate; all include the effect on the perturbed gene itself."""
    alone = {OWN_ONLY: ()} if rules.own else {}
    return {**alone, **{rule: (rule,) for rule in rules.stacked}, STACK: rules.stacked}


FEWEST, CLEAR = 8, 2.0
"""Minimum number of perturbations for a choice, and standard errors by which another rule must beat the default."""

PULL = 5.0
"""Weight of the default weights, in perturbations."""

SHOWN = {
    "mse": "mse",
    "pearson_delta": "pearson_delta",
    "pearson_centroid": "pearson_centroid",
    "discrimination": "discrimination_score_l1",
}
MOST_SHOWN = 300
"""Maximum number of perturbations to average scores of the table over; more would take minutes."""

COLUMNS = ("question", "candidate", "n", *SHOWN, "difference", "standard_error", "chosen", "weights")
"""Columns of the table; ``difference`` is the squared error minus that of the default."""


@dataclass(frozen=True)
class Choice:
    """Recipe of a prior, and the scores it was chosen by.

    Attributes
    ----------
    recipe
        Recipe to fit.
    table
        Scores of the candidates on perturbations that they were not fitted to, with columns :data:`COLUMNS`.
    """

    recipe: Recipe
    table: pd.DataFrame = field(repr=False)


@dataclass(frozen=True)
class _Held:
    """Held-out perturbations.

    Attributes
    ----------
    row
        Row of each in the training data, int64 ``(n,)``.
    unseen
        Whether none of its genes was perturbed in the rows that rules were fitted to, bool ``(n,)``.
    terms
        Predictions of the stacked rules, float32 ``(n, n_rules, n_genes)``.
    own
        Change of the perturbed genes themselves, float32 ``(n, n_genes)``.
    """

    row: NDArray[np.int64]
    unseen: NDArray[np.bool_]
    terms: NDArray[np.float32]
    own: NDArray[np.float32]

    @classmethod
    def of(cls, train: Profiles, embeddings: pd.DataFrame | None) -> _Held:
        """Fit all rules to some of the rows and predict the others, for both ways of holding out."""
        everything = Recipe("all", RULE_SETS[train.kind].stacked, own=True, sub_additive=True)
        rows, unseen, terms, own = [], [], [], []
        for others, held in _parts(train):
            fitted = everything.fit(train.take(others), embeddings=embeddings)
            asked = train.take(held)
            for i, genes in enumerate(asked.perturbed):
                of_context: Fitted = fitted.of(train.context_names[asked.contexts[i]])
                columns, control = fitted.own_columns(genes), asked.control_means[asked.contexts[i]]
                rows.append(held[i])
                unseen.append(of_context.question(genes) == "unseen")
                terms.append(of_context.terms(genes, control).astype(np.float32))
                own.append(of_context.own.effects([columns], control[None])[0].astype(np.float32))
        return cls(np.array(rows), np.array(unseen), np.array(terms), np.array(own))


def _parts(train: Profiles) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows to fit to, and rows to predict."""
    everything = np.arange(len(train))
    for held in folds_of(train.perturbations):
        yield np.setdiff1d(everything, held), held
    n_names: dict[str, set[str]] = {}
    subjects = [tuple(map(subject_of, agents)) for agents in train.perturbed]
    for name, genes in zip(train.perturbations, subjects, strict=True):
        for gene in genes:
            n_names.setdefault(gene, set()).add(name)
    shared = {gene for gene, names in n_names.items() if len(names) > 1}
    if not shared:  # holding out a gene equals holding out its perturbation
        return
    genes = tuple(n_names)
    for of_fold in folds_of(genes):
        fold = {genes[i] for i in of_fold}
        out = np.array([not fold.isdisjoint(of_row) for of_row in subjects])
        asked = out & np.array([not (fold & shared).isdisjoint(of_row) for of_row in subjects])
        if asked.any() and not out.all():
            yield everything[~out], everything[asked]


def choose_prior(train: Profiles, *, embeddings: pd.DataFrame | None = None) -> Choice:
    """Choose the recipe of a prior.

    Parameters
    ----------
    train
        Measured perturbations.
    embeddings
        Vectors of genes for the linear rule, one row per gene; or of compounds, one row per compound.
    """
    rules = RULE_SETS[train.kind]
    weights = np.zeros((len(QUESTIONS), len(rules.stacked)))
    weights[:, rules.stacked.index(rules.priors[0])] = 1
    tables = []
    if len(set(train.perturbations)) > 1:
        held = _Held.of(train, embeddings)
        names = np.array(train.perturbations)[held.row]
        for question in ("seen", "unseen"):
            asked = np.flatnonzero(held.unseen == (question == "unseen"))
            if len(asked) == 0:
                continue
            judge = _Judge.of(train, held, asked, names[asked], shrinks=question == "unseen")
            table, found = judge.table(question)
            tables.append(table)
            weights[QUESTIONS.index(question)] = found
    used = np.flatnonzero(weights.any(axis=0))
    recipe = Recipe(CHOSEN, tuple(rules.stacked[i] for i in used), weights[:, used], own=True, sub_additive=True)
    empty = pd.DataFrame({name: [] for name in COLUMNS})
    return Choice(recipe, pd.concat(tables, ignore_index=True) if tables else empty)


@dataclass(frozen=True)
class _Judge:
    """Comparison of candidates for one question (seen or unseen genes).

    Attributes
    ----------
    train
        Measured perturbations.
    row
        Row of each predicted perturbation, ``(n,)``.
    names
        Name of each perturbation; rows with the same name are never used for its weights.
    terms, own
        See :class:`_Held`.
    grams, products
        Products of the terms with each other ``(n, k, k)`` and with the target ``(n, k)``.
    shrinks
        Whether single rules have a weight up to 1: effects of unseen genes are smaller than the mean of others.
    """

    train: Profiles
    row: NDArray[np.int64]
    names: NDArray[np.str_]
    terms: NDArray[np.float32]
    own: NDArray[np.float32]
    grams: Values
    products: Values
    shrinks: bool

    @classmethod
    def of(
        cls, train: Profiles, held: _Held, asked: NDArray[np.int64], names: NDArray[np.str_], *, shrinks: bool
    ) -> _Judge:
        row, terms, own = held.row[asked], held.terms[asked], held.own[asked]
        n_rules = terms.shape[1]
        grams, products = np.empty((len(asked), n_rules, n_rules)), np.empty((len(asked), n_rules))
        for i, (x, y) in enumerate(zip(terms.astype(np.float64), train.effects[row] - own, strict=True)):
            grams[i], products[i] = x @ x.T, x @ y
        return cls(train, row, names, terms, own, grams, products, shrinks)

    @property
    def _rules(self) -> RuleSet:
        return RULE_SETS[self.train.kind]

    @property
    def _candidates(self) -> dict[str, tuple[str, ...]]:
        return candidates_of(self._rules)

    def table(self, question: str) -> tuple[pd.DataFrame, Values]:
        """Scores of the candidates, and the weights of the best one, ``(n_rules,)``."""
        candidates, default, rules = self._candidates, self._rules.priors[0], self._rules.stacked
        effects = {name: self._predicted(name) for name in candidates}
        references = dict(zip(REFERENCES, self._references(), strict=True))
        if not self._rules.own:  # the mean of the others is itself a candidate
            references = {NO_EFFECT: references[NO_EFFECT]}
        errors = {
            name: ((effect - self.train.effects[self.row]) ** 2).mean(axis=1)
            for name, effect in (references | effects).items()
        }
        differences = {name: error - errors[default] for name, error in errors.items()}
        # Rows of one perturbation, in several contexts or held out twice, are not independent.
        by_name = {name: pd.Series(x).groupby(self.names).mean() for name, x in differences.items()}
        n = len(by_name[default])
        spread = {name: float(x.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan for name, x in by_name.items()}
        clear = [name for name in candidates if n >= FEWEST and by_name[name].mean() < -CLEAR * spread[name]]
        best = min([default, *clear], key=lambda name: float(errors[name].mean()))
        everyone = np.full(len(self.row), fill_value=True)
        rows = []
        for name, effect in (references | effects).items():
            found = self._weights(name, everyone) if name in candidates else np.zeros(0)
            told = ", ".join(
                f"{rule} {weight:.2f}" for rule, weight in zip(rules, found, strict=False) if weight > 0.005
            )
            rows.append(
                {
                    "question": question,
                    "candidate": name,
                    "n": n,
                    **self._scores(effect),
                    "difference": float(by_name[name].mean()),
                    "standard_error": spread[name],
                    "chosen": name == best,
                    "weights": told,
                }
            )
        return pd.DataFrame(rows)[list(COLUMNS)], self._weights(best, everyone)

    def _weights(self, name: str, rows: NDArray[np.bool_]) -> Values:
        """Weights of a candidate fitted to some of the rows, ``(n_rules,)``."""
        rules = self._rules.stacked
        used = np.array([rules.index(rule) for rule in self._candidates[name]], dtype=np.int64)
        out = np.zeros(len(rules))
        start = np.array([float(len(used) == 1 or rules[i] == self._rules.priors[0]) for i in used])
        if len(used) and (self.shrinks or len(used) > 1):
            gram = self.grams[rows][:, used][:, :, used].sum(axis=0)
            out[used] = _shares(gram, self.products[rows][:, used].sum(axis=0), start, int(rows.sum()))
        else:
            out[used] = start
        return out

    def _predicted(self, name: str) -> NDArray[np.float32]:
        """Predictions of a candidate for each row, with weights fitted to other perturbations."""
        out = self.own.copy()
        for of_name in np.unique(self.names):
            mine = self.names == of_name
            weights = self._weights(name, ~mine).astype(np.float32)
            out[mine] += np.einsum("k,nkg->ng", weights, self.terms[mine])
        return out

    def _references(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """No effect, and the mean of the other perturbations of the context."""
        return np.zeros_like(self.own), (self._centroids - self.train.controls[self.row]).astype(np.float32)

    @cached_property
    def _centroids(self) -> Values:
        """Mean profile of the other perturbations in each row's context; the control mean if there are none."""
        train = self.train
        n = np.bincount(train.contexts, minlength=len(train.context_names))[train.contexts[self.row]][:, None]
        sums = np.zeros_like(train.control_means)
        np.add.at(sums, train.contexts, train.means)
        others = (sums[train.contexts[self.row]] - train.means[self.row]) / np.maximum(n - 1, 1)
        return np.where(n > 1, others, train.controls[self.row])

    def _scores(self, effects: NDArray[np.float32]) -> dict[str, float]:
        train, rows = self.train, np.arange(len(self.row))[:: -(-len(self.row) // MOST_SHOWN)]
        at = self.row[rows]
        means = Means(
            genes=train.genes,
            perturbations=tuple(train.perturbations[i] for i in at),
            perturbed=tuple(train.perturbed[i] for i in at),
            contexts=train.contexts[at],
            predicted=train.controls[at] + effects[rows],
            real=train.means[at],
            predicted_control=train.controls[at],
            real_control=train.controls[at],
            centroid=self._centroids[rows],
        )
        found = {}
        for shown, name in SHOWN.items():
            metric = METRICS[name]
            assert metric.compute is not None
            values = metric.compute(means)
            found[shown] = float(
                np.mean(values if metric.undefined is None else np.nan_to_num(values, nan=metric.undefined))
            )
        return found


def _shares(gram: Values, product: Values, start: Values, n: int) -> Values:
    """Non-negative least-squares weights with a sum of at most 1, shrunken towards the start weights.

    Parameters
    ----------
    gram, product
        Products of the terms with each other ``(k, k)``, and with the target ``(k,)``.
    start
        Weights without evidence.
    n
        Number of perturbations in these sums.
    """
    from scipy.optimize import nnls  # slow to import

    if n == 0 or not gram.any():
        return start
    pull = PULL / n
    # A negligible ridge, since rules may be identical.
    matrix = (1 + pull) * gram + 1e-9 * np.trace(gram) * np.eye(len(gram))
    factor = np.linalg.cholesky(matrix)
    target = np.linalg.solve(factor, product + pull * gram @ start)
    found = nnls(factor.T, target)[0]
    if found.sum() > 1:
        heavy = 1e3 * np.sqrt(np.trace(matrix))
        found = nnls(np.vstack([factor.T, np.full(len(gram), heavy)]), np.append(target, heavy))[0]
    return np.asarray(found)
