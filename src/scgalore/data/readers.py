"""Readers of matrix rows, one for each storage of a matrix in memory or in a file.

A reader takes strictly increasing row numbers, at least one, and returns these rows as CSR. Sparse matrices are never
converted to dense ones, and dense matrices are read in blocks of rows, so memory depends on the requested rows and not
on the size of the matrix.

Readers can be pickled, since worker processes receive them this way unless processes are forked: on macOS, on Windows,
and on Linux from Python 3.14. The reader of a file opens the file again there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import h5py
import numpy as np
import scipy.sparse as sp
from anndata.abc import CSCDataset, CSRDataset
from numpy.typing import NDArray

from scgalore.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Read", "open_backed_view", "open_matrix"]

Read: TypeAlias = Callable[[NDArray[np.int64]], sp.csr_matrix]

logger = logging.getLogger("scgalore")

_BLOCK_VALUES = 2**24  # of a dense matrix in memory at a time: 64 MB as float32
_FEW_SPANS = 8  # ranges of rows for which only the needed part of indptr is read
_GAP = 8  # rows on disk that are cheaper to read than to skip


def open_matrix(x: Any, name: str) -> Read:
    """Make a reader for the value of ``X`` or a layer.

    Parameters
    ----------
    x
        Matrix in memory, or its place in an open HDF5 or Zarr file.
    name
        Name in messages.
    """
    if x is None:
        msg = f"{name} is not set. Pass layer= with the layer to use."
        raise DataError(msg)
    on_disk = isinstance(x, h5py.Dataset) or type(x).__module__.partition(".")[0] == "zarr"
    if not (on_disk or sp.issparse(x) or isinstance(x, np.ndarray | CSRDataset | CSCDataset)):
        msg = (
            f"{name} is a {type(x).__module__}.{type(x).__name__}; expected a NumPy array or a SciPy sparse matrix, in "
            "memory or backed. Load it into memory first (adata.to_memory(), or .compute() for Dask)."
        )
        raise DataError(msg)
    if x.dtype.kind not in "biuf":
        msg = f"{name} has dtype {x.dtype}; expected numbers."
        raise DataError(msg)
    if isinstance(x, CSRDataset):
        group = x.group
        begin = _Starts(_Held(group["indptr"]))
        return partial(_sparse_file_rows, _Held(group["data"]), _Held(group["indices"]), begin, x.shape[1])
    if isinstance(x, CSCDataset):
        logger.info("%s is stored by columns (CSC): it is read into memory once as a sparse matrix.", name)
        x = x.to_memory()
    if sp.issparse(x):
        csr = sp.csr_matrix(x)  # shares memory with a CSR matrix; converts any other format once
        return partial(_rows, csr)
    read = partial(_dense_file_rows, _Held(x)) if on_disk else partial(_rows, np.asarray(x))
    return partial(_in_blocks, read, max(1, _BLOCK_VALUES // max(1, x.shape[1])))


def open_backed_view(adata: AnnData, name: str) -> Read:
    """Make a reader for ``X`` of a view of a backed AnnData.

    Parameters
    ----------
    adata
        The view.
    name
        Name of the matrix in messages.
    """
    # `.X` of a backed view loads all of it, and for a sparse matrix with selected genes the whole file at each access:
    # rows are read from the file instead. anndata has no public name for the indices of a view.
    parent, obs, var = adata._adata_ref, adata._oidx, adata._vidx
    read = open_matrix(parent.X, name)
    return partial(_rows_of_view, read, np.arange(parent.n_obs)[obs], np.arange(parent.n_vars)[var])


class _Held:
    """Dataset in a file. Pickled by its path and opened again when unpickled, since HDF5 handles cannot be pickled."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __reduce__(self) -> Any:
        if isinstance(self.values, h5py.Dataset):
            return _opened, (self.values.file.filename, self.values.name)
        return _Held, (self.values,)


class _Starts:
    """Row starts of a sparse matrix in a file, read in part at first and as a whole once they are needed often.

    A file with a million rows has 8 MB of them, and a stream opens each of many files for a few blocks.
    """

    def __init__(self, held: _Held) -> None:
        self._held = held
        self._whole: NDArray[np.int64] | None = None

    def of(self, spans: list[tuple[int, int]]) -> list[NDArray[np.int64]]:
        """Start of each row of the spans, and the end of their last rows."""
        if self._whole is None and len(spans) > _FEW_SPANS:
            self._whole = self._held.values[:]
        values = self._held.values if self._whole is None else self._whole
        return [values[first : stop + 1] for first, stop in spans]

    def __reduce__(self) -> Any:
        return _Starts, (self._held,)


def _opened(path: str, name: str) -> _Held:
    return _Held(h5py.File(path, "r")[name])


def _rows(x: Any, rows: NDArray[np.int64]) -> Any:
    return x[rows]


def _rows_of_view(
    read: Read, in_file: NDArray[np.int64], columns: NDArray[np.int64], rows: NDArray[np.int64]
) -> sp.csr_matrix:
    unique, inverse = np.unique(in_file[rows], return_inverse=True)
    return read(unique)[inverse][:, columns]


def _dense_file_rows(held: _Held, rows: NDArray[np.int64]) -> NDArray[Any]:
    bounds = [(first, stop, *np.searchsorted(rows, (first, stop))) for first, stop in _spans(rows, len(rows))]
    return np.concatenate([held.values[first:stop][rows[start:end] - first] for first, stop, start, end in bounds])


def _in_blocks(read: Callable[[NDArray[np.int64]], NDArray[Any]], size: int, rows: NDArray[np.int64]) -> sp.csr_matrix:
    blocks = [_from_dense(read(rows[start : start + size])) for start in range(0, len(rows), size)]
    return sp.vstack(blocks, format="csr")


def _from_dense(block: NDArray[Any]) -> sp.csr_matrix:
    with np.errstate(over="ignore"):
        return sp.csr_matrix(block.astype(np.float32))  # cast first: SciPy has no sparse float16


def _sparse_file_rows(
    data: _Held, indices: _Held, begin: _Starts, n_vars: int, rows: NDArray[np.int64]
) -> sp.csr_matrix:
    spans = _spans(rows)
    held = np.concatenate([np.arange(first, stop) for first, stop in spans])
    indptrs = begin.of(spans)
    parts = [slice(indptr[0], indptr[-1]) for indptr in indptrs]
    starts = np.concatenate(([0], np.cumsum(np.concatenate([np.diff(indptr) for indptr in indptrs]))))
    arrays = [np.concatenate([x.values[part] for part in parts]) for x in (data, indices)]
    csr = sp.csr_matrix((*arrays, starts), shape=(len(held), n_vars))
    return csr if len(held) == len(rows) else csr[np.searchsorted(held, rows)]


def _spans(rows: NDArray[np.int64], longest: int | None = None) -> list[tuple[int, int]]:
    """Half-open ranges that cover increasing row numbers with few reads."""
    breaks = np.flatnonzero(np.diff(rows) > _GAP) + 1
    firsts, lasts = rows[np.concatenate(([0], breaks))], rows[np.concatenate((breaks - 1, [len(rows) - 1]))]
    spans = [(int(first), int(last) + 1) for first, last in zip(firsts, lasts, strict=True)]
    if longest is None:
        return spans
    return [(at, min(at + longest, stop)) for first, stop in spans for at in range(first, stop, longest)]
