"""Integration scores as a table, as in scib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps

from scgalore._docs import shared_parameters
from scgalore._keys import IntegrationKeys
from scgalore.data.records import read_integration_record
from scgalore.pl._axes import axes_or_new, finish, set_title
from scgalore.pl._colors import ink_on, tone

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

    from scgalore._typing import PathLike

GROUPS = {"bio": "Bio conservation", "batch": "Batch correction", "other": "Not in a mean", "mean": "Means"}
COLORS = {"bio": "Greens", "batch": "Blues", "other": "Greys", "mean": "Purples"}
GAP = 0.3
"""Between groups of columns; a column has the width 1."""
SHORT = 0.3
"""Bars up to here end before the middle of their number."""


@shared_parameters
def integration_scores(
    adata: AnnData,
    *,
    key: str = IntegrationKeys().uns,
    title: str | None = None,
    cmap: str | Mapping[str, str] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | PathLike | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Table of scores: embeddings in rows, best total first; scores as circles, and their means as bars.

    The colour scale is 0 to 1 in every column, so that small differences look small. The best value of a column is
    bold.

    Parameters
    ----------
    {adata}
    {key}
    {title}
    cmap
        Name of a matplotlib colormap for all columns, or a dictionary with one for ``"bio"``, ``"batch"``, ``"other"`` and
        ``"mean"``; ``None`` uses green, blue, grey and purple.
    {ax}
    {show}
    {save}
    {return_fig}

    Returns
    -------
    The axes, the figure with ``return_fig``, or ``None`` if the figure was shown. A dash is a score that is undefined for these batches and labels.

    Raises
    ------
    DataError
        If ``adata`` is not an AnnData.
    MissingKeyError
        If there are no scores under ``key``.

    See Also
    --------
    scgalore.tl.evaluate_integration : Score embeddings by batch mixing and separation of labels.
    scgalore.get.integration_scores : Read integration scores as a table.

    Examples
    --------
    Here ``adata`` contains scores by :func:`scgalore.tl.evaluate_integration`.

    >>> import scgalore as sg
    >>> ax = sg.pl.integration_scores(adata, show=False)
    """
    record = read_integration_record(adata, key)
    scores, columns = record["scores"], record["columns"].astype(str)
    # Stable sort, with rows without a total last.
    scores = scores.iloc[np.argsort(-scores["total"].fillna(-1).to_numpy(), kind="stable")]
    places = _places(columns["group"].tolist())
    widest = max(len(str(name)) for name in scores.index)
    size = (0.8 * (places[-1] + 1) + 0.09 * widest + 0.3, 0.5 * len(scores) + 1.3)
    axes = axes_or_new(ax, size)
    _frame(axes, scores, columns, places)
    maps = dict.fromkeys(COLORS, cmap) if isinstance(cmap, str) else {**COLORS, **(cmap or {})}
    for x, name in zip(places, columns.index, strict=True):
        group = columns.loc[name, "group"]
        _column(axes, scores[name].to_numpy(dtype=np.float64), x, bars=group == "mean", cmap=maps.get(group, "Greys"))
    set_title(axes, title)
    return finish("integration_scores", axes, ax=ax, show=show, save=save, return_fig=return_fig)


def _places(groups: list[str]) -> np.ndarray:
    """Centre of each column, with gaps between groups."""
    new = [before != after for before, after in zip(groups, groups[1:], strict=False)]
    return np.arange(len(groups)) + GAP * np.concatenate([[0], np.cumsum(new)])


def _frame(ax: Axes, scores: pd.DataFrame, columns: pd.DataFrame, places: np.ndarray) -> None:
    """Draw the names of rows, columns and groups, and separating lines."""
    n_rows = len(scores)
    ax.set_xlim(places[0] - 0.6, places[-1] + 0.6)
    ax.set_ylim(n_rows - 0.5, -1.9)
    ax.set_yticks(np.arange(n_rows), labels=list(map(str, scores.index)))
    ax.set_xticks([])
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    for x, title in zip(places, columns["title"], strict=True):
        ax.text(x, -0.6, title.replace(" ", "\n", 1), ha="center", va="bottom", fontsize=8)
    groups = columns["group"].to_numpy()
    for group in dict.fromkeys(groups):
        here = places[groups == group]
        ax.plot([here[0] - 0.45, here[-1] + 0.45], [-1.4, -1.4], color=tone(ax, 0.4), linewidth=0.8)
        title = GROUPS.get(group, group)
        ax.text(
            here.mean(),
            -1.5,
            title if len(here) > 1 else title.replace(" in ", "\nin "),
            ha="center",
            va="bottom",
            fontsize=9,
        )
    for y in np.arange(n_rows):
        ax.axhline(y - 0.5, color=tone(ax, 0.4 if y == 0 else 0.8), linewidth=0.8 if y == 0 else 0.5, zorder=0)


def _column(ax: Axes, values: np.ndarray, x: float, *, bars: bool, cmap: str) -> None:
    shades = colormaps[cmap]
    shown = np.round(values, 2)
    best = np.nanmax(shown) if np.isfinite(shown).any() else np.nan
    for y, (value, written) in enumerate(zip(values, shown, strict=True)):
        if np.isnan(value):
            ax.text(x, y, "–", ha="center", va="center", fontsize=8, color=tone(ax, 0.5))
            continue
        bold = "bold" if written == best and len(values) > 1 else "normal"
        color = _shade(shades, value)
        look: dict[str, Any] = {"va": "center", "fontsize": 8, "weight": bold}
        if bars:
            # The rest of the bar is pale in every style, so that numbers can be read on both.
            ax.barh(y, 0.9, left=x - 0.45, height=0.55, color=shades(0.02), edgecolor=tone(ax, 0.7), linewidth=0.6)
            ax.barh(y, 0.9 * np.clip(value, 0, 1), left=x - 0.45, height=0.55, color=color)
            ax.text(
                x - 0.4, y, f"{value:.2f}", ha="left", color=ink_on(color if value > SHORT else shades(0.02)), **look
            )
        else:
            ax.scatter(x, y, s=430, color=[color], edgecolors=tone(ax, 0.7), linewidths=0.4)
            ax.text(x, y, f"{value:.2f}", ha="center", color=ink_on(color), **look)


def _shade(cmap: Colormap, value: float) -> tuple[float, float, float, float]:
    return cmap(0.05 + 0.8 * float(np.clip(value, 0, 1)))
