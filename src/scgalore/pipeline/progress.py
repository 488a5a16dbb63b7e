"""Progress of the stages of a run: a bar on a terminal, lines in a log file."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from scgalore._progress import is_shown
from scgalore._settings import settings
from scgalore._world import is_first_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Stages"]


class Stages:
    """Prints the start and the result of each stage to stderr.

    Parameters
    ----------
    n
        Number of stages.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.done = 0

    @contextmanager
    def stage(self, name: str, *, own_bar: bool = False) -> Iterator[Callable[[str], None]]:
        """Context of one stage; yields a function that adds a text to the closing line.

        Parameters
        ----------
        name
            Short description of the stage.
        own_bar
            Whether the stage shows its own progress bar, since two bars would interfere.
        """
        label, notes = f"[{self.done + 1}/{self.n}] {name}", list[str]()
        started = time.monotonic()
        live = is_shown() and not own_bar and sys.stderr.isatty()
        if not live:
            self.say(f"{label} ...")
        with _bar(label, self.done, self.n) if live else nullcontext():
            yield notes.append
        self.done += 1
        result = "; ".join(notes) or "done"
        self.say(f"{label if live else '     '} {result} ({time.monotonic() - started:.1f} s)")

    def say(self, line: str) -> None:
        """Print a line, only in the first of several processes."""
        if is_first_process():
            print(line, file=sys.stderr, flush=True)


@contextmanager
def _bar(label: str, done: int, n: int) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns: list[Any] = [SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(20)]
    bar = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
    with settings.override(progress=False), bar:
        bar.add_task(label, total=n, completed=done)
        yield
