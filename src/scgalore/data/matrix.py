"""Rows of an expression matrix as float32 CSR, whatever holds it.

A sparse matrix is never made dense, and a dense one is read a block of rows at a time, so memory follows the rows asked
for and not the matrix.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import h5py
import numpy as np
import scipy.sparse as sp
from anndata.abc import CSCDataset, CSRDataset

from scgalore.errors import DataError, MissingKeyError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

__all__ = ["CellMatrix", "MatrixSummary"]

logger = logging.getLogger("scgalore")

_BLOCK_VALUES = 2**24  # of a dense matrix in memory at a time: 64 MB as float32
_GAP = 8  # rows on disk that are cheaper to read along than to seek past
# No cell has a gene with e**30 counts, and almost every unlogged one has a value above 30.
_LOGGED_MAX = 30


@dataclass(frozen=True)
class MatrixSummary:
    """What the values of a matrix are like.

    Attributes
    ----------
    min, max
        Smallest and largest finite value, zeros included; NaN when there is none.
    n_nan, n_inf, n_negative, n_fractional
        Number of values that are NaN, infinite, below zero, not whole.
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
    def is_counts(self) -> bool:
        """Whether all values are whole and none is negative."""
        return not (self.n_nan or self.n_inf or self.n_negative or self.n_fractional)

    @property
    def is_logged(self) -> bool:
        """Whether the values look like logarithms: not whole, none negative, none large."""
        return bool(self.n_fractional) and not self.n_negative and self.max < _LOGGED_MAX


class CellMatrix:
    """Rows of one matrix of an AnnData.

    Make it with :meth:`from_adata`. The AnnData must not change while it is in use.

    Parameters
    ----------
    read
        Returns the rows at some strictly increasing positions.
    shape
        Numbers of cells and of genes.
    name
        What to call the matrix in messages.
    """

    def __init__(
        self, read: Callable[[NDArray[np.int64]], sp.csr_matrix], shape: tuple[int, int], *, name: str
    ) -> None:
        self._read = read
        self.n_obs, self.n_vars = shape
        self.name = name

    @classmethod
    def from_adata(cls, adata: AnnData, layer: str | None = None) -> CellMatrix:
        """Take ``adata.X`` or a layer: CSR, CSC or dense, in memory, backed, or seen through a view.

        Parameters
        ----------
        adata
            Annotated data.
        layer
            Layer to use; ``X`` when left out.
        """
        if layer is not None and layer not in adata.layers:
            found = ", ".join(map(repr, adata.layers)) or "none"
            msg = f"adata.layers has no {layer!r} (it has: {found}). Pass one of them as layer=, or None for adata.X."
            raise MissingKeyError(msg)
        name = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
        shape = (adata.n_obs, adata.n_vars)
        if layer is None and adata.isbacked and adata.is_view:
            return cls(_backed_view_reader(adata, name), shape, name=name)
        return cls(_reader(adata.X if layer is None else adata.layers[layer], name), shape, name=name)

    def rows(self, indices: ArrayLike) -> sp.csr_matrix:
        """Rows in the order asked for.

        Parameters
        ----------
        indices
            Row numbers, in any order, with repetitions or not.

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
            return _canonical(self._read(wanted))
        # Files are read forwards, each row once; the order asked for is restored in memory.
        unique, inverse = np.unique(wanted, return_inverse=True)
        return _canonical(self._read(unique))[inverse]

    def chunks(self, size: int = 2048) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Walk through all rows: the number of the first row of each chunk, and the chunk as from :meth:`rows`."""
        for start in range(0, self.n_obs, size):
            yield start, self.rows(np.arange(start, min(start + size, self.n_obs)))

    def summary(self) -> MatrixSummary:
        """What the values are like; the matrix is read once, in chunks, the first time."""
        return self._summary

    def check(self, require: Literal["nonnegative", "counts"] = "nonnegative") -> None:
        """Refuse a matrix that cannot be used.

        Parameters
        ----------
        require
            ``"nonnegative"`` refuses empty matrices, NaN, infinite and negative values; ``"counts"`` also values
            that are not whole.
        """
        if require not in ("nonnegative", "counts"):
            msg = f"require={require!r} is not one of 'nonnegative', 'counts'."
            raise OptionError(msg)
        problem = self._problem(require)
        if problem:
            msg = f"{self.name} {problem}"
            raise DataError(msg)

    def _problem(self, require: str) -> str | None:
        if not (self.n_obs and self.n_vars):
            return f"is empty: {self.n_obs} cells x {self.n_vars} genes. Check the filters applied before."
        found = self.summary()
        if found.n_nan or found.n_inf:
            return (
                f"holds {found.n_nan:,} NaN and {found.n_inf:,} infinite values; expected finite expression. "
                "Take out the genes or cells concerned, or pass another layer=."
            )
        if found.n_negative:
            return (
                f"holds {found.n_negative:,} negative values (smallest {found.min:.3g}), so it looks scaled; "
                "expected counts or log-normalised expression. Pass layer=, or adata.raw.to_adata()."
            )
        if require == "counts" and not found.is_counts:
            kind = "looks log-normalised" if found.is_logged else "is not counts"
            return (
                f"{kind}: {found.n_fractional:,} values are not whole (largest {found.max:.3g}); expected raw counts. "
                "Pass the layer= that holds them, or adata.raw.to_adata()."
            )
        return None

    @cached_property
    def _summary(self) -> MatrixSummary:
        low, high = np.inf, -np.inf
        n_nan = n_inf = n_negative = n_fractional = n_empty = 0
        for _, csr in self.chunks():
            n_empty += int((np.diff(csr.indptr) == 0).sum())
            values = csr.data[np.isfinite(csr.data)]
            nan = int(np.isnan(csr.data).sum())
            n_nan += nan
            n_inf += len(csr.data) - len(values) - nan
            n_negative += int((values < 0).sum())
            n_fractional += int((values != np.rint(values)).sum())
            zeros = [0.0] if csr.nnz < csr.shape[0] * csr.shape[1] else []
            low = min([low, *zeros, values.min(initial=np.inf)])
            high = max([high, *zeros, values.max(initial=-np.inf)])
        if low > high:
            low = high = np.nan
        return MatrixSummary(float(low), float(high), n_nan, n_inf, n_negative, n_fractional, n_empty)


