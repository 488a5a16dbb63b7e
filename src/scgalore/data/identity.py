"""How configurations are written into what makes a run, such that a difference can be named."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

__all__ = ["KIND", "parts_of"]

KIND = "kind"
"""Field of an entry that has fields, such as a configuration: what it is one of. Fields of one kind are compared one by one."""

PLAIN = (bool, int, float, str, type(None))


def parts_of(thing: Any, kind: str | None = None) -> Any:
    """Fields of a dataclass as numbers and texts, for an entry of what makes a run; of anything else its text.

    Parameters
    ----------
    thing
        A configuration, for example.
    kind
        What it is one of; the name of its class when left out.
    """
    if not is_dataclass(thing):
        return repr(thing)
    values = {field.name: getattr(thing, field.name) for field in fields(thing)}
    # Not NumPy's scalars, which a checkpoint cannot hold, nor NaN, which is not the same as itself.
    plain = {name: value if type(value) in PLAIN and value == value else repr(value) for name, value in values.items()}
    return {KIND: kind or type(thing).__name__, **plain}
