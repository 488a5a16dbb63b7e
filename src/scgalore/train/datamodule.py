"""Token batches for Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from scgalore.data.sampler import BatchRequest, BucketSampler, sorted_batches

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scgalore.data.cells import TokenCells
    from scgalore.data.split import Split
    from scgalore.data.tokens import TokenBatch
    from scgalore.objectives import Objective

__all__ = ["TokenDataModule"]


class _Requests(Dataset["TokenBatch"]):
    """Answers a request for cells with their batch, corrupted as the objective asks."""

    def __init__(self, cells: TokenCells, objective: Objective, seed: int) -> None:
        self.cells, self.objective, self.seed = cells, objective, seed

    def __getitem__(self, request: BatchRequest) -> TokenBatch:
        batch = self.cells.batch(request)
        return self.objective.corrupt(batch, seed=self.seed, draw=request.draw)


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
        Cells in a batch.
    seed
        Seed of shuffling and corruption.
    max_length
        Most tokens of a training cell; longer ones are sampled anew every epoch. Validation cells keep theirs.

    Notes
    -----
    scvi's ``TrainRunner`` reads ``n_train, n_val, train_idx, val_idx, test_idx``.
    """

    def __init__(
        self,
        cells: TokenCells,
        split: Split,
        objective: Objective,
        *,
        batch_size: int,
        seed: int = 0,
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        self.cells, self.batch_size = cells, batch_size
        self.train_idx, self.val_idx, self.test_idx = split.train, split.validation, split.test
        self.n_train, self.n_val = len(split.train), len(split.validation)
        train_cells = cells if max_length is None else cells.shortened(max_length)
        self.train_requests = _Requests(train_cells, objective, seed)
        self.val_requests = _Requests(cells, objective, seed)
        self.sampler = BucketSampler(split.train, train_cells.lengths[split.train], batch_size=batch_size, seed=seed)

    def train_dataloader(self) -> DataLoader[TokenBatch]:
        """Shuffled batches of the training cells."""
        return _loader(self.train_requests, self.sampler)

    def val_dataloader(self) -> DataLoader[TokenBatch] | list[DataLoader[TokenBatch]]:
        """Batches of the validation cells, always the same."""
        if self.n_val == 0:
            return []
        rows = self.val_idx
        batches = sorted_batches(rows, self.cells.lengths[rows], batch_size=self.batch_size)
        return _loader(self.val_requests, batches)


def _loader(answers: _Requests, requests: Iterable[BatchRequest]) -> DataLoader[TokenBatch]:
    # batch_size=None: a request already names a whole batch. No workers: making tokens is far faster than the network.
    return DataLoader(answers, sampler=requests, batch_size=None)
