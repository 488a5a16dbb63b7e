"""Arguments of tasks in the signature and the docstring of a function that passes them on as ``**options``."""

from __future__ import annotations

import re
from inspect import Parameter, signature
from textwrap import indent
from typing import TYPE_CHECKING, TypeVar

from scgalore.tasks.registry import TASKS

if TYPE_CHECKING:
    from collections.abc import Callable

    from scgalore._options import Option

__all__ = ["with_task_arguments"]

F = TypeVar("F", bound="Callable[..., object]")


def with_task_arguments(function: F) -> F:
    """Add the arguments of all tasks to a function's signature, and their help in place of ``{task_arguments}``.

    Parameters
    ----------
    function
        Takes them among its ``**options``; they are shown after its ``task``.
    """
    options: dict[str, dict[Option, list[str]]] = {}  # a name may be that of several options, each of some tasks
    for task in TASKS.values():
        for option in task.arguments:
            options.setdefault(option.name, {}).setdefault(option, []).append(repr(task.name))
    own = signature(function)
    parameters = list(own.parameters.values())
    place = list(own.parameters).index("task") + 1
    parameters[place:place] = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation="Any") for name in options
    ]
    function.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    entries = []
    for name, named in options.items():
        help = " ".join(f"{option.help} For task={' or '.join(owners)}." for option, owners in named.items())
        entries.append(f"{name}\n{indent(help, '    ')}")
    if function.__doc__:  # absent under python -OO
        function.__doc__ = re.sub(
            r"^([ \t]*)\{task_arguments\}$",
            lambda match: indent("\n".join(entries), match[1]),
            function.__doc__,
            flags=re.MULTILINE,
        )
    return function
