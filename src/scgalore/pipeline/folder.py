"""Folder of a run: its files, and when it may be written to."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from scgalore._files import whole_file
from scgalore._folders import no_empty_folders
from scgalore.errors import OptionError
from scgalore.pipeline.config import RunConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["FILES", "RunFolder"]

FILES = (
    "config.json",
    "environment.txt",
    "selected_genes.csv",
    "split.csv",
    "history.csv",
    "metrics.json",
    "results.h5ad",
    "report.md",
)
"""Files in the order in which they are written; the last one marks the run as finished."""

CHECKPOINTS, MODEL, LOGS, BEST = "checkpoints", "model", "logs", "best"


@dataclass(frozen=True)
class RunFolder:
    """Paths of the files of a run.

    Attributes
    ----------
    path
        The folder.
    files
        Its files in the order in which they are written: the first is the configuration, the last one marks the run as
        finished.
    read
        Function that reads the configuration, which has ``to_json``.
    """

    path: Path
    files: tuple[str, ...] = FILES
    read: Callable[[Path], Any] = RunConfig.from_json

    @property
    def checkpoints(self) -> Path:
        """Folder of the training checkpoint."""
        return self.path / CHECKPOINTS

    @property
    def model(self) -> Path:
        """Folder of the fitted model."""
        return self.checkpoints / MODEL

    @property
    def best(self) -> Path:
        """Folder with a subfolder for each model of the best epochs, if these are kept."""
        return self.checkpoints / BEST

    @property
    def figures(self) -> Path:
        """Folder of the figures."""
        return self.path / "figures"

    @property
    def is_begun(self) -> bool:
        """Whether a run was started in this folder."""
        return (self.path / self.files[0]).exists()

    @property
    def is_finished(self) -> bool:
        """Whether the run in this folder is finished."""
        return (self.path / self.files[-1]).exists()

    def config(self) -> Any:
        """Configuration of the run in this folder."""
        return self.read(self.path / self.files[0])

    def check(self, *, force: bool, resume: bool) -> None:
        """Raise an error if the folder must not be written to.

        Parameters
        ----------
        force
            Whether an existing run may be replaced.
        resume
            Whether an existing run is resumed.

        Raises
        ------
        OptionError
            If the folder contains files that were not written by a run, or a run that is neither replaced nor resumed.
        """
        if force and resume:
            msg = "force=True replaces a run, resume=True resumes it. Pass only one of them."
            raise OptionError(msg)
        if not self.path.exists() and not self.path.is_symlink():
            return
        if not self.path.is_dir():
            msg = f"{self.path} is a file; expected a folder. Pass another path."
            raise OptionError(msg)
        if not any(self.path.iterdir()):
            return
        if (foreign := self._foreign()) is not None:
            msg = (
                f"{self.path} contains files that were not written by a run, such as {foreign!r}, and was not changed. Pass the path of a "
                "new folder."
            )
            raise OptionError(msg)
        if not force and not resume:
            state = "a finished run" if self.is_finished else "an unfinished run"
            msg = (
                f"{self.path} already contains {state}. Pass resume=True (--resume) to resume it, force=True (--force) to "
                "replace it, or another path."
            )
            raise OptionError(msg)

    def begin(self, config: Any) -> None:
        """Write the configuration to an empty folder, after removing an existing run."""
        old = None
        with no_empty_folders(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and any(self.path.iterdir()):
                old = self.path.with_name(f".{self.path.name}.{uuid4().hex[:8]}.old")
                self.path.rename(old)
            try:
                with self.writing(self.files[0]) as draft:
                    draft.write_text(config.to_json(), encoding="utf-8")
            except BaseException:
                if old is not None:
                    old.rename(self.path)
                raise
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)

    def reopen(self, config: Any) -> None:
        """Mark the run as unfinished, with this configuration, which may have more epochs."""
        # In this order: a run killed in between is unfinished and can be extended again.
        (self.path / self.files[-1]).unlink(missing_ok=True)
        with self.writing(self.files[0]) as draft:
            draft.write_text(config.to_json(), encoding="utf-8")

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a path to write to; the file is written completely or not at all."""
        with whole_file(self.path / name) as draft:
            yield draft

    def remove_drafts(self) -> None:
        """Remove incomplete files of a killed run."""
        for path in list(self.path.rglob(".*")):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        # Saved after training; after a killed run it is unknown whether later files match it.
        shutil.rmtree(self.model, ignore_errors=True)

    def remove(self) -> None:
        """Remove the run."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _foreign(self) -> str | None:
        """Name of a file that was not written by a run, if any."""
        for path in sorted(self.path.rglob("*")):
            parts = path.relative_to(self.path).parts
            if not self._is_ours(parts, is_dir=path.is_dir() and not path.is_symlink()):
                return "/".join(parts)
        if not self.is_begun:
            return min(path.name for path in self.path.iterdir())
        try:
            self.config()
        except OptionError:
            return self.files[0]
        return None

    def _is_ours(self, parts: tuple[str, ...], *, is_dir: bool) -> bool:
        first, name = parts[0], parts[-1]
        draft = name.startswith(".") and (".draft" in name or name.endswith((".part", ".old")))
        if len(parts) == 1:
            return first in ((CHECKPOINTS, "figures") if is_dir else self.files) or draft
        if first == "figures":
            return len(parts) == 2 and not is_dir and (name.endswith(".png") or draft)
        if first == CHECKPOINTS:
            inside = parts[1] in (MODEL, LOGS, BEST) or (
                parts[1].startswith(f".{MODEL}.") and parts[1].endswith((".draft", ".old"))
            )
            return inside or (len(parts) == 2 and not is_dir and (name == "last.ckpt" or draft))
        return False
