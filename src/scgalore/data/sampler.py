"""Batches of cells of similar length, to avoid padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Sampler

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["BatchRequest", "BucketSampler", "cut_batches", "sorted_batches"]

WINDOW = 16
"""Number of training batches whose cells are sorted by length together: a compromise between padding and randomness."""


@dataclass(frozen=True)
class BatchRequest:
    """Cells of one batch.

    Attributes
    ----------
    rows
        Row numbers in the data set, int64, shape ``(b,)``.
    draw
        Number that selects the random draws of cells; the epoch in training, otherwise 0.
    share
        For one of several processes: how many of the cells count, and the number of cells of all processes in this
        step. A process without cells repeats one that does not count, since all processes must take the step.
    """

    rows: NDArray[np.int64]
    draw: int = 0
    share: tuple[int, int] | None = None


def cut_batches(
    lengths: NDArray[np.int64], *, batch_size: int | None, batch_tokens: int | None, padded: bool
) -> list[slice]:
    """Divide cells into batches, keeping their order.

    Parameters
    ----------
    lengths
        Number of tokens of each cell, shape ``(n,)``.
    batch_size
        Maximum number of cells per batch; ``None`` for no limit.
    batch_tokens
        Maximum number of tokens per batch; ``None`` for no limit. A longer cell is a batch by itself.
    padded
        Whether ``batch_tokens`` includes padding.

    Returns
    -------
    Consecutive slices that cover all cells.
    """
    n = len(lengths)
    size = max(n, 1) if batch_size is None else batch_size
    if batch_tokens is None:
        return [slice(start, min(start + size, n)) for start in range(0, n, size)]
    sums = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    slices: list[slice] = []
    start = 0
    while start < n:
        if padded:
            # The first cell bounds the number of cells in the batch, so no more of them are examined.
            most = min(size, batch_tokens // max(int(lengths[start]), 1))
            longest = np.maximum.accumulate(lengths[start : start + most])
            fit = int(np.searchsorted(longest * np.arange(1, len(longest) + 1), batch_tokens, side="right"))
        else:
            fit = int(np.searchsorted(sums, sums[start] + batch_tokens, side="right")) - 1 - start
        stop = min(start + max(1, min(fit, size)), n)
        slices.append(slice(start, stop))
        start = stop
    return slices


class BucketSampler(Sampler[BatchRequest]):
    """Shuffled batches for training.

    An epoch shuffles the cells, sorts them by length within windows of 16 batches, divides the windows into batches and
    shuffles the batches. It depends only on ``seed`` and the epoch, so a resumed run gets the same batches.

    With several processes, the limits apply to each process, and each gets every ``size``-th cell of a step, so that
    their batches have about equal length. The cells of a step are those of one process with ``size`` times the
    ``batch_size``. All processes take the same number of steps. In the last step, processes may be without a cell; see
    :class:`BatchRequest`.

    Parameters
    ----------
    rows
        Row numbers to draw from, shape ``(n,)``.
    lengths
        Number of tokens of each row, shape ``(n,)``.
    batch_size
        Maximum number of cells per batch; ``None`` for no limit.
    batch_tokens
        Maximum number of tokens per batch, including padding; ``None`` for no limit. If set, the number of batches can
        differ between epochs.
    seed
        Seed of the shuffling.
    rank, size
        Rank of this process and number of processes.
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        lengths: NDArray[np.int64],
        *,
        batch_size: int | None,
        batch_tokens: int | None = None,
        seed: int = 0,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        self.rows, self.lengths = rows, lengths
        self.batch_size, self.batch_tokens, self.seed = batch_size, batch_tokens, seed
        self.rank, self.size = rank, size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; called by Lightning."""
        self.epoch = epoch

    def n_batches(self, epoch: int) -> int:
        """Number of batches of an epoch, the same for all processes."""
        if self.batch_tokens is None:
            return -(-len(self.rows) // ((self.batch_size or max(len(self.rows), 1)) * self.size))
        return len(self._batches(np.random.default_rng([self.seed, epoch])))

    def __len__(self) -> int:
        return self.n_batches(self.epoch)

    def __iter__(self) -> Iterator[BatchRequest]:
        generator = np.random.default_rng([self.seed, self.epoch])
        batches = self._batches(generator)
        for number in generator.permutation(len(batches)):
            yield _share(self.rows[batches[number]], self.rank, self.size, draw=self.epoch)

    def _batches(self, generator: np.random.Generator) -> list[NDArray[np.int64]]:
        order = generator.permutation(len(self.rows))
        windows = cut_batches(
            self.lengths[order],
            batch_size=None if self.batch_size is None else WINDOW * self.batch_size * self.size,
            batch_tokens=None if self.batch_tokens is None else WINDOW * self.batch_tokens * self.size,
            padded=False,
        )
        batches: list[NDArray[np.int64]] = []
        for window in windows:
            part = order[window]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            cuts = _cut_for_all(self.lengths[part], self.batch_size, self.batch_tokens, self.size)
            batches += [part[cut] for cut in cuts]
        return batches


def sorted_batches(
    rows: NDArray[np.int64],
    lengths: NDArray[np.int64],
    *,
    batch_size: int | None,
    batch_tokens: int | None = None,
    rank: int = 0,
    size: int = 1,
) -> list[BatchRequest]:
    """Batches for inference, the longest cells first, so that a batch that does not fit into memory fails at once.

    Parameters
    ----------
    rows
        Row numbers, shape ``(n,)``.
    lengths
        Number of tokens of each row, shape ``(n,)``.
    batch_size
        Maximum number of cells per batch; ``None`` for no limit.
    batch_tokens
        Maximum number of tokens per batch, including padding; ``None`` for no limit.
    rank, size
        Rank of this process and number of processes.
    """
    order = np.argsort(-lengths, kind="stable")
    cuts = _cut_for_all(lengths[order], batch_size, batch_tokens, size)
    return [_share(rows[order[cut]], rank, size) for cut in cuts]


def _cut_for_all(
    lengths: NDArray[np.int64], batch_size: int | None, batch_tokens: int | None, size: int
) -> list[slice]:
    """Divide cells sorted by length such that the batch of each process is within the limits."""
    firsts = np.arange(0, len(lengths), size)
    longest = np.maximum.reduceat(lengths, firsts) if len(lengths) else lengths
    cuts = cut_batches(longest, batch_size=batch_size, batch_tokens=batch_tokens, padded=True)
    return [slice(cut.start * size, min(cut.stop * size, len(lengths))) for cut in cuts]


def _share(rows: NDArray[np.int64], rank: int, size: int, *, draw: int = 0) -> BatchRequest:
    if size == 1:
        return BatchRequest(rows, draw)
    own = rows[rank::size]
    return BatchRequest(own if len(own) else rows[:1], draw, (len(own), len(rows)))
