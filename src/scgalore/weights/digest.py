"""Hashes of large files, computed once."""

import hashlib
from functools import lru_cache
from pathlib import Path

__all__ = ["file_sha256"]


def file_sha256(path: Path) -> str:
    """Hash a file; an unchanged file is not read again in this process.

    Parameters
    ----------
    path
        File to read.
    """
    path = path.resolve()
    # The state is part of the cache's key: a file that was replaced is another file.
    state = path.stat()
    return _sha256(path, state.st_ino, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: Path, *_state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
