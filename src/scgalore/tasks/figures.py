"""Figures of a run, made without pyplot, so that its backend and open figures do not change."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anndata import AnnData
    from matplotlib.figure import Figure

    from scgalore.tasks.findings import Draw

__all__ = ["HISTORY", "SELECTION", "bars", "on_axes", "panels", "same_threads", "umap"]

MOST_IN_UMAP = 50_000


def on_axes(draw: Callable[[AnnData, Any], object], *, size: tuple[float, float]) -> Draw:
    """Return a function that draws a figure with one plot.

    Parameters
    ----------
    draw
        Function of the AnnData and the axes.
    size
        Width and height in inches.
    """

    def picture(adata: AnnData) -> Figure:
        figure = _figure(size)
        draw(adata, figure.subplots())
        return figure

    return picture


def panels(draw: Callable[[AnnData, str, Any], object], names: Sequence[str]) -> Draw:
    """Return a function that draws a figure with several plots of the same kind.

    Parameters
    ----------
    draw
        Function of the AnnData, one of the names, and the axes.
    names
        One name per panel.
    """

    def picture(adata: AnnData) -> Figure:
        n_rows = -(-len(names) // 2)
        figure = _figure((10, 3.2 * n_rows))
        axes = figure.subplots(n_rows, 2, squeeze=False).ravel()
        for name, ax in zip(names, axes, strict=False):
            draw(adata, name, ax)
        for ax in axes[len(names) :]:
            figure.delaxes(ax)
        return figure

    return picture


def umap(colors: Sequence[str], titles: Sequence[str], n_obs: int, *, use_rep: str) -> dict[str, tuple[str, Draw]]:
    """UMAP of the embeddings of all cells; empty for too many cells.

    Parameters
    ----------
    colors
        Columns of ``obs``, one per panel. A column with the categories of the first shares its colours and legend.
    titles
        Titles of the panels.
    n_obs
        Number of cells.
    use_rep
        Key of the embeddings in ``obsm``.
    """
    if n_obs > MOST_IN_UMAP:
        return {}

    def picture(adata: AnnData) -> Figure:
        import scanpy as sc

        n_neighbors = min(15, max(2, adata.n_obs - 1))
        with same_threads():
            sc.pp.neighbors(adata, use_rep=use_rep, n_neighbors=n_neighbors, random_state=0)
            sc.tl.umap(adata, random_state=0)
        figure = _figure((6.5 * len(colors), 5))
        axes = figure.subplots(1, len(colors), squeeze=False).ravel()
        for i, (color, title, ax) in enumerate(zip(colors, titles, axes, strict=True)):
            has_categories = isinstance(adata.obs[color].dtype, pd.CategoricalDtype)
            if i and _shares_categories(adata, colors[0], color):
                _share_colors(adata, colors[0], color)
            shared = i + 1 < len(colors) and _shares_categories(adata, colors[0], colors[i + 1])
            look = {"legend_loc": None if shared else "right margin", "frameon": False, "show": False}
            sc.pl.umap(adata, color=color, ax=ax, title=title, colorbar_loc=None, **look)
            if not has_categories:  # scanpy would draw the colour bar with pyplot, in another figure
                figure.colorbar(ax.collections[0], ax=ax)
        return figure

    caption = "UMAP (scanpy) of the fine-tuned embeddings of all cells, including training cells."
    return {"umap.png": (caption, picture)}


def bars(names: Sequence[str], values: Sequence[float], errors: Sequence[float], *, label: str) -> Draw:
    """Return a function that draws a bar plot with error bars.

    Parameters
    ----------
    names, values, errors
        Names, values and errors of the bars, from the top.
    label
        Label of the axis.
    """

    def picture(adata: AnnData) -> Figure:
        figure = _figure((6, 0.5 * len(names) + 1))
        ax = figure.subplots()
        place = np.arange(len(names))[::-1]
        colors = ["C0", *["0.6"] * (len(names) - 1)]
        ax.barh(place, values, xerr=errors, color=colors, height=0.6)
        ax.set_yticks(place, names)
        ax.set_xlabel(label)
        ax.spines[["top", "right"]].set_visible(False)
        return figure

    return picture


@contextmanager
def same_threads() -> Iterator[None]:
    """Restore torch's number of threads, which the first use of numba changes; later runs in the process would differ."""
    n_threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def _shares_categories(adata: AnnData, source: str, target: str) -> bool:
    columns = adata.obs[source], adata.obs[target]
    if not all(isinstance(column.dtype, pd.CategoricalDtype) for column in columns):
        return False
    known, wanted = (set(column.cat.categories.astype(str)) for column in columns)
    return wanted <= known


def _share_colors(adata: AnnData, source: str, target: str) -> None:
    of_source = dict(zip(adata.obs[source].cat.categories.astype(str), adata.uns[f"{source}_colors"], strict=True))
    adata.uns[f"{target}_colors"] = [of_source[str(name)] for name in adata.obs[target].cat.categories]


def plot(name: str) -> Callable[..., Any]:
    """A function of :mod:`scgalore.pl`, which imports Matplotlib when it is called and not before."""

    def draw(*args: Any, **options: Any) -> Any:
        from scgalore import pl

        return getattr(pl, name)(*args, **options)

    return draw


SELECTION: tuple[str, Draw] = (
    "Sources of the selected genes: percentage of each source among the best genes, ranked on training cells only.",
    on_axes(lambda adata, ax: plot("gene_selection")(adata, ax=ax, show=False), size=(7, 4.5)),
)
"""Figures of an AnnData with all genes."""

HISTORY: tuple[str, Draw] = (
    "Loss by epoch; the epoch whose weights were kept is marked.",
    on_axes(lambda adata, ax: plot("history")(adata, ax=ax, show=False), size=(5.5, 3.8)),
)


def _figure(size: tuple[float, float]) -> Figure:
    from matplotlib.figure import Figure  # slow to import

    return Figure(figsize=size, layout="constrained")
