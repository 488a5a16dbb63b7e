"""Find the perturbation with a target effect among many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scgalore.errors import OptionError
from scgalore.perturb.labels.parsing import agents_of, canonical_name, subject_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    import pandas as pd
    from numpy.typing import NDArray

    from scgalore.data.expression import LogExpression
    from scgalore.perturb.baselines.effects import Effects

__all__ = ["METRICS", "best_pairs", "evidence", "mean_of", "rank_of", "recovery", "rule_effects", "scores", "summary"]

METRICS = ("cosine", "pearson", "mse")
"""Similarity of two effects. The first two are best at 1, the last at 0."""

_CHUNK = 4096
"""Number of cells averaged at once, which limits memory."""


def scores(effects: NDArray[np.float64], wanted: NDArray[np.float64], metric: str) -> NDArray[np.float64]:
    """Compare effects with a target effect.

    Parameters
    ----------
    effects
        One row per perturbation, ``(n, n_genes)``.
    wanted
        Target effect, ``(n_genes,)``.
    metric
        One of :data:`METRICS`. Cosine and Pearson correlation are 0 for constant effects, which have no direction.

    Raises
    ------
    OptionError
        If the metric does not exist.
    """
    if metric not in METRICS:
        msg = f"metric={metric!r}: choose one of {', '.join(map(repr, METRICS))}."
        raise OptionError(msg)
    if metric == "mse":
        return ((effects - wanted) ** 2).mean(axis=1)
    if metric == "pearson":
        effects, wanted = effects - effects.mean(axis=1, keepdims=True), wanted - wanted.mean()
    # Summed row by row: a matrix product may round equal rows differently, which would break ties.
    product, squares = (effects * wanted).sum(axis=1), (effects**2).sum(axis=1)
    length = np.sqrt(squares * (wanted**2).sum())
    return np.divide(product, length, out=np.zeros(len(effects)), where=length > 1e-12)


def rank_of(values: NDArray[np.float64], place: int, metric: str) -> float:
    """Rank of one of the scores, 1 for the best; ties get their mean rank."""
    cost = values if metric == "mse" else -values
    near = np.isclose(cost, cost[place], rtol=1e-9, atol=1e-12)
    return 1 + float((cost[~near] < cost[place]).sum()) + (float(near.sum()) - 1) / 2


def mean_of(expression: LogExpression, cells: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean expression of the given cells, float64 ``(n_genes,)``."""
    total = np.zeros(expression.n_vars)
    for start in range(0, len(cells), _CHUNK):
        rows = expression.rows(cells[start : start + _CHUNK]).astype(np.float64)
        total += np.asarray(rows.sum(axis=0)).ravel()
    return total / len(cells)


def rule_effects(
    rule: Effects, perturbed: Sequence[tuple[str, ...]], context: str, genes: Sequence[str]
) -> NDArray[np.float64]:
    """Effects of perturbations predicted by a rule, ``(n, n_genes)``; 0 for genes unknown to the rule.

    Parameters
    ----------
    rule
        A baseline or prior.
    perturbed
        Genes of each perturbation.
    context
        Cell type or line.
    genes
        Names of the columns to fill.
    """
    place = {gene: i for i, gene in enumerate(rule.genes)}
    known = np.array([place.get(gene, -1) for gene in genes], dtype=np.int64)
    out = np.zeros((len(perturbed), len(known)))
    for row, targets in zip(out, perturbed, strict=True):
        row[known >= 0] = rule.predict(targets, context)[known[known >= 0]]
    return out


def evidence(genes: tuple[str, ...], trained_on: AbstractSet[str]) -> str:
    """Evidence on a perturbation in the training data: ``"measured"``, ``"parts measured"`` or ``"unseen"``.

    Parameters
    ----------
    genes
        Perturbed genes, sorted.
    trained_on
        Canonical names of training perturbations. Their genes count as measured parts, as do compounds at
        another dose.
    """
    if canonical_name(genes) in trained_on:
        return "measured"
    parts = {subject_of(agent) for name in trained_on for agent in agents_of(name)}
    return "unseen" if parts.isdisjoint(map(subject_of, genes)) else "parts measured"


def best_pairs(singles: Sequence[str], values: NDArray[np.float64], metric: str, most: int) -> list[tuple[str, str]]:
    """Pairs of the genes with the best single scores: all pairs of as many genes as ``most`` allows.

    Parameters
    ----------
    singles
        Genes.
    values
        Score of each gene.
    metric
        Metric of the scores.
    most
        Maximum number of pairs.
    """
    n = int((1 + np.sqrt(1 + 8 * most)) / 2)
    order = np.argsort(values if metric == "mse" else -values, kind="stable")[:n]
    best = sorted(singles[i] for i in order)
    return [(a, b) for i, a in enumerate(best) for b in best[i + 1 :]]


def recovery(
    observed: NDArray[np.float64],
    perturbed: Sequence[tuple[str, ...]],
    candidates: Sequence[tuple[str, ...]],
    effects: Mapping[str, NDArray[np.float64]],
    genes: Sequence[str],
    metric: str,
) -> pd.DataFrame:
    """Rank the true perturbation among candidates, with its observed effect as target.

    Parameters
    ----------
    observed
        Effects of held-out perturbations, ``(n, n_genes)``.
    perturbed
        Genes of these perturbations, each of which is among the candidates.
    candidates
        Genes of the candidates.
    effects
        Predicted effects of the candidates by method, ``(n_candidates, n_genes)`` each.
    genes
        Names of the columns. Genes of the true perturbation are excluded, since their own change would reveal it.
    metric
        One of :data:`METRICS`.

    Returns
    -------
    One row per held-out perturbation and method: ``perturbation``, ``method``, ``rank`` (1 is the best; ties get
    their mean rank) and ``n_candidates``.
    """
    import pandas as pd

    names, place = np.asarray(genes), {candidate: i for i, candidate in enumerate(candidates)}
    rows: list[dict[str, Any]] = []
    for wanted, right in zip(observed, perturbed, strict=True):
        kept = ~np.isin(names, right)
        for method, predicted in effects.items():
            rank = rank_of(scores(predicted[:, kept], wanted[kept], metric), place[right], metric)
            rows.append({"perturbation": "+".join(right), "method": method, "rank": rank})
    return pd.DataFrame(rows, columns=["perturbation", "method", "rank"]).assign(n_candidates=len(candidates))


def summary(recovered: pd.DataFrame) -> pd.DataFrame:
    """Median rank of each method, and the expected rank by chance.

    Parameters
    ----------
    recovered
        Result of :func:`recovery`.

    Returns
    -------
    Columns ``method``, ``n`` (held-out perturbations), ``median_rank``, ``first`` (fraction with rank 1),
    ``n_candidates`` and ``chance`` (expected rank by chance).
    """
    grouped = recovered.groupby("method", sort=False)
    table = grouped["rank"].agg(n="size", median_rank="median", first=lambda ranks: float((ranks == 1).mean()))
    table["n_candidates"] = grouped["n_candidates"].first()
    table["chance"] = (table["n_candidates"] + 1) / 2
    return table.reset_index()
