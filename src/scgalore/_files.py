"""Files: hashed once, and written whole or not at all."""

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
        One that :mod:`hashlib` knows, for example ``"sha256"`` or ``"md5"``.
    """
    path = path.resolve()
    # The state is part of the cache's key: a file that was replaced is another file.
    state = path.stat()
    return _digest(path, algorithm, state.st_ino, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest(path: Path, algorithm: str, *_state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Give a path to write to; what is there takes the place of ``target`` when the block ends.

    If the block fails, ``target`` stays as it was, and folders that were made for it vanish.

    Parameters
    ----------
    target
        Where the file shall be found afterwards; one that is there already is replaced.

    Raises
    ------
    DiskError
        If the disk takes no more.
    """
    # Beside the target, since a rename is atomic only inside one file system. The suffix stays: writers look at it.
    draft = target.with_name(f".{target.stem}.{uuid4().hex[:8]}.draft{target.suffix}")
    with no_empty_folders(target.parent), writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield draft
            draft.replace(target)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
