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
"""Softness of clusters, weight of batch diversity, and penalty on batch shifts: defaults of the paper."""
GROUP_RIDGE = 1e-3
"""Penalty on the mean of a group, since a cluster may have no cell of the group."""
MOST_CLUSTERS, CELLS_PER_CLUSTER = 100, 30
BLOCK = 0.05
"""Fraction of cells whose clusters are updated at once."""
MOST_ROUNDS, MOST_STEPS = 10, 20
ROUND_TOLERANCE, STEP_TOLERANCE = 1e-4, 1e-5


def harmony(x: NDArray[np.float64], batches: NDArray[np.int64], *, seed: int = 0) -> NDArray[np.float64]:
    """Correct principal components for batches.

    Parameters
    ----------
    x
        Principal components, ``(n_obs, n_dims)``.
    batches
        Batch of each cell, from 0.
    seed
        Seed for the initial clusters and the order of updates.

    Returns
    -------
    Corrected components, float64 ``(n_obs, n_dims)``.
    """
    return mixed_clusters(x, batches, seed=seed)[1]


def mixed_clusters(
    x: NDArray[np.float64], batches: NDArray[np.int64], *, groups: NDArray[np.float64] | None = None, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cluster memberships of cells, float64 ``(n_obs, n_clusters)``, and corrected components.

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
    """Scale rows to unit norm; zero rows are kept."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)


def _first_clusters(unit: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
    from sklearn.cluster import KMeans

    n_clusters = max(1, min(round(len(unit) / CELLS_PER_CLUSTER), MOST_CLUSTERS))
    return KMeans(n_clusters, n_init=10, max_iter=25, random_state=seed).fit_predict(unit)


def _centres(unit: NDArray[np.float64], clusters: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.eye(clusters.max() + 1)[clusters].T @ unit


def _chosen(unit: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cluster memberships from distances alone, ``(n_obs, n_clusters)``."""
    return normalised(np.exp(-squared_distances(unit, centres) / SIGMA))


def squared_distances(unit: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared distances between rows and centres of unit norm, ``(n_obs, n_clusters)``."""
    return 2 * (1 - unit @ centres.T)


def normalised(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale rows to a sum of 1."""
    return shares / shares.sum(axis=1, keepdims=True)


def _cluster(
    unit: NDArray[np.float64], shares: NDArray[np.float64], members: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], float]:
    """Soft k-means that favours clusters in which a cell's batch is rare; returns memberships and the objective."""
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
        if len(objectives) > 3:  # means of three, since single steps may increase
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
    """Subtract the batch shifts of each cluster."""
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
        Cluster memberships, ``(n_obs, n_clusters)``.
    members
        Batch indicators, ``(n_obs, n_batches)``.
    groups
        Group indicators, ``(n_obs, n_groups)``, instead of the intercept: batches are then compared within groups, and
        differences between groups are not treated as shifts. ``None`` is a single group.
    """
    kept = np.ones((len(x), 1)) if groups is None else groups
    design = np.hstack([kept, members])
    penalty = np.diag([*([0.0 if groups is None else GROUP_RIDGE] * kept.shape[1]), *([RIDGE] * members.shape[1])])
    shifts = np.empty((members.shape[1], shares.shape[1], x.shape[1]))
    for cluster, weights in enumerate(shares.T):
        weighted = design.T * weights
        shifts[:, cluster] = np.linalg.solve(weighted @ design + penalty, weighted @ x)[kept.shape[1] :]
    return shifts
