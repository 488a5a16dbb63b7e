"""Options declared once: name, default, check and help, for Python, the pipeline and the command line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from scgalore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "COUNT",
    "FRACTION",
    "INDEX",
    "LENGTHS",
    "MAPPING",
    "NAMES",
    "NUMBER",
    "POSITIVE",
    "SWITCH",
    "TEXT",
    "Kind",
    "Option",
    "choice",
    "suggestion",
]


@dataclass(frozen=True)
class Kind:
    """A kind of value: what it must be, and how it is read from the command line.

    Attributes
    ----------
    expected
        Completes the sentence "it must be ...".
    fits
        Whether a value is of this kind.
    read
        Turns the text of a command line into a value.
    is_switch
        Whether it is ``True`` or ``False``.
    """

    expected: str
    fits: Callable[[Any], bool]
    read: Callable[[str], Any] = str
    is_switch: bool = False


@dataclass(frozen=True)
class Option:
    """One option of a task, a training run or a pipeline run.

    Attributes
    ----------
    name
        Name in Python, in ``config.json`` and, with dashes, on the command line.
    kind
        What its value must be; ``None`` is accepted as well where that is the default.
    help
        One sentence for the command line and the documentation.
    default
        Value when it is not given; ``None`` leaves the choice to the run.
    shown_default
        What the help shows as default in place of ``default``.
    column
        Slot of the AnnData (``"obs"``, ``"var"`` or ``"layers"``) that must have an entry of this name.
    aliases
        Further names on the command line, without dashes in front.
    """

    name: str
    kind: Kind
    help: str
    default: Any = None
    shown_default: str | None = None
    column: str | None = None
    aliases: tuple[str, ...] = ()

    def check(self, value: Any) -> None:
        """Raise :class:`~scgalore.errors.OptionError` unless the value is of the right kind."""
        if value is None and self.default is None:
            return
        if not self.kind.fits(value):
            optional = ", or None" if self.default is None else ""
            msg = f"{self.name}={value!r}: it must be {self.kind.expected}{optional}."
            raise OptionError(msg)


def suggestion(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for a misspelt name, or nothing."""
    close = get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def is_whole(value: Any, least: int) -> bool:
    """Whether a value is a whole number of at least ``least``; ``True`` and ``False`` are not."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def is_number(value: Any) -> bool:
    """Whether a value is a number; ``True``, ``False`` and NaN are not."""
    return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(float(value))


def is_text(value: Any) -> bool:
    """Whether a value is a string with at least one character."""
    return isinstance(value, str) and bool(value)


def are(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether a value is a sequence of values that each fit."""
    return lambda value: isinstance(value, Sequence) and not isinstance(value, str) and all(map(fits, value))


def choice(*values: str) -> Kind:
    """One of some names."""
    return Kind(f"one of {', '.join(map(repr, values))}", lambda value: value in values)


def _as_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # text needs no quotes
        return text


def _comma_separated(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


TEXT = Kind("a non-empty string", is_text)
COUNT = Kind("a whole number, at least 1", lambda value: is_whole(value, 1), _as_json)
INDEX = Kind("a whole number, at least 0", lambda value: is_whole(value, 0), _as_json)
NUMBER = Kind("a number", is_number, _as_json)
POSITIVE = Kind("a positive number", lambda value: is_number(value) and value > 0, _as_json)
FRACTION = Kind("a fraction in [0, 1)", lambda value: is_number(value) and 0 <= value < 1, _as_json)
SWITCH = Kind("True or False", lambda value: isinstance(value, bool), _as_json, is_switch=True)
NAMES = Kind("a list of names", are(is_text), _comma_separated)
LENGTHS = Kind(
    "a list of whole numbers, such as [500, 1200]",
    are(lambda value: is_whole(value, 1)),
    lambda text: [_as_json(part) for part in _comma_separated(text)],
)
MAPPING = Kind(
    "a dict of options", lambda value: isinstance(value, Mapping) and all(map(is_text, value)), _as_json
)
