"""Batches of a source for Lightning, prepared for the objective and divided among processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from scgalore.train.steps import Share, Steps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgalore.data.batches import Batches
    from scgalore.data.tokens import TokenBatch
    from scgalore.objectives import Objective

__all__ = ["CellDataModule"]


@dataclass(frozen=True)
class _Corrupt:
    """Prepares a batch for the objective, in the worker that made it if there are workers."""

    objective: Objective
    seed: int

    def __call__(self, drawn: Any) -> TokenBatch | Share:  # of type Drawn; PyTorch expects lists
        batch = self.objective.corrupt(drawn.batch, seed=self.seed, draw=drawn.draw)
        if drawn.share is None:
            return batch
        n, whole = drawn.share
        return Share(batch, n, weight=n, whole=whole)


class CellDataModule(LightningDataModule):
    """Training and validation batches of any :class:`~scgalore.data.source.CellSource`.

    Parameters
    ----------
    training, validation
        Batches of the source; ``validation`` is optional.
    objective
        Prepares (for example, masks) the batches.
    seed
        Seed of the corruption.
    num_workers
        Number of worker processes; 0 prepares batches in the main process.
    pin_memory
        Whether to use pinned memory, for asynchronous copies to a CUDA device.
    test_idx
        Row numbers of held-out cells, int64; only required by scvi.
    accumulate, accumulate_tokens
        Number of batches or tokens per optimizer step.

    Notes
    -----
    scvi's ``TrainRunner`` reads ``n_train, n_val, train_idx, val_idx, test_idx``.
    """

    def __init__(
        self,
        training: Batches,
        validation: Batches | None,
        objective: Objective,
        *,
        seed: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        test_idx: NDArray[np.int64] | None = None,
        accumulate: int = 1,
        accumulate_tokens: int | None = None,
    ) -> None:
        super().__init__()
        nothing = np.empty(0, dtype=np.int64)
        self.training, self.validation = training, validation
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self.train_idx, self.n_train = training.rows, training.n
        self.val_idx, self.n_val = (nothing, 0) if validation is None else (validation.rows, validation.n)
        self.test_idx = nothing if test_idx is None else test_idx
        self._corrupt = _Corrupt(objective, seed)
        self._batches, self._tokens = accumulate, accumulate_tokens  # of a step
        self._loaders: dict[str, DataLoader[Any]] = {}
        self._begun = 0, 0

    def n_batches(self, epoch: int) -> int:
        """Training batches of an epoch, the same for all processes."""
        return self.training.n_batches(epoch)

    def sample(self) -> TokenBatch:
        """A few training cells, to determine which weights a loss depends on."""
        corrupted = self._corrupt(self.training.first()._replace(share=None))
        assert not isinstance(corrupted, Share)
        return corrupted

    def setup(self, stage: str) -> None:
        """Get the rank of this process from the trainer."""
        if self.trainer is None:
            return
        for batches in (self.training, self.validation):
            if batches is not None:
                batches.set_process(self.trainer.global_rank, self.trainer.world_size)

    def train_dataloader(self) -> DataLoader[Any] | Steps:
        """Batches of the epoch."""
        if self.trainer is not None:
            # Workers begin with the epoch as soon as they are asked for. Of a run that is continued, Lightning names
            # then the last epoch of which a checkpoint was written, even if it had ended.
            epoch = max(self.trainer.current_epoch, self._begun[0])
            self.training.set_epoch(epoch, self._begun[1] if epoch == self._begun[0] else 0)
        loader = self._loader("train", self.training)
        alone = self.trainer is None or self.trainer.world_size == 1
        if alone and self._batches == 1 and self._tokens is None:
            return loader
        objective = self._corrupt.objective
        return Steps(loader, objective, batches=self._batches, tokens=self._tokens, sum_over=self._sum_over)

    def _sum_over(self, numbers: list[float]) -> list[float]:
        """Add up numbers over all processes."""
        if self.trainer is None or self.trainer.world_size == 1:
            return numbers
        here = torch.tensor(numbers, dtype=torch.float64, device=self.trainer.strategy.root_device)
        summed: list[float] = self.trainer.strategy.reduce(here, reduce_op="sum").tolist()
        return summed

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Batches of the validation cells, the same in each epoch."""
        if self.validation is None or self.n_val == 0:
            return []
        return self._loader("validation", self.validation)

    def state_dict(self) -> dict[str, int]:
        """Position of training: the epoch and the number of finished batches."""
        assert self.trainer is not None
        epoch, done = self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.completed
        return {"epoch": epoch, "batch": done} if done < self.n_batches(epoch) else {"epoch": epoch + 1, "batch": 0}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restore the position from a checkpoint."""
        self._begun = state_dict["epoch"], state_dict["batch"]

    def transfer_batch_to_device(
        self, batch: TokenBatch | Share, device: torch.device, dataloader_idx: int
    ) -> TokenBatch | Share:
        """Copy a batch from pinned memory asynchronously."""
        return batch.to(device, non_blocking=device.type == "cuda")

    def _loader(self, name: str, batches: Batches) -> DataLoader[Any]:
        # One for the whole run, however often Lightning asks, so that its workers live on.
        if name not in self._loaders:
            self._loaders[name] = DataLoader(
                batches.dataset,
                sampler=batches.sampler,
                batch_size=None,  # an item is a whole batch
                collate_fn=self._corrupt,
                num_workers=self.num_workers,
                persistent_workers=self.num_workers > 0,
                pin_memory=self.pin_memory,
            )
        return self._loaders[name]
