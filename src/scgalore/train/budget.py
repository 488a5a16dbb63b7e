"""Default number of epochs: enough steps of the optimizer, with early stopping on validation cells.

The values are based on the measurements in ``docs/benchmarks/classes.md``.
"""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scgalore import _logging as logg
from scgalore.train.config import DEFAULT_BATCH_SIZE
from scgalore.train.processes import training_processes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scgalore.train.config import TrainConfig

__all__ = ["FEWEST_EPOCHS", "MOST_EPOCHS", "PATIENCE", "STEPS", "has_converged", "open_epochs", "settle_budget"]

STEPS = 500
"""Minimum number of optimizer steps of a default budget, unless they take more than :data:`MOST_EPOCHS`."""

FEWEST_EPOCHS, MOST_EPOCHS = 10, 100

PATIENCE = 5
"""Default patience of a run with a default budget."""

STILL = 0.02
"""Maximum fraction of a run's improvement in its last half for the run to count as converged."""


def open_epochs(n_cells: int | None, config: TrainConfig, *, n_processes: int = 1) -> int:
    """Default number of epochs.

    Parameters
    ----------
    n_cells
        Number of training cells; ``None`` if unknown.
    config
        Training settings. ``batch_size="auto"`` counts as the default, since the number of cells per step stays the
        same. ``batch_tokens`` is ignored; it can only increase the number of steps.
    n_processes
        Number of processes, each with its own batches.
    """
    phases = len(config.curriculum) if isinstance(config.curriculum, Sized) else 1
    fewest = max(FEWEST_EPOCHS, phases)
    if not n_cells:
        return fewest
    batch_size = config.batch_size if isinstance(config.batch_size, int) else DEFAULT_BATCH_SIZE
    batches = -(-n_cells // (batch_size * n_processes))
    steps = -(-batches // config.accumulate)
    return max(fewest, min(MOST_EPOCHS, -(-STEPS // steps)))


def settle_budget(
    config: TrainConfig, n_cells: int | None, *, validated: bool, begun: Mapping[str, Any] | None = None
) -> TrainConfig:
    """Set ``max_epochs`` and ``patience`` if ``max_epochs`` is ``None``.

    Parameters
    ----------
    config
        Training settings.
    n_cells
        Number of training cells; ``None`` for a stream, which has a fixed number of epochs and no early stopping.
    validated
        Whether there are validation cells.
    begun
        Settings of the run to resume, which keeps its budget.
    """
    if config.max_epochs is not None:
        return config
    if begun is not None and "max_epochs" in begun:
        epochs, patience = begun["max_epochs"], begun.get("patience")
    else:
        epochs = open_epochs(n_cells, config, n_processes=training_processes(config).size)
        patience = PATIENCE if validated and n_cells else None
    patience = config.patience or patience
    ends = "" if patience is None else f", stopping early after {patience} epochs without improvement (patience)"
    logg.info(f"    at most {epochs} epochs (max_epochs){ends}")
    return replace(config, max_epochs=epochs, patience=patience)


def has_converged(scores: Sequence[float]) -> bool | None:
    """Whether most of a run's improvement was before its last half, or its last epoch had none.

    Parameters
    ----------
    scores
        Validation score of each epoch (lower is better), preceded by that of the initial weights, if known.

    Returns
    -------
    ``None`` with fewer than three scores.
    """
    if len(scores) < 3:
        return None
    best = min(scores)
    before = min(scores[: -(-len(scores) // 2)])
    return best < scores[-1] or before - best <= STILL * (scores[0] - best)
