"""Registry of the tasks for ``task="..."``.

To add one, write a :class:`~scgalore.tasks.base.Task` in its own file and add an instance to :data:`TASKS`: it is then
available in training, saving, loading, memory estimates, the pipeline and the command line like the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scgalore._options import suggestion
from scgalore.errors import OptionError
from scgalore.tasks.call import TrainingCall
from scgalore.tasks.classes import Classes
from scgalore.tasks.expression import Expression
from scgalore.tasks.integration import Integration
from scgalore.tasks.multiomic import Multiomic
from scgalore.tasks.perturbation.task import Perturbation
from scgalore.tasks.regression import Regression
from scgalore.train.config import TrainConfig
from scgalore.train.processes import training_processes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scgalore.tasks.base import Task

__all__ = ["DEFAULT", "TASKS", "argument_names", "choose_task", "resolve_call", "task_named"]

TASKS: dict[str, Task] = {
    task.name: task for task in (Classes(), Regression(), Expression(), Perturbation(), Integration(), Multiomic())
}

DEFAULT = Expression.name
"""Task of a call without a task or the key argument of one."""


def task_named(name: str) -> Task:
    """Entry of :data:`TASKS` with this name.

    Raises
    ------
    OptionError
        If there is none.
    """
    if name not in TASKS:
        msg = f"task={name!r}: choose one of {', '.join(map(repr, TASKS))}, or None.{suggestion(str(name), TASKS)}"
        raise OptionError(msg)
    return TASKS[name]


def argument_names() -> dict[str, list[str]]:
    """Names of all task arguments, with the tasks that have them."""
    found: dict[str, list[str]] = {}
    for task in TASKS.values():
        for option in task.arguments:
            found.setdefault(option.name, []).append(task.name)
    return found


def choose_task(name: str | None, given: Mapping[str, Any]) -> Task:
    """Choose the task of a call and check that no arguments of other tasks are given.

    Parameters
    ----------
    name
        Name of the task; ``None`` chooses the task whose key argument is given, else :data:`DEFAULT`.
    given
        Task arguments; ``None`` counts as not given.

    Raises
    ------
    OptionError
        If the task does not exist, several are requested, or an argument belongs to another task.
    """
    passed = {argument: value for argument, value in given.items() if value is not None}
    if name is None:
        asked = [task for task in TASKS.values() if task.key in passed]
        if len(asked) > 1:
            keys = " and ".join(f"{task.key}={passed[task.key]!r}" for task in asked if task.key is not None)
            msg = f"{keys}: these belong to different tasks ({', '.join(task.name for task in asked)}). Omit one, or pass task=."
            raise OptionError(msg)
        name = asked[0].name if asked else DEFAULT
    task = task_named(name)
    own = {option.name for option in task.arguments}
    for argument, value in passed.items():
        if argument not in own:
            owners = " or ".join(f"task={owner!r}" for owner in argument_names()[argument])
            msg = f"{argument}={value!r} is an argument of {owners}, but the task is {name!r}. Pass that task, or omit {argument}=."
            raise OptionError(msg)
    return task


def resolve_call(
    options: Mapping[str, Any], *, task: str | None, seed: int, function: Callable[..., Any], **read: Any
) -> tuple[Task, TrainingCall]:
    """Separate options into task arguments and training options, and check all of them.

    Parameters
    ----------
    options
        Arguments of tasks and fields of :class:`~scgalore.train.TrainConfig`; ``None`` stands for the default.
    task
        Name of the task; ``None`` chooses it by the given arguments.
    seed
        Seed for all random draws.
    function
        Function called by the user, whose parameters are suggested for misspelt options.
    **read
        Other attributes of :class:`~scgalore.tasks.TrainingCall`.

    Raises
    ------
    OptionError
        If an option does not exist, has a value out of range, or belongs to another task.
    """
    of_tasks = argument_names()
    given = {name: value for name, value in options.items() if name in of_tasks}
    chosen = choose_task(task, given)
    asked = {name: value for name, value in options.items() if name not in of_tasks and value is not None}
    training = {**chosen.training, **asked}
    config = TrainConfig.from_call(training, seed=seed, function=function)
    training_processes(config)  # before anything is read
    return chosen, TrainingCall(chosen.check(given), config, training, **read)
