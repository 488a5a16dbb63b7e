"""Files: hashed once, and written completely or not at all."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING
from uuid import uuid4

from scgalore._folders import no_empty_folders, writing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["file_digest", "whole_file"]


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hash a file; an unchanged file is not read again in this process.

    Parameters
    ----------
    path
        File to read.
    algorithm
        Algorithm of :mod:`hashlib`, for example ``"sha256"`` or ``"md5"``.
    """
    path = path.resolve()
    # Size and time are part of the cache key: a file that was replaced is hashed again.
    state = path.stat()
    return _digest(path, algorithm, state.st_ino, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest(path: Path, algorithm: str, *_state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Yield a path to write to; that file replaces ``target`` when the block ends.

    If the block fails, ``target`` stays as it was, and folders created for it are removed.

    Parameters
    ----------
    target
        Final path of the file; an existing file is replaced.

    Raises
    ------
    DiskError
        If the disk is full.
    """
    # Next to the target: a rename is atomic only within one file system. The suffix is kept because writers look at it.
    draft = target.with_name(f".{target.stem}.{uuid4().hex[:8]}.draft{target.suffix}")
    with no_empty_folders(target.parent), writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield draft
            draft.replace(target)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