def _reader(x: Any, name: str) -> Callable[[NDArray[np.int64]], sp.csr_matrix]:
    """How to read increasing rows of what may stand in ``X`` or a layer."""
    if x is None:
        msg = f"{name} is not set. Pass layer= with the layer to use."
        raise DataError(msg)
    on_disk = isinstance(x, h5py.Dataset) or type(x).__module__.partition(".")[0] == "zarr"
    if not (on_disk or sp.issparse(x) or isinstance(x, np.ndarray | CSRDataset | CSCDataset)):
        msg = (
            f"{name} is a {type(x).__module__}.{type(x).__name__}; expected a NumPy array or a SciPy sparse matrix, in "
            "memory or backed. Bring it into memory first (adata.to_memory(), or .compute() for Dask)."
        )
        raise DataError(msg)
    if x.dtype.kind not in "biuf":
        msg = f"{name} holds values of type {x.dtype}; expected numbers."
        raise DataError(msg)
    if isinstance(x, CSRDataset):
        return _sparse_file_reader(x)
    if isinstance(x, CSCDataset):
        logger.info("%s is backed by columns (CSC): it is read into memory once, as a sparse matrix.", name)
        x = x.to_memory()
    if sp.issparse(x):
        csr = sp.csr_matrix(x)  # shares memory with a CSR matrix; converts any other form, once
        return lambda rows: csr[rows]
    return _dense_file_reader(x) if on_disk else _dense_reader(np.asarray(x))


def _backed_view_reader(adata: AnnData, name: str) -> Callable[[NDArray[np.int64]], sp.csr_matrix]:
    # `.X` of a backed view loads all of it, and a sparse one with selected genes the whole file at each access: rows
    # are taken from the file instead. anndata has no public name for where a view looks.
    parent, obs, var = adata._adata_ref, adata._oidx, adata._vidx
    read = _reader(parent.X, name)
    in_file, columns = np.arange(parent.n_obs)[obs], np.arange(parent.n_vars)[var]

    def view(rows: NDArray[np.int64]) -> sp.csr_matrix:
        unique, inverse = np.unique(in_file[rows], return_inverse=True)
        return read(unique)[inverse][:, columns]

    return view


def _dense_reader(x: NDArray[Any]) -> Callable[[NDArray[np.int64]], sp.csr_matrix]:
    size = max(1, _BLOCK_VALUES // max(1, x.shape[1]))

    def read(rows: NDArray[np.int64]) -> sp.csr_matrix:
        blocks = [_from_dense(x[rows[start : start + size]]) for start in range(0, len(rows), size)]
        return sp.vstack(blocks, format="csr")

    return read


def _dense_file_reader(x: Any) -> Callable[[NDArray[np.int64]], sp.csr_matrix]:
    size = max(1, _BLOCK_VALUES // max(1, x.shape[1]))

    def read(rows: NDArray[np.int64]) -> sp.csr_matrix:
        blocks = []
        for first, stop in _spans(rows, longest=size):
            within = rows[np.searchsorted(rows, first) : np.searchsorted(rows, stop)] - first
            blocks.append(_from_dense(x[first:stop][within]))
        return sp.vstack(blocks, format="csr")

    return read


def _from_dense(block: NDArray[Any]) -> sp.csr_matrix:
    with np.errstate(over="ignore"):
        return sp.csr_matrix(block.astype(np.float32))  # cast first: SciPy has no sparse float16


def _sparse_file_reader(x: CSRDataset) -> Callable[[NDArray[np.int64]], sp.csr_matrix]:
    data, indices, indptr = x.group["data"], x.group["indices"], x.group["indptr"][:]
    n_vars = x.shape[1]

    def read(rows: NDArray[np.int64]) -> sp.csr_matrix:
        spans = _spans(rows)
        held = np.concatenate([np.arange(first, stop) for first, stop in spans])
        parts = [slice(indptr[first], indptr[stop]) for first, stop in spans]
        starts = np.concatenate(([0], np.cumsum(indptr[held + 1] - indptr[held])))
        arrays = (np.concatenate([data[p] for p in parts]), np.concatenate([indices[p] for p in parts]), starts)
        return sp.csr_matrix(arrays, shape=(len(held), n_vars))[np.searchsorted(held, rows)]

    return read


def _spans(rows: NDArray[np.int64], longest: int | None = None) -> list[tuple[int, int]]:
    """Half-open ranges that cover increasing row numbers in few reads."""
    breaks = np.flatnonzero(np.diff(rows) > _GAP) + 1
    firsts, lasts = rows[np.concatenate(([0], breaks))], rows[np.concatenate((breaks - 1, [len(rows) - 1]))]
    spans = [(int(first), int(last) + 1) for first, last in zip(firsts, lasts, strict=True)]
    if longest is None:
        return spans
    return [(at, min(at + longest, stop)) for first, stop in spans for at in range(first, stop, longest)]


def _canonical(csr: sp.csr_matrix) -> sp.csr_matrix:
    csr.sum_duplicates()
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and check() reports it
        csr = csr.astype(np.float32, copy=False)
    csr.eliminate_zeros()
    return csr
