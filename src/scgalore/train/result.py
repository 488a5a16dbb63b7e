"""Result of a training run in addition to the weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from scgalore.data.split import Split

__all__ = ["TrainResult"]


@dataclass(frozen=True)
class TrainResult:
    """Result of a training run in addition to the weights; ``None`` for attributes that files of earlier versions lack.

    Attributes
    ----------
    history
        One row per epoch: ``lr``, ``seconds``, ``train_loss`` and, with validation cells, ``validation_loss`` and more.
    best_epoch
        Epoch whose weights were kept; the last one without validation cells, -1 if no epoch was better than the initial
        weights.
    optimizer_bytes
        Size of the optimizer state at the end in bytes; with several processes, the maximum over processes.
    steps
        Number of optimizer steps, including those before an interruption.
    split
        Training, validation and test cells; ``None`` for a source without numbered cells.
    batch_size, accumulate
        Number of cells per batch and of batches per step.
    max_epochs, patience
        Maximum number of epochs, and number of epochs without improvement before stopping.
    converged
        Whether the validation score had stopped improving; ``None`` if unknown, for example without validation cells.
    cpu_kernels
        Kernels used on a CPU; see ``sg.settings.cpu_kernels``.
    adapter
        Weights of the adapter, if it can be saved alone.
    memory
        Data that the task stores in addition to the weights.
    record
        Settings, data and scores of the run for the model card, as JSON has them; ``None`` unless
        :func:`scgalore.tl.finetune` made it.
    """

    history: pd.DataFrame = field(repr=False)
    best_epoch: int | None = None
    optimizer_bytes: int | None = None
    steps: int | None = None
    split: Split | None = field(default=None, repr=False)
    batch_size: int | None = None
    accumulate: int | None = None
    max_epochs: int | None = None
    patience: int | None = None
    converged: bool | None = None
    cpu_kernels: str | None = None
    adapter: Any = field(default=None, repr=False)
    memory: Any = None
    record: Mapping[str, Any] | None = field(default=None, repr=False)

    def summary(self) -> dict[str, int | str | None]:
        """Best epoch, bytes of optimizer state, steps, cells in a batch and batches in a step; and, where known, the budget, whether training converged and the kernels."""
        names = ("best_epoch", "optimizer_bytes", "steps", "batch_size", "accumulate")
        known = {name: getattr(self, name) for name in ("max_epochs", "patience", "converged", "cpu_kernels")}
        return {name: getattr(self, name) for name in names} | {n: x for n, x in known.items() if x is not None}
