"""Folders that appear whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from scgalore.errors import OptionError

__all__ = ["no_empty_folders", "whole_folder"]

WEIGHT_FILES = ("model.safetensors", "best_model.pt")


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
def whole_folder(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give an empty folder that takes the place of ``folder`` when the block ends, and vanishes if the block fails.

    Parameters
    ----------
    folder
        Where the files shall be found afterwards.
    overwrite
        Whether a checkpoint that is there already may be replaced. Other files are never replaced.
    """
    target = folder.expanduser().resolve()
    _check_free(target, overwrite=overwrite)
    # Beside the target, since a rename is atomic only inside one file system.
    draft = target.with_name(f".{target.name}.{uuid4().hex[:8]}.draft")
    with no_empty_folders(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.mkdir()
            yield draft
            _swap(draft, target)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise


def _check_free(target: Path, *, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir():
        msg = f"{target} is a file; a checkpoint is a folder. Give another path."
        raise OptionError(msg)
    if not any((target / name).is_file() for name in WEIGHT_FILES):
        msg = f"{target} holds files that are no checkpoint, and would lose them. Give the path of a new folder."
        raise OptionError(msg)
    if not overwrite:
        msg = f"{target} holds a checkpoint already. Pass overwrite=True to replace it, or give another path."
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
