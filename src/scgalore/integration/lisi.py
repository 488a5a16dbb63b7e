"""Local inverse Simpson's index :cite:p:`Korsunsky2019`: the effective number of groups among the neighbours of a cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgalore.integration.neighbors import bisected

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgalore.integration.neighbors import Neighbors

__all__ = ["lisi", "neighbor_weights"]

MOST_STEPS = 50


def neighbor_weights(neighbors: Neighbors) -> NDArray[np.float64]:
    """Weights of neighbours: an exponential kernel with the same perplexity for each cell, a third of its neighbours.

    Parameters
    ----------
    neighbors
        Nearest cells; scib uses 90.

    Returns
    -------
    float64 ``(n_obs, k)``, rows of sum 1; 0 for the cell itself.
    """
    distances = neighbors.distances[:, 1:]
    wanted = np.log(max(neighbors.indices.shape[1] // 3, 1))

    def lacks(rate: NDArray[np.float64], cells: NDArray[np.int64]) -> NDArray[np.float64]:
        return _kernel(distances[cells], rate)[1] - wanted

    weights, _ = _kernel(distances, bisected(lacks, len(distances), most_steps=MOST_STEPS))
    return np.hstack([np.zeros((len(distances), 1)), weights])


def _kernel(
    distances: NDArray[np.float64], rate: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights of the neighbours, with rows of sum 1, and their entropy; 0 if all underflow."""
    weights = np.exp(-distances * rate[:, None])
    total = weights.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = np.log(total) + rate * (distances * weights).sum(axis=1) / total
        weights /= total[:, None]
    empty = total == 0
    entropy[empty], weights[empty] = 0, 0
    return weights, entropy


def lisi(weights: NDArray[np.float64], neighbors: Neighbors, codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Effective number of groups among the neighbours of each cell.

    Parameters
    ----------
    weights
        Result of :func:`neighbor_weights`.
    neighbors
        The same neighbours.
    codes
        Group of each cell, from 0.

    Returns
    -------
    float64 ``(n_obs,)``, from 1 to the number of groups.
    """
    groups = codes[neighbors.indices]
    shares = np.stack([(weights * (groups == group)).sum(axis=1) for group in range(codes.max() + 1)])
    return 1 / np.square(shares).sum(axis=0)
