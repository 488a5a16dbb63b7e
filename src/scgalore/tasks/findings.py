"""What a task finds, in the form that the report and ``metrics.json`` take it in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData
    from matplotlib.figure import Figure

    Draw = Callable[[AnnData], Figure]

__all__ = ["Findings", "markdown_table", "with_error"]


@dataclass(frozen=True)
class Findings:
    """Scores of a run on what was held out.

    Attributes
    ----------
    metrics
        For ``metrics.json``: numbers, texts and mappings of these.
    headline
        One line for the terminal.
    sections
        Markdown, for the report.
    figures
        What each picture shows, and how it is drawn, by the name of its file.
    """

    metrics: dict[str, Any]
    headline: str
    sections: list[str]
    figures: dict[str, tuple[str, Draw]] = field(repr=False)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table that reads well as plain text, too.

    Parameters
    ----------
    header
        Names of the columns.
    rows
        Cells as text.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        f"| {' | '.join(text.ljust(width) for text, width in zip(line, widths, strict=True))} |" for line in lines
    )


def with_error(value: float, error: float, *, digits: int = 3, sign: str = "") -> str:
    """A number and its standard error, as text."""
    return f"{value:{sign}.{digits}f} ± {error:.{digits}f}"
