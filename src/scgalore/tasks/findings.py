"""Scores of a task, for the report and ``metrics.json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.figure import Figure

    Draw = Callable[[AnnData], Figure]

__all__ = ["Findings", "held_out", "markdown_table", "with_error"]


@dataclass(frozen=True)
class Findings:
    """Scores of a run on held-out data.

    Attributes
    ----------
    metrics
        Content of ``metrics.json``: numbers, texts and mappings of these.
    headline
        One line for the terminal.
    sections
        Sections of the report, in Markdown.
    figures
        Caption and drawing function of each figure, by file name.
    """

    metrics: dict[str, Any]
    headline: str
    sections: list[str]
    figures: dict[str, tuple[str, Draw]] = field(repr=False)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table with aligned columns.

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


def held_out(metrics: pd.DataFrame) -> tuple[str, pd.Series]:
    """Name and scores of the split that says most: test, else validation, else training cells.

    Parameters
    ----------
    metrics
        One row per split.
    """
    part = next(part for part in ("test", "validation", "train") if part in metrics.index)
    scores: Any = metrics.loc[part]
    return part, scores


def with_error(value: float, error: float, *, digits: int = 3, sign: str = "") -> str:
    """Format a number and its standard error."""
    return f"{value:{sign}.{digits}f} ± {error:.{digits}f}"
