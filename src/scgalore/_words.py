"""Pieces of sentences that messages are made of."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["few"]


def few(names: Iterable[str], n: int = 3) -> str:
    """Quote the first names of many for a message.

    Parameters
    ----------
    names
        Names to choose from.
    n
        How many to show.
    """
    shown = [repr(str(name)) for name in islice(names, n + 1)]
    return ", ".join(shown[:n]) + (", ..." if len(shown) > n else "")
