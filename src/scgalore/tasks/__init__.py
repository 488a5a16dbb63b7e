"""Training tasks, listed in :data:`TASKS`."""

from scgalore.tasks.base import Prepared, Task, TaskMemory, TaskModel
from scgalore.tasks.call import TrainingCall
from scgalore.tasks.cells import CellTargets, CellTask
from scgalore.tasks.findings import Findings
from scgalore.tasks.registry import TASKS, task_named

__all__ = [
    "TASKS",
    "CellTargets",
    "CellTask",
    "Findings",
    "Prepared",
    "Task",
    "TaskMemory",
    "TaskModel",
    "TrainingCall",
    "task_named",
]
