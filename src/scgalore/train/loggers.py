"""Lightning loggers, by name or as objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from scgalore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.pytorch import LightningModule, Trainer

    from scgalore._typing import PathLike

__all__ = ["LogSteps", "Loggers", "loggers_of"]

Loggers: TypeAlias = "str | Logger | Sequence[str | Logger] | None"

NAMED: dict[str, Callable[..., Logger]] = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}


def loggers_of(logger: Loggers, folder: PathLike | None) -> list[Logger]:
    """Make the loggers of a run.

    Parameters
    ----------
    logger
        ``"csv"``, ``"tensorboard"``, a Lightning logger such as ``WandbLogger(...)``, or a list of these.
    folder
        ``checkpoint_dir`` of the run; loggers given by name write to ``logs`` in it.

    Raises
    ------
    OptionError
        If ``logger`` is none of these, or a logger is given by name without a folder.
    """
    listed = [] if logger is None else [logger] if isinstance(logger, str | Logger) else logger
    if not isinstance(listed, Sequence) or not all(isinstance(one, Logger) or one in NAMED for one in listed):
        msg = f"logger={logger!r}: expected {', '.join(map(repr, NAMED))}, a logger of lightning.pytorch.loggers, or a list of these."
        raise OptionError(msg)
    if folder is None and any(isinstance(one, str) for one in listed):
        msg = f"logger={logger!r} requires checkpoint_dir=, the folder to write to. Alternatively, pass a logger object with its own folder."
        raise OptionError(msg)
    return [
        # Each time that a run is continued gets a version of its own: the logger of CSV files would replace what is
        # there.
        one if isinstance(one, Logger) else NAMED[one](save_dir=Path(folder or "."), name=f"logs/{one}")
        for one in listed
    ]


class LogSteps(Callback):
    """Log the loss and the learning rate of the first and every tenth step; means of epochs are logged by Lightning."""

    def __init__(self) -> None:
        self._last = 0  # the step that ended last
        self._loss: Any = 0.0  # what the batches since then add to the loss of theirs

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the step."""
        step, self._loss = trainer.global_step, self._loss + outputs["loss"]
        if step == self._last:
            return
        if step == 1 or step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            row = {"step_loss": float(self._loss), "lr": float(trainer.optimizers[0].param_groups[0]["lr"])}
            for logger in trainer.loggers:
                logger.log_metrics(row, step=step)
        self._last, self._loss = step, 0.0
