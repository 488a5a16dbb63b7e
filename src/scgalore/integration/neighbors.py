"""Exact nearest neighbours of cells in an embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["Neighbors", "bisected", "nearest"]

TOLERANCE = 1e-5
LEAST_WIDTH = 1e-3
"""Minimum width of a kernel, in mean distances."""


@dataclass(frozen=True)
class Neighbors:
    """Nearest neighbours of each cell, the cell itself first.

    Attributes
    ----------
    indices, distances
        int64 and float64 ``(n_obs, k)``, nearest first.
    """

    indices: NDArray[np.int64]
    distances: NDArray[np.float64]

    def first(self, k: int) -> Neighbors:
        """The ``k`` nearest neighbours, including the cell itself; all if there are fewer."""
        return Neighbors(self.indices[:, :k], self.distances[:, :k])

    def graph(self) -> sp.csr_matrix:
        """Adjacency, 1 from each cell to each of its neighbours, ``(n_obs, n_obs)``."""
        n_obs, k = self.indices.shape
        starts = np.arange(0, n_obs * k + 1, k)
        return sp.csr_matrix((np.ones(n_obs * k), self.indices.ravel(), starts), shape=(n_obs, n_obs))

    def connectivities(self) -> sp.csr_matrix:
        """Weights of UMAP's graph :cite:p:`McInnes2018`, as scanpy's ``connectivities``, symmetric ``(n_obs, n_obs)``.

        Weights decay exponentially beyond the nearest other cell, with a width such that the weights of each cell sum
        to ``log2(k)``; the two weights of a pair are combined like probabilities, ``a + b - ab``.
        """
        n_obs, k = self.indices.shape
        found = self.distances[:, 1:]
        is_other = found > 0
        nearest_other = np.where(is_other.any(axis=1), np.where(is_other, found, np.inf).min(axis=1, initial=np.inf), 0)
        beyond = np.maximum(found - nearest_other[:, None], 0)
        wanted = np.log2(k)

        def lacks(width: NDArray[np.float64], cells: NDArray[np.int64]) -> NDArray[np.float64]:
            return wanted - np.exp(-beyond[cells] / width[:, None]).sum(axis=1)

        width = bisected(lacks, n_obs, most_steps=64)
        means = np.where(nearest_other > 0, self.distances.mean(axis=1), self.distances.mean())
        width = np.maximum(width, LEAST_WIDTH * means)[:, None]
        weights = np.exp(-np.divide(beyond, width, out=np.zeros_like(beyond), where=width > 0))
        directed = self.graph()
        directed.data = np.hstack([np.zeros((n_obs, 1)), weights]).ravel()
        reverse = directed.T.tocsr()
        joined = sp.csr_matrix(directed + reverse - directed.multiply(reverse))
        joined.eliminate_zeros()
        return joined


def nearest(x: NDArray[np.float64], k: int) -> Neighbors:
    """Find the nearest cells by Euclidean distance.

    All pairs of cells are compared, in blocks: silhouettes need all pairs anyway, so approximate search would save
    little for tens of thousands of cells, and its result would be random.

    Parameters
    ----------
    x
        Embedding, ``(n_obs, n_dims)``.
    k
        Number of neighbours, including the cell itself; at most ``n_obs``.
    """
    from sklearn.neighbors import NearestNeighbors

    own = np.arange(len(x))[:, None]
    if k == 1:
        return Neighbors(own, np.zeros(own.shape))
    # Called without x, scikit-learn excludes the cell itself from its neighbours, regardless of duplicates.
    distances, indices = NearestNeighbors(n_neighbors=k - 1, algorithm="brute").fit(x).kneighbors()
    return Neighbors(np.hstack([own, indices]), np.hstack([np.zeros(own.shape), distances]))


def bisected(
    lacks: Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.float64]], n_obs: int, *, most_steps: int
) -> NDArray[np.float64]:
    """Solve for one positive number per cell by bisection, starting at 1.

    Parameters
    ----------
    lacks
        Function of numbers and their cells that is positive if a number is too small and negative if it is too large.
    n_obs
        Number of cells.
    most_steps
        Maximum number of steps.
    """
    value, low, high = np.ones(n_obs), np.zeros(n_obs), np.full(n_obs, np.inf)
    open_ = np.arange(n_obs)
    for _ in range(most_steps):
        lack = lacks(value[open_], open_)
        left = np.abs(lack) >= TOLERANCE
        open_, small = open_[left], lack[left] > 0
        if len(open_) == 0:
            break
        low[open_[small]], high[open_[~small]] = value[open_[small]], value[open_[~small]]
        value[open_] = np.where(np.isinf(high[open_]), value[open_] * 2, (low[open_] + high[open_]) / 2)
    return value
