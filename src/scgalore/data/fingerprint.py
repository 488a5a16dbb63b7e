"""Detection of changed files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scgalore.data.hashing import digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgalore.data.matrix import CellMatrix

__all__ = ["Fingerprint", "Written", "changed_files", "content_of", "written"]

ENDS = 4
"""Number of cells at either end of a matrix that are hashed."""

_PARTS = ("", "data", "indices", "indptr")
_CHUNKS = ("", "c")  # chunk folders of Zarr's two formats


@dataclass(frozen=True)
class Written:
    """Size and modification time of a file; for a folder, times of changes of its entries.

    Attributes
    ----------
    size
        Bytes; 0 for a folder.
    times
        Times in nanoseconds.
    """

    size: int
    times: tuple[int, ...]


@dataclass(frozen=True)
class Fingerprint:
    """State of a source when it was first opened.

    Attributes
    ----------
    shape
        Numbers of cells and genes.
    content
        Hash of the matrix's shape and of its first and last cells, independent of the file format.
    written
        Size and times of files.
    """

    shape: tuple[int, int]
    content: str
    written: Written | None = None

    @property
    def lasting(self) -> tuple[str, int]:
        """Parts that do not change when the file is copied."""
        return self.content, 0 if self.written is None else self.written.size


def changed_files(before: Sequence[Sequence[str]], now: Sequence[Sequence[str]]) -> str:
    """Describe which files have changed.

    Parameters
    ----------
    before, now
        Path and hash of each file, in order. Moved files are not changed.
    """
    (old_names, old_hashes), (names, hashes) = (
        ([Path(path).name for path, _ in files], {found for _, found in files}) for files in (before, now)
    )
    told = {
        "has changed": [path for path, found in now if found not in old_hashes and Path(path).name in old_names],
        "is new": [path for path, found in now if found not in old_hashes and Path(path).name not in old_names],
        "is missing": [path for path, found in before if found not in hashes and Path(path).name not in names],
    }
    parts = [
        f"{path} {what}" if len(paths) == 1 else f"{path} {what} (and {len(paths) - 1} more)"
        for what, paths in told.items()
        for path in paths[:1]
    ]
    return ", ".join(parts) or "its files or their order have changed"


def content_of(matrix: CellMatrix) -> str:
    """Hash the shape of a matrix, and its first and last cells.

    Parameters
    ----------
    matrix
        Matrix, of which a few rows are read.
    """
    n_obs = matrix.n_obs
    rows = matrix.rows(np.union1d(np.arange(min(ENDS, n_obs)), np.arange(max(0, n_obs - ENDS), n_obs)))
    shape = np.array([n_obs, matrix.n_vars])
    return digest([shape, rows.indptr.astype(np.int64), rows.indices.astype(np.int64), rows.data])


def written(path: Path, slot: str) -> Written:
    """Get size and modification times of a file.

    Parameters
    ----------
    path
        ``.h5ad`` file or ``.zarr`` folder.
    slot
        Position of the matrix in the file.

    Raises
    ------
    OSError
        If the file does not exist.
    """
    found = path.stat()
    if not path.is_dir():
        return Written(found.st_size, (found.st_mtime_ns,))
    folders = [path / slot / part / chunks for part in _PARTS for chunks in _CHUNKS]
    return Written(0, tuple(folder.stat().st_mtime_ns for folder in folders if folder.is_dir()))
