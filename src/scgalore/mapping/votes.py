"""Weighted votes of neighbours: labels, distances and coordinates of query cells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np

from scgalore.mapping.space import blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgalore.mapping.lists import Lists

    Floats = NDArray[np.float32]
    Ints = NDArray[np.integer]

__all__ = ["Neighbors", "logits_of", "votes_of"]

N_GATHERED = 1024
"""Number of cells whose neighbours are in memory at once."""
PRIOR_VOTES = 1.0
"""Pseudo-votes shared by all classes, in addition to those of the neighbours."""


@dataclass(frozen=True, eq=False)
class Neighbors:
    """Neighbours of cells in a reference, nearest first.

    Attributes
    ----------
    rows
        Rows of the neighbours in the lists, int64 ``(n_obs, k)``; -1 if there are fewer.
    distances
        Cosine distances, float32 ``(n_obs, k)``, from 0 to 2; infinite if there are fewer.
    gap
        Distance of each cell to the weighted mean of its neighbours, in the space before normalisation, float32
        ``(n_obs,)``.
    """

    rows: NDArray[np.int64] = field(repr=False)
    distances: Floats = field(repr=False)
    gap: Floats = field(repr=False)

    @classmethod
    def find(
        cls, lists: Lists, directions: Floats, norms: Floats, k: int, apart: tuple[Ints, Ints] | None = None
    ) -> Self:
        """Search for the neighbours of cells.

        Parameters
        ----------
        lists
            Cells of the reference.
        directions, norms
            Directions and norms of the cells, from :class:`~scgalore.mapping.space.Space`.
        k
            Number of neighbours.
        apart
            As for :meth:`scgalore.mapping.lists.Lists.search`.
        """
        rows = lists.search(directions, k, apart=apart)
        distances = np.full(rows.shape, np.inf, dtype=np.float32)
        gap = np.full(len(rows), np.inf, dtype=np.float32)
        for part in blocks(len(rows), N_GATHERED):
            there = rows[part] >= 0
            others = lists.directions[rows[part]].astype(np.float32)
            # From the vectors, not the cosine, which is inaccurate for small angles in single precision.
            apart_by = np.linalg.norm(others - directions[part][:, None], axis=2)
            distances[part] = np.where(there, apart_by, np.inf)
            weights = weights_of(distances[part]) * lists.norms[rows[part]]
            mean = np.einsum("nk,nkd->nd", weights, others)
            away = np.linalg.norm(directions[part] * norms[part][:, None] - mean, axis=1)
            gap[part] = np.where(there.any(axis=1), away, np.inf)
        return cls(rows, distances, gap)

    @property
    def weights(self) -> Floats:
        """Weight of each neighbour's vote, float32 ``(n_obs, k)``; weights of a cell sum to 1."""
        return weights_of(self.distances)


def weights_of(distances: Floats) -> Floats:
    """Gaussian weights scaled by the farthest neighbour, which has a seventh of the weight of a neighbour at distance 0."""
    there = np.isfinite(distances)
    scale = np.where(there, distances, 0).max(axis=1, keepdims=True)
    relative = np.where(there, distances, 0) / np.where(scale > 0, scale, 1)
    weights = np.where(there, np.exp(-2 * relative**2), 0)
    return (weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)).astype(np.float32)


def votes_of(neighbors: Neighbors, codes: Ints, n_classes: int) -> Floats:
    """Fraction of votes for each class, float32 ``(n_obs, n_classes)``.

    Parameters
    ----------
    neighbors
        Neighbours of the cells.
    codes
        Class of each neighbour, ``(n_obs, k)``; ignored for missing neighbours.
    n_classes
        Number of classes.
    """
    n = len(codes)
    place = np.arange(n)[:, None] * n_classes + np.where(neighbors.rows >= 0, codes, 0)
    shares = np.bincount(place.ravel(), weights=neighbors.weights.ravel(), minlength=n * n_classes)
    return shares.reshape(n, n_classes).astype(np.float32)


def logits_of(votes: Floats, k: int) -> Floats:
    """Logarithms of vote fractions, with :data:`PRIOR_VOTES` in addition to the ``k`` votes of the neighbours.

    Parameters
    ----------
    votes
        Result of :func:`votes_of`.
    k
        Number of neighbours.
    """
    return np.log((k * votes + PRIOR_VOTES / votes.shape[1]) / (k + PRIOR_VOTES)).astype(np.float32)
