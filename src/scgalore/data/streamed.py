"""Batches of a stream for a training run: an epoch is a pass over all cells, or some batches of it."""

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
    """What a stream does, pass by pass."""

    @property
    def n_obs(self) -> int:
        """Cells of a pass, of all processes together."""
        ...

    @property
    def position(self) -> tuple[int, int]:
        """Epoch of the next iteration, and the batch that it begins with."""
        ...

    def __len__(self) -> int:
        """Batches of a pass of this process."""
        ...

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch of the next iteration, and the batch that it begins with."""
        ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[TokenBatch]:
        """Batches of a pass from its ``start``-th on."""
        ...

    def n_batches_of(self, worker: int) -> int:
        """Batches of a pass that a worker has."""
        ...

    def batches_of(self, worker: int, epoch: int, start: int = 0) -> Iterator[TokenBatch]:
        """Those, from its ``start``-th on."""
        ...


class _Epochs(IterableDataset[Drawn]):
    """Batches of the epoch that the stream is in, or always of the same one."""

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
    """Passes over the stream, one after the other, cut into epochs of ``size`` batches.

    A draw is a pass. An epoch that follows the last one goes on reading where that has ended; any other finds its place anew. An
    epoch may begin with a later batch; workers of a DataLoader then take the places of each other, since it asks its first first.
    """

    def __init__(self, stream: Passes, size: int) -> None:
        super().__init__()
        self.stream, self.size = stream, size
        self._at = -1, -1  # whose batches come, and the number of the next
        self._batches: Iterator[Drawn] = iter(())  # where it comes from

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
        return {**vars(self), "_at": (-1, -1), "_batches": iter(())}  # what is open stays where it is


class StreamedBatches(Batches):
    """Batches as a stream makes them. Each of several processes gets cells of its own.

    Parameters
    ----------
    stream
        The cells.
    rows
        Must be ``None``: a stream serves all of its cells.
    epoch
        Which epoch to serve whenever they are iterated over; ``None`` for the one that :meth:`set_epoch` chooses.
    n_batches
        Batches of an epoch; ``None`` for a pass over all cells.
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
            msg = "split= does not go with a stream, which serves all of its cells. Make one stream for each split."
            raise OptionError(msg)
        self.rows, self.n = np.empty(0, dtype=np.int64), stream.n_obs
        self.dataset: IterableDataset[Drawn] = (
            _Epochs(stream, epoch) if n_batches is None else _Pieces(stream, n_batches)
        )
        self._stream, self._epoch = stream, epoch
        self._n_batches = n_batches

    @property
    def sampler(self) -> None:
        """The stream decides itself what comes next."""

    def n_batches(self, epoch: int) -> int:
        """Batches of an epoch, the same for all processes."""
        # Counted when it is asked for, since how many processes there are is not known before training begins.
        return len(self._stream) if self._n_batches is None else self._n_batches

    def first(self) -> Drawn:
        """The first batch."""
        batches = iter(self.dataset)
        try:
            return next(batches)
        finally:
            batches.close()  # type: ignore[attr-defined]

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch of the next iteration, and the batch to begin with."""
        if self._epoch is None:
            self._stream.set_epoch(epoch, start)
