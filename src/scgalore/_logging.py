"""Log messages in scanpy's format, through the standard library's logger ``"scgalore"``.

No handler and no level is installed, neither at import nor later. If :mod:`logging` is configured, its handlers receive
the records; otherwise they are printed to stderr, as Python does for warnings (:data:`logging.lastResort`). The level
is the first of these that has been set:
``sg.settings.verbosity``, the level of the logger, scanpy's verbosity if scanpy has been imported, the level of the
root logger (warnings, by default).
"""

import logging
import sys
import time
import weakref
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TextIO

from scgalore._settings import settings
from scgalore._world import is_first_process

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "HINT",
    "RESULT",
    "Step",
    "debug",
    "hint",
    "info",
    "is_news",
    "logger",
    "progress",
    "result",
    "step",
    "summarised",
    "warning",
]

HINT = 15
"""Level between information and debugging, the same number as scanpy's."""

RESULT = 25
"""Level between warnings and information: the few lines per call that are shown by default."""

logger = logging.getLogger("scgalore")

_LEVELS = (logging.ERROR, RESULT, logging.INFO, HINT, logging.DEBUG)
_NAMES = {RESULT: "RESULT", HINT: "HINT"}
_PREFIXES = {logging.WARNING: "WARNING: ", HINT: "--> ", logging.DEBUG: "    "}


class _Console(logging.StreamHandler[TextIO]):
    """Prints to the current ``sys.stderr`` (a notebook's, a test's)."""

    def format(self, record: logging.LogRecord) -> str:
        return _PREFIXES.get(record.levelno, "") + super().format(record)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


_console = _Console()


def threshold() -> int:
    """Lowest level of :mod:`logging` that is shown now."""
    if settings.verbosity is not None:
        return _LEVELS[settings.verbosity]
    if logger.level != logging.NOTSET:
        return logger.level
    scanpy_settings = getattr(sys.modules.get("scanpy"), "settings", None)
    if scanpy_settings is not None:
        return _LEVELS[min(int(scanpy_settings.verbosity), len(_LEVELS) - 1)]
    level = logger.getEffectiveLevel()
    return level if logger.hasHandlers() else min(level, RESULT)


def _emit(level: int, message: str) -> None:
    if level < threshold() or logger.disabled or (level < logging.WARNING and not is_first_process()):
        return
    # The frame above info()/warning(), so that %(funcName)s in a user's format is the function that logged the message.
    path, line, function, _ = logger.findCaller(stacklevel=3)
    record = logger.makeRecord(logger.name, level, path, line, message, (), None, function)
    record.levelname = _NAMES.get(level, record.levelname)
    if logger.hasHandlers():
        logger.handle(record)
    else:
        _console.handle(record)


_warned: set[str] | None = None
"""Warnings inside :func:`summarised`, else ``None``."""


@contextmanager
def summarised() -> "Iterator[None]":
    """Show a warning of the calls inside once, and their results only above the default verbosity; the caller sums these up."""
    global _warned
    before, _warned = _warned, set()
    try:
        yield
    finally:
        _warned = before


def warning(message: str) -> None:
    """Log a message that needs the user's attention."""
    if _warned is not None:
        if message in _warned:
            return
        _warned.add(message)
    _emit(logging.WARNING, message)


def result(message: str) -> None:
    """Log what every user wants to know: task, genes matched, split sizes, scores, where results are (verbosity 1)."""
    if _warned is None or threshold() <= logging.INFO:
        _emit(RESULT, message)


def progress(message: str) -> None:
    """Log the progress of long work where no bar is shown (verbosity 1)."""
    _emit(RESULT, message)


def info(message: str) -> None:
    """Log progress (verbosity 2)."""
    _emit(logging.INFO, message)


def hint(message: str) -> None:
    """Log details (verbosity 3)."""
    _emit(HINT, message)


def debug(message: str) -> None:
    """Log details for debugging (verbosity 4)."""
    _emit(logging.DEBUG, message)


_SAID: dict[int, set[str]] = {}


def is_news(owner: object, message: str) -> bool:
    """Whether a message is logged about an object for the first time; later calls with the same object give ``False``.

    Parameters
    ----------
    owner
        Object that the message is about. It is neither kept alive nor changed.
    message
        Text of the message.
    """
    known = _SAID.get(id(owner))
    if known is None:
        known = _SAID[id(owner)] = set()
        weakref.finalize(owner, _SAID.pop, id(owner), None)
    new = message not in known
    known.add(message)
    return new


class Step:
    """Keys that a step has written so far; see :func:`step`."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.slots: dict[str, list[str]] = {}

    def added(self, slot: str, key: str, what: str) -> None:
        """Add a key to the closing message.

        Parameters
        ----------
        slot
            Attribute of the AnnData, for example ``"obsm"``.
        key
            Key that was written.
        what
            Short description of its content.
        """
        self.keys.append(f"    {key!r}, {what} (adata.{slot})")
        self.slots.setdefault(slot, []).append(key)


@contextmanager
def step(message: str) -> "Iterator[Step]":
    """Log the start of a step, then its duration and the keys it added, as scanpy does.

    A step that raises ends without a closing message.

    Parameters
    ----------
    message
        What the step does, for example ``"embedding 700 cells with scgpt-mini"``.
    """
    result(message)
    started = time.monotonic()
    done = Step()
    yield done
    passed = timedelta(seconds=round(time.monotonic() - started))
    # What each key holds is listed from verbosity 3 (hints), as in scanpy.
    if done.keys and threshold() <= HINT:
        result("    finished: added\n" + ",\n".join(done.keys) + f" ({passed})")
    else:
        slots = [f"adata.{slot}[{', '.join(map(repr, keys))}]" for slot, keys in done.slots.items()]
        result(f"    finished ({passed})" + (f", added {', '.join(slots)}" if slots else ""))
