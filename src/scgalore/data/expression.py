"""Log-normalised expression, whatever the matrix holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from scgalore import _logging as logg
from scgalore.data.matrix import CellMatrix
from scgalore.data.reading import AS_IT_IS
from scgalore.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from numpy.typing import ArrayLike

    from scgalore.data.reading import Reading

__all__ = ["TARGET_SUM", "LogExpression"]

TARGET_SUM = 1e4
"""Counts a cell is scaled to before the logarithm, where the matrix holds counts."""


@dataclass(frozen=True)
class LogExpression:
    """Rows of a matrix on the scale ``log(1 + x)``.

    Attributes
    ----------
    matrix
        What is read.
    from_counts
        Whether it holds counts, which are then scaled to :data:`TARGET_SUM` a cell and logged while they are read.
    """

    matrix: CellMatrix = field(repr=False)
    from_counts: bool

    @classmethod
    def from_adata(cls, adata: AnnData, reading: Reading = AS_IT_IS) -> LogExpression:
        """Check a matrix and find out which of the two it is.

        Parameters
        ----------
        adata
            Cells by genes; counts or log-normalised.
        reading
            Which matrix to read, and what it holds.

        Raises
        ------
        DataError
            If the matrix is empty, holds negative, NaN or infinite values, or is neither counts nor logarithms.
        MissingKeyError
            If the layer does not exist.
        """
        matrix = CellMatrix.from_adata(adata, layer=reading.layer)
        matrix.check("nonnegative")
        values = matrix.summary()
        if not (values.is_counts or values.is_logged):
            msg = (
                f"{matrix.name} holds fractions up to {values.max:.4g}: neither counts nor their logarithms. Call "
                "sc.pp.log1p(adata) first, or pass the layer= that holds counts."
            )
            raise DataError(msg)
        if values.is_counts:
            logg.info(f"    {matrix.name} holds counts: read as log(1 + counts scaled to {TARGET_SUM:g} a cell)")
        return cls(matrix, values.is_counts)

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self.matrix.n_obs

    @property
    def n_vars(self) -> int:
        """Number of genes."""
        return self.matrix.n_vars

    def rows(self, indices: ArrayLike) -> sp.csr_matrix:
        """Rows in the order asked for, float32, in canonical form."""
        return self.logged(self.matrix.rows(indices))

    def chunks(self, size: int = 512) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Walk through all rows, as :meth:`scgalore.data.matrix.CellMatrix.chunks`."""
        for start, rows in self.matrix.chunks(size):
            yield start, self.logged(rows)

    def logged(self, rows: sp.csr_matrix) -> sp.csr_matrix:
        """Bring rows of :attr:`matrix` to the scale; they stay as they are."""
        if not self.from_counts:
            return rows
        depth = np.asarray(rows.sum(axis=1), dtype=np.float64).ravel()
        scale = TARGET_SUM / np.maximum(depth, 1)
        values = np.repeat(scale, np.diff(rows.indptr))
        values *= rows.data
        np.log1p(values, out=values)
        return sp.csr_matrix((values.astype(np.float32), rows.indices, rows.indptr), shape=rows.shape)
