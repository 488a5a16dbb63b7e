"""Local inverse Simpson's index :cite:p:`Korsunsky2019`: how many groups are effectively among the neighbours of a cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgalore.integration.neighbors import Neighbors

__all__ = ["lisi", "neighbor_weights"]

TOLERANCE, MOST_STEPS = 1e-5, 50


def neighbor_weights(neighbors: Neighbors) -> NDArray[np.float64]:
    """Weight of each neighbour: an exponential kernel whose width gives each cell the same perplexity, a third of its neighbours.

    Parameters
    ----------
    neighbors
        Nearest cells; scib takes 90.

    Returns
    -------
    float64 ``(n_obs, k)``, rows of sum 1; 0 for the cell itself.
    """
    distances = neighbors.distances[:, 1:]
    wanted = np.log(max(neighbors.indices.shape[1] // 3, 1))
    n_obs = len(distances)
    beta, low, high = np.ones(n_obs), np.full(n_obs, -np.inf), np.full(n_obs, np.inf)
    weights = np.empty(distances.shape)
    open_ = np.arange(n_obs)  # cells whose width is still sought
    for _ in range(MOST_STEPS + 1):
        weights[open_], entropy = _kernel(distances[open_], beta[open_])
        excess = entropy - wanted
        left = np.abs(excess) >= TOLERANCE
        open_, wide = open_[left], excess[left] > 0
        if len(open_) == 0:
            break
        low[open_[wide]], high[open_[~wide]] = beta[open_[wide]], beta[open_[~wide]]
        b, lo, hi = beta[open_], low[open_], high[open_]
        beta[open_] = np.where(
            wide, np.where(np.isinf(hi), b * 2, (b + hi) / 2), np.where(np.isinf(lo), b / 2, (b + lo) / 2)
        )
    return np.hstack([np.zeros((n_obs, 1)), weights])


def _kernel(
    distances: NDArray[np.float64], beta: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights of the neighbours, rows of sum 1, and their entropy; 0 where all underflow."""
    weights = np.exp(-distances * beta[:, None])
    total = weights.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = np.log(total) + beta * (distances * weights).sum(axis=1) / total
        weights /= total[:, None]
    empty = total == 0
    entropy[empty], weights[empty] = 0, 0
    return weights, entropy


def lisi(weights: NDArray[np.float64], neighbors: Neighbors, codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Effective number of groups among the neighbours of each cell.

    Parameters
    ----------
    weights
        From :func:`neighbor_weights`.
    neighbors
        The same neighbours.
    codes
        Group of each cell, from 0 on.

    Returns
    -------
    float64 ``(n_obs,)``, from 1 to the number of groups.
    """
    groups = codes[neighbors.indices]
    shares = np.stack([(weights * (groups == group)).sum(axis=1) for group in range(codes.max() + 1)])
    return 1 / np.square(shares).sum(axis=0)
