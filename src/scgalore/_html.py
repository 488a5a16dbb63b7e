"""Tables for notebooks."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["html_table"]


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, notes: Iterable[str] = ()) -> str:
    """Table whose first column is text and whose others are numbers, in the style that notebooks give tables.

    Parameters
    ----------
    header
        Name of each column.
    rows
        Cells as text, of the same length.
    notes
        Lines below the table.
    """

    def cells(tag: str, texts: Sequence[str]) -> str:
        sides = ["left", *["right"] * (len(texts) - 1)]
        parts = (
            f'<{tag} style="text-align: {side}">{escape(text)}</{tag}>' for side, text in zip(sides, texts, strict=True)
        )
        return f"<tr>{''.join(parts)}</tr>"

    body = "".join(cells("td", row) for row in rows)
    below = "".join(f"<div>{escape(note)}</div>" for note in notes)
    return f"<table><thead>{cells('th', header)}</thead><tbody>{body}</tbody></table>{below}"
