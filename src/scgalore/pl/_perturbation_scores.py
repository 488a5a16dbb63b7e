"""Scores of predicted perturbations with baselines and ceiling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgalore._docs import shared_parameters
from scgalore._keys import PerturbationKeys
from scgalore.data.records import read_scores_record
from scgalore.errors import MissingKeyError, OptionError
from scgalore.pl._axes import axes_or_new, finish, set_title
from scgalore.pl._colors import palette_colors, tone

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scgalore._typing import PathLike
    from scgalore.pl._colors import Palette

CHOICE = ("pearson_delta", "pearson_centroid", "mse", "wmse", "pds_cosine", "overlap_at_N", "pr_auc", "roc_auc")
N_COLUMNS = 4


@shared_parameters
def perturbation_scores(
    adata: AnnData,
    metrics: str | Sequence[str] | None = None,
    *,
    key: str = PerturbationKeys().evaluation,
    group: str = "all",
    title: str | None = None,
    palette: Palette | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | PathLike | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Mean scores with 95 % intervals, one panel per metric: the model, every baseline, and the ceiling as a line.

    Parameters
    ----------
    {adata}
    metrics
        One or several metrics; ``None`` draws a selection. ``sg.get.perturbation_scores(adata)["metric"]`` lists all.
    {key}
    group
        Perturbations to average over: ``"all"``, or a group of the split such as ``"combo_seen2"``.
    title
        Title of the plot; ``None`` writes the name of the metric. With several metrics, each has its name, and the
        title is that of the figure.
    palette
        Colors of ``"model"``, the baselines and ``"ceiling"``: a dictionary by name, a list in the order of the rows,
        or the name of a matplotlib colormap.
    ax
        Axes to draw a single metric on; ``None`` creates a new figure.
    {show}
    {save}
    {return_fig}

    Returns
    -------
    The axes, one for each metric if ``metrics`` is not a single name, the figure with ``return_fig``, or ``None`` if
    the figure was shown. The line is the ceiling: the score of half of the cells as a prediction of the other half,
    corrected to the full number of cells; the band is its interval.

    Raises
    ------
    MissingKeyError
        If there are no scores under ``key``, or none for a metric or group.
    OptionError
        If several metrics are to be drawn on one ``ax``, or ``palette`` contains something that is not a color.

    See Also
    --------
    scgalore.tl.evaluate_perturbation : Score predicted perturbations next to baselines.
    scgalore.get.perturbation_scores : Read scores of predicted perturbations as a table.
    scgalore.pl.perturbation_effect : Draw predicted against observed effects by gene.

    Examples
    --------
    Here ``adata`` contains scores by :func:`scgalore.tl.evaluate_perturbation`.

    >>> import scgalore as sg
    >>> ax = sg.pl.perturbation_scores(adata, "pearson_delta", show=False)
    """
    table = read_scores_record(adata, key)["summary"]
    table = _rows(table, "group", group)
    found = list(dict.fromkeys(table["metric"]))
    names = [metrics] if isinstance(metrics, str) else [name for name in metrics or CHOICE if metrics or name in found]
    panels = [_rows(table, "metric", name) for name in names or found]
    if ax is not None and len(panels) > 1:
        msg = f"ax= is for a single metric, but there are {len(panels)}. Pass one name as metrics=, or omit ax=."
        raise OptionError(msg)
    methods = list(dict.fromkeys(name for panel in panels for name in panel["method"].astype(str)))
    n_rows, widest = len(methods), max(map(len, methods))
    height, left = max(1.9, 0.22 * n_rows) + 0.7, 0.08 * widest
    if len(panels) == 1:
        drawn = [axes_or_new(ax, (2.8 + left, height))]
        set_title(drawn[0], title, str(panels[0]["metric"].iloc[0]))
    else:
        drawn = _grid(len(panels), height, left)
        for panel, axes in zip(panels, drawn, strict=True):
            set_title(axes, None, str(panel["metric"].iloc[0]))
        if title:
            drawn[0].figure.suptitle(title, fontsize="large")
    base = {**dict.fromkeys(methods, tone(drawn[0], 0.45)), "model": "C0", "ceiling": "C3"}
    colors = palette_colors(methods, palette, base)
    for i, (panel, axes) in enumerate(zip(panels, drawn, strict=True)):
        _draw(axes, panel, colors, named=i % N_COLUMNS == 0)
    handles, labels = drawn[0].get_legend_handles_labels()
    if handles:
        drawn[0].legend(
            handles, labels, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=2.5, frameon=False, fontsize=8
        )
    made = finish("perturbation_scores", drawn[0], ax=ax, show=show, save=save, return_fig=return_fig)
    return drawn if made is drawn[0] and not isinstance(metrics, str) else made


