"""Token batches for Lightning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from scgalore.data.sampler import BatchRequest, BucketSampler, sorted_batches
from scgalore.errors import DataError
from scgalore.train.curriculum import Phase

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import torch
    from numpy.typing import NDArray

    from scgalore.data.cells import TokenCells
    from scgalore.data.perturbations import PerturbationCells
    from scgalore.data.split import Split
    from scgalore.data.streaming import TokenStream
    from scgalore.data.tokens import TokenBatch
    from scgalore.objectives import Objective

ALL_GENES = (Phase(0, 1),)
"""Phases without a curriculum."""

__all__ = ["BatchDataModule", "PerturbationDataModule", "Share", "StreamDataModule", "TokenDataModule"]


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

    def __init__(self, cells: TokenCells | PerturbationCells, objective: Objective, seed: int) -> None:
        self.cells, self.objective, self.seed = cells, objective, seed

    def __getitem__(self, request: BatchRequest) -> TokenBatch | Share:
        batch = self.objective.corrupt(self.cells.batch(request), seed=self.seed, draw=request.draw)
        return batch if request.share is None else Share(batch, *request.share)


@dataclass(frozen=True)
class _Stage:
    """Training cells as one phase of the curriculum shows them.

    Attributes
    ----------
    start
        Its first epoch.
    requests
        Answers requests for cells.
    sampler
        Makes them, of the cells that have a gene in this phase.
    """

    start: int
    requests: _Requests
    sampler: BucketSampler


def _stage_of(stages: Sequence[_Stage], epoch: int) -> _Stage:
    return [stage for stage in stages if stage.start <= epoch][-1]


class _StagedRequests(Dataset["TokenBatch | Share"]):
    """Answers a request for training cells as the phase of its epoch, which is its draw, shows them."""

    def __init__(self, stages: Sequence[_Stage]) -> None:
        self.stages = stages

    def __getitem__(self, request: BatchRequest) -> TokenBatch | Share:
        return _stage_of(self.stages, request.draw).requests[request]


class _StagedSampler(Sampler[BatchRequest]):
    """Shuffled batches of the phase that the epoch belongs to."""

    def __init__(self, stages: Sequence[_Stage]) -> None:
        self.stages = stages
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return _stage_of(self.stages, self.epoch).sampler.n_batches(self.epoch)

    def __iter__(self) -> Iterator[BatchRequest]:
        # A generator, since Lightning asks for the iterator of a resumed run before it says which epoch that is in.
        sampler = _stage_of(self.stages, self.epoch).sampler
        sampler.set_epoch(self.epoch)
        yield from sampler


class _Corrupted(IterableDataset["TokenBatch"]):
    """Batches of a stream, corrupted as the objective asks."""

    def __init__(self, stream: TokenStream, objective: Objective, seed: int) -> None:
        super().__init__()
        self.stream, self.objective, self.seed = stream, objective, seed

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[TokenBatch]:
        draw = self.stream.epoch
        for batch in self.stream:
            yield self.objective.corrupt(batch, seed=self.seed, draw=draw)


class BatchDataModule(LightningDataModule, ABC):
    """What training asks of the batches it gets; validation is the same for all.

    Parameters
    ----------
    validation
        Cells to validate on, with labels if the objective needs them.
    val_idx
        Which of them, int64 ``(n,)``.
    objective
        Corrupts the batches.
    batch_size, batch_tokens
        Most cells and most tokens in a batch, padding included; ``None`` sets no cap.
    seed
        Seed of shuffling and corruption.
    num_workers
        Processes that make batches beside the network; 0 makes them in between.
    pin_memory
        Whether batches are made in page-locked memory, from which a CUDA device copies while the host goes on.

    Notes
    -----
    scvi's ``TrainRunner`` reads ``n_train, n_val, train_idx, val_idx, test_idx``.
    """

    n_train: int
    train_idx: NDArray[np.int64]
    test_idx: NDArray[np.int64]

    def __init__(
        self,
        validation: TokenCells | None,
        val_idx: NDArray[np.int64],
        objective: Objective,
        *,
        batch_size: int | None,
        batch_tokens: int | None,
        seed: int,
        num_workers: int,
        pin_memory: bool,
    ) -> None:
        super().__init__()
        self.objective, self.seed = objective, seed
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self.validation, self.val_idx, self.n_val = validation, val_idx, len(val_idx)
        self._rank, self._size = 0, 1
        self._loaders: dict[str, DataLoader[TokenBatch | Share]] = {}

    @abstractmethod
    def n_batches(self, epoch: int) -> int:
        """Batches of an epoch, the same for all processes."""

    @abstractmethod
    def sample(self) -> TokenBatch:
        """Some training cells, to look at what a loss depends on."""

    def setup(self, stage: str) -> None:
        """Learn from the trainer which of several processes this is."""
        if self.trainer is not None:
            self._rank, self._size = self.trainer.global_rank, self.trainer.world_size

    def val_dataloader(self) -> DataLoader[TokenBatch | Share] | list[DataLoader[TokenBatch | Share]]:
        """Batches of the validation cells, always the same."""
        if self.validation is None or self.n_val == 0:
            return []
        batches = sorted_batches(
            self.val_idx,
            self.validation.lengths[self.val_idx],
            batch_size=self.batch_size,
            batch_tokens=self.batch_tokens,
            rank=self._rank,
            size=self._size,
        )
        return self._loader("validation", _Requests(self.validation, self.objective, self.seed), batches)

    def transfer_batch_to_device(
        self, batch: TokenBatch | Share, device: torch.device, dataloader_idx: int
    ) -> TokenBatch | Share:
        """Copy a batch from page-locked memory while the host goes on."""
        return batch.to(device, non_blocking=device.type == "cuda")

    def _loader(
        self, part: str, data: Dataset[Any], requests: Iterable[BatchRequest] | None = None
    ) -> DataLoader[TokenBatch | Share]:
        # One for the whole run, however often Lightning asks, so that its workers live on.
        if part not in self._loaders:
            self._loaders[part] = DataLoader(
                data,
                sampler=requests,
                batch_size=None,  # an item is a whole batch
                num_workers=self.num_workers,
                persistent_workers=self.num_workers > 0,
                pin_memory=self.pin_memory,
            )
        return self._loaders[part]


class SampledDataModule(BatchDataModule):
    """Training cells that are drawn by a :class:`~scgalore.data.sampler.BucketSampler` and asked for batch by batch."""

    stages: tuple[_Stage, ...]
    sampler: _StagedSampler

    def _set_stages(self, cells: TokenCells | PerturbationCells, phases: Sequence[Phase]) -> None:
        """Make the training cells ready for every phase, once it is certain that each of them has cells."""
        self.stages = tuple(self._stage(cells, phase) for phase in phases)
        self.sampler = _StagedSampler(self.stages)

    def _stage(self, cells: TokenCells | PerturbationCells, phase: Phase) -> _Stage:
        rows = self.train_idx
        if phase.n_genes is not None:
            assert cells.ranked is not None
            cells = cells.within(cells.ranked[: phase.n_genes])
            rows = rows[cells.lengths[rows] > 1]  # more than <cls>
            if len(rows) == 0:
                msg = f"No training cell expresses one of the first {phase.n_genes} genes of the curriculum. Begin with more."
                raise DataError(msg)
        sampler = BucketSampler(
            rows, cells.lengths[rows], batch_size=self.batch_size, batch_tokens=self.batch_tokens, seed=self.seed
        )
        return _Stage(phase.start, _Requests(cells, self.objective, self.seed), sampler)

    def n_batches(self, epoch: int) -> int:
        """Batches of an epoch, the same for all processes."""
        return _stage_of(self.stages, epoch).sampler.n_batches(epoch)

    def sample(self) -> TokenBatch:
        """One training cell."""
        first = self.stages[0]
        batch = first.requests[BatchRequest(first.sampler.rows[:1])]
        return batch.batch if isinstance(batch, Share) else batch

    def setup(self, stage: str) -> None:
        """Learn from the trainer which of several processes this is."""
        super().setup(stage)
        for own in self.stages:
            own.sampler.rank, own.sampler.size = self._rank, self._size

    def train_dataloader(self) -> DataLoader[TokenBatch | Share]:
        """Shuffled batches of the training cells."""
        if self.trainer is not None:
            # Workers begin with the epoch as soon as they are asked for, before Lightning says which one it is.
            self.sampler.set_epoch(self.trainer.current_epoch)
        return self._loader("train", _StagedRequests(self.stages), self.sampler)


class TokenDataModule(SampledDataModule):
    """Serve the parts of a split as token batches. Each of several processes gets its share of every batch, a :class:`Share`.

    Parameters
    ----------
    cells
        Cells to train on, with labels if the objective needs them.
    split
        Their parts.
    objective, batch_size, batch_tokens, seed, num_workers, pin_memory
        As for :class:`BatchDataModule`.
    max_length
        Most tokens of a training cell; longer ones are sampled anew every epoch. Validation cells keep theirs.
    phases
        Genes of the training cells by epoch; validation cells keep all of theirs.
    """

    def __init__(
        self,
        cells: TokenCells,
        split: Split,
        objective: Objective,
        *,
        batch_size: int | None,
        batch_tokens: int | None = None,
        seed: int = 0,
        max_length: int | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        phases: Sequence[Phase] = ALL_GENES,
    ) -> None:
        super().__init__(
            cells,
            split.validation,
            objective,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            seed=seed,
            num_workers=num_workers,
            pin_memory=pin_memory,
        )
        self.train_idx, self.test_idx, self.n_train = split.train, split.test, len(split.train)
        self._set_stages(cells if max_length is None else cells.shortened(max_length), phases)


class _ValidationRows(Dataset["TokenBatch"]):
    """One perturbation a batch."""

    def __init__(self, cells: PerturbationCells) -> None:
        self.cells = cells

    def __getitem__(self, request: BatchRequest) -> TokenBatch:
        return self.cells.validation_batch(int(request.rows[0]))


class PerturbationDataModule(SampledDataModule):
    """Serve perturbed cells with control cells, and validation perturbations one by one.

    Parameters
    ----------
    cells
        Cells to train on.
    split
        Their parts; control cells of the training part are partners, and no examples.
    objective, batch_size, batch_tokens, seed, num_workers, pin_memory
        As for :class:`BatchDataModule`.
    phases
        Genes that training shows, by epoch; validation shows all.
    """

    def __init__(
        self,
        cells: PerturbationCells,
        split: Split,
        objective: Objective,
        *,
        batch_size: int | None,
        batch_tokens: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        phases: Sequence[Phase] = ALL_GENES,
    ) -> None:
        rows = np.unique(cells.rows[split.validation])
        super().__init__(
            None,
            rows[rows >= 0],
            objective,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            seed=seed,
            num_workers=num_workers,
            pin_memory=pin_memory,
        )
        self.cells = cells
        self.train_idx = split.train[cells.rows[split.train] >= 0]
        self.test_idx, self.n_train = split.test, len(self.train_idx)
        self._set_stages(cells, phases)

    def val_dataloader(self) -> DataLoader[TokenBatch | Share] | list[DataLoader[TokenBatch | Share]]:
        """Validation perturbations, always the same."""
        if self.n_val == 0:
            return []
        return self._loader(
            "validation", _ValidationRows(self.cells), [BatchRequest(row) for row in self.val_idx[:, None]]
        )


class StreamDataModule(BatchDataModule):
    """Serve a stream as it comes, and validation cells beside it. Each of several processes gets cells of its own.

    Parameters
    ----------
    stream
        Cells to train on; the batches are its own.
    validation
        Cells to validate on; ``None`` does not validate.
    objective, batch_size, seed, num_workers, pin_memory
        As for :class:`BatchDataModule`; the size is that of validation batches.
    """

    def __init__(
        self,
        stream: TokenStream,
        validation: TokenCells | None,
        objective: Objective,
        *,
        batch_size: int,
        seed: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        nothing = np.empty(0, dtype=np.int64)
        super().__init__(
            validation,
            nothing if validation is None else np.arange(validation.n_obs),
            objective,
            batch_size=batch_size,
            batch_tokens=None,
            seed=seed,
            num_workers=num_workers,
            pin_memory=pin_memory,
        )
        self.stream = stream
        self.train_idx, self.test_idx, self.n_train = nothing, nothing, stream.n_obs

    def n_batches(self, epoch: int) -> int:
        """Batches of an epoch, the same for all processes."""
        return len(self.stream)

    def sample(self) -> TokenBatch:
        """The first batch."""
        batches = iter(_Corrupted(self.stream, self.objective, self.seed))
        try:
            return next(batches)
        finally:
            batches.close()  # type: ignore[attr-defined]

    def train_dataloader(self) -> DataLoader[TokenBatch | Share]:
        """Batches of the epoch, in the stream's order."""
        if self.trainer is not None:
            self.stream.set_epoch(self.trainer.current_epoch)
        return self._loader("train", _Corrupted(self.stream, self.objective, self.seed))
