"""Batches of one split, as PyTorch data sets and samplers: shuffled in each epoch, or a fixed list."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from torch.utils.data import Dataset, Sampler

from scgalore.data.sampler import BatchRequest, BucketSampler
from scgalore.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from scgalore.data.tokens import TokenBatch

__all__ = ["BatchPlan", "Batches", "Drawn", "ListedBatches", "Phase", "SampledBatches", "largest_batch"]


WHOLE_PASSES = "an epoch of an AnnData is a pass over its cells. Omit it, or create a stream (sg.data.stream)."
"""Reason why sources in memory do not support epochs of a number of steps."""


@dataclass(frozen=True)
class Phase:
    """Epochs of a curriculum with the same genes.

    Attributes
    ----------
    start, stop
        First epoch, and the one after the last.
    n_genes
        Number of best-ranked genes that may be tokens; ``None`` uses all, ranked or not.
    """

    start: int
    stop: int
    n_genes: int | None = None


@dataclass(frozen=True)
class BatchPlan:
    """How a run divides cells into batches.

    Attributes
    ----------
    batch_size, batch_tokens
        Maximum numbers of cells and tokens per batch, including padding; ``None`` sets no limit.
    max_length
        Maximum number of tokens per training cell; genes of longer cells are sampled again in each epoch. Validation
        cells are not shortened.
    phases
        Genes of the training cells by epoch; validation cells keep all genes.
    seed
        Seed for shuffling.
    n_batches
        Number of batches per epoch, for sources with long passes; ``None`` uses all cells in each epoch.
    """

    batch_size: int | None
    batch_tokens: int | None = None
    max_length: int | None = None
    phases: tuple[Phase, ...] = (Phase(0, 1),)
    seed: int = 0
    n_batches: int | None = None


class Drawn(NamedTuple):
    """A batch before preparation by the objective.

    Attributes
    ----------
    batch
        Cells of the batch.
    draw
        Index of the random draws of cells: the epoch in training, 0 in validation.
    share
        As in :class:`~scgalore.data.sampler.BatchRequest`.
    """

    batch: TokenBatch
    draw: int = 0
    share: tuple[int, int] | None = None


class Batches(ABC):
    """Batches of one split, for ``DataLoader(dataset, sampler=sampler, batch_size=None)``.

    Attributes
    ----------
    rows
        Row numbers of the cells, int64; empty if the source does not number them.
    n
        Number of cells (or perturbations) per epoch.
    dataset
        Data set that returns :class:`Drawn`.
    reload
        Whether a trainer has to recreate the loader in each epoch, since epochs differ in their number of batches or
        the source has to receive the epoch before iteration.
    """

    rows: NDArray[np.int64]
    n: int
    dataset: Dataset[Drawn]
    reload: bool = False

    @property
    @abstractmethod
    def sampler(self) -> Iterable[BatchRequest] | None:
        """Sampler of requests; ``None`` if the data set is iterable."""

    @abstractmethod
    def n_batches(self, epoch: int) -> int:
        """Number of batches per epoch, identical for all processes."""

    @abstractmethod
    def first(self) -> Drawn:
        """Some cells, for tracing a loss."""

    def set_epoch(self, epoch: int, start: int = 0) -> None:  # noqa: B027 (not needed for fixed batches)
        """Set the epoch of the next iteration and its first batch; ignored by fixed batches."""

    def set_process(self, rank: int, size: int) -> None:  # noqa: B027 (as above)
        """Set the rank of this process among several; ignored if processes have their own cells."""


class _Answers(Dataset[Drawn]):
    """Data set that returns a batch for a request."""

    def __init__(self, make: Callable[[BatchRequest], TokenBatch]) -> None:
        self.make = make

    def __getitem__(self, request: BatchRequest) -> Drawn:
        return Drawn(self.make(request), request.draw, request.share)


class RankedCells(Protocol):
    """Cells that can be restricted to the best-ranked genes."""

    @property
    def ranked(self) -> NDArray[np.int64] | None:
        """Token ids from best to worst."""
        ...

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each cell, ``(n_obs,)``."""
        ...

    def within(self, genes: NDArray[np.int64]) -> Self:
        """Return the same cells with only these genes."""
        ...

    def batch(self, request: BatchRequest) -> TokenBatch:
        """Create a batch."""
        ...


@dataclass(frozen=True)
class _Stage:
    """Training cells in one phase; its sampler uses cells that express a gene of this phase."""

    start: int
    cells: RankedCells
    sampler: BucketSampler

    @classmethod
    def of(cls, cells: RankedCells, rows: NDArray[np.int64], phase: Phase, plan: BatchPlan) -> _Stage:
        if phase.n_genes is not None:
            assert cells.ranked is not None
            cells = cells.within(cells.ranked[: phase.n_genes])
            rows = rows[cells.lengths[rows] > 1]  # more than <cls>
            if len(rows) == 0:
                msg = f"No training cell expresses any of the first {phase.n_genes} genes of the curriculum. Start with more genes."
                raise DataError(msg)
        sampler = BucketSampler(
            rows,
            cells.lengths[rows],
            batch_size=plan.batch_size,
            batch_tokens=plan.batch_tokens,
            seed=plan.seed,
        )
        return cls(phase.start, cells, sampler)


