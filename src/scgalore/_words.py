"""Formatting of names and durations for messages."""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["duration", "few", "format_bytes", "seconds_of"]

UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


def few(names: Iterable[str], n: int = 3) -> str:
    """Quote the first few names of a list, for a message.

    Parameters
    ----------
    names
        All names.
    n
        Maximum number of names to show.
    """
    shown = [repr(str(name)) for name in islice(names, n + 1)]
    return ", ".join(shown[:n]) + (", ..." if len(shown) > n else "")


def format_bytes(n_bytes: int) -> str:
    """Write a number of bytes with its decimal unit: "16.38 kB", "3.54 MB", "1.20 GB".

    Parameters
    ----------
    n_bytes
        How many; a difference may be negative.
    """
    size, unit = next(((s, u) for s, u in ((1e9, "GB"), (1e6, "MB")) if abs(n_bytes) >= s), (1e3, "kB"))
    return f"{n_bytes / size:.2f} {unit}"


def duration(seconds: float) -> str:
    """Format a duration: "40 s", "12 min", "2 h 05 min".

    Parameters
    ----------
    seconds
        Duration in seconds.
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def seconds_of(text: str) -> float | None:
    """Parse a duration such as ``"40 s"``, ``"30min"`` or ``"1.5 h"`` to seconds; ``None`` if the text is not one.

    Parameters
    ----------
    text
        A positive number and its unit.
    """
    found = re.fullmatch(rf"\s*(\d+(?:\.\d+)?)\s*({'|'.join(UNITS)})\s*", text)
    return None if found is None else float(found[1]) * UNITS[found[2]] or None
