"""Readers of matrix rows: one for each thing that may hold a matrix, in memory or in a file.

A reader takes strictly increasing row numbers, at least one, and returns these rows as CSR. A sparse matrix is never
made dense, and a dense one is read a block of rows at a time, so memory follows the rows asked for and not the matrix.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
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
_GAP = 8  # rows on disk that are cheaper to read along than to seek past


def open_matrix(x: Any, name: str) -> Read:
    """Make a reader for what may stand in ``X`` or a layer.

    Parameters
    ----------
    x
        Matrix in memory, or its place in an open HDF5 or Zarr file.
    name
        What to call it in messages.
    """
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


def open_backed_view(adata: AnnData, name: str) -> Read:
    """Make a reader for ``X`` of a view of a backed AnnData.

    Parameters
    ----------
    adata
        The view.
    name
        What to call the matrix in messages.
    """
    # `.X` of a backed view loads all of it, and a sparse one with selected genes the whole file at each access: rows
    # are taken from the file instead. anndata has no public name for where a view looks.
    parent, obs, var = adata._adata_ref, adata._oidx, adata._vidx
    read = open_matrix(parent.X, name)
    in_file, columns = np.arange(parent.n_obs)[obs], np.arange(parent.n_vars)[var]

    def view(rows: NDArray[np.int64]) -> sp.csr_matrix:
        unique, inverse = np.unique(in_file[rows], return_inverse=True)
        return read(unique)[inverse][:, columns]

    return view


def _dense_reader(x: NDArray[Any]) -> Read:
    return _in_blocks(lambda rows: x[rows], x.shape[1])


def _dense_file_reader(x: Any) -> Read:
    def read(rows: NDArray[np.int64]) -> NDArray[Any]:
        bounds = [(first, stop, *np.searchsorted(rows, (first, stop))) for first, stop in _spans(rows, len(rows))]
        return np.concatenate([x[first:stop][rows[start:end] - first] for first, stop, start, end in bounds])

    return _in_blocks(read, x.shape[1])


def _in_blocks(read: Callable[[NDArray[np.int64]], NDArray[Any]], n_vars: int) -> Read:
    size = max(1, _BLOCK_VALUES // max(1, n_vars))

    def read_sparse(rows: NDArray[np.int64]) -> sp.csr_matrix:
        blocks = [_from_dense(read(rows[start : start + size])) for start in range(0, len(rows), size)]
        return sp.vstack(blocks, format="csr")

    return read_sparse


def _from_dense(block: NDArray[Any]) -> sp.csr_matrix:
    with np.errstate(over="ignore"):
        return sp.csr_matrix(block.astype(np.float32))  # cast first: SciPy has no sparse float16


def _sparse_file_reader(x: CSRDataset) -> Read:
    data, indices, indptr = x.group["data"], x.group["indices"], x.group["indptr"][:]
    n_vars = x.shape[1]

    def read(rows: NDArray[np.int64]) -> sp.csr_matrix:
        spans = _spans(rows)
        held = np.concatenate([np.arange(first, stop) for first, stop in spans])
        parts = [slice(indptr[first], indptr[stop]) for first, stop in spans]
        starts = np.concatenate(([0], np.cumsum(indptr[held + 1] - indptr[held])))
        arrays = (np.concatenate([data[p] for p in parts]), np.concatenate([indices[p] for p in parts]), starts)
        csr = sp.csr_matrix(arrays, shape=(len(held), n_vars))
        return csr if len(held) == len(rows) else csr[np.searchsorted(held, rows)]

    return read


def _spans(rows: NDArray[np.int64], longest: int | None = None) -> list[tuple[int, int]]:
    """Half-open ranges that cover increasing row numbers in few reads."""
    breaks = np.flatnonzero(np.diff(rows) > _GAP) + 1
    firsts, lasts = rows[np.concatenate(([0], breaks))], rows[np.concatenate((breaks - 1, [len(rows) - 1]))]
    spans = [(int(first), int(last) + 1) for first, last in zip(firsts, lasts, strict=True)]
    if longest is None:
        return spans
    return [(at, min(at + longest, stop)) for first, stop in spans for at in range(first, stop, longest)]
