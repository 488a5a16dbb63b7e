"""Losses and metrics by epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from scgalore._docs import shared_parameters
from scgalore.errors import MissingKeyError
from scgalore.pl._axes import axes_or_new, finish, set_title
from scgalore.pl._colors import palette_colors, tone
from scgalore.pl._results import read_result

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scgalore._typing import PathLike
    from scgalore.pl._colors import Palette

PARTS = {"train": "training", "validation": "validation"}


@shared_parameters
def history(
    adata: AnnData,
    *,
    key: str = "finetune",
    metric: str = "loss",
    title: str | None = None,
    palette: Palette | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | PathLike | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Training and validation loss by epoch, as :func:`scgalore.tl.finetune` recorded them.

    Training values are means over an epoch, with dropout and changing weights; validation values are computed at its
    end. The epoch whose weights were kept is marked if it was selected on validation cells. With a curriculum, vertical
    lines mark where the number of genes increases.

    Parameters
    ----------
    {adata}
    {key}
    metric
        Quantity to draw: ``"loss"``, or another recorded one, such as ``"accuracy"``.
    {title}
    palette
        Colors of ``"training"`` and ``"validation"``: a list of them, a dictionary, or the name of a matplotlib colormap.
    {ax}
    {show}
    {save}
    {return_fig}

    Returns
    -------
    The axes, the figure with ``return_fig``, or ``None`` if the figure was shown.

    Raises
    ------
    OptionError
        If ``palette`` contains something that is not a color.
    MissingKeyError
        If there is no training history under ``key``, or the metric was not recorded.

    See Also
    --------
    scgalore.tl.finetune : Fine-tune a model on your cells.
    scgalore.pl.confusion_matrix : Draw true and predicted labels.

    Examples
    --------
    >>> import scanpy as sc, scgalore as sg
    >>> adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    >>> model = sg.tl.finetune(adata, "scgpt-mini", labels_key="bulk_labels", max_epochs=2)
    >>> ax = sg.pl.history(adata, metric="accuracy", show=False)
    """
    from matplotlib.ticker import MaxNLocator

    result = read_result(adata, key)
    table = _table(result.get("history"), key)
    columns = {part: f"{part}_{metric}" for part in PARTS if f"{part}_{metric}" in table}
    if not columns:
        metrics = sorted({str(name).partition("_")[2] for name in table if str(name).partition("_")[0] in PARTS})
        msg = f"No {metric!r} was recorded in adata.uns[{key!r}]['history']; choose metric from {metrics}."
        raise MissingKeyError(msg)
    names = [PARTS[part] for part in columns]
    colors = palette_colors(names, palette, {name: f"C{i}" for i, name in enumerate(names)})
    drawn = axes_or_new(ax, (5.0, 3.5))
    for part, column in columns.items():
        values = table[column].dropna()
        drawn.plot(values.index, values, marker="o", markersize=4, color=colors[PARTS[part]], label=PARTS[part])
    if "validation_loss" in table:
        best = int(result["training"]["best_epoch"])
        kept = table.loc[table.index == best, columns["validation" if "validation" in columns else "train"]]
        label = f"weights kept (epoch {best})" if len(kept) else "weights kept: initial"
        drawn.plot(kept.index, kept, "o", markersize=11, fillstyle="none", color=tone(drawn, 0.3), label=label)
    drawn.set(xlabel="epoch", ylabel=metric.replace("_", " "))
    drawn.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    drawn.spines[["top", "right"]].set_visible(False)
    drawn.legend(frameon=False)
    # Above the names of the phases.
    set_title(drawn, title)
    drawn.title.set_y(1.05 if _mark_phases(drawn, table) else 1.0)
    return finish("history", drawn, ax=ax, show=show, save=save, return_fig=return_fig)


def _mark_phases(drawn: Axes, table: pd.DataFrame) -> bool:
    """Mark where the number of genes increases, with the number if it does not overlap the previous one."""
    if "n_genes" not in table:
        return False
    began = table["n_genes"][table["n_genes"].diff() != 0]
    drawn.figure.draw_without_rendering()  # type: ignore[union-attr]
    free = -float("inf")  # the first free pixel
    for epoch, n_genes in began.items():
        at = float(epoch) - 0.5  # type: ignore[arg-type] # epochs are numbers
        if epoch != table.index[0]:
            drawn.axvline(at, color=tone(drawn, 0.7), linewidth=0.8, linestyle=":", zorder=0)
        # Above the axes, where there are no curves.
        where: dict[str, Any] = {"xytext": (0, 3), "xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        name = drawn.annotate(
            f"{n_genes:,.0f} genes", (max(at, 0), 1), **where, ha="left", fontsize="x-small", color=tone(drawn, 0.4)
        )
        box = name.get_window_extent()
        if box.x0 < free:
            name.set_text(f"{n_genes:,.0f}")
            box = name.get_window_extent()
        if box.x0 < free:
            name.remove()
        else:
            free = box.x1 + 4
    return True


def _table(table: Any, key: str) -> pd.DataFrame:
    if not isinstance(table, pd.DataFrame) or len(table) == 0:
        msg = f"adata.uns[{key!r}] contains no training history. Pass the key under which sg.tl.finetune stored its results."
        raise MissingKeyError(msg)
    return table
