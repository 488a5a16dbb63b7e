"""Checkpoints from which an interrupted run can be resumed."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from scgalore import _logging as logg
from scgalore._folders import refuse_unwritable, writing
from scgalore._json import OBJECT, check_fields
from scgalore._options import INDEX, Kind
from scgalore._words import seconds_of
from scgalore.errors import OptionError, WeightsError
from scgalore.train.differences import differences_of_runs
from scgalore.train.divergence import refuse_unsound
from scgalore.train.extension import extended
from scgalore.weights.checkpoint import check_archive
from scgalore.weights.finite import refuse_not_finite, tensors_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning.pytorch import LightningModule, Trainer

    from scgalore._typing import PathLike

__all__ = [
    "CHECKPOINT_KEY",
    "Checkpoints",
    "WholeFiles",
    "checkpoint_to_resume",
    "last_checkpoint",
    "progress",
    "read_checkpoint",
    "saved_run",
]

CHECKPOINT_KEY = "scgalore_run"
"""Key of the identity of the run in a checkpoint."""

STEM = "last"

ELSEWHERE = "another folder (checkpoint_dir=, or --out of a command)"

LIST = Kind("it must be a list", lambda value: isinstance(value, list))

STATE = {
    **dict.fromkeys(("state_dict", "callbacks", "loops"), OBJECT),
    **dict.fromkeys(("optimizer_states", "lr_schedulers"), LIST),
    **dict.fromkeys(("epoch", "global_step"), INDEX),
}
"""Required contents of a checkpoint."""

POSITION = {"epoch": INDEX, "batch": INDEX}
"""Position in the epoch; missing in checkpoints of earlier versions, which were written at the end of an epoch."""


class WholeFiles(TorchCheckpointIO):
    """Write checkpoints atomically, to a file in the same folder that is then renamed; read tensors and numbers only.

    Lightning moves them from the system's temporary folder. On another file system, this is a copy, and a run killed
    meanwhile loses both the new and the previous checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: PathLike, storage_options: Any | None = None) -> None:
        """Replace the file at ``path`` completely or not at all."""
        path = Path(path)
        unfinished = path.with_name(f".{path.name}.part")
        try:
            with writing(path, RuntimeError):  # the only error torch raises for a full disk
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.save(checkpoint, unfinished)
                unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    def load_checkpoint(
        self,
        path: PathLike,
        map_location: Any | None = "cpu",
        weights_only: bool | None = None,  # noqa: FBT001
    ) -> dict[str, Any]:
        """Read a checkpoint without running any code in it."""
        return read_checkpoint(path, map_location=map_location)


def last_checkpoint(folder: PathLike) -> Path:
    """Path of the last checkpoint of a run in ``folder``."""
    return Path(folder) / f"{STEM}.ckpt"


class Checkpoints(Checkpoint):
    """Write :func:`last_checkpoint` after each epoch, and optionally within epochs.

    Parameters
    ----------
    folder
        Folder to write to.
    every
        Interval as a number of optimizer steps or a time such as ``"30 min"``; ``None`` for the ends of epochs only.
    """

    def __init__(self, folder: PathLike, every: int | str | None = None) -> None:
        self._path = last_checkpoint(folder)
        self._steps = every if isinstance(every, int) else math.inf
        self._seconds = (seconds_of(every) if isinstance(every, str) else None) or math.inf
        self._last = 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting."""
        self._note(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Write a checkpoint between two steps, when Lightning's counters are consistent; not before the last step of an epoch."""
        # This is still the value of the previous batch: 1 if it ended a step, otherwise more than the number of
        # batches.
        inside_step = batch_idx % trainer.accumulate_grad_batches
        if not inside_step and not trainer.is_last_batch and self._is_due(trainer):
            refuse_unsound(pl_module, trainer)
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a checkpoint after all other callbacks."""
        self._save(trainer)

    def _is_due(self, trainer: Trainer) -> bool:
        step, at = self._last
        if trainer.global_step == step or math.isinf(self._seconds):
            return trainer.global_step - step >= self._steps
        late = time.monotonic() - at >= self._seconds
        return bool(trainer.strategy.broadcast(late))  # measured by the first process

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self._path, weights_only=False)
        self._note(trainer)

    def _note(self, trainer: Trainer) -> None:
        self._last = trainer.global_step, time.monotonic()


def read_checkpoint(path: PathLike, *, map_location: Any = "cpu", mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint without running any code in it.

    Raises
    ------
    WeightsError
        If the file is damaged or was not written by a run.
    """
    check_archive(Path(path))
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except Exception as error:  # damaged bytes can raise any exception
        msg = f"{path} is damaged or not a checkpoint ({type(error).__name__}). Delete it, or use {ELSEWHERE}."
        raise WeightsError(msg) from error
    if not isinstance(checkpoint, dict) or CHECKPOINT_KEY not in checkpoint:
        msg = f"{path} is not a checkpoint of scgalore. Use {ELSEWHERE}."
        raise WeightsError(msg)
    check_fields(checkpoint, {CHECKPOINT_KEY: OBJECT}, where=path)
    return checkpoint


