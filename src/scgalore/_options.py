"""Options declared once: name, default, check and help, for Python, the pipeline and the command line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from inspect import cleandoc
from numbers import Integral, Real
from textwrap import dedent, indent
from typing import TYPE_CHECKING, Any, TypeVar

from scgalore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "COUNT",
    "FRACTION",
    "INDEX",
    "MAPPING",
    "NAMES",
    "POSITIVE",
    "SWITCH",
    "TEXT",
    "UNS_OR_OBSM",
    "Kind",
    "Option",
    "as_json",
    "choice",
    "comma_separated",
    "declare",
    "documented",
    "is_whole",
    "number",
    "options_of",
    "suggestion",
    "whole",
]


C = TypeVar("C", bound=type)

UNS_OR_OBSM = "uns or obsm"
"""Slots of an entry that may be in either."""


@dataclass(frozen=True)
class Kind:
    """Type of an option's value: how it is checked, and how it is read from the command line.

    Attributes
    ----------
    expected
        Requirement, as a clause of an error message: "it must be a positive number".
    fits
        Whether a value is of this kind.
    read
        Parses the text from a command line.
    plain
        Converts a value of this kind, which may be a NumPy scalar, to a built-in type.
    is_switch
        Whether the value is ``True`` or ``False``.
    record
        Converts a value to what is recorded, for example in ``uns``.
    """

    expected: str
    fits: Callable[[Any], bool]
    read: Callable[[str], Any] = str
    plain: Callable[[Any], Any] = lambda value: value
    is_switch: bool = False
    record: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True)
class Option:
    """One option of a task, a training run or a pipeline run.

    Attributes
    ----------
    name
        Name in Python, in ``config.json`` and, with dashes, on the command line.
    kind
        Type of its value; ``None`` is also accepted if it is the default.
    help
        Text for the documentation; the command line shows its first sentence.
    default
        Default value; ``None`` if it is chosen at run time.
    shown_default
        Default that the help shows in place of ``default``.
    column
        If the value names a key: the slot of the AnnData (``"obs"``, ``"var"``, ``"layers"``, ``"obsm"`` or
        :data:`UNS_OR_OBSM`) that must have it.
    aliases
        Additional names on the command line, without leading dashes.
    """

    name: str
    kind: Kind
    help: str
    default: Any = None
    shown_default: str | None = None
    column: str | None = None
    aliases: tuple[str, ...] = ()

    @property
    def short_help(self) -> str:
        """First sentence of the help, as plain text."""
        text = re.sub(r":\w+:`~?([^`<]*?)`", r"\1", " ".join(self.help.split())).replace("``", "")
        return re.split(r"(?<=[.]) (?=[A-Z])", text, maxsplit=1)[0]

    def check(self, value: Any) -> Any:
        """Return the value, converted to a built-in type.

        Raises
        ------
        OptionError
            If the value is not of the expected kind.
        """
        if value is None and self.default is None:
            return None
        if not self.kind.fits(value):
            optional = ", or None" if self.default is None else ""
            msg = f"{self.name}={value!r}: {self.kind.expected}{optional}."
            raise OptionError(msg)
        return self.kind.plain(value)


def declare(kind: Kind, help: str, *, default: Any = None, **more: Any) -> Any:
    """Declare a field of a dataclass as an :class:`Option`; ``more`` are its other attributes."""
    metadata = {"option": {"kind": kind, "help": help, "default": default, **more}}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def options_of(cls: type) -> tuple[Option, ...]:
    """Options that a dataclass declares, in order."""
    return tuple(Option(one.name, **one.metadata["option"]) for one in fields(cls) if "option" in one.metadata)


def documented(cls: C) -> C:
    """Add the options of a dataclass to its docstring."""
    entries = [f"{option.name}\n{indent(dedent(option.help).strip(), '    ')}" for option in options_of(cls)]
    if cls.__doc__:  # absent under python -OO
        cls.__doc__ = f"{cleandoc(cls.__doc__)}\n\nAttributes\n----------\n" + "\n".join(entries) + "\n"
    return cls


def suggestion(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for a misspelt name, or nothing."""
    close = get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def is_whole(value: Any, least: int) -> bool:
    """Whether a value is an integer of at least ``least``; ``True`` and ``False`` are not."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def is_number(value: Any) -> bool:
    """Whether a value is a number; ``True``, ``False``, NaN and integers too large for a float are not."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(float(value))
    except OverflowError:
        return False


def is_text(value: Any) -> bool:
    """Whether a value is a non-empty string."""
    return isinstance(value, str) and bool(value)


def are(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Check that a value is a sequence whose items all fit."""
    return lambda value: isinstance(value, Sequence) and not isinstance(value, str) and all(map(fits, value))


def choice(*values: str) -> Kind:
    """One of the given names."""
    return Kind(f"choose one of {', '.join(map(repr, values))}", lambda value: value in values)


def whole(least: int, most: float = math.inf, *, others: tuple[Any, ...] = ()) -> Kind:
    """An integer from ``least`` to ``most``, or one of the other values."""
    listed = "".join(f", or {other!r}" for other in others)
    limit = "" if most == math.inf else f" and at most {most:,}"
    return Kind(
        f"it must be a whole number, at least {least}{limit}{listed}",
        lambda value: value in others if isinstance(value, str) else is_whole(value, least) and value <= most,
        as_json,
        lambda value: value if isinstance(value, str) else int(value),
    )


def number(expected: str, fits: Callable[[float], bool]) -> Kind:
    """A number in a range."""
    return Kind(expected, lambda value: is_number(value) and fits(float(value)), as_json, float)


def as_json(text: str) -> Any:
    """Parse a command-line value as JSON; text needs no quotes, and ``inf`` is infinity."""
    if text in ("inf", "Infinity"):
        return math.inf
    try:
        return json.loads(text)
    except ValueError:
        return text


def comma_separated(text: str) -> list[str]:
    """Parse a comma-separated list of names from a command line."""
    return [part.strip() for part in text.split(",") if part.strip()]


TEXT = Kind("it must be a non-empty string", is_text)
COUNT = whole(1)
INDEX = whole(0)
POSITIVE = number("it must be a positive number", lambda value: 0 < value < math.inf)
FRACTION = number("it must be a fraction in [0, 1)", lambda value: 0 <= value < 1)
SWITCH = Kind("it must be True or False", lambda value: isinstance(value, bool), as_json, is_switch=True)
NAMES = Kind("it must be a list of names", are(is_text), comma_separated, list)
MAPPING = Kind(
    "it must be a dict of options",
    lambda value: isinstance(value, Mapping) and all(map(is_text, value)),
    as_json,
    dict,
)
