"""What is kept beside the weights while training: the history and the best epoch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch import Tensor

__all__ = ["BestWeights", "History"]


class History(Callback):
    """One row an epoch; unlike a logger's, its rows survive an interruption.

    Attributes
    ----------
    rows
        ``{"epoch", "lr", "seconds", "train_loss", "validation_loss", ...}`` for each finished epoch.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._started = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Add the row of the epoch."""
        row = {
            "epoch": float(trainer.current_epoch),
            "lr": float(trainer.optimizers[0].param_groups[0]["lr"]),
            "seconds": time.perf_counter() - self._started,
        }
        row.update({name: float(value) for name, value in sorted(trainer.callback_metrics.items())})
        self.rows.append(row)

    def state_dict(self) -> dict[str, Any]:
        """Rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the rows of a checkpoint."""
        self.rows = list(state_dict["rows"])


class BestWeights(Callback):
    """Keep the weights of the epoch with the lowest validation score and put them back at the end.

    Parameters
    ----------
    monitor
        Metric to minimise.
    """

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.best = float("inf")
        self.epoch = -1
        self.weights: dict[str, Tensor] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the epoch with the best so far."""
        score = trainer.callback_metrics.get(self.monitor)
        if score is None or not float(score) < self.best:
            return
        self.best, self.epoch = float(score), trainer.current_epoch
        network = pl_module.module.network
        self.weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in network.state_dict().items()}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Put the best weights back."""
        if self.weights:
            pl_module.module.network.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """Score, epoch and weights."""
        return {"best": self.best, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.best, self.epoch, self.weights = state_dict["best"], state_dict["epoch"], state_dict["weights"]
