"""What a training run leaves in addition to the weights."""

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
    """What a training run leaves in addition to the weights; ``None`` where a file of an earlier version does not tell.

    Attributes
    ----------
    history
        One row per epoch: ``lr``, ``seconds``, ``train_loss`` and, with validation cells, ``validation_loss`` and more.
    best_epoch
        Epoch whose weights were kept; the last one when there are no validation cells, -1 where no epoch did better than
        the weights training started from.
    optimizer_bytes
        Bytes of optimizer state at the end, counted from its storages; with several processes, of the one that keeps most.
    steps
        Steps that the optimizer took, those before an interruption included.
    split
        Training, validation and test cells; ``None`` for a source without numbered cells.
    batch_size, accumulate
        Cells in a batch and batches in a step, as they were chosen.
    max_epochs, patience
        Epochs that it was to take at most, and that may pass without a better validation score, as they were chosen.
    converged
        Whether the validation score had stopped improving; ``None`` where nothing tells, as without validation cells.
    cpu_kernels
        On a CPU, whose kernels computed; see ``sg.settings.cpu_kernels``.
    adapter
        What an adapter has learnt, if it can be saved alone.
    memory
        What the task keeps in addition to the weights.
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
