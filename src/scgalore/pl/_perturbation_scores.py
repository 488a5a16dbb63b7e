"""Scores of predicted perturbations beside their baselines and their ceiling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from scgalore._docs import shared_parameters
from scgalore._keys import PerturbationKeys
from scgalore.data.records import read_scores_record
from scgalore.errors import MissingKeyError, OptionError
from scgalore.pl._axes import axes_or_new, show_or_return

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

CHOICE = ("pearson_delta", "pearson_centroid", "mse", "wmse", "pds_cosine", "overlap_at_N", "pr_auc", "roc_auc")
N_COLUMNS = 4
MODEL, CEILING = "C0", "C3"


@shared_parameters
def perturbation_scores(
    adata: AnnData,
    metrics: str | Sequence[str] | None = None,
    *,
    key: str = PerturbationKeys().evaluation,
    group: str = "all",
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes | list[Axes] | None:
    """Mean scores with 95 % intervals, one panel a metric: the model, every baseline, and the ceiling as a line.

    Parameters
    ----------
    {adata}
    metrics
        One metric, or several; ``None`` draws a choice of them. ``sg.get.perturbation_scores(adata)["metric"]`` has all.
    {key}
    group
        Perturbations to average over: ``"all"``, or a group of the split such as ``"combo_seen2"``.
    ax
        Axes to draw one metric on; ``None`` makes a new figure.
    {show}

    Returns
    -------
    The axes, one for each metric if ``metrics`` is not a single name, or ``None`` if the figure was shown. The line of the
    ceiling is how well half of the cells predict the other half, brought to full size, and the band its interval.

    Raises
    ------
    MissingKeyError
        If there are no scores under ``key``, or none of a metric or group.
    OptionError
        If several metrics are to be drawn on one ``ax``.

    Examples
    --------
    >>> import scgalore as sg
    >>> sg.pl.perturbation_scores(adata, "pearson_delta", group="combo_seen2")  # doctest: +SKIP
    """
    table = read_scores_record(adata, key)["summary"]
    table = _rows(table, "group", group)
    found = list(dict.fromkeys(table["metric"]))
    names = [metrics] if isinstance(metrics, str) else [name for name in metrics or CHOICE if metrics or name in found]
    panels = [_rows(table, "metric", name) for name in names or found]
    if ax is not None and len(panels) > 1:
        msg = (
            f"One ax holds one metric, and {len(panels)} are to be drawn. Pass metrics= with one name, or leave ax out."
        )
        raise OptionError(msg)
    drawn = [axes_or_new(ax, (4.2, 2.6))] if len(panels) == 1 else _grid(len(panels))
    for i, (panel, axes) in enumerate(zip(panels, drawn, strict=True)):
        _draw(axes, panel, named=i % N_COLUMNS == 0)
    drawn[0].legend(
        *drawn[0].get_legend_handles_labels(), loc="lower center", bbox_to_anchor=(0.5, 1.12), frameon=False, fontsize=8
    )
    if show_or_return(drawn[0], show=show, own_figure=ax is None) is None:
        return None
    return drawn[0] if isinstance(metrics, str) else drawn


def _rows(table: pd.DataFrame, column: str, name: str) -> pd.DataFrame:
    chosen = table[table[column].astype(str) == name]
    if len(chosen) == 0:
        found = ", ".join(dict.fromkeys(table[column].astype(str)))
        msg = f"There are no scores of {column} {name!r}; choose from {found}."
        raise MissingKeyError(msg)
    return chosen


def _grid(n: int) -> list[Axes]:
    from matplotlib import pyplot as plt

    n_columns = min(n, N_COLUMNS)
    n_rows = -(-n // n_columns)
    figure, axes = plt.subplots(
        n_rows, n_columns, figsize=(2.4 * n_columns + 1.2, 2.4 * n_rows + 0.3), layout="constrained", squeeze=False
    )
    for empty in axes.ravel()[n:]:
        figure.delaxes(empty)
    return list(axes.ravel()[:n])


def _draw(ax: Axes, panel: pd.DataFrame, *, named: bool) -> None:
    panel = panel.set_index(panel["method"].astype(str))
    rows = panel.drop(index="ceiling", errors="ignore")
    colors = [MODEL if name == "model" else "0.45" for name in rows.index]
    place = np.arange(len(rows))[::-1]
    # What is undefined for every method alike, such as the recovery of genes where none differs, is said once.
    alike = rows["n_nan"].nunique() == 1
    n_nan = int(rows["n_nan"].iloc[0]) if alike else 0
    for mean, low, high in (
        panel.loc[panel.index == "ceiling", ["mean", "low", "high"]].dropna(subset="mean").to_numpy()
    ):
        ax.axvspan(low, high, color=CEILING, alpha=0.12, linewidth=0)
        ax.axvline(mean, color=CEILING, linestyle="--", linewidth=1.2, label="ceiling of the data")
    for y, color, (name, row) in zip(place, colors, rows.iterrows(), strict=True):
        model = name == "model"
        ax.plot([row["low"], row["high"]], [y, y], color=color, linewidth=2.5 if model else 1.2, solid_capstyle="butt")
        ax.plot(row["mean"], y, "D" if model else "o", color=color, markersize=7 if model else 5)
        if row["n_nan"] and not alike:
            text = f"{int(row['n_nan'])} of {int(row['n'])} undefined"
            ax.annotate(
                text, (row["mean"], y), (0, 6), textcoords="offset points", ha="center", fontsize=6, color="0.45"
            )
    ax.set_yticks(place, labels=list(rows.index) if named else [""] * len(rows))
    for label, color in zip(ax.get_yticklabels(), colors, strict=True):
        label.set(color=color, weight="bold" if color == MODEL else "normal")
    best = panel["best"].iloc[0]
    ax.set_title(str(panel["metric"].iloc[0]), fontsize=10)
    meaning = {1.0: "higher is better", 0.0: "lower is better"}.get(best, "a count")
    meaning += f"; {n_nan} of {int(rows['n'].iloc[0])} undefined" if n_nan else ""
    ax.set_xlabel(meaning, fontsize=8, color="0.35")
    ax.set_ylim(-0.6, len(rows) - 0.3)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=4))
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False)
    ax.spines[["top", "right", "left"]].set_visible(False)
