"""Configurations as part of the identity of a run, so that differences can be reported."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

__all__ = ["KIND", "parts_of"]

KIND = "kind"
"""Field with the kind of an entry with fields, such as a configuration. Fields of the same kind are compared one by one."""

PLAIN = (bool, int, float, str, type(None))


def parts_of(thing: Any, kind: str | None = None) -> Any:
    """Fields of a dataclass as numbers and texts, for the identity of a run; the text of any other object.

    Parameters
    ----------
    thing
        A configuration, for example.
    kind
        Kind of the entry; by default the name of its class.
    """
    if not is_dataclass(thing):
        return repr(thing)
    values = {field.name: getattr(thing, field.name) for field in fields(thing)}
    # No NumPy scalars, which checkpoints do not support, and no NaN, which is not equal to itself.
    plain = {name: value if type(value) in PLAIN and value == value else repr(value) for name, value in values.items()}
    return {KIND: kind or type(thing).__name__, **plain}
