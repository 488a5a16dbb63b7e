"""The folder of a demonstration's files, which appears whole or not at all."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from scgalore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scgalore._typing import PathLike

__all__ = ["FILES", "demo_folder"]

FILES = ("report.md", "results.h5ad", "umap.png", "confusion_matrix.png", "history.png")


@contextmanager
def demo_folder(out: PathLike, *, force: bool) -> Iterator[Path]:
    """Give an empty folder that takes the place of ``out`` when the block ends, and vanishes if the block fails.

    Parameters
    ----------
    out
        Where the files shall be found afterwards.
    force
        Whether the files of an earlier demonstration may be replaced. Others never are.

    Raises
    ------
    OptionError
        If ``out`` is taken, or cannot be made. Nothing has been computed then.
    """
    target = Path(out).expanduser().resolve()
    _check_free(target, force=force)
    # Beside the target, since a rename is atomic only inside one file system.
    draft = target.with_name(f".{target.name}.{uuid4().hex[:8]}.draft")
    absent = [path for path in target.parents if not path.exists()]
    try:
        draft.mkdir(parents=True)
    except OSError as error:
        msg = f"Cannot make the folder {target}: {error.strerror}. Give another path."
        raise OptionError(msg) from error
    try:
        yield draft
        _check_free(target, force=force)  # minutes have passed
        _swap(draft, target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        for path in absent:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise


def _check_free(target: Path, *, force: bool) -> None:
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir():
        msg = f"{target} is a file; the demo needs a folder. Give another path."
        raise OptionError(msg)
    found = sorted(path.name for path in target.iterdir())
    if foreign := [name for name in found if name not in FILES]:
        msg = f"{target} holds files that are not the demo's, such as {foreign[0]!r}. Give the path of a new folder."
        raise OptionError(msg)
    if found and not force:
        msg = f"{target} holds an earlier demo. Pass force (--force) to replace it, or give another path."
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
