"""Batches of an optimizer step: their number and their weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed
from torch.utils.data import DataLoader

from scgalore import _logging as logg
from scgalore.errors import OptionError
from scgalore.train.config import DEFAULT_BATCH_SIZE
from scgalore.train.curriculum import batch_plan
from scgalore.train.processes import training_processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from scgalore.data.source import CellSource
    from scgalore.data.tokens import TokenBatch
    from scgalore.objectives import Objective
    from scgalore.train.config import TrainConfig

__all__ = ["Share", "Steps", "settle_steps"]

SAMPLED = 64
"""Number of batches used to estimate the tokens per batch."""


@dataclass(frozen=True)
class Share:
    """A batch that is one of several in a step, of this process or of others.

    Attributes
    ----------
    batch
        Tokens of the cells.
    n
        Number of cells that count: all, or 0 if a process has no cells in this step.
    weight, whole
        Weight of the batch, and total weight of the step over all processes.
    ends
        Whether it is the last batch of this process.
    """

    batch: TokenBatch
    n: int
    weight: float
    whole: float
    ends: bool = True

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Share:
        """Move the cells to a device."""
        return replace(self, batch=self.batch.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Share:
        """Copy the cells to pinned memory."""
        return replace(self, batch=self.batch.pin_memory())


class Steps:
    """Batches of an epoch, with what each counts in its step.

    A step of several batches is read before the first of them is trained on, so that each can be weighed by its part of
    the terms that the loss of the step is a mean over.

    Parameters
    ----------
    loader
        Batches, made ready for the objective.
    objective
        Defines the terms over which the loss of a batch is a mean.
    batches
        Batches of a step.
    tokens
        Tokens of a step of all processes, padding left out, in place of a number of batches. A step ends where one more
        batch, if it were like the last, would take it farther from this number than it is.
    sum_over
        Adds up some numbers over all processes, which then end their steps together.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        objective: Objective,
        *,
        batches: int = 1,
        tokens: int | None = None,
        sum_over: Callable[[list[float]], list[float]] = lambda numbers: numbers,
    ) -> None:
        self._loader, self._objective = loader, objective
        self._batches, self._tokens, self._sum_over = batches, tokens, sum_over
        #: Lightning tells it the epoch.
        self.sampler = loader.sampler

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Share]:
        step: list[Share] = []
        whole, reached = 0.0, 0.0
        for item in self._loader:
            batch, n = (item.batch, item.n) if isinstance(item, Share) else (item, len(item))
            weight = self._objective.weight(batch) if n else 0.0
            summed, tokens = self._sum_over([weight, batch.n_tokens if n else 0.0])
            step.append(Share(batch, n, weight, 0.0, ends=False))
            whole, reached = whole + summed, reached + tokens
            if self._is_whole(len(step), reached, tokens):
                yield from _weighed(step, whole)
                step, whole, reached = [], 0.0, 0.0
        yield from _weighed(step, whole)

    def _is_whole(self, n: int, reached: float, last: float) -> bool:
        return n >= self._batches if self._tokens is None else reached + last / 2 >= self._tokens


def _weighed(step: list[Share], whole: float) -> Iterator[Share]:
    for number, share in enumerate(step, start=1):
        yield replace(share, whole=whole, ends=number == len(step))


def settle_steps(config: TrainConfig, source: CellSource, rows: NDArray[np.int64] | None) -> TrainConfig:
    """Estimate the number of batches per step for ``accumulate_tokens``, unless it is already set.

    Parameters
    ----------
    config
        Training settings.
    source
        Cells to train on.
    rows
        Row numbers of the training cells; ``None`` for all.

    Returns
    -------
    The configuration with that number as ``accumulate``, from which the steps of an epoch and the schedule of the
    learning rate are counted.

    Raises
    ------
    OptionError
        If a batch has more tokens than a step should have.
    """
    if config.accumulate_tokens is None or config.accumulate > 1:
        return config
    size = DEFAULT_BATCH_SIZE if config.batch_size == "auto" else config.batch_size
    plan = batch_plan(replace(config, batch_size=size, max_epochs=config.max_epochs or 1), source, rows)
    batches = source.training_batches(rows, plan)
    loader = DataLoader(batches.dataset, sampler=batches.sampler, batch_size=None, collate_fn=_n_tokens)
    tokens = _mean_of_all(_first(loader)) * training_processes(config).size
    if tokens > config.accumulate_tokens:
        msg = (
            f"accumulate_tokens={config.accumulate_tokens}: one batch per process already has about {tokens:,.0f} tokens. Increase it, "
            "or use a smaller batch_size."
        )
        raise OptionError(msg)
    n = max(1, round(config.accumulate_tokens / tokens))
    logg.info(
        f"    batches have about {tokens:,.0f} tokens, so a step of {config.accumulate_tokens:,} tokens has about {n} batches"
    )
    return replace(config, accumulate=n)


def _n_tokens(drawn: Any) -> int:
    n: int = drawn.batch.n_tokens
    return n


def _first(loader: DataLoader[Any]) -> float:
    counts = list(islice(loader, SAMPLED))
    return sum(counts) / max(1, len(counts))


def _mean_of_all(number: float) -> float:
    """The same number in all processes that work together already."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return number
    numbers = [0.0] * distributed.get_world_size()
    distributed.all_gather_object(numbers, number)
    return sum(numbers) / len(numbers)
