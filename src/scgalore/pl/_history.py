"""Loss by epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.ticker import MaxNLocator

from scgalore._docs import shared_parameters
from scgalore.errors import MissingKeyError
from scgalore.pl._axes import axes_or_new, show_or_return
from scgalore.pl._results import read_result

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

PARTS = {"train": "training", "validation": "validation"}


@shared_parameters
def history(
    adata: AnnData,
    *,
    key: str = "finetune",
    metric: str = "loss",
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes | None:
    """Training and validation loss by epoch, as :func:`scgalore.tl.finetune` recorded them.

    Training values are means over an epoch, with dropout and changing weights; validation values are taken at its end.
    The epoch whose weights were kept is marked where validation cells have chosen it. With a curriculum, lines stand where
    training begins to show more genes, whose number is written beside them.

    Parameters
    ----------
    {adata}
    {key}
    metric
        Quantity to draw: ``"loss"``, or what else was recorded, such as ``"accuracy"``.
    {ax}
    show
        Whether to show the figure and return nothing. ``None`` does so for a new figure, unless ``sc.settings.autoshow``
        is off.

    Returns
    -------
    The axes, or ``None`` if the figure was shown.

    Raises
    ------
    MissingKeyError
        If nothing was trained under ``key``, or the metric was not recorded.

    Examples
    --------
    >>> import scanpy as sc, scgalore as sg
    >>> adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    >>> model = sg.tl.finetune(adata, "scgpt-mini", labels_key="bulk_labels", max_epochs=2)
    >>> ax = sg.pl.history(adata, metric="accuracy", show=False)
    """
    result = read_result(adata, key)
    table = _table(result.get("history"), key)
    columns = {part: f"{part}_{metric}" for part in PARTS if f"{part}_{metric}" in table}
    if not columns:
        metrics = sorted({str(name).partition("_")[2] for name in table if str(name).partition("_")[0] in PARTS})
        msg = f"No {metric!r} was recorded in adata.uns[{key!r}]['history']; choose metric from {metrics}."
        raise MissingKeyError(msg)
    drawn = axes_or_new(ax, (5.0, 3.5))
    for part, column in columns.items():
        values = table[column].dropna()
        drawn.plot(values.index, values, marker="o", markersize=4, label=PARTS[part])
    if "validation_loss" in table:
        best = int(result["training"]["best_epoch"])
        kept = table.loc[table.index == best, columns["validation" if "validation" in columns else "train"]]
        label = f"weights kept (epoch {best})" if len(kept) else "weights kept: those of the start"
        drawn.plot(kept.index, kept, "o", markersize=11, fillstyle="none", color="0.3", label=label)
    _mark_phases(drawn, table)
    drawn.set(xlabel="epoch", ylabel=metric.replace("_", " "))
    drawn.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    drawn.spines[["top", "right"]].set_visible(False)
    drawn.legend(frameon=False)
    return show_or_return(drawn, show=show, own_figure=ax is None)


def _mark_phases(drawn: Axes, table: pd.DataFrame) -> None:
    if "n_genes" not in table:
        return
    began = table["n_genes"][table["n_genes"].diff() != 0]
    for epoch, n_genes in began.items():
        at = float(epoch) - 0.5  # type: ignore[arg-type] # epochs are numbers
        if epoch != table.index[0]:
            drawn.axvline(at, color="0.7", linewidth=0.8, linestyle=":", zorder=0)
        # Above the axes, where no curve is.
        where: dict[str, Any] = {"xytext": (0, 3), "xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        drawn.annotate(f"{n_genes:,.0f} genes", (max(at, 0), 1), **where, ha="left", fontsize="x-small", color="0.4")


def _table(table: Any, key: str) -> pd.DataFrame:
    if not isinstance(table, pd.DataFrame) or len(table) == 0:
        msg = f"adata.uns[{key!r}] holds no history of a training. Pass the key that sg.tl.finetune wrote under."
        raise MissingKeyError(msg)
    return table
