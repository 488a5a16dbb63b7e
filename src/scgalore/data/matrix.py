"""Rows of an expression matrix as float32 CSR, and a summary of its values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from scgalore.data.readers import open_backed_view, open_matrix
from scgalore.errors import DataError, MissingKeyError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

    from scgalore.data.readers import Read

__all__ = ["CellMatrix", "MatrixSummary", "canonical", "layer_names"]


def layer_names(adata: AnnData) -> tuple[str, ...]:
    """Names of the layers; from anndata 0.13 on, ``adata.layers`` also has ``X``, under ``None``."""
    return tuple(name for name in adata.layers if name is not None)


@dataclass(frozen=True)
class MatrixSummary:
    """Summary of the values of a matrix.

    Attributes
    ----------
    min, max
        Smallest and largest finite value, including zeros; NaN if there is none.
    n_nan, n_inf, n_negative, n_fractional
        Number of NaN, infinite, negative and fractional values.
    n_empty
        Number of cells without a non-zero value.
    """

    min: float
    max: float
    n_nan: int
    n_inf: int
    n_negative: int
    n_fractional: int
    n_empty: int

    @property
    def is_whole(self) -> bool:
        """Whether all values are non-negative integers; counts may also be fractional, see ``scgalore.data.scale``."""
        return not (self.n_nan or self.n_inf or self.n_negative or self.n_fractional)


class CellMatrix:
    """Rows of one matrix of an AnnData.

    Create it with :meth:`from_adata`. The AnnData must not change while it is in use.

    Parameters
    ----------
    read
        Function that returns the rows at strictly increasing positions.
    shape
        Numbers of cells and genes.
    name
        Name of the matrix in messages.
    """

    def __init__(self, read: Read, shape: tuple[int, int], *, name: str) -> None:
        self._read = read
        self.n_obs, self.n_vars = shape
        self.name = name
        self._summary: MatrixSummary | None = None

    @classmethod
    def from_adata(cls, adata: AnnData, layer: str | None = None) -> CellMatrix:
        """Use ``adata.X`` or a layer: CSR, CSC or dense, in memory, backed, or a view.

        Parameters
        ----------
        adata
            Annotated data.
        layer
            Layer to use; ``None`` uses ``X``.
        """
        if layer is not None and layer not in adata.layers:
            found = ", ".join(map(repr, layer_names(adata))) or "none"
            msg = f"adata.layers has no {layer!r} (it has: {found}). Pass one of them as layer=, or None for adata.X."
            raise MissingKeyError(msg)
        name = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
        shape = (adata.n_obs, adata.n_vars)
        if layer is None and adata.isbacked and adata.is_view:
            return cls(open_backed_view(adata, name), shape, name=name)
        return cls(open_matrix(adata.X if layer is None else adata.layers[layer], name), shape, name=name)

    @classmethod
    def from_raw(cls, adata: AnnData) -> CellMatrix:
        """Use ``adata.raw.X``, which must exist."""
        return cls(open_matrix(adata.raw.X, "adata.raw.X"), adata.raw.shape, name="adata.raw.X")

    @classmethod
    def from_rows(cls, rows: sp.csr_matrix, name: str) -> CellMatrix:
        """Use rows in memory."""
        return cls(open_matrix(rows, name), rows.shape, name=name)

    def rows(self, indices: ArrayLike) -> sp.csr_matrix:
        """Rows in the requested order.

        Parameters
        ----------
        indices
            Row numbers, in any order, possibly repeated.

        Returns
        -------
        New float32 matrix in canonical form: column indices sorted, no duplicates, no stored zeros.
        """
        wanted = np.asarray(indices)
        if wanted.size == 0:
            return sp.csr_matrix((0, self.n_vars), dtype=np.float32)
        if wanted.ndim != 1 or wanted.dtype.kind not in "iu" or wanted.min() < 0 or wanted.max() >= self.n_obs:
            msg = f"Row numbers must be integers from 0 to {self.n_obs - 1} in one dimension; found {indices!r}."
            raise OptionError(msg)
        wanted = wanted.astype(np.int64)
        if (np.diff(wanted) > 0).all():
            return canonical(self._read(wanted))
        # Files are read sequentially, each row once; the requested order is restored in memory.
        unique, inverse = np.unique(wanted, return_inverse=True)
        return canonical(self._read(unique))[inverse]

    def chunks(self, size: int = 512) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Iterate over all rows: the index of the first row of each chunk, and the chunk as from :meth:`rows`."""
        for start in range(0, self.n_obs, size):
            yield start, self.rows(np.arange(start, min(start + size, self.n_obs)))

    def summary(self) -> MatrixSummary:
        """Summary of the values; the matrix is read once, in chunks, on first use."""
        if self._summary is None:
            self._summary = _summary_of(rows for _, rows in self.chunks())
        return self._summary

    def count(self, count: Callable[[sp.csr_matrix], NDArray[Any]]) -> NDArray[Any]:
        """Compute numbers of every cell, in the same pass over the matrix as :meth:`summary` and :meth:`check`.

        Parameters
        ----------
        count
            Function of rows, as from :meth:`rows`, that returns one or several numbers per row.

        Returns
        -------
        Array of these numbers, ``(n_obs, ...)``.
        """
        counts = [count(self.rows([]))]

        def counted() -> Iterator[sp.csr_matrix]:
            for _, rows in self.chunks():
                counts.append(count(rows))
                yield rows

        self._summary = _summary_of(counted())
        return np.concatenate(counts)

    def check(self) -> None:
        """Raise :class:`~scgalore.errors.DataError` for an empty matrix, and for NaN, infinite and negative values."""
        problem = self._problem()
        if problem:
            msg = f"{self.name} {problem}"
            raise DataError(msg)

    def _problem(self) -> str | None:
        if not (self.n_obs and self.n_vars):
            return f"is empty: {self.n_obs} cells x {self.n_vars} genes. Check the filters applied before."
        found = self.summary()
        if found.n_nan or found.n_inf:
            return (
                f"contains {found.n_nan:,} NaN and {found.n_inf:,} infinite values; expected finite expression. "
                "Remove the affected genes or cells, or pass another layer=."
            )
        if found.n_negative:
            return (
                f"contains {found.n_negative:,} negative values (smallest {found.min:.3g}), so it looks scaled; "
                "expected counts or log-normalised expression. Pass layer=, or adata.raw.to_adata()."
            )
        return None


