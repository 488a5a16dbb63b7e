"""Nearest neighbours among many cells by searching the lists of the nearest centres.

This is the inverted file of Jegou, Douze and Schmid (2011) with vectors in half precision, as in faiss ("IVF,SQfp16").
Since it consists of plain arrays, it can be stored without pickle, memory-mapped during search, and extended without
being rebuilt; a neighbour graph (pynndescent) allows none of these. Searching all lists gives exact neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import isqrt
from typing import TYPE_CHECKING, Self

import numpy as np

from scgalore.mapping.space import blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ints = NDArray[np.integer]

__all__ = ["Lists"]

EXACT = 20_000
"""Up to this number of cells there is one list, and neighbours are exact."""
RECALL = 0.98
"""Minimum recall of a search, measured on cells of the reference."""
N_TRIED = 200
"""Number of cells used to choose the number of lists to search."""
CELLS_PER_CENTRE = 64
N_ROUNDS = 8
N_QUERIES = 4096
"""Number of queries per batch; each list is read once per batch."""
MOST_PRODUCTS = 1 << 24
"""Maximum number of inner products in memory."""


@dataclass(frozen=True, eq=False)
class Lists:
    """Cells of a reference, sorted by list.

    Attributes
    ----------
    centers
        Centre of each list, float32 ``(n_lists, n_components)`` with unit norm.
    offsets
        Start of each list, int64 ``(n_lists + 1,)``.
    directions
        Direction of each cell, float16 ``(n_obs, n_components)``, in memory or mapped from a file.
    norms
        Distance of each cell to the mean, float32 ``(n_obs,)``.
    cells
        Index of each cell in the reference, int64 ``(n_obs,)``.
    n_probe
        Number of lists that a query searches.
    recall
        Recall with this number of lists, measured on cells of the reference.
    """

    centers: Floats = field(repr=False)
    offsets: NDArray[np.int64] = field(repr=False)
    directions: NDArray[np.float16] = field(repr=False)
    norms: Floats = field(repr=False)
    cells: NDArray[np.int64] = field(repr=False)
    n_probe: int = 1
    recall: float = 1.0

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return len(self.cells)

    @property
    def n_lists(self) -> int:
        """Number of lists."""
        return len(self.centers)

    @classmethod
    def around(cls, sample: Callable[[Ints], Floats], n_obs: int, seed: int) -> Self:
        """Choose the centres for a number of cells; the lists are still empty.

        Parameters
        ----------
        sample
            Function that returns the directions of cells by index.
        n_obs
            Number of cells that will be added.
        seed
            Seed for sampling the cells from which centres are computed.
        """
        n_lists = 1 if n_obs <= EXACT else isqrt(n_obs)
        rng = np.random.default_rng(seed)
        some = sample(np.sort(rng.choice(n_obs, min(n_obs, CELLS_PER_CENTRE * n_lists), replace=False)))
        centers = _k_means(some, n_lists, rng)
        none = np.zeros(n_lists + 1, dtype=np.int64)
        empty = np.empty((0, centers.shape[1]), dtype=np.float16)
        return cls(centers, none, empty, np.empty(0, np.float32), np.empty(0, np.int64))

    def extended(
        self,
        n_new: int,
        read: Callable[[Ints], tuple[Floats, Floats]],
        empty: Callable[[tuple[int, int], type], NDArray[np.float16]],
    ) -> Self:
        """Return lists with the same centres and additional cells, whose indices follow those of the existing cells.

        Parameters
        ----------
        n_new
            Number of additional cells.
        read
            Function that returns directions and norms of additional cells by index, from 0.
        empty
            Function that allocates the array for the directions of all cells.
        """
        n_old = self.n_obs
        of_list = np.repeat(np.arange(self.n_lists), np.diff(self.offsets))
        of_new = np.empty(n_new, dtype=np.int64)
        for part in blocks(n_new):
            of_new[part] = _nearest(read(np.arange(part.start, part.stop))[0], self.centers)
        of_all = np.concatenate([of_list, of_new])
        order = np.argsort(of_all, kind="stable")
        offsets = np.searchsorted(of_all[order], np.arange(self.n_lists + 1))
        directions = empty((len(order), self.centers.shape[1]), np.float16)
        norms = np.empty(len(order), dtype=np.float32)
        for part in blocks(len(order)):
            rows = order[part]
            old = rows < n_old
            directions[part][old], norms[part][old] = self.directions[rows[old]], self.norms[rows[old]]
            directions[part][~old], norms[part][~old] = read(rows[~old] - n_old)
        cells = np.concatenate([self.cells, n_old + np.arange(n_new)])[order]
        return replace(self, offsets=offsets, directions=directions, norms=norms, cells=cells)

    def tuned(self, k: int, seed: int) -> Self:
        """Choose the number of lists to search such that the recall of ``k`` neighbours is :data:`RECALL`.

        Parameters
        ----------
        k
            Number of neighbours.
        seed
            Seed for sampling cells.
        """
        if self.n_lists == 1:
            return self
        rows = np.random.default_rng(seed).choice(self.n_obs, min(N_TRIED, self.n_obs), replace=False)
        queries = self.directions[rows].astype(np.float32)
        itself = (rows, np.arange(self.n_obs))
        found = self.search(queries, k, apart=itself, n_probe=self.n_lists)
        # A neighbour is found if its list is searched, so one exact search gives the recall for every number of lists.
        rank = np.argsort(np.argsort(-(queries @ self.centers.T), axis=1, kind="stable"), axis=1)
        of_neighbor = np.searchsorted(self.offsets, found, side="right") - 1
        ranks = np.sort(np.take_along_axis(rank, of_neighbor, axis=1)[found >= 0])
        n_probe = int(ranks[max(int(np.ceil(RECALL * len(ranks))) - 1, 0)]) + 1
        return replace(self, n_probe=n_probe, recall=float((ranks < n_probe).mean()))

    def search(
        self, queries: Floats, k: int, *, apart: tuple[Ints, Ints] | None = None, n_probe: int | None = None
    ) -> NDArray[np.int64]:
        """Rows of the nearest cells, closest first, int64 ``(n_queries, k)``; -1 if there are fewer.

        Parameters
        ----------
        queries
            Directions with unit norm, float32 ``(n_queries, n_components)``.
        k
            Number of neighbours.
        apart
            Group of each query and of each row; rows of the same group are excluded from its neighbours.
        n_probe
            Number of lists to search; by default :attr:`n_probe`.
        """
        n_probe = min(n_probe or self.n_probe, self.n_lists)
        size = max(1, min(N_QUERIES, MOST_PRODUCTS // (n_probe * k)))
        found = np.full((len(queries), k), -1, dtype=np.int64)
        for part in blocks(len(queries), size):
            groups = None if apart is None else (apart[0][part], apart[1])
            found[part] = self._search(queries[part], k, groups, n_probe)
        return found

    def _search(self, queries: Floats, k: int, apart: tuple[Ints, Ints] | None, n_probe: int) -> NDArray[np.int64]:
        n = len(queries)
        near = np.full((n, n_probe, k), -np.inf, dtype=np.float32)
        rows = np.full((n, n_probe, k), -1, dtype=np.int64)
        for start, stop, asking, slot in self._visits(queries, n_probe):
            directions = np.asarray(self.directions[start:stop], dtype=np.float32)
            cosines = queries[asking] @ directions.T
            if apart is not None:
                cosines[apart[0][asking][:, None] == apart[1][None, start:stop]] = -np.inf
            best = _largest(cosines, k)
            near[asking, slot, : best.shape[1]] = np.take_along_axis(cosines, best, axis=1)
            rows[asking, slot, : best.shape[1]] = start + best
        all_near, all_rows = near.reshape(n, -1), rows.reshape(n, -1)
        best = _largest(all_near, k)
        order = np.argsort(-np.take_along_axis(all_near, best, axis=1), axis=1, kind="stable")
        best = np.take_along_axis(best, order, axis=1)
        there = np.isfinite(np.take_along_axis(all_near, best, axis=1))
        return np.where(there, np.take_along_axis(all_rows, best, axis=1), -1)

    def _visits(self, queries: Floats, n_probe: int) -> Iterator[tuple[int, int, Ints, Ints]]:
        """For each list: its rows, the queries that search it, and its rank among their lists."""
        lists = _largest(queries @ self.centers.T, n_probe).ravel()
        order = np.argsort(lists, kind="stable")
        ends = np.searchsorted(lists[order], np.arange(self.n_lists + 1))
        for number in np.flatnonzero(np.diff(ends) > 0):
            start, stop = int(self.offsets[number]), int(self.offsets[number + 1])
            asking = order[ends[number] : ends[number + 1]]
            if start < stop:
                for part in blocks(len(asking), max(1, MOST_PRODUCTS // (stop - start))):
                    yield start, stop, asking[part] // n_probe, asking[part] % n_probe


def _largest(values: Floats, k: int) -> NDArray[np.int64]:
    """Columns of the ``k`` largest values of each row, unsorted."""
    n = values.shape[1]
    return np.argpartition(values, n - k, axis=1)[:, n - k :] if k < n else np.tile(np.arange(n), (len(values), 1))


def _nearest(directions: Floats, centers: Floats) -> NDArray[np.int64]:
    return np.asarray((directions @ centers.T).argmax(axis=1), dtype=np.int64)


def _k_means(directions: Floats, n: int, rng: np.random.Generator) -> Floats:
    """Centres with unit norm by Lloyd's algorithm from random cells; a centre without cells is kept unchanged."""
    centers = directions[rng.choice(len(directions), n, replace=False)].astype(np.float32)
    for _ in range(N_ROUNDS if n > 1 else 0):
        of = np.concatenate([_nearest(directions[part], centers) for part in blocks(len(directions))])
        order = np.argsort(of, kind="stable")
        filled, starts = np.unique(of[order], return_index=True)
        sums = np.add.reduceat(directions[order], starts, axis=0)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centers[filled] = np.where(norms > 0, sums / np.maximum(norms, 1e-12), centers[filled])
    return centers
