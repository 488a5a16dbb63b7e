"""Gene curriculum: training on more genes in each phase.

All phases share the network, the vocabulary and the optimizer. The genes of a phase are the best of one ranked list, so
each phase contains the genes of all earlier ones. (Weights could not be kept if the width of the network changed
between phases.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from scgalore.data.batches import BatchPlan, Phase

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgalore.data.source import CellSource
    from scgalore.train.config import TrainConfig

__all__ = ["batch_caps", "batch_plan", "plan_phases", "rewarmed"]

MOST_WARMUP = 100
"""Maximum number of warm-up steps at the start of a phase."""


def plan_phases(config: TrainConfig, n_ranked: int = 0) -> tuple[Phase, ...]:
    """Phases of a run.

    Parameters
    ----------
    config
        Training settings.
    n_ranked
        Number of ranked genes in the vocabulary. A phase with at least as many genes uses all genes, ranked or not.

    Returns
    -------
    At least one phase; together they cover all epochs.
    """
    assert config.max_epochs is not None  # see scgalore.train.budget
    assert config.curriculum is None or isinstance(config.curriculum, Mapping)  # ensured by the configuration
    phases: list[Phase] = []
    start = 0
    for n_genes, epochs in (config.curriculum or {n_ranked: config.max_epochs}).items():
        if n_genes >= n_ranked:
            phases.append(Phase(start, config.max_epochs))
            break
        phases.append(Phase(start, start + epochs, n_genes))
        start += epochs
    return tuple(phases)


def batch_caps(config: TrainConfig, lengths: NDArray[np.int64]) -> tuple[int | None, int | None]:
    """Maximum numbers of cells and of tokens per batch.

    With a curriculum, tokens limit batches instead of cells, so that steps take about the same time and memory in all
    phases: the limit is the number of tokens of ``batch_size`` cells of average length with all genes.

    Parameters
    ----------
    config
        Training settings.
    lengths
        Number of tokens of the training cells with all genes, shape ``(n,)``.
    """
    assert isinstance(config.batch_size, int)
    if config.curriculum is None:
        return config.batch_size, config.batch_tokens
    return None, config.batch_tokens or int(np.ceil(config.batch_size * lengths.mean()))


def batch_plan(config: TrainConfig, source: CellSource, rows: NDArray[np.int64] | None) -> BatchPlan:
    """Limits of batches and phases of a run.

    Parameters
    ----------
    config
        Training settings; ``batch_size`` must be a number.
    source
        Cells to train on.
    rows
        Row numbers of the training cells; ``None`` for all.
    """
    assert isinstance(config.batch_size, int)
    caps: tuple[int | None, int | None] = config.batch_size, config.batch_tokens
    if source.lengths is not None:
        lengths = source.lengths if rows is None else source.lengths[rows]
        caps = batch_caps(config, lengths if config.max_length is None else lengths.clip(max=config.max_length))
    phases = plan_phases(config, 0 if source.ranked is None else len(source.ranked))
    n_batches = None if config.steps_per_epoch is None else config.steps_per_epoch * config.accumulate
    return BatchPlan(*caps, max_length=config.max_length, phases=phases, seed=config.seed, n_batches=n_batches)


def rewarmed(step: int, switches: Mapping[int, int], warmup: float) -> float:
    """Factor of the learning rate, which increases linearly from near 0 to 1 at the start of each phase.

    Parameters
    ----------
    step
        Number of the step, from 0.
    switches
        Number of steps of each phase by its first step, without the first phase, which has the warm-up of the run.
    warmup
        Fraction of a phase's steps used for warm-up, at most :data:`MOST_WARMUP` steps.
    """
    begun = [start for start in switches if start <= step]
    if not begun:
        return 1.0
    start = max(begun)
    n_warmup = min(MOST_WARMUP, max(1, round(switches[start] * warmup)))
    return min(1.0, (step - start + 1) / n_warmup)
