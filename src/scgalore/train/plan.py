"""scvi-tools' training plan, for any objective and any optimizer of the registry."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

import torch
from scvi.train import TrainingPlan

from scgalore.data.hashing import fold_seed
from scgalore.optim import OPTIMIZERS, build_optimizer
from scgalore.optim.needs import needs_of
from scgalore.optim.sharded import ShardedOptimizer
from scgalore.train.checkpoint import CHECKPOINT_KEY
from scgalore.train.clipping import clip_by_norm_
from scgalore.train.curriculum import rewarmed
from scgalore.train.divergence import refuse_diverged
from scgalore.train.means import Means, of_all_processes
from scgalore.train.steps import Share

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scvi.module.base import LossOutput
    from torch import Tensor

    from scgalore.adapters import Adapter
    from scgalore.data.batches import Phase
    from scgalore.data.tokens import TokenBatch
    from scgalore.nn.adapter import SCGPTModule
    from scgalore.train.config import TrainConfig
    from scgalore.train.datamodule import CellDataModule

__all__ = ["ObjectiveTrainingPlan", "learning_rates"]

MEANS_KEY = "scgalore_means"
"""Where a checkpoint has sums of losses over the cells that each process has seen in the epoch so far."""

COOLDOWN = 0.2
"""Share of all steps over which a constant learning rate falls at the end."""


class ObjectiveTrainingPlan(TrainingPlan):
    """scvi-tools' :class:`~scvi.train.TrainingPlan` for any objective and any optimizer of the registry.

    Parameters
    ----------
    module
        Network and objective.
    config
        Training settings.
    identity
        Identity of the run (data, split, settings), which is stored in checkpoints.
    adapter
        Attached to the network, if any; notified of every step.
    phases
        Phases of the curriculum. At the start of each but the first, the learning rate is warmed up again and
        optimizers with subspaces compute new ones, since gradients come from other genes.

    Notes
    -----
    All randomness of a step depends on ``(config.seed, epoch, batch, process)``, so a run that was interrupted and
    resumed has bitwise the same weights as an uninterrupted run. Losses and metrics are means over the cells of
    all processes, and the gradient is that of the mean loss over the cells of a step.
    """

    def __init__(
        self,
        module: SCGPTModule,
        config: TrainConfig,
        identity: Mapping[str, Any] | None = None,
        *,
        adapter: Adapter | None = None,
        phases: Sequence[Phase] = (),
    ) -> None:
        super().__init__(module)
        self._switches = {phase.start: phase.stop for phase in phases[1:]}
        self.config = config
        self.identity = dict(identity or {})
        self.adapter = adapter
        self._means = {"train": Means(), "validation": Means()}
        self._validated: list[dict[str, Tensor]] = []
        self._last: tuple[TokenBatch, tuple[int, ...]] | None = None  # batch for estimating the curvature

    def initialize_train_metrics(self) -> None:
        """Leave scvi's ELBO out: there is none."""
        self.train_metrics: dict[str, Any] = {}

    def initialize_val_metrics(self) -> None:
        """Leave scvi's ELBO out: there is none."""
        self.val_metrics: dict[str, Any] = {}

    def forward(self, batch: TokenBatch, **_: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], LossOutput]:
        """Pass a batch to the module."""
        return self.module(batch)

    def training_step(self, batch: TokenBatch | Share, batch_idx: int) -> Tensor:
        """One step, with dropout drawn from the seed and the position in the run."""
        position = (self.current_epoch, batch_idx, self.global_rank)
        # torch.manual_seed seeds all devices; where CUDA is not used, it formats the stack of each call, for a later one.
        seed = torch.default_generator.manual_seed if self.device.type == "cpu" else torch.manual_seed
        seed(fold_seed(self.config.seed, *position))
        loss, cells = self._measure(batch, "train", batch_idx)
        self._last = cells, position
        if isinstance(batch, Share):
            # Lightning divides by the number of batches, and DDP averages over processes; batches do not count alike.
            parts = self.trainer.world_size * self.trainer.accumulate_grad_batches
            return loss * (batch.weight * parts / max(batch.whole, 1e-300))
        return loss

    def on_train_batch_start(self, batch: TokenBatch | Share, batch_idx: int) -> None:
        """Decide whether the optimizer steps after this batch."""
        if isinstance(batch, Share):
            # It does where the number of batches so far is a multiple of this, a power of two, by which no digit is
            # lost.
            self.trainer.accumulate_grad_batches = 1 if batch.ends else 1 << (batch_idx + 2).bit_length()

    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: gradients are reset after each step instead of before it."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the means of an epoch when it ends, before callbacks ask for them."""
        if self.trainer.is_last_batch:
            self._log_means("train")

    def on_validation_epoch_start(self) -> None:
        """Begin a new epoch."""
        self._validated = []

    def validation_step(self, batch: TokenBatch | Share, batch_idx: int) -> None:
        """Loss of one validation batch."""
        self._measure(batch, "validation", batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log metrics that the objective computes over the whole epoch."""
        super().on_validation_epoch_end()
        self._log_means("validation")
        own = [{name: value.detach().cpu() for name, value in part.items()} for part in self._validated]
        parts = [part for share in of_all_processes(own) for part in share]  # every process must choose the same epoch
        for name, value in self.module.objective.over_epoch(parts).items():
            self._log(f"validation_{name}", value)

    def _measure(self, batch: TokenBatch | Share, mode: str, batch_idx: int) -> tuple[Tensor, TokenBatch]:
        cells = batch.batch if isinstance(batch, Share) else batch
        _, _, output = self(cells)
        refuse_diverged(output.loss, f"{mode}_loss", self.trainer, batch_idx)
        if isinstance(batch, Share):
            output.n_obs_minibatch = batch.n
        if mode == "validation":
            self._validated.append({**output.extra_metrics, "n": torch.tensor(output.n_obs_minibatch)})
        for name, value in {"loss": output.loss, **output.extra_metrics}.items():
            self._means[mode].add(f"{mode}_{name}", value, output.n_obs_minibatch)
        return output.loss, cells

    def _log_means(self, mode: str) -> None:
        for name, value in self._means[mode].take().items():
            self._log(name, value, prog_bar=name == f"{mode}_loss")

    def _log(self, name: str, value: Tensor, *, prog_bar: bool = False) -> None:
        # The value is that of all processes already; with sync_dist=False Lightning would advise against that.
        self.log(name, value, on_step=False, on_epoch=True, prog_bar=prog_bar, batch_size=1, sync_dist=True)

    def configure_optimizers(self) -> dict[str, Any]:
        """Build the optimizer and its learning-rate schedule, stepped every batch."""
        config = self.config
        optimizer = build_optimizer(
            config.optimizer,
            self.module.network,
            lr=config.peak_lr,
            weight_decay=config.weight_decay,
            **config.optimizer_options,
        )
        if config.shard_optimizer:
            optimizer = ShardedOptimizer(optimizer, OPTIMIZERS[config.optimizer].counter(config.optimizer_options))
        ends = self._steps_by_epoch()
        switches = {ends[start]: ends[stop] - ends[start] for start, stop in self._switches.items()}
        schedule = learning_rates(
            optimizer, config.lr_schedule, n_steps=ends[-1], warmup=config.warmup, switches=switches
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Set the learning rate from the schedule, since that of the checkpoint may be for another number of epochs."""
        super().on_train_start()
        for config in self.trainer.lr_scheduler_configs:
            schedule = config.scheduler
            rates = [
                base * rate(schedule.last_epoch)
                for base, rate in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
            ]
            for group, lr in zip(schedule.optimizer.param_groups, rates, strict=True):
                group["lr"] = lr

    def _steps_by_epoch(self) -> list[int]:
        """Steps before each epoch, and those of the whole run."""
        # Counted epoch by epoch: with a cap on tokens they differ, which Lightning's own estimate does not know.
        data: CellDataModule = self.trainer.datamodule
        assert self.config.max_epochs is not None  # see scgalore.train.budget
        epochs = range(self.config.max_epochs)
        return [0, *accumulate(-(-data.n_batches(epoch) // self.config.accumulate) for epoch in epochs)]

    def on_train_epoch_start(self) -> None:
        """Compute new subspaces of the optimizer at the start of a phase."""
        super().on_train_epoch_start()
        if self.current_epoch in self._switches:
            needs_of(self.trainer.optimizers[0]).refresh()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Estimate the curvature for optimizers that need it, with labels sampled from the model."""
        needs = needs_of(optimizer)
        if not needs.needs_curvature() or self._last is None:
            return
        batch, position = self._last
        generator = torch.Generator(self.device).manual_seed(fold_seed(self.config.seed, "curvature", *position))
        with self.trainer.precision_plugin.train_step_context():
            loss, n_terms = self.module.objective.self_sampled(self.module.network, batch, generator)
        needs.update_curvature(loss, n_terms)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and notify the adapter."""
        super().optimizer_step(*args, **kwargs)
        for optimizer in self.trainer.optimizers:
            optimizer.zero_grad()
        if self.adapter is not None:
            self.adapter.after_step()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm, with bitwise identical results for a sliced and a full gene embedding."""
        grads = [param.grad for group in optimizer.param_groups for param in group["params"] if param.grad is not None]
        if gradient_clip_val is not None and grads:
            clip_by_norm_(grads, gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the identity of the run, and the means so far if it is within an epoch."""
        checkpoint[CHECKPOINT_KEY] = self.identity
        checkpoint[MEANS_KEY] = of_all_processes(self._means["train"].state_dict())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the means."""
        if MEANS_KEY in checkpoint:  # absent in files of earlier versions, which are of the end of an epoch
            self._means["train"].load_state_dict(
                checkpoint[MEANS_KEY][self.global_rank], self.trainer.strategy.root_device
            )


def learning_rates(
    optimizer: torch.optim.Optimizer,
    shape: Literal["cosine", "constant", "cooldown"],
    *,
    n_steps: int,
    warmup: float,
    switches: Mapping[int, int] | None = None,
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then a half cosine down to a hundredth, a constant, or one that falls to a hundredth at the end.

    At the start of a phase, the learning rate is warmed up again to that curve.

    Parameters
    ----------
    optimizer
        Whose learning rates to schedule.
    shape
        As ``lr_schedule`` of :class:`~scgalore.train.TrainConfig`.
    n_steps
        Steps of the whole run.
    warmup
        Share of them that warms up.
    switches
        Steps of each phase of a curriculum after the first, by its first step.
    """
    n_warmup = max(1, round(n_steps * warmup))
    n_cooldown = max(1, round(n_steps * COOLDOWN))
    floor = 0.01

    def factor(step: int) -> float:
        again = rewarmed(step, switches or {}, warmup)
        if step < n_warmup:
            return again * (step + 1) / n_warmup
        if shape == "cosine":
            progress = min(1.0, (step - n_warmup) / max(1, n_steps - n_warmup))
            return again * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
        if shape == "cooldown":
            again *= min(1.0, max(floor, (n_steps - step) / n_cooldown))
        return again

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
