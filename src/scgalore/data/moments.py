"""Sums of expression over groups of cells, from one pass over a matrix."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from numpy.typing import NDArray

__all__ = ["Chunked", "Moments", "add_sums", "column_sums"]

# Sums of one group are a matrix-vector product; those of several groups a scattered addition, as expensive as four
# products.
_FEW_GROUPS = 4


class Chunked(Protocol):
    """Rows in chunks: a matrix, or its logarithm."""

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        ...

    @property
    def n_vars(self) -> int:
        """Number of genes."""
        ...

    def chunks(self, size: int = ...) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Iterate over all rows: the index of the first row of each chunk, and the chunk."""
        ...


@dataclass(frozen=True)
class Moments:
    """Sums and sums of squares of each gene in each group of cells.

    Create it with :meth:`of`, or with :meth:`empty` and :meth:`add` to share one pass over the data.

    Attributes
    ----------
    n_cells
        Number of cells of each group, int64 ``(n_groups,)``.
    n_expressed
        Number of cells of any group that express each gene, int64 ``(n_vars,)``.
    sums, squares
        Sums of the values and of their squares, float64 ``(n_groups, n_vars)``.
    """

    n_cells: NDArray[np.int64]
    n_expressed: NDArray[np.int64] = field(repr=False)
    sums: NDArray[np.float64] = field(repr=False)
    squares: NDArray[np.float64] = field(repr=False)

    @classmethod
    def empty(cls, n_groups: int, n_vars: int) -> Self:
        """Create empty sums."""
        shape = (n_groups, n_vars)
        n_cells, n_expressed = (np.zeros(n, dtype=np.int64) for n in shape)
        return cls(n_cells, n_expressed, np.zeros(shape), np.zeros(shape))

    @classmethod
    def of(cls, rows: Chunked, group: NDArray[np.int64], n_groups: int) -> Self:
        """Read a matrix once.

        Parameters
        ----------
        rows
            Cells by genes.
        group
            Group of each cell, int64 ``(n_obs,)``; -1 for excluded cells.
        n_groups
            Number of groups.
        """
        moments = cls.empty(n_groups, rows.n_vars)
        for start, chunk in rows.chunks():
            moments.add(chunk, group[start : start + chunk.shape[0]])
        return moments

    def add(self, rows: sp.csr_matrix, group: NDArray[np.int64]) -> None:
        """Add some rows.

        Parameters
        ----------
        rows
            Cells by genes, in canonical form.
        group
            Group of each row; -1 for excluded rows.
        """
        counted = group >= 0
        if not counted.all():
            rows, group = rows[np.flatnonzero(counted)], group[counted]
        self.n_cells[:] += np.bincount(group, minlength=len(self.n_cells))
        # A product counts faster than np.bincount, and is exact for fewer than 2**24 rows per chunk.
        ones = sp.csr_matrix((np.ones(rows.nnz, dtype=np.float32), rows.indices, rows.indptr), shape=rows.shape)
        self.n_expressed[:] += (ones.T @ np.ones(rows.shape[0], dtype=np.float32)).astype(np.int64)
        # In float64, so that differences of squares and squared sums are accurate.
        values = rows.data.astype(np.float64)
        add_sums(self.sums, rows, values, group)
        add_sums(self.squares, rows, np.square(values, out=values), group)

    @property
    def means(self) -> NDArray[np.float64]:
        """Mean of each group, ``(n_groups, n_vars)``; 0 for a group without cells."""
        return self.sums / np.maximum(self.n_cells, 1)[:, None]

    @property
    def variances(self) -> NDArray[np.float64]:
        """Sample variance within each group, ``(n_groups, n_vars)``; 0 for a group with fewer than two cells."""
        n = self.n_cells[:, None]
        return np.maximum(self.squares - n * self.means**2, 0) / np.maximum(n - 1, 1)


def add_sums(
    sums: NDArray[np.float64], rows: sp.csr_matrix, values: NDArray[np.float64], group: NDArray[np.int64]
) -> None:
    """Add values at the positions of stored values of ``rows`` to the sums of their groups.

    Parameters
    ----------
    sums
        Modified in place, float64 ``(n_groups, n_vars)``.
    rows
        Matrix with the positions of the values.
    values
        One per stored value.
    group
        Group of each row.
    """
    n_groups, n_vars = sums.shape
    if n_groups <= _FEW_GROUPS:
        for number in np.unique(group):
            sums[number] += column_sums(rows, values, (group == number).astype(np.float64))
        return
    place = np.repeat(group * n_vars, np.diff(rows.indptr)) + rows.indices
    np.add.at(sums.reshape(-1), place, values)


def column_sums(rows: sp.csr_matrix, values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted column sums of values at the positions of stored values of ``rows``; float64 ``(n_vars,)``."""
    return sp.csr_matrix((values, rows.indices, rows.indptr), shape=rows.shape).T @ weights
