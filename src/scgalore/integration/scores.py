"""The scores of scib :cite:p:`Luecken2022` for one embedding, as in scib-metrics, and their means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.sparse.csgraph import connected_components

from scgalore.integration.kbet import kbet_by_label
from scgalore.integration.lisi import lisi, neighbor_weights
from scgalore.integration.neighbors import nearest
from scgalore.integration.silhouette import batch_mixing, silhouettes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgalore.integration.neighbors import Neighbors

__all__ = ["BATCH_WEIGHT", "BIO_WEIGHT", "SCORES", "Score", "batch_variance", "score_embedding"]

BIO_WEIGHT, BATCH_WEIGHT = 0.6, 0.4
LISI_NEIGHBORS, KBET_NEIGHBORS, GRAPH_NEIGHBORS = 90, 50, 15
"""Number of neighbours, including the cell itself."""
KMEANS_STARTS = 10


@dataclass(frozen=True)
class Score:
    """One column of the table.

    Attributes
    ----------
    name, title
        Name of the column, and its title in plots.
    group
        Mean that the score is part of; ``"other"`` for scores outside the means, ``"mean"`` for a mean itself.
    """

    name: str
    title: str
    group: Literal["bio", "batch", "other", "mean"]


SCORES = (
    Score("nmi", "NMI", "bio"),
    Score("ari", "ARI", "bio"),
    Score("asw_label", "ASW label", "bio"),
    Score("isolated_labels", "Isolated labels", "bio"),
    Score("clisi", "cLISI", "bio"),
    Score("bras", "BRAS", "batch"),
    Score("ilisi", "iLISI", "batch"),
    Score("kbet", "kBET", "batch"),
    Score("graph_connectivity", "Graph connectivity", "batch"),
    Score("pcr_comparison", "PCR comparison", "batch"),
    Score("asw_batch", "ASW batch", "other"),
    Score("bio", "Bio conservation", "mean"),
    Score("batch", "Batch correction", "mean"),
    Score("total", "Total", "mean"),
)
"""Scores in the order of the columns. ASW batch is in no mean, since BRAS measures the same without its flaws."""


def score_embedding(
    x: NDArray[np.float64],
    batches: NDArray[np.int64],
    labels: NDArray[np.int64],
    *,
    unintegrated_variance: float,
    seed: int = 0,
) -> dict[str, float]:
    """All scores of one embedding.

    Parameters
    ----------
    x
        Embedding, ``(n_obs, n_dims)``, finite.
    batches, labels
        Batch and label of each cell, from 0, at least two of each.
    unintegrated_variance
        :func:`batch_variance` before integration.
    seed
        Seed for k-means.

    Returns
    -------
    Value by name of :data:`SCORES`, 1 is the best; NaN if a score is undefined for these labels and batches. Means are
    over the defined scores.
    """
    neighbors = nearest(x, min(LISI_NEIGHBORS, len(x)))
    scores = {
        **_clusters(x, labels, seed),
        **_labels(silhouettes(x, labels), batches, labels),
        **_lisi(neighbors, batches, labels),
        "bras": batch_mixing(x, batches, labels, "cosine"),
        "asw_batch": batch_mixing(x, batches, labels),
        "kbet": _mean(kbet_by_label(neighbors.first(KBET_NEIGHBORS).connectivities(), batches, labels, seed=seed)),
        "graph_connectivity": _connectivity(neighbors.first(GRAPH_NEIGHBORS), labels),
        "pcr_comparison": _comparison(unintegrated_variance, batch_variance(x, batches)),
    }
    for mean in ("bio", "batch"):
        scores[mean] = _mean(np.array([scores[score.name] for score in SCORES if score.group == mean]))
    scores["total"] = BIO_WEIGHT * scores["bio"] + BATCH_WEIGHT * scores["batch"]
    return {score.name: float(scores[score.name]) for score in SCORES}


def batch_variance(x: NDArray[np.float64], batches: NDArray[np.int64]) -> float:
    """Fraction of variance explained by batch means.

    Equals the regression of all principal components on the batch (:cite:p:`Buttner2019`), weighted by their variance:
    the weights cancel the denominators, and sums of squares are rotation-invariant, so components need not be computed.

    Parameters
    ----------
    x
        Embedding, ``(n_obs, n_dims)``.
    batches
        Batch of each cell, from 0.
    """
    x = x - x.mean(axis=0)
    members = np.eye(batches.max() + 1)[batches]
    sizes = np.maximum(members.sum(axis=0), 1)[:, None]
    between = (np.square(members.T @ x) / sizes).sum()
    total = np.square(x).sum()
    return float(between / total) if total else 0.0


def _clusters(x: NDArray[np.float64], labels: NDArray[np.int64], seed: int) -> dict[str, float]:
    """Agreement of labels with the same number of k-means clusters; the best of several starts."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    n_clusters = min(int(labels.max()) + 1, len(np.unique(x, axis=0)))
    clusters = KMeans(n_clusters, n_init=KMEANS_STARTS, random_state=seed).fit_predict(x)
    return {"nmi": normalized_mutual_info_score(labels, clusters), "ari": adjusted_rand_score(labels, clusters)}


def _labels(widths: NDArray[np.float64], batches: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[str, float]:
    """Silhouettes of the labels, over all cells and over isolated labels (those in the fewest batches)."""
    n_batches = np.array([len(np.unique(batches[labels == label])) for label in range(labels.max() + 1)])
    isolated = np.flatnonzero(n_batches == n_batches.min())
    of_label = [widths[labels == label].mean() for label in isolated]
    return {"asw_label": (widths.mean() + 1) / 2, "isolated_labels": (np.mean(of_label) + 1) / 2}


def _lisi(neighbors: Neighbors, batches: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[str, float]:
    """Median effective numbers of labels and batches around a cell, scaled to 0 to 1."""
    weights = neighbor_weights(neighbors)
    of_labels, of_batches = (float(np.median(lisi(weights, neighbors, codes))) for codes in (labels, batches))
    n_labels, n_batches = labels.max() + 1, batches.max() + 1
    return {
        "clisi": (n_labels - of_labels) / (n_labels - 1),
        "ilisi": (of_batches - 1) / (n_batches - 1),
    }


def _connectivity(neighbors: Neighbors, labels: NDArray[np.int64]) -> float:
    """Mean over labels of the fraction of cells in the largest component of the label's graph."""
    graph, shares = neighbors.graph(), []
    for label in range(labels.max() + 1):
        cells = np.flatnonzero(labels == label)
        _, piece = connected_components(graph[cells][:, cells], connection="strong")
        shares.append(np.bincount(piece).max() / len(cells))
    return float(np.mean(shares))


def _comparison(before: float, after: float) -> float:
    """Relative decrease of the variance between batches; 0 if it increases."""
    return max(0.0, (before - after) / before) if before else np.nan


def _mean(values: NDArray[np.float64]) -> float:
    found = values[~np.isnan(values)]
    return float(found.mean()) if len(found) else np.nan
