"""Nearest neighbours of cells in an embedding, exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Neighbors", "nearest"]


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
        """The ``k`` nearest, the cell itself included; all of them if there are fewer."""
        return Neighbors(self.indices[:, :k], self.distances[:, :k])

    def graph(self) -> sp.csr_matrix:
        """Adjacency, 1 from each cell to each of its neighbours, ``(n_obs, n_obs)``."""
        n_obs, k = self.indices.shape
        starts = np.arange(0, n_obs * k + 1, k)
        return sp.csr_matrix((np.ones(n_obs * k), self.indices.ravel(), starts), shape=(n_obs, n_obs))

    def connectivities(self) -> sp.csr_matrix:
        """Weights of UMAP's graph :cite:p:`McInnes2018`, as scanpy's ``connectivities``, ``(n_obs, n_obs)``."""
        from umap.umap_ import fuzzy_simplicial_set

        graph, *_ = fuzzy_simplicial_set(
            sp.coo_matrix((len(self.indices), 1)),
            n_neighbors=self.indices.shape[1],
            random_state=None,
            metric=None,
            knn_indices=self.indices,
            knn_dists=self.distances,
        )
        return graph.tocsr()


def nearest(x: NDArray[np.float64], k: int) -> Neighbors:
    """Find the nearest cells by Euclidean distance.

    All pairs of cells are compared, in blocks: approximate search saves little for the tens of thousands of cells that all
    pairs are needed of anyway, for silhouettes, and its result would depend on chance.

    Parameters
    ----------
    x
        Embedding, ``(n_obs, n_dims)``.
    k
        Neighbours of each cell, itself included; at most ``n_obs``.
    """
    from sklearn.neighbors import NearestNeighbors

    own = np.arange(len(x))[:, None]
    if k == 1:
        return Neighbors(own, np.zeros(own.shape))
    # Asked for without x, a cell is no neighbour of its own, whatever duplicates it has.
    distances, indices = NearestNeighbors(n_neighbors=k - 1, algorithm="brute").fit(x).kneighbors()
    return Neighbors(np.hstack([own, indices]), np.hstack([np.zeros(own.shape), distances]))
