"""Scores of ranked pairs of genes against known targets, and against chance.

Only pairs of a factor and a target that occur in the truth are scored: other genes may not have been studied.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["METRICS", "NetworkScores", "Truth", "score_pairs", "shuffled", "summary"]

METRICS = ("auprc_ratio", "early_precision_ratio", "odds_ratio")


@dataclass(frozen=True)
class Truth:
    """Known edges.

    Attributes
    ----------
    sources, targets
        Names of the genes.
    edges
        Bool ``(n_sources, n_targets)``.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    edges: NDArray[np.bool_] = field(repr=False)

    @property
    def counts(self) -> NDArray[np.bool_]:
        """Pairs that are scored: all except pairs of a gene with itself."""
        return np.array(self.sources, dtype=object)[:, None] != np.array(self.targets, dtype=object)


@dataclass(frozen=True)
class NetworkScores:
    """Scores of one network.

    Attributes
    ----------
    overall
        Scores of all pairs in one ranking: :data:`METRICS`, their means over shuffled truths (``auprc_ratio_null``),
        the standard deviation (``auprc_ratio_null_sd``) and the fraction of shuffled truths with at least the same
        score (``auprc_ratio_p``).
    mean
        Means over the factors with enough targets, and the same for shuffled truths.
    by_source
        Scores of each factor with enough targets, float64 ``(n_sources, 3)``, NaN for the others.
    """

    overall: dict[str, float]
    mean: dict[str, float]
    by_source: NDArray[np.float64]


def score_pairs(
    strength: NDArray[np.floating], truth: Truth, nulls: list[NDArray[np.bool_]], *, top: float, min_targets: int
) -> NetworkScores:
    """Score a ranking of pairs.

    Parameters
    ----------
    strength
        Strength of the pairs, ``(n_sources, n_targets)``; NaN ranks last. Ties count as their mean
        over all orders.
    truth
        Known edges.
    nulls
        Shuffled truths from :func:`shuffled`.
    top
        Fraction of pairs whose odds are compared with those of the others.
    min_targets
        Minimum number of targets, and of other genes, for scoring a factor separately.
    """
    counts = truth.counts
    n_targets = (truth.edges & counts).sum(axis=1)
    apart = np.flatnonzero((n_targets >= min_targets) & (counts.sum(axis=1) - n_targets >= min_targets))
    whole = _Ranking(strength[counts], top)
    rows = [_Ranking(strength[row][counts[row]], top) for row in apart]

    def score(edges: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        of_rows = [ranking.score(edges[row][counts[row]]) for ranking, row in zip(rows, apart, strict=True)]
        return whole.score(edges[counts]), np.array(of_rows).reshape(-1, len(METRICS))

    overall, of_sources = score(truth.edges)
    by_chance = [score(edges) for edges in nulls]
    by_source = np.full((len(truth.sources), len(METRICS)), np.nan)
    by_source[apart] = of_sources
    null = np.array([found for found, _ in by_chance]).reshape(-1, len(METRICS))
    mean, null_mean = np.full(len(METRICS), np.nan), np.full(null.shape, np.nan)
    if len(apart):
        mean = of_sources.mean(axis=0)
        null_mean = np.array([found.mean(axis=0) for _, found in by_chance]).reshape(null.shape)
    return NetworkScores(_with_null(overall, null), _with_null(mean, null_mean), by_source)


def _with_null(found: NDArray[np.float64], null: NDArray[np.float64]) -> dict[str, float]:
    scores: dict[str, float] = {}
    for i, name in enumerate(METRICS):
        scores[name] = float(found[i])
        if len(null):
            scores[f"{name}_null"] = float(null[:, i].mean())
            scores[f"{name}_null_sd"] = float(null[:, i].std(ddof=1)) if len(null) > 1 else np.nan
            undefined = np.isnan(found[i])
            scores[f"{name}_p"] = np.nan if undefined else float((1 + (null[:, i] >= found[i]).sum()) / (1 + len(null)))
    return scores


class _Ranking:
    """Pairs sorted by strength once, for scoring against many truths."""

    def __init__(self, strength: NDArray[np.floating], top: float) -> None:
        strength = np.where(np.isnan(strength), -np.inf, strength)
        self.order = np.argsort(-strength, kind="stable")
        ordered = strength[self.order]
        #: Position after the last pair of each run of equal strengths.
        self.ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, len(ordered))
        self.n_top = max(1, round(top * len(ordered)))

    def score(self, edges: NDArray[np.bool_]) -> NDArray[np.float64]:
        """:data:`METRICS` for one truth, ``(3,)``; NaN if all or no pairs are edges."""
        n, n_edges = len(edges), int(edges.sum())
        if n_edges in (0, n):
            return np.full(len(METRICS), np.nan)
        found = np.append(0, np.cumsum(edges[self.order])[self.ends - 1])  # edges until the end of each run
        density = n_edges / n
        precision = found[1:] / self.ends
        auprc = float((np.diff(found) * precision).sum() / n_edges)
        early = self._among_first(found, n_edges) / n_edges
        hits = self._among_first(found, self.n_top)
        # 0.5 is added to each cell of the contingency table, so that the ratio is finite.
        others = n_edges - hits, n - self.n_top - (n_edges - hits)
        odds = (hits + 0.5) * (others[1] + 0.5) / ((self.n_top - hits + 0.5) * (others[0] + 0.5))
        return np.array([auprc / density, early / density, odds])

    def _among_first(self, found: NDArray[np.int64], n: int) -> float:
        """Number of edges among the first ``n`` pairs; a run of ties at the cut counts proportionally."""
        return float(np.interp(n, np.append(0, self.ends), found))


def shuffled(truth: Truth, n: int, *, seed: int) -> list[NDArray[np.bool_]]:
    """Random truths with the same number of targets per factor and of factors per target.

    Uses the Curveball algorithm: two factors at a time pool the targets that only one of them has and redistribute
    them at random (Strona et al., Nature Communications 2014, doi:10.1038/ncomms5114).

    Parameters
    ----------
    truth
        Truth to shuffle.
    n
        Number of shuffled truths.
    seed
        Seed.
    """
    rng, allowed = np.random.default_rng(seed), truth.counts
    nulls: list[NDArray[np.bool_]] = []
    edges = truth.edges.copy()
    n_sources = len(edges)
    for _ in range(n):
        for _ in range(10 * n_sources if n_sources > 1 else 0):
            i, j = rng.choice(n_sources, 2, replace=False)
            either = np.flatnonzero((edges[i] != edges[j]) & allowed[i] & allowed[j])
            mine = rng.permutation(either)[: int(edges[i, either].sum())]
            edges[j, either], edges[i, either] = True, False
            edges[j, mine], edges[i, mine] = False, True
        nulls.append(edges.copy())
    return nulls


def summary(scores: NetworkScores) -> dict[str, float]:
    """One row of a table: scores of all pairs, and means over factors with the prefix ``mean_``."""
    return {**scores.overall, **{f"mean_{name}": value for name, value in scores.mean.items()}}
