"""Train a model on cells that a benchmark has made ready itself, without an AnnData and its checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgalore.tasks import TASKS, Prepared
from scgalore.tasks.classes import ClassesMemory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgalore.data.cells import TokenCells
    from scgalore.data.split import Split
    from scgalore.model import SCGPT
    from scgalore.train import TrainConfig


def fit(model: SCGPT, cells: TokenCells, split: Split, config: TrainConfig, classes: Sequence[str] = ()) -> None:
    """Train to predict the classes, or masked expression where there are none."""
    task = TASKS["classes" if classes else "expression"]
    memory = ClassesMemory(tuple(classes)) if classes else None
    objective = task.objective(model.network, memory)
    model.fit(Prepared(task, cells, split, objective, config, memory=memory))
