"""How long a run trains where that is left open: enough steps of the optimizer, and an end when validation cells gain no more.

``docs/benchmarks/classes.md`` has the measurements that the numbers were chosen by.
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
"""Steps of the optimizer that an open budget has at least, unless they take more than :data:`MOST_EPOCHS`."""

FEWEST_EPOCHS, MOST_EPOCHS = 10, 100

PATIENCE = 5
"""Epochs without a better validation score that end a run whose budget is open."""

STILL = 0.02
"""Share of all that a run has gained that its last half may have gained, if it is to count as converged."""


def open_epochs(n_cells: int | None, config: TrainConfig, *, n_processes: int = 1) -> int:
    """Epochs of a run that were left open.

    Parameters
    ----------
    n_cells
        Training cells; ``None`` where they are not known.
    config
        How to train. A batch size that is still to be chosen counts as the default, since the cells of a step stay the same.
        Caps on tokens only make more steps of an epoch.
    n_processes
        Processes that train together, each on its own batches.
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
    """Choose ``max_epochs`` where it is left open, and with it the ``patience``; one that is given is as it is.

    Parameters
    ----------
    config
        How to train.
    n_cells
        Training cells; ``None`` for a stream, which has a fixed number of epochs and trains all of them.
    validated
        Whether there are validation cells to be patient with.
    begun
        Settings of the run that is continued, which keeps its own budget.
    """
    if config.max_epochs is not None:
        return config
    if begun is not None and "max_epochs" in begun:
        epochs, patience = begun["max_epochs"], begun.get("patience")
    else:
        epochs = open_epochs(n_cells, config, n_processes=training_processes(config).size)
        patience = PATIENCE if validated and n_cells else None
    patience = config.patience or patience
    ends = "" if patience is None else f", fewer if {patience} in a row (patience) do not help"
    logg.info(f"    at most {epochs} epochs (max_epochs){ends}")
    return replace(config, max_epochs=epochs, patience=patience)


def has_converged(scores: Sequence[float]) -> bool | None:
    """Whether a run has gained most of what it gained before its last half, or nothing in its last epoch.

    Parameters
    ----------
    scores
        Validation score of each epoch, lower is better; that of the start before them, if there is one.

    Returns
    -------
    ``None`` where fewer than three scores do not tell.
    """
    if len(scores) < 3:
        return None
    best = min(scores)
    before = min(scores[: -(-len(scores) // 2)])
    return best < scores[-1] or before - best <= STILL * (scores[0] - best)
