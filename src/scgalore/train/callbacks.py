"""Callbacks: history, best epoch, early stopping, and the progress bar."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

import pandas as pd
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from torch import distributed

from scgalore import _logging as logg
from scgalore._progress import Progress
from scgalore._words import duration
from scgalore.nn.cpu import kernels, kernels_in_words, using_kernels
from scgalore.optim.layerwise import LayerwiseUpdate
from scgalore.train.divergence import end_run
from scgalore.train.free import memory_now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning.pytorch import LightningModule, Trainer
    from torch import Tensor

    from scgalore.nn import CellNetwork
    from scgalore.nn.adapter import SCGPTModule

__all__ = ["BestWeights", "History", "SameBuffers", "SameKernels", "ShowProgress", "StopEarly", "UpdateInBackward"]


LOSSES = ("train_loss", "validation_loss")

HOPELESS = "validation_hopeless"
"""Metric of an objective that is nonzero if an epoch is significantly worse than the initial weights."""


class History(Callback):
    """Training history with one row per epoch, which is kept when a run is interrupted and resumed.

    Parameters
    ----------
    n_processes
        Number of processes; all of them get the rows of the first.
    n_genes
        With a curriculum, number of training genes in each epoch, which is added to the rows.
    throughput
        Whether rows also have ``cells_per_second`` and ``tokens_per_second`` over all processes and ``waited``, the
        fraction of the time (without validation) the first process waited for data; each row is then logged.

    Attributes
    ----------
    rows
        ``{"epoch", "lr", "seconds", "train_loss", "validation_loss", ...}`` for each finished epoch.
    """

    def __init__(self, n_processes: int = 1, *, n_genes: Sequence[int] = (), throughput: bool = False) -> None:
        self._n_processes, self._n_genes = n_processes, n_genes
        self._pace = _Pace() if throughput else None
        self.rows: list[dict[str, float]] = []
        self._started: float | None = None
        self._spent = 0.0  # seconds before the run was interrupted within an epoch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, also for a run resumed within an epoch."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.perf_counter()
        if self._pace is not None:
            self._pace = _Pace()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Measure the time spent waiting for data."""
        if self._pace is not None:
            self._pace.waited += time.perf_counter() - self._pace.last

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the cells and tokens of the batch."""
        if self._pace is not None:
            self._pace.count(batch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the row of the epoch; raise an error if a loss is not finite."""
        row = {
            "epoch": float(trainer.current_epoch),
            "lr": float(trainer.optimizers[0].param_groups[0]["lr"]),
            "seconds": self._seconds(),
        }
        self._started, self._spent = None, 0.0
        if self._n_genes:
            row["n_genes"] = float(self._n_genes[trainer.current_epoch])
        if self._pace is not None:
            row.update(self._pace.row(self._n_processes))
        row.update({name: float(value) for name, value in sorted(trainer.callback_metrics.items())})
        if self._n_processes > 1:
            # Metrics are already averaged over processes; seconds are measured by each process.
            row = trainer.strategy.broadcast(row)
        self.rows.append(row)
        # Raised before a checkpoint of such weights replaces the last good one.
        if bad := [name for name, value in row.items() if name.endswith("_loss") and not math.isfinite(value)]:
            end_run(f"{bad[0]} became {row[bad[0]]}", f"epoch {trainer.current_epoch}")
        if trainer.is_global_zero:
            self._tell(trainer)

    def table(self) -> pd.DataFrame:
        """The rows as a table, indexed by epoch."""
        return pd.DataFrame(self.rows).astype({"epoch": int}).set_index("epoch")

    def _tell(self, trainer: Trainer) -> None:
        """Log the throughput."""
        if self._pace is not None:
            row, n = self.rows[-1], trainer.max_epochs or 0
            left = (n - len(self.rows)) * sum(each["seconds"] for each in self.rows) / len(self.rows)
            logg.info(f"    {self._line(trainer, row, n)}; {duration(left)} left")

    def _line(self, trainer: Trainer, row: dict[str, float], n: int) -> str:
        losses = ", ".join(f"{name} {row[name]:.4g}" for name in LOSSES if name in row)
        return (
            f"epoch {row['epoch']:.0f} ({len(self.rows)} of {n}), step {trainer.global_step:,}: {losses}; {row['cells_per_second']:,.0f} cells/s, "
            f"{row['tokens_per_second']:,.0f} tokens/s, {row['waited']:.0%} of the time waiting for data, "
            f"{memory_now(trainer.strategy.root_device) / 1e9:.1f} GB"
        )

    def _seconds(self) -> float:
        """Seconds of the epoch so far."""
        return self._spent + (0.0 if self._started is None else time.perf_counter() - self._started)

    def state_dict(self) -> dict[str, Any]:
        """Rows so far, and the seconds of the current epoch."""
        return {"rows": self.rows, "seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the rows from a checkpoint."""
        self.rows, self._spent = list(state_dict["rows"]), state_dict.get("seconds", 0.0)


class _Pace:
    """Cells, tokens and seconds of an epoch so far."""

    def __init__(self) -> None:
        self.started = self.last = time.perf_counter()
        self.cells, self.tokens, self.waited = 0, 0, 0.0

    def count(self, batch: Any) -> None:
        """Add a training batch."""
        cells = getattr(batch, "batch", batch)  # a Share with several processes
        self.cells += len(cells)
        self.tokens += cells.n_tokens
        self.last = time.perf_counter()

    def row(self, n_processes: int) -> dict[str, float]:
        """Columns of the history."""
        seconds = max(self.last - self.started, 1e-9)
        return {
            "cells_per_second": n_processes * self.cells / seconds,
            "tokens_per_second": n_processes * self.tokens / seconds,
            "waited": self.waited / seconds,
        }


class BestWeights(Callback):
    """Keep the weights of the epoch with the lowest validation score and restore them at the end.

    Parameters
    ----------
    monitor
        Metric to minimise.
    start
        Score of the initial weights; if finite, these are kept until an epoch is better.
    """

    def __init__(self, monitor: str, *, start: float = math.inf) -> None:
        self.monitor = monitor
        self.best = start
        self.epoch = -1
        self.weights: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the initial weights, unless weights were restored from a checkpoint."""
        if math.isfinite(self.best) and not self.weights:
            self._keep(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the epoch with the best so far."""
        score = trainer.callback_metrics.get(self.monitor)
        if score is None or not float(score) < self.best:
            return
        self.best, self.epoch = float(score), trainer.current_epoch
        self._keep(pl_module)

    def _keep(self, pl_module: LightningModule) -> None:
        tensors = _network(pl_module).state_dict()
        self.weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the best weights."""
        if self.weights:
            _network(pl_module).load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """Score, epoch and weights."""
        return {"best": self.best, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.best, self.epoch, self.weights = state_dict["best"], state_dict["epoch"], state_dict["weights"]


class StopEarly(EarlyStopping):
    """Lightning's early stopping, which also works for resumed runs.

    A checkpoint contains the number of epochs without improvement, but not that training has stopped because of it: a
    run that is resumed after its end would train one epoch more than the uninterrupted run.

    Parameters
    ----------
    monitor
        Metric to minimise.
    patience
        Number of epochs without improvement before training stops.
    start
        Score of the initial weights, if they count.
    first_epoch
        First epoch that counts.
    """

    def __init__(self, monitor: str, *, patience: int, start: float = math.inf, first_epoch: int = 0) -> None:
        super().__init__(monitor, patience=patience)
        self.first_epoch = first_epoch
        if math.isfinite(start):
            self.best_score = torch.tensor(start)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop immediately if the run of the checkpoint had stopped."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True
            if trainer.is_global_zero:
                logg.info(
                    f"    this run has stopped early: {self.wait_count} epochs without a better {self.monitor}. Increase "
                    "patience= to continue it."
                )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count from a checkpoint, with the current patience."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the metric, and log if it stops training; an epoch that is significantly worse counts twice."""
        if trainer.current_epoch < self.first_epoch:
            return
        if self.wait_count < self.patience and float(trainer.callback_metrics.get(HOPELESS, 0.0)):
            self.wait_count += 1
        super().on_train_epoch_end(trainer, pl_module)
        if self.wait_count >= self.patience and trainer.is_global_zero:
            logg.info(
                f"    stopped early after epoch {trainer.current_epoch}: no better {self.monitor} (patience={self.patience})"
            )


class SameBuffers(Callback):
    """Copy the buffers of the first process to all others, since the statistics of batch norms depend on the cells of a process."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send the buffers before anything is saved."""
        for buffer in _network(pl_module).buffers():
            if trainer.world_size > 1:
                distributed.broadcast(buffer, src=0)


class SameKernels(Callback):
    """Use the CPU kernels with which the run was started, in all processes.

    Attributes
    ----------
    in_words
        Description by :func:`scgalore.nn.cpu.kernels_in_words`, if trained on a CPU.
    """

    def __init__(self) -> None:
        self.in_words: str | None = None
        self._begun: dict[str, Any] | None = None
        self._run = ExitStack()

    def state_dict(self) -> dict[str, Any]:
        """The chosen kernels."""
        return kernels()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the kernels from a checkpoint."""
        self._begun = dict(state_dict)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Use these kernels, or those of the first process."""
        if trainer.strategy.root_device.type != "cpu":
            return
        now, chosen = kernels(), self._begun
        if chosen is not None and chosen["mode"] != now["mode"]:
            logg.info(
                f"    using cpu_kernels={chosen['mode']!r}, with which the run was started, instead of {now['mode']!r}"
            )
        if trainer.world_size > 1:
            chosen = trainer.strategy.broadcast(chosen or kernels(complete=True))
        self._run.enter_context(using_kernels(chosen))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the kernels that were used."""
        if trainer.strategy.root_device.type == "cpu":
            half = str(trainer.precision).startswith("bf16")
            self.in_words = kernels_in_words(torch.bfloat16 if half else torch.float32)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the setting."""
        self._run.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the setting when a run fails."""
        self._run.close()


class UpdateInBackward(Callback):
    """Update each weight in the backward pass, as soon as its gradient is computed."""

    def __init__(self) -> None:
        self._update: LayerwiseUpdate | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        self._update = LayerwiseUpdate(_network(pl_module), trainer.optimizers[0])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End."""
        if self._update is not None:
            self._update.remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the hooks when a run fails, since the network is used afterwards."""
        self.on_train_end(trainer, pl_module)


class ShowProgress(Callback):
    """Progress bar over the batches of the run, or the rest of a resumed run, with the losses of the last epoch."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the remaining batches; with a curriculum, epochs can have different numbers of batches."""
        if self._progress is None:
            self._progress = Progress("training", unit="batches")
        left, per_epoch = (trainer.max_epochs or 0) - trainer.current_epoch, trainer.num_training_batches
        if math.isfinite(per_epoch):
            self._progress.total = self._progress.n + left * int(per_epoch)
        losses = (
            f"{name} {float(trainer.callback_metrics[name]):.4g}" for name in LOSSES if name in trainer.callback_metrics
        )
        self._progress.note = ", ".join([f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}", *losses])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch."""
        if self._progress is not None:
            self._progress.update(1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        if self._progress is not None:
            self._progress.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar when a run fails."""
        self.on_train_end(trainer, pl_module)


def _network(plan: LightningModule) -> CellNetwork:
    return cast("SCGPTModule", plan.module).network
