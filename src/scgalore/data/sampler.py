"""Batches of cells of similar length, so that little of a batch is padding."""

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
"""Batches that are sorted by length together while training: enough to avoid padding, few enough to stay random."""


@dataclass(frozen=True)
class BatchRequest:
    """Cells that are to become one batch.

    Attributes
    ----------
    rows
        Row numbers in the data set, int64, shape ``(b,)``.
    draw
        Which draw of the randomness that belongs to cells; the epoch in training, 0 elsewhere.
    share
        For one of several processes: how many of the cells count, and how many cells all processes together have in
        this step. A process that gets none repeats one that does not count, since all of them must take the step.
    """

    rows: NDArray[np.int64]
    draw: int = 0
    share: tuple[int, int] | None = None


def cut_batches(
    lengths: NDArray[np.int64], *, batch_size: int | None, batch_tokens: int | None, padded: bool
) -> list[slice]:
    """Cut cells into batches, in their order.

    Parameters
    ----------
    lengths
        Tokens of each cell, shape ``(n,)``.
    batch_size
        Most cells in a batch; ``None`` sets no cap.
    batch_tokens
        Most tokens in a batch; ``None`` sets no cap. A cell that is longer is a batch by itself.
    padded
        Whether every cell of a batch counts as its longest one, or as itself.

    Returns
    -------
    Consecutive runs of cells that cover all of them.
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
            # The first cell bounds how many may follow, so that no more of them are looked at.
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

    An epoch shuffles the cells, sorts them by length inside windows of 16 batches, cuts the windows into batches and
    shuffles the batches. It depends on ``seed`` and the epoch alone, so a resumed run sees the batches it would have seen.

    Of several processes, each has the caps to itself and gets every ``size``-th cell of a step, so that they are about
    equally long: the cells of a step are those of one process with ``size`` times the ``batch_size``. All processes
    take equally many steps. The last step may leave processes without a cell; see :class:`BatchRequest`.

    Parameters
    ----------
    rows
        Row numbers to draw from, shape ``(n,)``.
    lengths
        Tokens of each of them, shape ``(n,)``.
    batch_size
        Most cells in a batch; ``None`` sets no cap.
    batch_tokens
        Most tokens in a batch, padding included; ``None`` sets no cap. With it epochs may differ in the number of
        their batches.
    seed
        Seed of the shuffling.
    rank, size
        Number of this process and how many there are.
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
        """Choose the epoch; Lightning calls this."""
        self.epoch = epoch

    def n_batches(self, epoch: int) -> int:
        """Batches of an epoch, the same for all processes."""
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
    """Batches for inference: the longest cells first, so that a batch that does not fit fails at once.

    Parameters
    ----------
    rows
        Row numbers, shape ``(n,)``.
    lengths
        Tokens of each of them, shape ``(n,)``.
    batch_size
        Most cells in a batch; ``None`` sets no cap.
    batch_tokens
        Most tokens in a batch, padding included; ``None`` sets no cap.
    rank, size
        Number of this process and how many there are, as for :class:`BucketSampler`.
    """
    order = np.argsort(-lengths, kind="stable")
    cuts = _cut_for_all(lengths[order], batch_size, batch_tokens, size)
    return [_share(rows[order[cut]], rank, size) for cut in cuts]


def _cut_for_all(
    lengths: NDArray[np.int64], batch_size: int | None, batch_tokens: int | None, size: int
) -> list[slice]:
    """Cut cells that are sorted by length such that the share of each process keeps to the caps."""
    firsts = np.arange(0, len(lengths), size)
    longest = np.maximum.reduceat(lengths, firsts) if len(lengths) else lengths
    cuts = cut_batches(longest, batch_size=batch_size, batch_tokens=batch_tokens, padded=True)
    return [slice(cut.start * size, min(cut.stop * size, len(lengths))) for cut in cuts]


def _share(rows: NDArray[np.int64], rank: int, size: int, *, draw: int = 0) -> BatchRequest:
    if size == 1:
        return BatchRequest(rows, draw)
    own = rows[rank::size]
    return BatchRequest(own if len(own) else rows[:1], draw, (len(own), len(rows)))