def _summary_of(chunks: Iterable[sp.csr_matrix]) -> MatrixSummary:
    low, high = np.inf, -np.inf
    n_nan = n_inf = n_negative = n_fractional = n_empty = 0
    for csr in chunks:
        n_empty += int((np.diff(csr.indptr) == 0).sum())
        finite = np.isfinite(csr.data)
        values = csr.data
        if not finite.all():
            values = csr.data[finite]
            nan = int(np.isnan(csr.data).sum())
            n_nan += nan
            n_inf += len(csr.data) - len(values) - nan
        n_negative += int(np.count_nonzero(values < 0))
        n_fractional += int(np.count_nonzero(values != np.rint(values)))
        zeros = [0.0] if csr.nnz < csr.shape[0] * csr.shape[1] else []
        low = min([low, *zeros, values.min(initial=np.inf)])
        high = max([high, *zeros, values.max(initial=-np.inf)])
    if low > high:
        low = high = np.nan
    return MatrixSummary(float(low), float(high), n_nan, n_inf, n_negative, n_fractional, n_empty)


def canonical(csr: sp.csr_matrix) -> sp.csr_matrix:
    """Convert to float32 with sorted column indices, no duplicates and no stored zeros; may modify the input."""
    csr.sum_duplicates()
    with np.errstate(over="ignore"):  # values beyond float32 become infinite and are reported by check()
        csr = csr.astype(np.float32, copy=False)
    csr.eliminate_zeros()
    return csr