class _Stages(Sampler[BatchRequest]):
    """Shuffled batches of the phase of the current epoch."""

    def __init__(self, stages: Sequence[_Stage]) -> None:
        self.stages = stages
        self.epoch, self.start = 0, 0

    def at(self, epoch: int) -> _Stage:
        """Stage of an epoch."""
        return [stage for stage in self.stages if stage.start <= epoch][-1]

    def batch(self, request: BatchRequest) -> TokenBatch:
        """Create a batch with the genes of the phase of its epoch, which is its draw."""
        return self.at(request.draw).cells.batch(request)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; called by Lightning, also for a resumed epoch."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        return self.at(self.epoch).sampler.n_batches(self.epoch)

    def __iter__(self) -> Iterator[BatchRequest]:
        # A generator, since Lightning requests the iterator of a resumed run before it sets the epoch.
        sampler = self.at(self.epoch).sampler
        sampler.set_epoch(self.epoch)
        yield from islice(sampler, self.start, None)


class SampledBatches(Batches):
    """Training cells in shuffled batches, drawn by a ``BucketSampler`` per phase.

    Parameters
    ----------
    cells
        Cells.
    rows
        Row numbers to draw from.
    plan
        Batch plan.

    Raises
    ------
    DataError
        If no cell expresses a gene of some phase.
    """

    def __init__(self, cells: RankedCells, rows: NDArray[np.int64], plan: BatchPlan) -> None:
        self.rows, self.n = rows, len(rows)
        self._stages = _Stages([_Stage.of(cells, rows, phase, plan) for phase in plan.phases])
        self.dataset = _Answers(self._stages.batch)
        # Lightning counts batches when it requests the loader and drops any further ones.
        self.reload = plan.batch_tokens is not None

    @property
    def sampler(self) -> Iterable[BatchRequest]:
        """Sampler of the batches of the epoch."""
        return self._stages

    def n_batches(self, epoch: int) -> int:
        """Number of batches per epoch, identical for all processes."""
        return self._stages.at(epoch).sampler.n_batches(epoch)

    def first(self) -> Drawn:
        """One training cell."""
        return self.dataset[BatchRequest(self._stages.at(0).sampler.rows[:1])]

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Set the epoch of the next iteration and its first batch."""
        self._stages.epoch, self._stages.start = epoch, start

    def set_process(self, rank: int, size: int) -> None:
        """Set the rank of this process, which determines its cells of each batch."""
        for stage in self._stages.stages:
            stage.sampler.rank, stage.sampler.size = rank, size


class ListedBatches(Batches):
    """Fixed batches, for validation.

    Parameters
    ----------
    make
        Function that returns a batch for a request.
    rows
        Row numbers of the cells.
    requests
        Function that lists the batches of a process, called with ``rank=`` and ``size=``.
    """

    def __init__(
        self,
        make: Callable[[BatchRequest], TokenBatch],
        rows: NDArray[np.int64],
        requests: Callable[..., list[BatchRequest]],
    ) -> None:
        self.rows, self.n = rows, len(rows)
        self.dataset = _Answers(make)
        self._requests, self._process = requests, {"rank": 0, "size": 1}

    @property
    def sampler(self) -> list[BatchRequest]:
        """The batches."""
        return self._requests(**self._process)

    def n_batches(self, epoch: int) -> int:
        """Number of batches, identical for all processes and epochs."""
        return len(self.sampler)

    def first(self) -> Drawn:
        """The first batch."""
        return self.dataset[self.sampler[0]]

    def set_process(self, rank: int, size: int) -> None:
        """Set the rank of this process, which determines its cells of each batch."""
        self._process = {"rank": rank, "size": size}


def largest_batch(lengths: NDArray[np.int64], plan: BatchPlan) -> tuple[int, int]:
    """Maximum numbers of cells and tokens in a batch: as many of the longest cells as fit.

    Parameters
    ----------
    lengths
        Number of tokens of the training cells, ``(n,)``.
    plan
        Batch plan.
    """
    if plan.max_length is not None:
        lengths = lengths.clip(max=plan.max_length)
    n_cells, longest = max(len(lengths), 1), int(lengths.max(initial=1))
    if plan.batch_size is not None:
        n_cells = min(n_cells, plan.batch_size)
    if plan.batch_tokens is not None:
        n_cells = min(n_cells, max(1, plan.batch_tokens // longest))
    return n_cells, longest
