"""Token batches for Lightning."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from scgalore.data.sampler import BatchRequest, BucketSampler, sorted_batches

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from scgalore.data.cells import TokenCells
    from scgalore.data.split import Split
    from scgalore.data.tokens import TokenBatch
    from scgalore.objectives import Objective

__all__ = ["Share", "TokenDataModule"]


@dataclass(frozen=True)
class Share:
    """What one of several processes gets in a step.

    Attributes
    ----------
    batch
        Its cells.
    n
        How many of them count: all, or none when it got none of its own.
    whole
        Cells of all processes together.
    """

    batch: TokenBatch
    n: int
    whole: int

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Share:
        """Move the cells to a device."""
        return replace(self, batch=self.batch.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Share:
        """Copy the cells to page-locked memory."""
        return replace(self, batch=self.batch.pin_memory())


class _Requests(Dataset["TokenBatch | Share"]):
    """Answers a request for cells with their batch, corrupted as the objective asks."""

    def __init__(self, cells: TokenCells, objective: Objective, seed: int) -> None:
        self.cells, self.objective, self.seed = cells, objective, seed

    def __getitem__(self, request: BatchRequest) -> TokenBatch | Share:
        batch = self.objective.corrupt(self.cells.batch(request), seed=self.seed, draw=request.draw)
        return batch if request.share is None else Share(batch, *request.share)


class TokenDataModule(LightningDataModule):
    """Serve the parts of a split as token batches.

    Parameters
    ----------
    cells
        Cells to train on, with labels if the objective needs them.
    split
        Their parts.
    objective
        Corrupts the batches.
    batch_size
        Most cells in a batch.
    batch_tokens
        Most tokens in a batch, padding included; ``None`` sets no cap.
    seed
        Seed of shuffling and corruption.
    max_length
        Most tokens of a training cell; longer ones are sampled anew every epoch. Validation cells keep theirs.
    num_workers
        Processes that make batches beside the network; 0 makes them in between.
    pin_memory
        Whether batches are made in page-locked memory, from which a CUDA device copies while the host goes on.

    Notes
    -----
    scvi's ``TrainRunner`` reads ``n_train, n_val, train_idx, val_idx, test_idx``. Under several processes each serves its
    share of every batch as a :class:`Share`.
    """

    def __init__(
        self,
        cells: TokenCells,
        split: Split,
        objective: Objective,
        *,
        batch_size: int,
        batch_tokens: int | None = None,
        seed: int = 0,
        max_length: int | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__()
        self.cells, self.batch_size, self.batch_tokens = cells, batch_size, batch_tokens
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self.train_idx, self.val_idx, self.test_idx = split.train, split.validation, split.test
        self.n_train, self.n_val = len(split.train), len(split.validation)
        train_cells = cells if max_length is None else cells.shortened(max_length)
        self.train_requests = _Requests(train_cells, objective, seed)
        self.val_requests = _Requests(cells, objective, seed)
        self.sampler = BucketSampler(
            split.train, train_cells.lengths[split.train], batch_size=batch_size, batch_tokens=batch_tokens, seed=seed
        )
        self._loaders: dict[str, DataLoader[TokenBatch | Share]] = {}

    def setup(self, stage: str) -> None:
        """Learn from the trainer which of several processes this is."""
        if self.trainer is not None:
            self.sampler.rank, self.sampler.size = self.trainer.global_rank, self.trainer.world_size

    def train_dataloader(self) -> DataLoader[TokenBatch | Share]:
        """Shuffled batches of the training cells."""
        if self.trainer is not None:
            # Workers begin with the epoch as soon as they are asked for, before Lightning says which one it is.
            self.sampler.set_epoch(self.trainer.current_epoch)
        return self._loader("train", self.train_requests, self.sampler)

    def val_dataloader(self) -> DataLoader[TokenBatch | Share] | list[DataLoader[TokenBatch | Share]]:
        """Batches of the validation cells, always the same."""
        if self.n_val == 0:
            return []
        batches = sorted_batches(
            self.val_idx,
            self.cells.lengths[self.val_idx],
            batch_size=self.batch_size,
            batch_tokens=self.batch_tokens,
            rank=self.sampler.rank,
            size=self.sampler.size,
        )
        return self._loader("validation", self.val_requests, batches)

    def transfer_batch_to_device(
        self, batch: TokenBatch | Share, device: torch.device, dataloader_idx: int
    ) -> TokenBatch | Share:
        """Copy a batch from page-locked memory while the host goes on."""
        return batch.to(device, non_blocking=device.type == "cuda")

    def _loader(
        self, part: str, answers: _Requests, requests: Iterable[BatchRequest]
    ) -> DataLoader[TokenBatch | Share]:
        # One for the whole run, however often Lightning asks, so that its workers live on.
        if part not in self._loaders:
            self._loaders[part] = DataLoader(
                answers,
                sampler=requests,
                batch_size=None,  # a request names a whole batch
                num_workers=self.num_workers,
                persistent_workers=self.num_workers > 0,
                pin_memory=self.pin_memory,
            )
        return self._loaders[part]
