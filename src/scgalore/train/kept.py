"""Models of the best epochs, saved to folders during a run."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.pytorch import LightningModule, Trainer

    from scgalore._typing import PathLike
    from scgalore.train.result import TrainResult

__all__ = ["BEST", "Keeping", "KeptModels"]

BEST = "best"
"""Folder of a run's ``checkpoint_dir`` with a folder for each model that is kept."""


@dataclass(frozen=True)
class Keeping:
    """Options for keeping models of the best epochs.

    Attributes
    ----------
    n
        Number of models: those of the epochs with the lowest validation scores.
    write
        Writes the current model to a folder, with the training result so far.
    """

    n: int
    write: Callable[[Path, TrainResult], None]


class KeptModels(Callback):
    """Write the model of each epoch that is among the best so far, and remove those that no longer are.

    Parameters
    ----------
    folder
        ``checkpoint_dir`` of the run; each model is in ``best/epoch-<number>`` there.
    keeping
        How many, and how.
    monitor
        Metric to minimise.
    result
        Gives what training has left so far.
    """

    def __init__(self, folder: PathLike, keeping: Keeping, monitor: str, result: Callable[[], TrainResult]) -> None:
        self._folder, self._keeping, self._monitor, self._result = Path(folder) / BEST, keeping, monitor, result
        #: Score of each epoch whose model is kept.
        self.scores: dict[int, float] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the epoch with those that are kept; the first process writes."""
        epoch, score = trainer.current_epoch, trainer.callback_metrics.get(self._monitor)
        if score is None:
            return
        scores = {**self.scores, epoch: float(score)}
        best = sorted(scores, key=lambda one: (scores[one], one))[: self._keeping.n]
        self.scores = {one: scores[one] for one in best}
        if not trainer.is_global_zero:
            return
        if epoch in best:
            self._keeping.write(self._folder / f"epoch-{epoch}", self._result())
        # Also what a run that was killed had written.
        for path in self._folder.glob("epoch-*"):
            if path.name not in {f"epoch-{one}" for one in best}:
                shutil.rmtree(path, ignore_errors=True)

    def state_dict(self) -> dict[str, Any]:
        """Scores so far."""
        return {"scores": self.scores}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.scores = dict(state_dict["scores"])
