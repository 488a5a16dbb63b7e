"""Log-normalised expression from counts or log-normalised matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from scgalore import _logging as logg
from scgalore.data.depth import depth_of
from scgalore.data.matrix import CellMatrix
from scgalore.data.reading import AS_IT_IS
from scgalore.data.scale import Scale, scale_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

    from scgalore.data.reading import Reading

__all__ = ["TARGET_SUM", "LogExpression"]

TARGET_SUM = 1e4
"""Total counts per cell after normalisation of counts."""


@dataclass(frozen=True)
class LogExpression:
    """Rows of a matrix on the scale ``log(1 + x)``.

    Attributes
    ----------
    matrix
        Matrix to read.
    scale
        Its scale. Counts are normalised to :data:`TARGET_SUM` per cell and log-transformed while reading.
    log_base
        Base of the returned logarithms: by default that of the matrix.
    depth
        Total counts of each cell, float64 ``(n_obs,)``; ``None`` uses the sum of its row.
    """

    matrix: CellMatrix = field(repr=False)
    scale: Scale
    log_base: float = math.e
    depth: NDArray[np.float64] | None = field(default=None, repr=False)

    @classmethod
    def from_adata(cls, adata: AnnData, reading: Reading = AS_IT_IS, *, log_base: float | None = None) -> LogExpression:
        """Check a matrix and detect its scale, which is logged once per object.

        Parameters
        ----------
        adata
            Cells by genes; counts or log-normalised.
        reading
            Matrix to read, and its data type.
        log_base
            Base of the returned logarithms, for comparison with other data; by default that of the matrix.

        Raises
        ------
        DataError
            If the matrix is empty, contains negative, NaN or infinite values, is neither counts nor log-normalised, or
            the total counts are inconsistent.
        MissingKeyError
            If the layer or the column of total counts does not exist.
        """
        matrix = CellMatrix.from_adata(adata, layer=reading.layer)
        matrix.check()
        scale = scale_of(matrix, uns=adata.uns, layer=reading.layer, data_type=reading.data_type)
        _log_scale(adata, matrix.name, scale)
        depth = depth_of(adata, matrix, scale, reading)
        return cls(matrix, scale, scale.base if log_base is None else log_base, depth)

    @property
    def from_counts(self) -> bool:
        """Whether the matrix contains counts, possibly fractional."""
        return self.scale.kind == "counts"

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self.matrix.n_obs

    @property
    def n_vars(self) -> int:
        """Number of genes."""
        return self.matrix.n_vars

    def rows(self, indices: ArrayLike) -> sp.csr_matrix:
        """Rows in the requested order, float32, in canonical form."""
        return self.logged(self.matrix.rows(indices), np.asarray(indices, dtype=np.int64))

    def chunks(self, size: int = 512) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Iterate over all rows, as :meth:`scgalore.data.matrix.CellMatrix.chunks`."""
        for start, rows in self.matrix.chunks(size):
            yield start, self.logged(rows, np.arange(start, start + rows.shape[0]))

    def logged(self, rows: sp.csr_matrix, cells: NDArray[np.int64]) -> sp.csr_matrix:
        """Log-normalise rows of :attr:`matrix`, without modifying them.

        Parameters
        ----------
        rows
            Rows as returned by the matrix.
        cells
            Row numbers.
        """
        factor = math.log(self.scale.base) / math.log(self.log_base)
        if not self.from_counts:
            return rows if factor == 1 else _with(rows, rows.data * np.float32(factor))
        depth = np.asarray(rows.sum(axis=1), dtype=np.float64).ravel() if self.depth is None else self.depth[cells]
        values = np.repeat(TARGET_SUM / np.where(depth > 0, depth, 1), np.diff(rows.indptr))
        values *= rows.data
        np.log1p(values, out=values)
        return _with(rows, values if factor == 1 else values * factor)

    def linear(self, rows: sp.csr_matrix) -> sp.csr_matrix:
        """Rows of :attr:`matrix` without the logarithm; not modified in place."""
        if self.from_counts:
            return rows
        return _with(
            rows,
            np.expm1(rows.data if self.scale.base == math.e else rows.data * np.float32(math.log(self.scale.base))),
        )


def _with(rows: sp.csr_matrix, values: NDArray[np.floating]) -> sp.csr_matrix:
    return sp.csr_matrix((values.astype(np.float32, copy=False), rows.indices, rows.indptr), shape=rows.shape)


def _log_scale(adata: AnnData, name: str, scale: Scale) -> None:
    """Log the detected scale of a matrix once, as a warning if it is uncertain."""
    if scale.kind == "counts":
        what = f"{'counts normalised to one sum' if scale.normalised else 'counts'}, since {scale.reason}"
        how = f"read as log(1 + counts normalised to {TARGET_SUM:g} per cell)"
    else:
        base = "natural logarithms" if scale.base == math.e else f"logarithms to base {scale.base:g}"
        what, how = f"{base}, since {scale.reason}", "read unchanged"
    if scale.doubt:
        message = f"{name} contains {what}; but {scale.doubt}. It is {how}. Pass data_type= to specify it."
    elif not scale.sure:
        message = f"{name} may contain counts or log-normalised values. It seems to contain {what}, and is {how}. Pass data_type='counts' or data_type='log1p' to specify it."
    else:
        if logg.is_news(adata, message := f"    {name} contains {what}: {how}"):
            logg.info(message)
        return
    if logg.is_news(adata, message):
        logg.warning(message)
