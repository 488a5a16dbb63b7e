"""Folders that are written completely or not at all."""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from scgalore.errors import DiskError, OptionError

__all__ = ["FolderKind", "no_empty_folders", "recover_folder", "refuse_unwritable", "whole_folder", "writing"]

UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM})
"""Error numbers of a full disk or an exceeded quota."""


@dataclass(frozen=True)
class FolderKind:
    """Content of a folder, so that only folders of the same kind are ever replaced.

    Attributes
    ----------
    what
        Description with its article, for messages.
    is_one
        Whether a folder that is not empty is of this kind, given the names in it.
    permit
        Argument with which the user allows replacing one.
    """

    what: str
    is_one: Callable[[set[str]], bool]
    permit: str = "overwrite=True"


@contextmanager
def no_empty_folders(folder: Path) -> Iterator[None]:
    """Remove the folders that a failing block made on the way to ``folder`` and left empty."""
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in absent:
            with suppress(OSError):  # never made, or not empty
                path.rmdir()
        raise


@contextmanager
def writing(target: Path, *foreign: type[Exception]) -> Iterator[None]:
    """Raise :class:`~scgalore.errors.DiskError` with advice if a block cannot write its file.

    Parameters
    ----------
    target
        Path that is written, for the message.
    foreign
        Exceptions of other libraries that can only mean a failed write in this block.

    Raises
    ------
    DiskError
        If the disk is full, a quota or limit is reached, or the place is not writable.
    """
    kinds: tuple[type[Exception], ...] = (OSError, *foreign)
    try:
        yield
    except kinds as error:
        if isinstance(error, DiskError) or (isinstance(error, OSError) and error.errno not in UNWRITABLE):
            raise
        cause = error.strerror if isinstance(error, OSError) else str(error).strip().partition("\n")[0]
        free = next(shutil.disk_usage(path).free for path in target.absolute().parents if path.exists())
        msg = (
            f"{target} could not be written ({cause}; {free:,} bytes free). Existing files are unchanged. Free "
            "some space, or pass another path."
        )
        raise DiskError(msg) from error


def refuse_unwritable(folder: Path, name: str) -> None:
    """Raise :class:`~scgalore.errors.DiskError` if nothing can be written to a folder, or it cannot be made.

    Parameters
    ----------
    folder
        Need not exist.
    name
        Argument that it was given as.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        msg = f"{name}={str(folder)!r}: no permission to write to {there}. Pass a folder you can write to."
        raise DiskError(msg)


def recover_folder(folder: Path) -> None:
    """Finish the replacement of a folder that a killed process began.

    :func:`whole_folder` replaces a folder by two renames. Between them the path does not exist, and both folders are
    complete, under hidden names in the same parent folder.
    """
    with suppress(OSError, RuntimeError):  # another process may do the same; a link may lead in a circle
        target = folder.expanduser().resolve()
        if target.exists() or not target.parent.is_dir():
            return
        for old in _leftovers(target, "old"):
            draft = old.with_suffix(".draft")
            (draft if draft.is_dir() else old).rename(target)
            shutil.rmtree(old, ignore_errors=True)
            return


def _leftovers(target: Path, state: str) -> list[Path]:
    """Hidden folders that an interrupted :func:`whole_folder` left in the parent folder."""
    name = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.{state}")
    return [path for path in target.parent.iterdir() if name.fullmatch(path.name)]


@contextmanager
def whole_folder(folder: Path, kind: FolderKind, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder that replaces ``folder`` when the block ends and is removed if the block fails.

    Parameters
    ----------
    folder
        Final path of the files.
    kind
        Kind of folder that is written.
    overwrite
        Whether an existing folder of this kind may be replaced. Other folders never are.

    Raises
    ------
    OptionError
        If ``folder`` exists and may not be replaced, or cannot be created. Nothing is written.
    DiskError
        If the disk is full.
    """
    target = folder.expanduser().resolve()
    recover_folder(target)
    _check_free(target, kind, overwrite=overwrite)
    # Next to the target: a rename is atomic only within one file system.
    draft = target.with_name(f".{target.name}.{uuid4().hex[:8]}.draft")
    with no_empty_folders(target.parent):
        try:
            draft.mkdir(parents=True)
        except OSError as error:
            msg = f"Cannot create the folder {target}: {error.strerror}. Pass another path."
            raise OptionError(msg) from error
        try:
            with writing(target):
                yield draft
            _check_free(target, kind, overwrite=overwrite)  # the block may have taken minutes
            _swap(draft, target)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise


def _check_free(target: Path, kind: FolderKind, *, overwrite: bool) -> None:
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir():
        msg = f"{target} is a file; {kind.what} is a folder. Pass another path."
        raise OptionError(msg)
    found = {path.name for path in target.iterdir()}
    if not found:
        return
    if not kind.is_one(found):
        msg = (
            f"{target} contains files that are not {kind.what}, such as {min(found)!r}, and they would be lost. "
            "Pass the path of a new folder."
        )
        raise OptionError(msg)
    if not overwrite:
        msg = f"{target} already contains {kind.what}. Pass {kind.permit} to replace it, or another path."
        raise OptionError(msg)


def _swap(draft: Path, target: Path) -> None:
    if not target.exists():
        draft.rename(target)
        return
    for left in _leftovers(target, "old"):  # left by a process that was killed while removing it
        shutil.rmtree(left, ignore_errors=True)
    old = draft.with_suffix(".old")
    target.rename(old)
    try:
        draft.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
