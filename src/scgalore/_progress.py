"""Progress of long work: a bar on a terminal or in a notebook, and a line every so often in a log file."""

import sys
import time
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from scgalore import _logging as logg
from scgalore._settings import settings
from scgalore._words import duration
from scgalore._world import is_first_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType
    from typing import Self

T = TypeVar("T")

__all__ = ["Progress", "in_notebook", "is_shown", "progress"]

DELAY = 1.0
"""Seconds before a bar appears, so that short work leaves none behind."""

EVERY = 30.0
"""Seconds between two lines. In long work, a twentieth of the time so far."""


def is_shown() -> bool:
    """Whether a progress bar would be seen: wanted, and written to a terminal or a notebook."""
    # tqdm's own disable=None takes a notebook for a log file, since the stream of a kernel is not a terminal.
    return (
        settings.progress and is_first_process() and (in_notebook() or (sys.stderr is not None and sys.stderr.isatty()))
    )


def in_notebook() -> bool:
    """Whether the interpreter is the kernel of a notebook; importing IPython does not make it one."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


class Progress:
    """Show how much of some work is done.

    Parameters
    ----------
    label
        What is worked on, in front of the bar.
    total
        Amount of work; ``None`` if it is not known. May be set later.
    unit
        What is counted. ``"B"`` scales to kB, MB and GB.
    shown
        Whether to show a bar; by default where one would be seen (:func:`is_shown`). Without a bar, lines are logged at
        the default verbosity unless ``sg.settings.progress`` is off.
    """

    def __init__(self, label: str, total: int | None = None, *, unit: str = "", shown: bool | None = None) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.n, self.note = 0, ""
        self._started = time.monotonic()
        self._due = self._started + EVERY
        self._bar = _bar(label, total, unit) if (is_shown() if shown is None else shown) else None
        self._lines = settings.progress and self._bar is None and shown is not False

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        self.close()

    def update(self, n: int) -> None:
        """Count further work.

        Parameters
        ----------
        n
            Amount of work that was done since the last call.
        """
        self.n += n
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.set_postfix_str(self.note, refresh=False)
            self._bar.update(n)
        elif self._lines and (now := time.monotonic()) >= self._due:
            spent = now - self._started
            self._due = now + max(EVERY, spent / 20)
            logg.progress(f"    {self._line(spent)}")

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()

    def _line(self, spent: float) -> str:
        unit = f" {self.unit}" if self.unit else ""
        note = f"; {self.note}" if self.note else ""
        if not self.total or not self.n:
            return f"{self.label}: {self.n:,}{unit} after {duration(spent)}{note}"
        left = duration(spent * max(self.total - self.n, 0) / self.n)
        return f"{self.label}: {self.n:,} of {self.total:,}{unit} ({self.n / self.total:.0%}), {left} left{note}"


def progress(
    iterable: "Iterable[T]", *, label: str, total: int | None = None, size: "Callable[[T], int] | None" = None
) -> "Iterator[T]":
    """Show progress while items are worked through.

    Parameters
    ----------
    iterable
        Items to work through.
    label
        What they are, in front of the bar.
    total
        Number of items, or the sum of their sizes; ``None`` if it is not known.
    size
        What an item counts for; one by default.
    """
    with Progress(label, total) as shown:
        for item in iterable:
            yield item
            shown.update(1 if size is None else size(item))


def _bar(label: str, total: int | None, unit: str) -> Any:
    # tqdm.auto does the same, and warns where a notebook has no ipywidgets.
    tqdm = import_module("tqdm.notebook" if in_notebook() and find_spec("ipywidgets") is not None else "tqdm")
    in_bytes = unit == "B"
    return tqdm.tqdm(
        total=total,
        desc=label,
        unit=unit if in_bytes else f" {unit or label}",
        unit_scale=in_bytes,
        delay=0.0 if in_bytes else DELAY,
    )
