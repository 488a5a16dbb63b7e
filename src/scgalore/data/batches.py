"""Batches of one split, as data sets and samplers of PyTorch: drawn anew each epoch, or a fixed list."""

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


WHOLE_PASSES = "an epoch of an AnnData is a pass over its cells. Leave it out, or make a stream of it (sg.data.stream)."
"""Why sources in memory have no epochs of some steps."""


@dataclass(frozen=True)
class Phase:
    """Some epochs on some genes.

    Attributes
    ----------
    start, stop
        First epoch, and the one after the last.
    n_genes
        How many of the best-ranked genes may be tokens; ``None`` admits all, ranked or not.
    """

    start: int
    stop: int
    n_genes: int | None = None


@dataclass(frozen=True)
class BatchPlan:
    """How a run cuts cells into batches.

    Attributes
    ----------
    batch_size, batch_tokens
        Most cells and most tokens in a batch, padding included; ``None`` sets no cap.
    max_length
        Most tokens of a training cell; longer ones are sampled anew each epoch. Validation cells keep theirs.
    phases
        Genes of the training cells by epoch, from the first epoch on; validation cells keep all of theirs.
    seed
        Seed of the shuffling.
    n_batches
        Batches of an epoch, for sources whose passes are long; ``None`` passes over all cells in each epoch.
    """

    batch_size: int | None
    batch_tokens: int | None = None
    max_length: int | None = None
    phases: tuple[Phase, ...] = (Phase(0, 1),)
    seed: int = 0
    n_batches: int | None = None


class Drawn(NamedTuple):
    """A batch before the objective has prepared it.

    Attributes
    ----------
    batch
        Its cells.
    draw
        Which draw of the randomness that belongs to cells: the epoch in training, 0 in validation.
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
        Row numbers of what is served, int64; empty where the source does not number them.
    n
        How many cells (or perturbations) an epoch has.
    dataset
        Yields or answers requests with :class:`Drawn`.
    reload
        Whether a trainer has to ask for the loader anew each epoch, since epochs differ in their number of batches or the
        source has to receive the epoch before it is iterated over.
    """

    rows: NDArray[np.int64]
    n: int
    dataset: Dataset[Drawn]
    reload: bool = False

    @property
    @abstractmethod
    def sampler(self) -> Iterable[BatchRequest] | None:
        """Makes the requests; ``None`` where the data set is iterable."""

    @abstractmethod
    def n_batches(self, epoch: int) -> int:
        """Batches of an epoch, the same for all processes."""

    @abstractmethod
    def first(self) -> Drawn:
        """Some cells, to look at what a loss depends on."""

    def set_epoch(self, epoch: int, start: int = 0) -> None:  # noqa: B027 (nothing to do for fixed batches)
        """Choose the epoch of the next iteration, and the batch that it begins with; fixed batches ignore it."""

    def set_process(self, rank: int, size: int) -> None:  # noqa: B027 (as above)
        """Choose which of several processes this is; where each gets its own cells anyway, nothing changes."""


class _Answers(Dataset[Drawn]):
    """Answers a request with a batch."""

    def __init__(self, make: Callable[[BatchRequest], TokenBatch]) -> None:
        self.make = make

    def __getitem__(self, request: BatchRequest) -> Drawn:
        return Drawn(self.make(request), request.draw, request.share)


