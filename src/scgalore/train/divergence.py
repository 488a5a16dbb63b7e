"""Detects losses and weights that are not finite and stops the run before anything is written."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NoReturn

from lightning.pytorch import Callback

from scgalore.errors import DataError, WeightsError
from scgalore.weights.finite import refuse_not_finite

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch import Tensor

__all__ = ["SoundWeights", "end_run", "refuse_diverged", "refuse_unsound"]


def end_run(what: str, when: str) -> NoReturn:
    """Raise :class:`~scgalore.errors.DataError` for a run that has diverged.

    Parameters
    ----------
    what
        Description, such as ``"train_loss became nan"``.
    when
        Epoch and batch.
    """
    msg = (
        f"{what} in {when}, so training was stopped. Use a lower lr=, precision='32-true' or a smaller clip_norm=. "
        "The model has its weights from before training, and checkpoints are not affected."
    )
    raise DataError(msg)


def refuse_diverged(loss: Tensor, name: str, trainer: Trainer, batch: int) -> None:
    """Raise :class:`~scgalore.errors.DataError` if the loss of a batch is not finite.

    With several processes, this is only checked at the end of an epoch, since all of them must stop together.
    """
    if trainer.world_size == 1 and not math.isfinite(value := float(loss.detach())):
        end_run(f"{name} became {value}", f"epoch {trainer.current_epoch}, batch {batch + 1}")


class SoundWeights(Callback):
    """Check that weights are finite at the end of an epoch, since no loss is computed after its last step."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check all weights before they are kept as the best weights or in a checkpoint."""
        refuse_unsound(pl_module, trainer)


def refuse_unsound(module: LightningModule, trainer: Trainer) -> None:
    """Raise :class:`~scgalore.errors.DataError` if a weight is not finite."""
    try:
        refuse_not_finite(dict(module.state_dict()), where="The network")
    except WeightsError as error:
        end_run(str(error).partition(". The run that wrote")[0], f"epoch {trainer.current_epoch}")
