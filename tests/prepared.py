"""What a task hands to ``CellModel.fit``, from cells that a test has made ready."""

from typing import Any

from scgalore.data.split import Split
from scgalore.objectives import Classification, MaskedExpression, Objective
from scgalore.tasks import TASKS, Prepared
from scgalore.tasks.classes import ClassesMemory
from scgalore.train import TrainConfig


def prepared(
    source: Any,
    split: Split | None,
    config: TrainConfig,
    *,
    classes: tuple[str, ...] = (),
    objective: Objective | None = None,
    validation: Any = None,
) -> Prepared:
    """Classes if some are named, otherwise masked expression, or an objective of the test's own."""
    task = TASKS["classes" if classes else "expression"]
    usual = Classification(len(classes)) if classes else MaskedExpression()
    memory = ClassesMemory(classes) if classes else None
    return Prepared(task, source, split, objective or usual, config, validation=validation, memory=memory)
