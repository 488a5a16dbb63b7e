"""Batches of cells of similar length, so that little of a batch is padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Sampler

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["BatchRequest", "BucketSampler", "sorted_batches"]

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
    """

    rows: NDArray[np.int64]
    draw: int = 0


class BucketSampler(Sampler[BatchRequest]):
    """Shuffled batches for training.

    An epoch shuffles the cells, sorts them by length inside windows of 16 batches, cuts the windows into batches and
    shuffles the batches. It depends on ``seed`` and the epoch alone, so a resumed run sees the batches it would have seen.

    Parameters
    ----------
    rows
        Row numbers to draw from, shape ``(n,)``.
    lengths
        Tokens of each of them, shape ``(n,)``.
    batch_size
        Cells in a batch; the last one may be smaller.
    seed
        Seed of the shuffling.
    """

    def __init__(self, rows: NDArray[np.int64], lengths: NDArray[np.int64], *, batch_size: int, seed: int = 0) -> None:
        self.rows, self.lengths = rows, lengths
        self.batch_size, self.seed = batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[BatchRequest]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.rows))
        window = WINDOW * self.batch_size
        for start in range(0, len(order), window):
            part = order[start : start + window]
            order[start : start + window] = part[np.argsort(self.lengths[part], kind="stable")]
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        for number in generator.permutation(len(batches)):
            yield BatchRequest(self.rows[batches[number]], draw=self.epoch)


def sorted_batches(rows: NDArray[np.int64], lengths: NDArray[np.int64], *, batch_size: int) -> list[BatchRequest]:
    """Batches for inference: the longest cells first, so that a batch that does not fit fails at once.

    Parameters
    ----------
    rows
        Row numbers, shape ``(n,)``.
    lengths
        Tokens of each of them, shape ``(n,)``.
    batch_size
        Cells in a batch.
    """
    order = np.argsort(-lengths, kind="stable")
    return [BatchRequest(rows[order[start : start + batch_size]]) for start in range(0, len(order), batch_size)]
