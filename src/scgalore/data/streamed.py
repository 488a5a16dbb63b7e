"""Batches of a stream for training: an epoch is a pass over all cells or a part of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from scgalore.data.batches import Batches, Drawn
from scgalore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scgalore.data.tokens import TokenBatch

__all__ = ["Passes", "StreamedBatches"]


class Passes(Protocol):
    """Protocol of a stream of which each pass is an epoch."""

    @property
    def n_obs(self) -> int:
        """Number of cells of a pass over all processes."""
        ...

    @property
    def position(self) -> tuple[int, int]:
        """Epoch of the next iteration and its first batch."""
        ...

    def __len__(self) -> int:
        """Number of batches of a pass of this process."""
        ...

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Set the epoch of the next iteration and its first batch."""
        ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[TokenBatch]:
        """Batches of a pass, starting from number ``start``."""
        ...

    def n_batches_of(self, worker: int) -> int:
        """Number of batches of a worker in a pass."""
        ...

    def batches_of(self, worker: int, epoch: int, start: int = 0) -> Iterator[TokenBatch]:
        """Batches of a worker in a pass, starting from number ``start``."""
        ...


class _Epochs(IterableDataset[Drawn]):
    """Batches of the current epoch of the stream, or always of the same epoch."""

    def __init__(self, stream: Passes, epoch: int | None) -> None:
        super().__init__()
        self.stream, self.epoch = stream, epoch

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[Drawn]:
        epoch, start = self.stream.position if self.epoch is None else (self.epoch, 0)
        for batch in self.stream.batches(epoch, start):
            yield Drawn(batch, epoch)


class _Pieces(IterableDataset[Drawn]):
    """Consecutive passes over the stream, divided into epochs of ``size`` batches.

    A draw is a pass. An epoch that follows the previous one continues reading; any other epoch starts from its own
    position. If an epoch starts with a later batch, the workers of a DataLoader swap roles, since the loader always
    asks its first worker first.
    """

    def __init__(self, stream: Passes, size: int) -> None:
        super().__init__()
        self.stream, self.size = stream, size
        self._at = -1, -1  # current worker, and the number of the next batch
        self._batches: Iterator[Drawn] = iter(())  # source of the next batch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Drawn]:
        info = get_worker_info()
        worker, n_workers = (0, 1) if info is None else (info.id, info.num_workers)
        epoch, begun = self.stream.position
        worker = (worker + begun) % n_workers
        size, given = len(range(worker, self.size, n_workers)), len(range(worker, begun, n_workers))
        start = epoch * size + given
        if self._at != (worker, start):
            self._at, self._batches = (worker, start), self._from(worker, start)
        for at in range(start, start + size - given):
            drawn = next(self._batches)
            self._at = worker, at + 1
            yield drawn

    def _from(self, worker: int, at: int) -> Iterator[Drawn]:
        number, start = divmod(at, self.stream.n_batches_of(worker))
        while True:
            for batch in self.stream.batches_of(worker, number, start):
                yield Drawn(batch, number)
            number, start = number + 1, 0

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_at": (-1, -1), "_batches": iter(())}  # open iterators are not pickled


class StreamedBatches(Batches):
    """Batches of a stream. Each process gets different cells.

    Parameters
    ----------
    stream
        The stream.
    rows
        Must be ``None``: a stream always reads all of its cells.
    epoch
        Epoch of every iteration; ``None`` for the one set by :meth:`set_epoch`.
    n_batches
        Number of batches per epoch; ``None`` for a pass over all cells.
    """

    reload = True

    def __init__(
        self,
        stream: Passes,
        rows: NDArray[np.int64] | None,
        epoch: int | None = None,
        n_batches: int | None = None,
    ) -> None:
        if rows is not None:
            msg = "split= does not apply to a stream, which reads all of its cells. Make one stream for each split."
            raise OptionError(msg)
        self.rows, self.n = np.empty(0, dtype=np.int64), stream.n_obs
        self.dataset: IterableDataset[Drawn] = (
            _Epochs(stream, epoch) if n_batches is None else _Pieces(stream, n_batches)
        )
        self._stream, self._epoch = stream, epoch
        self._n_batches = n_batches

    @property
    def sampler(self) -> None:
        """``None``, since the stream determines the order."""

    def n_batches(self, epoch: int) -> int:
        """Number of batches of an epoch, the same for all processes."""
        # Computed on request, since the number of processes is not known before training starts.
        return len(self._stream) if self._n_batches is None else self._n_batches

    def first(self) -> Drawn:
        """The first batch."""
        batches = iter(self.dataset)
        try:
            return next(batches)
        finally:
            batches.close()  # type: ignore[attr-defined]

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Set the epoch of the next iteration and its first batch."""
        if self._epoch is None:
            self._stream.set_epoch(epoch, start)
