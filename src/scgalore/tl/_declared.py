"""Decorators that add declared options to the signature and docstring of a function that takes ``**options``."""

from __future__ import annotations

import re
from inspect import Parameter, signature
from textwrap import dedent, indent
from typing import TYPE_CHECKING, TypeVar

from scgalore._options import options_of
from scgalore.tasks.registry import TASKS
from scgalore.train.config import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scgalore._options import Option

__all__ = ["TRAINING", "with_options_of", "with_task_arguments", "with_training_options"]

TRAINING = ("max_epochs", "batch_size", "lr", "max_length", "patience", "precision", "curriculum", "accelerator")
"""Fields of :class:`~scgalore.train.TrainConfig` that functions show as parameters; all others are ``**options``."""

F = TypeVar("F", bound="Callable[..., object]")


def with_task_arguments(function: F) -> F:
    """Add the arguments of all tasks to a function's signature, and their help in place of ``{task_arguments}``.

    Parameters
    ----------
    function
        Function that takes the arguments in its ``**options``; they are shown after ``task``.
    """
    options: dict[str, dict[Option, list[str]]] = {}  # options of different tasks may share a name
    for task in TASKS.values():
        for option in task.arguments:
            options.setdefault(option.name, {}).setdefault(option, []).append(repr(task.name))
    helps = {
        name: " ".join(f"{option.help} For task={' or '.join(owners)}." for option, owners in named.items())
        for name, named in options.items()
    }
    return _add(function, dict.fromkeys(helps), helps, after="task", place="task_arguments")


def with_training_options(function: F) -> F:
    """Put the help of the training options among a function's parameters in place of ``{training_options}``.

    Their defaults in the signature are those declared by :class:`~scgalore.train.TrainConfig`, or ``None`` if tasks or settings
    have other ones, which the help lists.

    Parameters
    ----------
    function
        Has some of :data:`TRAINING` as parameters.
    """
    shown = signature(function).parameters
    declared = {option.name: option for option in options_of(TrainConfig)}
    return _fill(
        function, {name: training_help(declared[name]) for name in TRAINING if name in shown}, "training_options"
    )


def training_help(option: Option) -> str:
    """Help of a training option with the defaults of the tasks that have their own."""
    text = " ".join(dedent(option.help).split())
    of_tasks = [
        f"{one.training[option.name]!r} for ``task={name!r}``"
        for name, one in TASKS.items()
        if option.name in one.training
    ]
    if option.name == "accelerator":
        return f"{text} ``None`` is ``sg.settings.accelerator``."
    if not of_tasks:
        return text
    default = [] if option.default is None else [f"{option.default!r} for others"]
    return f"{text} Default: {', '.join([*of_tasks, *default])}."


def with_options_of(cls: type, *, after: str) -> Callable[[F], F]:
    """Add the options that a dataclass declares to a function's signature, and their help in place of ``{options}``.

    Parameters
    ----------
    cls
        The dataclass.
    after
        Parameter of the function after which the options are shown.
    """
    declared = options_of(cls)
    helps = {option.name: dedent(option.help).strip() for option in declared}
    return lambda function: _add(
        function, {option.name: option.default for option in declared}, helps, after=after, place="options"
    )


def _add(function: F, defaults: Mapping[str, object], helps: Mapping[str, str], *, after: str, place: str) -> F:
    own = signature(function)
    parameters = list(own.parameters.values())
    at = list(own.parameters).index(after) + 1
    parameters[at:at] = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation="Any") for name, default in defaults.items()
    ]
    function.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    return _fill(function, helps, place)


def _fill(function: F, helps: Mapping[str, str], place: str) -> F:
    entries = [f"{name}\n{indent(help, '    ')}" for name, help in helps.items()]
    if function.__doc__:  # absent under python -OO
        function.__doc__ = re.sub(
            rf"^([ \t]*)\{{{place}\}}$",
            lambda match: indent("\n".join(entries), match[1]),
            function.__doc__,
            flags=re.MULTILINE,
        )
    return function
