"""Batch correction that is fitted once, applies to single cells, and can be extended by new batches.

Harmony :cite:p:`Korsunsky2019` finds clusters in which batches are mixed, and the shift of each batch in each cluster.
Given these, cells are corrected independently of each other. A new batch is mapped to the fixed clusters by a
regression that uses stored sums of the cells that define them (Symphony :cite:p:`Kang2021`).
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
"""Number of alternating updates of a cell's cluster memberships and its correction."""


@dataclass(frozen=True)
class Correction:
    """Clusters, and the shift of each batch in each of them.

    Attributes
    ----------
    centres
        Unit vectors of the clusters after correction, float64 ``(n_clusters, n_dims)``.
    shifts
        Shift of each batch in each cluster, float64 ``(n_batches, n_clusters, n_dims)``.
    sizes
        Cells of each batch in each cluster, float64 ``(n_batches, n_clusters)``.
    sums
        Sum of the corrected cells of each cluster, over the cells used for fitting, float64 ``(n_clusters, n_dims)``.
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
            Batch of each cell, from 0.
        labels
            Label of each cell, -1 without one. Batches are then compared within labels, so that differences between
            labels are not treated as shifts; cells without a label count as a separate label.
        seed
            Seed for the clusters.
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
        """Number of batches."""
        return len(self.shifts)

    def apply(self, x: NDArray[np.float64], batches: NDArray[np.int64]) -> NDArray[np.float64]:
        """Correct cells independently of each other.

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
        """Cluster memberships of cells, float64 ``(n_obs, n_clusters)``.

        Parameters
        ----------
        x
            Corrected components, ``(n_obs, n_dims)``.
        """
        return normalised(np.exp(-squared_distances(unit_rows(x), self.centres) / SIGMA))

    def with_batch(self, x: NDArray[np.float64]) -> Self:
        """Return a correction with an additional last batch; clusters and shifts of the other batches are unchanged.

        Parameters
        ----------
        x
            Components of the cells of the new batch, ``(n_obs, n_dims)``.
        """
        x = x.astype(np.float64)
        shares = self.shares(x)
        for _ in range(ROUNDS):
            # Ridge regression on [1, in this batch] over the corrected cells of the clusters and the new cells.
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
        """All arrays, by name."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.float64]], *, n_batches: int, n_dims: int) -> Self:
        """Rebuild from :meth:`arrays`; raises ``ValueError`` if they are inconsistent.

        Parameters
        ----------
        arrays
            Arrays by name; other names are ignored.
        n_batches, n_dims
            Expected sizes.
        """
        found = cls(*(arrays[one.name] for one in fields(cls)))
        n = len(found.weights)
        shapes = {"centres": (n, n_dims), "shifts": (n_batches, n, n_dims), "sizes": (n_batches, n)}
        shapes |= {"sums": (n, n_dims), "weights": (n,)}
        wrong = [name for name, shape in shapes.items() if getattr(found, name).shape != shape]
        if wrong or not all(
            array.dtype == np.float64 and np.isfinite(array).all() for array in found.arrays().values()
        ):
            msg = f"its arrays are inconsistent or not finite: {wrong}"
            raise ValueError(msg)
        return found
