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
    """A kind of value: what it must be, and how it is read from the command line.

    Attributes
    ----------
    expected
        What it must be, as a clause of an error message: "it must be a positive number".
    fits
        Whether a value is of this kind.
    read
        Turns the text of a command line into a value.
    plain
        Turns a value of this kind, which may be NumPy's, into a plain one.
    is_switch
        Whether it is ``True`` or ``False``.
    record
        What is written down of a value, such as in ``uns``.
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
        What its value must be; ``None`` is accepted as well where that is the default.
    help
        For the documentation; its first sentence is for the command line.
    default
        Value when it is not given; ``None`` leaves the choice to the run.
    shown_default
        What the help shows as default in place of ``default``.
    column
        Slot of the AnnData (``"obs"``, ``"var"``, ``"layers"``, ``"obsm"`` or :data:`UNS_OR_OBSM`) that must have an entry of this
        name, if it is one.
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

    @property
    def short_help(self) -> str:
        """First sentence of the help, as plain text."""
        text = re.sub(r":\w+:`~?([^`<]*?)`", r"\1", " ".join(self.help.split())).replace("``", "")
        return re.split(r"(?<=[.]) (?=[A-Z])", text, maxsplit=1)[0]

    def check(self, value: Any) -> Any:
        """The value as a plain one.

        Raises
        ------
        OptionError
            If it is not of the right kind.
        """
        if value is None and self.default is None:
            return None
        if not self.kind.fits(value):
            optional = ", or None" if self.default is None else ""
            msg = f"{self.name}={value!r}: {self.kind.expected}{optional}."
            raise OptionError(msg)
        return self.kind.plain(value)


def declare(kind: Kind, help: str, *, default: Any = None, **more: Any) -> Any:
    """Declare a field of a dataclass as an :class:`Option`; ``more`` are further attributes of it."""
    metadata = {"option": {"kind": kind, "help": help, "default": default, **more}}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def options_of(cls: type) -> tuple[Option, ...]:
    """Options that a dataclass declares, in their order."""
    return tuple(Option(one.name, **one.metadata["option"]) for one in fields(cls) if "option" in one.metadata)


def documented(cls: C) -> C:
    """Add the options that a dataclass declares to its docstring."""
    entries = [f"{option.name}\n{indent(dedent(option.help).strip(), '    ')}" for option in options_of(cls)]
    if cls.__doc__:  # absent under python -OO
        cls.__doc__ = f"{cleandoc(cls.__doc__)}\n\nAttributes\n----------\n" + "\n".join(entries) + "\n"
    return cls


def suggestion(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for a misspelt name, or nothing."""
    close = get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def is_whole(value: Any, least: int) -> bool:
    """Whether a value is a whole number of at least ``least``; ``True`` and ``False`` are not."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def is_number(value: Any) -> bool:
    """Whether a value is a number; ``True``, ``False``, NaN and whole numbers beyond all floats are not."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(float(value))
    except OverflowError:
        return False


def is_text(value: Any) -> bool:
    """Whether a value is a string with at least one character."""
    return isinstance(value, str) and bool(value)


def are(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether a value is a sequence of values that each fit."""
    return lambda value: isinstance(value, Sequence) and not isinstance(value, str) and all(map(fits, value))


def choice(*values: str) -> Kind:
    """One of some names."""
    return Kind(f"choose one of {', '.join(map(repr, values))}", lambda value: value in values)


def whole(least: int, most: float = math.inf, *, others: tuple[Any, ...] = ()) -> Kind:
    """A whole number of at least ``least`` and at most ``most``, or one of some other values."""
    listed = "".join(f", or {other!r}" for other in others)
    limit = "" if most == math.inf else f" and at most {most:,}"
    return Kind(
        f"it must be a whole number, at least {least}{limit}{listed}",
        lambda value: value in others if isinstance(value, str) else is_whole(value, least) and value <= most,
        as_json,
        lambda value: value if isinstance(value, str) else int(value),
    )


def number(expected: str, fits: Callable[[float], bool]) -> Kind:
    """A number in some range."""
    return Kind(expected, lambda value: is_number(value) and fits(float(value)), as_json, float)


def as_json(text: str) -> Any:
    """Read a value from a command line as JSON; text needs no quotes, and ``inf`` is infinity."""
    if text in ("inf", "Infinity"):
        return math.inf
    try:
        return json.loads(text)
    except ValueError:
        return text


def comma_separated(text: str) -> list[str]:
    """Read names from a command line."""
    return [part.strip() for part in text.split(",") if part.strip()]


TEXT = Kind("it must be a non-empty string", is_text)
COUNT = whole(1)
INDEX = whole(0)
POSITIVE = number("it must be a positive number", lambda value: 0 < value < math.inf)
FRACTION = number("it must be a fraction in [0, 1)", lambda value: 0 <= value < 1)
SWITCH = Kind("it is True or False", lambda value: isinstance(value, bool), as_json, is_switch=True)
NAMES = Kind("it must be a list of names", are(is_text), comma_separated, list)
MAPPING = Kind(
    "it must be a dict of options",
    lambda value: isinstance(value, Mapping) and all(map(is_text, value)),
    as_json,
    dict,
)
