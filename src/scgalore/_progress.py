"""Progress bars that honour ``sg.settings.progress`` and stay out of log files."""

import sys
from typing import TYPE_CHECKING, TypeVar

from scgalore._settings import settings
from scgalore._world import is_first_process

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")

__all__ = ["in_notebook", "is_shown", "progress"]


def is_shown() -> bool:
    """Whether a progress bar would be seen: wanted, and written to a terminal or a notebook."""
    # tqdm's own disable=None takes a notebook for a log file, since a kernel's stream is no terminal.
    return (
        settings.progress and is_first_process() and (in_notebook() or (sys.stderr is not None and sys.stderr.isatty()))
    )


def in_notebook() -> bool:
    """Whether the interpreter is a notebook's kernel; what has merely imported one is not."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def progress(iterable: "Iterable[T]", *, label: str, total: int | None = None) -> "Iterable[T]":
    """Wrap an iterable into a progress bar.

    Parameters
    ----------
    iterable
        What is worked through.
    label
        Words in front of the bar.
    total
        Number of items, where the iterable has no length.
    """
    from tqdm.auto import tqdm

    return tqdm(iterable, desc=label, total=total, disable=not is_shown())
