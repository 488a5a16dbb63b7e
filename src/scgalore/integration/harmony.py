"""Harmony :cite:p:`Korsunsky2019`: clusters with mixed batches, and a linear correction within each.

Written from the methods section of the paper, for the baseline of :func:`scgalore.tl.evaluate_integration` and for
:mod:`scgalore.integration.correction`; the packages of its authors are under the GPL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "RIDGE",
    "SIGMA",
    "batch_shifts",
    "harmony",
    "mixed_clusters",
    "normalised",
    "squared_distances",
    "unit_rows",
]

SIGMA, THETA, RIDGE = 0.1, 2.0, 1.0
"""Softness of clusters, weight of the diversity of batches, and penalty of a batch's shift: the paper's defaults."""
GROUP_RIDGE = 1e-3
"""Penalty of the mean of a group, of which a cluster may have no cell."""
MOST_CLUSTERS, CELLS_PER_CLUSTER = 100, 30
BLOCK = 0.05
"""Share of the cells whose clusters are chosen at once."""
MOST_ROUNDS, MOST_STEPS = 10, 20
ROUND_TOLERANCE, STEP_TOLERANCE = 1e-4, 1e-5


def harmony(x: NDArray[np.float64], batches: NDArray[np.int64], *, seed: int = 0) -> NDArray[np.float64]:
    """Correct principal components for batches.

    Parameters
    ----------
    x
        Principal components, ``(n_obs, n_dims)``.
    batches
        Batch of each cell, from 0 on.
    seed
        Of the first clusters, and of the order in which cells choose theirs.

    Returns
    -------
    Corrected components, float64 ``(n_obs, n_dims)``.
    """
    return mixed_clusters(x, batches, seed=seed)[1]


def mixed_clusters(
    x: NDArray[np.float64], batches: NDArray[np.int64], *, groups: NDArray[np.float64] | None = None, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares of each cell in the clusters, float64 ``(n_obs, n_clusters)``, and the corrected components.

    Parameters
    ----------
    x, batches, seed
        As for :func:`harmony`.
    groups
        As for :func:`batch_shifts`.
    """
    rng = np.random.default_rng(seed)
    members = np.eye(batches.max() + 1)[batches]
    unit, corrected = unit_rows(x), x
    clusters = _first_clusters(unit, seed)
    objective = np.inf
    shares = _chosen(unit, unit_rows(_centres(unit, clusters)))
    for _ in range(MOST_ROUNDS):
        shares, reached = _cluster(unit, shares, members, rng)
        corrected = _correct(x, shares, members, groups)
        unit = unit_rows(corrected)
        if objective - reached < ROUND_TOLERANCE * abs(objective):
            break
        objective = reached
    return shares, corrected


def unit_rows(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of length 1; those of length 0 stay."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)


def _first_clusters(unit: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
    from sklearn.cluster import KMeans

    n_clusters = max(1, min(round(len(unit) / CELLS_PER_CLUSTER), MOST_CLUSTERS))
    return KMeans(n_clusters, n_init=10, max_iter=25, random_state=seed).fit_predict(unit)


def _centres(unit: NDArray[np.float64], clusters: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.eye(clusters.max() + 1)[clusters].T @ unit


def _chosen(unit: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares of each cell in the clusters by distance alone, ``(n_obs, n_clusters)``."""
    return normalised(np.exp(-squared_distances(unit, centres) / SIGMA))


def squared_distances(unit: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of rows of length 1 to centres of length 1, ``(n_obs, n_clusters)``."""
    return 2 * (1 - unit @ centres.T)


def normalised(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows with a sum of 1."""
    return shares / shares.sum(axis=1, keepdims=True)


def _cluster(
    unit: NDArray[np.float64], shares: NDArray[np.float64], members: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], float]:
    """Soft k-means that prefers clusters in which the cell's batch is rare; shares of the cells, and the objective."""
    frequency = members.mean(axis=0)
    objectives: list[float] = []
    shares = shares.copy()
    for _ in range(MOST_STEPS):
        distances = squared_distances(unit, unit_rows(shares.T @ unit))
        kernel = np.exp(-distances / SIGMA)
        observed, sizes = shares.T @ members, shares.sum(axis=0)
        for cells in np.array_split(rng.permutation(len(unit)), round(1 / BLOCK)):
            observed -= shares[cells].T @ members[cells]
            sizes -= shares[cells].sum(axis=0)
            rarity = ((np.outer(sizes, frequency) + 1) / (observed + 1)) ** THETA
            shares[cells] = normalised(kernel[cells] * (members[cells] @ rarity.T))
            observed += shares[cells].T @ members[cells]
            sizes += shares[cells].sum(axis=0)
        diversity = THETA * np.log((observed + 1) / (np.outer(sizes, frequency) + 1))
        entropy = shares * np.log(np.maximum(shares, np.finfo(float).tiny))
        objectives.append(float((shares * distances).sum() + SIGMA * (entropy.sum() + (observed * diversity).sum())))
        if len(objectives) > 3:  # means of three, since single steps may go up
            before, now = sum(objectives[-4:-1]), sum(objectives[-3:])
            if before - now < STEP_TOLERANCE * abs(before):
                break
    return shares, objectives[-1]


def _correct(
    x: NDArray[np.float64],
    shares: NDArray[np.float64],
    members: NDArray[np.float64],
    groups: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    """Take each cluster's shifts of the batches out."""
    shifts = batch_shifts(x, shares, members, groups)
    corrected = x.copy()
    for batch, of_batch in enumerate(members.T):
        cells = np.flatnonzero(of_batch)
        corrected[cells] -= shares[cells] @ shifts[batch]
    return corrected


def batch_shifts(
    x: NDArray[np.float64],
    shares: NDArray[np.float64],
    members: NDArray[np.float64],
    groups: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Shift of each batch in each cluster, ``(n_batches, n_clusters, n_dims)``: ridge regression on batches with an intercept.

    Parameters
    ----------
    x
        Components, ``(n_obs, n_dims)``.
    shares
        Of each cell in the clusters, ``(n_obs, n_clusters)``.
    members
        1 where a cell is of a batch, ``(n_obs, n_batches)``.
    groups
        1 where a cell is of a group, ``(n_obs, n_groups)``, in place of the intercept: batches are then compared within groups, and
        what differs between groups is not taken for a shift. ``None`` has one group.
    """
    kept = np.ones((len(x), 1)) if groups is None else groups
    design = np.hstack([kept, members])
    penalty = np.diag([*([0.0 if groups is None else GROUP_RIDGE] * kept.shape[1]), *([RIDGE] * members.shape[1])])
    shifts = np.empty((members.shape[1], shares.shape[1], x.shape[1]))
    for cluster, weights in enumerate(shares.T):
        weighted = design.T * weights
        shifts[:, cluster] = np.linalg.solve(weighted @ design + penalty, weighted @ x)[kept.shape[1] :]
    return shifts
