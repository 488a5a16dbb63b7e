"""Cells of an epoch and their order: each cell once, or sampled with replacement by weights.

An epoch is a sequence of visits to blocks of consecutive cells of one source, so that files are read in
large pieces. Sampling with replacement consists of independent draws by the weights of cells:
numbers of draws per block are multinomial, followed by draws within each block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scgalore.data.ragged import starts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = ["Blocks", "Visits", "Weighting", "drawn", "once"]

_WITHIN = 1  # stream of the random numbers within a visit


@dataclass(frozen=True)
class Blocks:
    """Blocks of consecutive cells of one source.

    Attributes
    ----------
    first, stop
        Positions of the first cell, and after the last cell, int64.
    """

    first: NDArray[np.int64]
    stop: NDArray[np.int64]

    @classmethod
    def of(cls, bounds: NDArray[np.int64], size: int) -> Blocks:
        """Divide sources into blocks.

        Parameters
        ----------
        bounds
            Position of the first cell of each source, and number of all cells.
        size
            Number of cells per block.
        """
        numbers = -(-np.diff(bounds) // size)
        first = np.repeat(bounds[:-1], numbers) + size * (
            np.arange(numbers.sum()) - np.repeat(starts(numbers)[:-1], numbers)
        )
        return cls(first, np.minimum(first + size, np.repeat(bounds[1:], numbers)))

    def __len__(self) -> int:
        return len(self.first)


class Visits:
    """Blocks in the order of an epoch, and the cells of each visit.

    Parameters
    ----------
    counts
        Number of cells of each visit, int64.
    cells
        Function that returns the positions of the cells of a visit, and the index of each draw of a cell in an epoch.
    """

    def __init__(
        self, counts: NDArray[np.int64], cells: Callable[[int], tuple[NDArray[np.int64], NDArray[np.int64]]]
    ) -> None:
        self._starts, self._cells = starts(counts), cells

    def between(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Cells ``start`` to ``stop`` of the epoch, by increasing position, and indices of the draws of each cell."""
        first, last = np.searchsorted(self._starts, [start, stop - 1], side="right") - 1
        found = [self._cells(visit) for visit in range(first, last + 1)]
        cut = slice(start - self._starts[first], stop - self._starts[first])
        positions, repeats = (np.concatenate(parts)[cut] for parts in zip(*found, strict=True))
        order = np.lexsort((repeats, positions))
        return positions[order], repeats[order]


def once(blocks: Blocks, seeds: Sequence[int] | None) -> Visits:
    """Visit each block once, with all of its cells.

    Parameters
    ----------
    blocks
        All blocks.
    seeds
        Seed and epoch; ``None`` for no shuffling.
    """
    order = np.arange(len(blocks)) if seeds is None else np.random.default_rng(seeds).permutation(len(blocks))

    def cells(visit: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        found = np.arange(blocks.first[order[visit]], blocks.stop[order[visit]])
        return found, np.zeros_like(found)

    return Visits((blocks.stop - blocks.first)[order], cells)


def drawn(blocks: Blocks, weighting: Weighting, seeds: Sequence[int], *, size: int) -> Visits:
    """Draw as many cells as there are, with replacement.

    A block with many draws is visited several times, so that its cells are spread over the epoch.

    Parameters
    ----------
    blocks
        All blocks.
    weighting
        Weights of the cells.
    seeds
        Seed and epoch.
    size
        Maximum number of cells per visit.
    """
    rng = np.random.default_rng(seeds)
    weights = weighting.of_blocks
    counts = rng.multinomial(int(blocks.stop[-1]), weights / weights.sum())
    n_visits = -(-counts // size)
    block = np.repeat(np.arange(len(blocks)), n_visits)
    number = np.arange(len(block)) - np.repeat(
        starts(n_visits)[:-1], n_visits
    )  # index of the visit among those of its block
    order = rng.permutation(len(block))
    block, number = block[order], number[order]
    of_visit = np.minimum(counts[block] - number * size, size)

    def cells(visit: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        at, nth = int(block[visit]), int(number[visit])
        within = np.random.default_rng([*seeds, _WITHIN, 0, at, nth])
        total = np.cumsum(weighting.of(int(blocks.first[at]), int(blocks.stop[at])))
        places = np.searchsorted(total, within.random(int(of_visit[visit])) * total[-1], side="right")
        places = np.sort(np.minimum(places, np.searchsorted(total, total[-1])))  # if the product was rounded up
        is_first = np.concatenate([[True], places[1:] > places[:-1]])
        before = np.arange(len(places)) - np.flatnonzero(is_first)[np.cumsum(is_first) - 1]
        return blocks.first[at] + places, nth * size + before

    return Visits(of_visit, cells)


class Weighting:
    """Weight of each cell, by its source and by the value of a column.

    Parameters
    ----------
    weights
        Weight of a cell, by group and value, float64 ``(n_groups, n_values)``.
    groups
        Group of each source.
    values
        Value of each cell of each source, small integers; ``None`` if all have the first value.
    bounds
        Position of the first cell of each source, and number of all cells.
    blocks
        All blocks.
    """

    def __init__(
        self,
        weights: NDArray[np.float64],
        groups: Sequence[int],
        values: Sequence[NDArray[np.integer]] | None,
        bounds: NDArray[np.int64],
        blocks: Blocks,
    ) -> None:
        self._weights, self._groups, self._values, self._bounds = weights, groups, values, bounds
        if values is None:
            source = np.searchsorted(bounds, blocks.first, side="right") - 1
            self.of_blocks = weights[np.asarray(groups)[source], 0] * (blocks.stop - blocks.first)
        else:
            sums = [self.of(int(first), int(stop)).sum() for first, stop in zip(blocks.first, blocks.stop, strict=True)]
            self.of_blocks = np.array(sums)

    def of(self, first: int, stop: int) -> NDArray[np.float64]:
        """Weights of the cells from position ``first`` to ``stop``, all of one source."""
        source = int(np.searchsorted(self._bounds, first, side="right")) - 1
        weights = self._weights[self._groups[source]]
        if self._values is None:
            return np.full(stop - first, weights[0])
        start = int(self._bounds[source])
        return weights[self._values[source][first - start : stop - start]]
