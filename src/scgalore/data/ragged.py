"""Arrays with many cells concatenated, and sorting within each cell in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["argsort_rows", "blocks", "starts"]

# A sort key is a uint64 of three fields: row in its block, 32-bit key, position in its block. NumPy vectorises the sort
# of such numbers, and the positions come with it; sorting by row followed by an argsort is not vectorised.
_POSITION_BITS = 20
_ROW_BITS = 12
_CACHED = 2**16  # entries: a block, its keys and the sort's own memory stay in the cache of a core


def starts(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """Start of each cell, from the numbers of entries."""
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))


def blocks(indptr: NDArray[np.integer], size: int = _CACHED, most_rows: int = 2**_ROW_BITS) -> Iterator[slice]:
    """Consecutive blocks of rows with about ``size`` entries; a longer row is a block by itself.

    Parameters
    ----------
    indptr
        Start of each row, followed by the end of the last one.
    size
        Maximum number of entries per block.
    most_rows
        Maximum number of rows per block.
    """
    first, n_rows = 0, len(indptr) - 1
    while first < n_rows:
        stop = int(np.searchsorted(indptr, int(indptr[first]) + size, side="right")) - 1
        stop = max(first + 1, min(stop, first + most_rows, n_rows))
        yield slice(first, stop)
        first = stop


def argsort_rows(keys: NDArray[Any], indptr: NDArray[np.integer]) -> NDArray[np.int64]:
    """Positions that sort each row by its keys; equal keys keep their order.

    Parameters
    ----------
    keys
        Keys of all rows, concatenated; fastest as uint32.
    indptr
        Start of each row, followed by the end of the last one.

    Returns
    -------
    int64 array: ``keys[result]`` is sorted within each row.
    """
    lengths = np.diff(indptr)
    if keys.dtype != np.uint32 or lengths.max(initial=0) > 2**_POSITION_BITS:
        return np.lexsort((keys, np.repeat(np.arange(len(lengths)), lengths)))
    order = np.empty(len(keys), dtype=np.int64)
    for rows in blocks(indptr):
        start, stop = int(indptr[rows.start]), int(indptr[rows.stop])
        row = np.arange(rows.stop - rows.start, dtype=np.uint64) << np.uint64(32 + _POSITION_BITS)
        packed = np.repeat(row, lengths[rows])
        packed |= keys[start:stop].astype(np.uint64) << np.uint64(_POSITION_BITS)
        packed |= np.arange(stop - start, dtype=np.uint64)
        packed.sort()
        packed &= np.uint64(2**_POSITION_BITS - 1)
        np.add(packed.view(np.int64), start, out=order[start:stop])
    return order