def saved_run(folder: PathLike | None, *, resume: bool) -> dict[str, Any] | None:
    """Identity of the run to resume; ``None`` if there is none.

    Parameters
    ----------
    folder, resume
        As for :func:`checkpoint_to_resume`.
    """
    if not resume or folder is None or not last_checkpoint(folder).is_file():
        return None
    return read_checkpoint(last_checkpoint(folder), mmap=True)[CHECKPOINT_KEY]


def check_state(path: PathLike, checkpoint: Mapping[str, Any]) -> None:
    """Raise an error if the weights or the optimizer state of a checkpoint are missing or not finite.

    Raises
    ------
    WeightsError
        With the names of the tensors.
    """
    check_fields(checkpoint, STATE, where=path)
    check_fields(checkpoint.get("CellDataModule", {}), POSITION, where=f"{path}: CellDataModule", missing=POSITION)
    best = {name: state.get("weights") for name, state in checkpoint["callbacks"].items() if OBJECT.fits(state)}
    state = {"weights": checkpoint["state_dict"], "optimizer": checkpoint["optimizer_states"], "best": best}
    refuse_not_finite(dict(tensors_in(state)), where=path)


def checkpoint_to_resume(folder: PathLike | None, *, resume: bool, identity: Mapping[str, Any]) -> Path | None:
    """Find the checkpoint to resume from, if any.

    Parameters
    ----------
    folder
        ``checkpoint_dir`` of the run.
    resume
        Whether to resume.
    identity
        Identity of this run: hashes and settings that must match.

    Returns
    -------
    Path of the checkpoint, or ``None`` to start from the beginning. Nothing is created. The run may have been started
    with fewer epochs or less patience; see ``scgalore.train.extension``.

    Raises
    ------
    OptionError
        If a checkpoint exists and ``resume`` is off, or if it belongs to another run.
    DiskError
        If a checkpoint could not be written there.
    WeightsError
        If the checkpoint is damaged, or its weights or optimizer state are not finite.
    """
    if folder is None:
        if resume:
            msg = "resume=True requires checkpoint_dir, the folder of the interrupted run."
            raise OptionError(msg)
        return None
    if Path(folder).is_file():
        msg = f"checkpoint_dir={str(folder)!r} is a file; expected a folder."
        raise OptionError(msg)
    refuse_unwritable(Path(folder), "checkpoint_dir")
    path = last_checkpoint(folder)
    if not path.exists():
        if resume:
            logg.info(f"    no checkpoint in {folder} yet: starting from the beginning")
        return None
    if not resume:
        msg = f"{path} exists. Pass resume=True to resume that run, or another checkpoint_dir to start a new one."
        raise OptionError(msg)
    checkpoint = read_checkpoint(path, mmap=True)
    begun = checkpoint[CHECKPOINT_KEY]
    saved = extended(begun, identity)
    _refuse_other_run(path, saved, identity)
    check_state(path, checkpoint)
    logg.info(f"    resuming {path} at {progress(checkpoint)}")
    if saved.get("max_epochs") != begun.get("max_epochs"):
        _report_extension(path, checkpoint, begun, identity)
    return path


def progress(checkpoint: Mapping[str, Any]) -> str:
    """Describe the progress of a run.

    Parameters
    ----------
    checkpoint
        From :func:`read_checkpoint`, checked by :func:`check_state`.
    """
    run, done = checkpoint[CHECKPOINT_KEY], _epochs_done(checkpoint)
    n, each = run.get("max_epochs"), run.get("steps_per_epoch")
    # The total is known only without accumulate_tokens.
    steps = "" if n is None or each is None or run.get("accumulate_tokens") else f" of {n * each:,}"
    epochs = "" if n is None else f", after {'all ' if done >= n else f'{done} of '}{n} epochs"
    return f"step {checkpoint['global_step']:,}{steps}{epochs}"


def _epochs_done(checkpoint: Mapping[str, Any]) -> int:
    # Earlier versions wrote checkpoints only at the end of an epoch.
    epoch: int = checkpoint.get("CellDataModule", {}).get("epoch", checkpoint["epoch"] + 1)
    return epoch


def _report_extension(
    path: Path, checkpoint: Mapping[str, Any], begun: Mapping[str, Any], identity: Mapping[str, Any]
) -> None:
    n = identity["max_epochs"]
    rate = (
        "is unchanged"
        if identity.get("lr_schedule") == "constant"
        else f"follows the schedule of {n} epochs from here on"
    )
    phases = (
        "" if identity.get("curriculum") is None else "; the last phase of the curriculum gets the additional epochs"
    )
    logg.info(
        f"    extending the run from {begun['max_epochs']} to {n} epochs, {_epochs_done(checkpoint)} of which are in {path}: the learning "
        f"rate {rate}{phases}"
    )


def _refuse_other_run(path: Path, saved: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    changed = differences_of_runs(saved, identity)
    if changed:
        more = f"; and {len(changed) - 4} more differences" if len(changed) > 4 else ""
        msg = f"{path} belongs to another run: {'; '.join(changed[:4])}{more}. To start a new run, use {ELSEWHERE}."
        raise OptionError(msg)
