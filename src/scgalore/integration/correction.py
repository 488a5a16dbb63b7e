"""A correction for batches that is learned once and then holds for single cells, and that further batches are fitted to.

Harmony :cite:p:`Korsunsky2019` finds clusters in which batches are mixed, and how each batch is shifted within each. Given these, a cell
is corrected by itself. A batch that is not among them is mapped to the clusters as they are, by a regression on the sums that
were kept of the cells that made them (Symphony :cite:p:`Kang2021`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self

import numpy as np

from scgalore.integration.harmony import (
    RIDGE,
    SIGMA,
    batch_shifts,
    mixed_clusters,
    normalised,
    squared_distances,
    unit_rows,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["Correction"]

ROUNDS = 3
"""How often a cell's clusters and its correction are found from each other."""


@dataclass(frozen=True)
class Correction:
    """Clusters, and the shift of each batch in each of them.

    Attributes
    ----------
    centres
        Directions of the clusters after correction, of length 1, float64 ``(n_clusters, n_dims)``.
    shifts
        Of each batch in each cluster, float64 ``(n_batches, n_clusters, n_dims)``.
    sizes
        Cells of each batch in each cluster, float64 ``(n_batches, n_clusters)``.
    sums
        Sum of the corrected cells of each cluster, float64 ``(n_clusters, n_dims)``; of those that the clusters were made of.
    weights
        Number of these cells, float64 ``(n_clusters,)``.
    """

    centres: NDArray[np.float64]
    shifts: NDArray[np.float64]
    sizes: NDArray[np.float64]
    sums: NDArray[np.float64]
    weights: NDArray[np.float64]

    @classmethod
    def fit(
        cls,
        x: NDArray[np.float64],
        batches: NDArray[np.int64],
        labels: NDArray[np.int64] | None = None,
        *,
        seed: int = 0,
    ) -> Self:
        """Find clusters and shifts.

        Parameters
        ----------
        x
            Components, ``(n_obs, n_dims)``.
        batches
            Batch of each cell, from 0 on.
        labels
            Label of each cell, -1 without one. Batches are then compared within labels, so that what labels tell apart is not taken
            for a shift; cells without a label count as a label of their own.
        seed
            Of the clusters.
        """
        groups = None if labels is None else (np.unique(labels) == labels[:, None]).astype(np.float64)
        shares, corrected = mixed_clusters(x, batches, groups=groups, seed=seed)
        members = np.eye(batches.max() + 1)[batches]
        return cls(
            centres=unit_rows(shares.T @ unit_rows(corrected)),
            shifts=batch_shifts(x, shares, members, groups),
            sizes=members.T @ shares,
            sums=shares.T @ corrected,
            weights=shares.sum(axis=0),
        )

    @property
    def n_batches(self) -> int:
        """Batches that it has shifts of."""
        return len(self.shifts)

    def apply(self, x: NDArray[np.float64], batches: NDArray[np.int64]) -> NDArray[np.float64]:
        """Correct cells, each by itself.

        Parameters
        ----------
        x
            Components, ``(n_obs, n_dims)``.
        batches
            Batch of each cell; a code of -1 leaves a cell as it is.

        Returns
        -------
        float64 ``(n_obs, n_dims)``.
        """
        corrected = x.astype(np.float64)
        for batch in np.unique(batches[batches >= 0]):
            cells = batches == batch
            own, shifts, sizes = x[cells].astype(np.float64), self.shifts[batch], self.sizes[batch]
            found = own - sizes @ shifts / max(sizes.sum(), 1e-12)
            for _ in range(ROUNDS):
                found = own - self.shares(found) @ shifts
            corrected[cells] = found
        return corrected

    def shares(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Shares of cells in the clusters, float64 ``(n_obs, n_clusters)``.

        Parameters
        ----------
        x
            Corrected components, ``(n_obs, n_dims)``.
        """
        return normalised(np.exp(-squared_distances(unit_rows(x), self.centres) / SIGMA))

    def with_batch(self, x: NDArray[np.float64]) -> Self:
        """The same with one more batch, the last; clusters and the shifts of the other batches stay as they are.

        Parameters
        ----------
        x
            Components of its cells, ``(n_obs, n_dims)``.
        """
        x = x.astype(np.float64)
        shares = self.shares(x)
        for _ in range(ROUNDS):
            # Ridge regression on [1, of this batch] over the cells of the clusters, whose batches are out, and these cells.
            own, sums = shares.sum(axis=0), shares.T @ x
            design = np.empty((len(own), 2, 2))
            design[:, 0, 0] = self.weights + own
            design[:, 0, 1] = design[:, 1, 0] = own
            design[:, 1, 1] = own + RIDGE
            shifts = np.linalg.solve(design, np.stack([self.sums + sums, sums], axis=1))[:, 1]
            shares = self.shares(x - shares @ shifts)
        return type(self)(
            self.centres,
            np.concatenate([self.shifts, shifts[None]]),
            np.concatenate([self.sizes, shares.sum(axis=0)[None]]),
            self.sums,
            self.weights,
        )

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """All of it, by name."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.float64]], *, n_batches: int, n_dims: int) -> Self:
        """Rebuild from :meth:`arrays`; raises ``ValueError`` if they do not belong together.

        Parameters
        ----------
        arrays
            By name, others included.
        n_batches, n_dims
            What they must be of.
        """
        found = cls(*(arrays[one.name] for one in fields(cls)))
        n = len(found.weights)
        shapes = {"centres": (n, n_dims), "shifts": (n_batches, n, n_dims), "sizes": (n_batches, n)}
        shapes |= {"sums": (n, n_dims), "weights": (n,)}
        wrong = [name for name, shape in shapes.items() if getattr(found, name).shape != shape]
        if wrong or not all(
            array.dtype == np.float64 and np.isfinite(array).all() for array in found.arrays().values()
        ):
            msg = f"its arrays do not fit each other or are not finite numbers: {wrong}"
            raise ValueError(msg)
        return found