class RankedCells(Protocol):
    """Cells that can be narrowed to the best-ranked genes."""

    @property
    def ranked(self) -> NDArray[np.int64] | None:
        """Token ids from best to worst."""
        ...

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each cell, ``(n_obs,)``."""
        ...

    def within(self, genes: NDArray[np.int64]) -> Self:
        """Same cells with these genes and no others."""
        ...

    def batch(self, request: BatchRequest) -> TokenBatch:
        """Make a batch."""
        ...


@dataclass(frozen=True)
class _Stage:
    """Training cells as one phase shows them; its sampler draws from those that have a gene in this phase."""

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
                msg = f"No training cell expresses one of the first {phase.n_genes} genes of the curriculum. Begin with more."
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
    """Shuffled batches of the phase that the epoch belongs to."""

    def __init__(self, stages: Sequence[_Stage]) -> None:
        self.stages = stages
        self.epoch, self.start = 0, 0

    def at(self, epoch: int) -> _Stage:
        """Stage of an epoch."""
        return [stage for stage in self.stages if stage.start <= epoch][-1]

    def batch(self, request: BatchRequest) -> TokenBatch:
        """Answer a request as the phase of its epoch, which is its draw, shows the cells."""
        return self.at(request.draw).cells.batch(request)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this, for one that is gone on with too."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        return self.at(self.epoch).sampler.n_batches(self.epoch)

    def __iter__(self) -> Iterator[BatchRequest]:
        # A generator, since Lightning asks for the iterator of a resumed run before it says which epoch that is in.
        sampler = self.at(self.epoch).sampler
        sampler.set_epoch(self.epoch)
        yield from islice(sampler, self.start, None)


class SampledBatches(Batches):
    """Training cells in shuffled batches, drawn by a ``BucketSampler`` per phase.

    Parameters
    ----------
    cells
        What is served.
    rows
        Row numbers to draw from.
    plan
        How.

    Raises
    ------
    DataError
        If no cell expresses a gene of some phase.
    """

    def __init__(self, cells: RankedCells, rows: NDArray[np.int64], plan: BatchPlan) -> None:
        self.rows, self.n = rows, len(rows)
        self._stages = _Stages([_Stage.of(cells, rows, phase, plan) for phase in plan.phases])
        self.dataset = _Answers(self._stages.batch)
        # Lightning counts batches when it asks for the loader and drops those beyond.
        self.reload = plan.batch_tokens is not None

    @property
    def sampler(self) -> Iterable[BatchRequest]:
        """Draws the batches of the epoch."""
        return self._stages

    def n_batches(self, epoch: int) -> int:
        """Batches of an epoch, the same for all processes."""
        return self._stages.at(epoch).sampler.n_batches(epoch)

    def first(self) -> Drawn:
        """One training cell."""
        return self.dataset[BatchRequest(self._stages.at(0).sampler.rows[:1])]

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch of the next iteration, and the batch that it begins with."""
        self._stages.epoch, self._stages.start = epoch, start

    def set_process(self, rank: int, size: int) -> None:
        """Choose which share of each batch is this process's."""
        for stage in self._stages.stages:
            stage.sampler.rank, stage.sampler.size = rank, size


class ListedBatches(Batches):
    """Batches that are always the same, for validation.

    Parameters
    ----------
    make
        Answers requests.
    rows
        Row numbers of what is served.
    requests
        Lists the batches of a process, called with ``rank=`` and ``size=``.
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
        """Batches, the same for all processes and epochs."""
        return len(self.sampler)

    def first(self) -> Drawn:
        """The first batch."""
        return self.dataset[self.sampler[0]]

    def set_process(self, rank: int, size: int) -> None:
        """Choose which share of each batch is this process's."""
        self._process = {"rank": rank, "size": size}


def largest_batch(lengths: NDArray[np.int64], plan: BatchPlan) -> tuple[int, int]:
    """Cells and tokens of the largest batch that may come: as many cells as fit of the longest.

    Parameters
    ----------
    lengths
        Tokens of the training cells, ``(n,)``.
    plan
        How they are cut.
    """
    if plan.max_length is not None:
        lengths = lengths.clip(max=plan.max_length)
    n_cells, longest = max(len(lengths), 1), int(lengths.max(initial=1))
    if plan.batch_size is not None:
        n_cells = min(n_cells, plan.batch_size)
    if plan.batch_tokens is not None:
        n_cells = min(n_cells, max(1, plan.batch_tokens // longest))
    return n_cells, longest