def _rows(table: pd.DataFrame, column: str, name: str) -> pd.DataFrame:
    chosen = table[table[column].astype(str) == name]
    if len(chosen) == 0:
        found = ", ".join(dict.fromkeys(table[column].astype(str)))
        msg = f"There are no scores for {column} {name!r}; choose from {found}."
        raise MissingKeyError(msg)
    return chosen


def _grid(n: int, height: float, left: float) -> list[Axes]:
    from matplotlib import pyplot as plt

    n_columns = min(n, N_COLUMNS)
    n_rows = -(-n // n_columns)
    figure, axes = plt.subplots(
        n_rows, n_columns, figsize=(2.2 * n_columns + left, height * n_rows + 0.3), layout="constrained", squeeze=False
    )
    for empty in axes.ravel()[n:]:
        figure.delaxes(empty)
    return list(axes.ravel()[:n])


def _draw(ax: Axes, panel: pd.DataFrame, colors: dict[str, str], *, named: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    panel = panel.set_index(panel["method"].astype(str))
    rows = panel.drop(index="ceiling", errors="ignore")
    place = np.arange(len(rows))[::-1]
    # Scores that are undefined for every method, such as the recovery of genes if none differs, are noted only once.
    alike = rows["n_nan"].nunique() == 1
    n_nan = int(rows["n_nan"].iloc[0]) if alike else 0
    for mean, low, high in (
        panel.loc[panel.index == "ceiling", ["mean", "low", "high"]].dropna(subset="mean").to_numpy()
    ):
        ax.axvspan(low, high, color=colors["ceiling"], alpha=0.12, linewidth=0)
        ax.axvline(mean, color=colors["ceiling"], linestyle="--", linewidth=1.2, label="ceiling of the data")
    box = ax.get_window_extent()
    small = min(6.0, 0.45 * box.height / len(rows) * 72 / ax.figure.dpi)  # of notes, which are between two rows
    for y, (name, row) in zip(place, rows.iterrows(), strict=True):
        model, color = name == "model", colors[str(name)]
        ax.plot([row["low"], row["high"]], [y, y], color=color, linewidth=2.5 if model else 1.2, solid_capstyle="butt")
        ax.plot(row["mean"], y, "D" if model else "o", color=color, markersize=7 if model else 5)
        if row["n_nan"] and not alike:
            text = f"{int(row['n_nan'])} of {int(row['n'])} undefined"
            ax.annotate(
                text,
                (row["mean"], y),
                (0, 3.5),
                textcoords="offset points",
                ha="center",
                fontsize=small,
                color=tone(ax, 0.4),
            )
    ax.set_yticks(place, labels=list(rows.index) if named else [""] * len(rows))
    size = min(9.0, max(4.0, 1.6 * small / 0.9))
    for name, label in zip(rows.index, ax.get_yticklabels(), strict=True):
        label.set(color=colors[name], weight="bold" if name == "model" else "normal", fontsize=size)
    best = panel["best"].iloc[0]
    meaning = {1.0: "higher is better", 0.0: "lower is better"}.get(best, "a count")
    meaning += f"; {n_nan} of {int(rows['n'].iloc[0])} undefined" if n_nan else ""
    ax.set_xlabel(meaning, fontsize=8, color=tone(ax, 0.35))
    ax.set_ylim(-0.6, len(rows) - 0.3)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=4))
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False)
    ax.spines[["top", "right", "left"]].set_visible(False)
