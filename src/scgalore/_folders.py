"""Folders that appear whole or not at all."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from scgalore.errors import OptionError

__all__ = ["FolderKind", "no_empty_folders", "whole_folder"]


@dataclass(frozen=True)
class FolderKind:
    """What a folder holds, so that only its like is ever replaced.

    Attributes
    ----------
    what
        In words, with its article.
    is_one
        Tells from the names in a folder that is not empty whether it is one.
    permit
        What the user passes to have one replaced.
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
def whole_folder(folder: Path, kind: FolderKind, *, overwrite: bool) -> Iterator[Path]:
    """Give an empty folder that takes the place of ``folder`` when the block ends, and vanishes if the block fails.

    Parameters
    ----------
    folder
        Where the files shall be found afterwards.
    kind
        What is written.
    overwrite
        Whether a folder of this kind that is there already may be replaced. Others never are.

    Raises
    ------
    OptionError
        If ``folder`` is taken, or cannot be made. Nothing has been written then.
    """
    target = folder.expanduser().resolve()
    _check_free(target, kind, overwrite=overwrite)
    # Beside the target, since a rename is atomic only inside one file system.
    draft = target.with_name(f".{target.name}.{uuid4().hex[:8]}.draft")
    with no_empty_folders(target.parent):
        try:
            draft.mkdir(parents=True)
        except OSError as error:
            msg = f"Cannot make the folder {target}: {error.strerror}. Give another path."
            raise OptionError(msg) from error
        try:
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
        msg = f"{target} is a file; {kind.what} is a folder. Give another path."
        raise OptionError(msg)
    found = {path.name for path in target.iterdir()}
    if not found:
        return
    if not kind.is_one(found):
        msg = (
            f"{target} holds files that are not {kind.what}, such as {min(found)!r}, and would lose them. "
            "Give the path of a new folder."
        )
        raise OptionError(msg)
    if not overwrite:
        msg = f"{target} holds {kind.what} already. Pass {kind.permit} to replace it, or give another path."
        raise OptionError(msg)


def _swap(draft: Path, target: Path) -> None:
    if not target.exists():
        draft.rename(target)
        return
    old = draft.with_suffix(".old")
    target.rename(old)
    try:
        draft.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
