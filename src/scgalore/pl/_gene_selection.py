"""Sources of selected genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import LogLocator, NullLocator

from scgalore._docs import shared_parameters
from scgalore._keys import GeneKeys
from scgalore.data.records import read_record
from scgalore.errors import MissingKeyError
from scgalore.pl._axes import axes_or_new, finish, legend_right, set_title
from scgalore.pl._colors import palette_colors, tone

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from scgalore._typing import PathLike
    from scgalore.pl._colors import Palette

# Colours of gene lists, safe for colour-blind readers; sources computed from the data have fixed colours in every plot.
COLORS = ("#e69f00", "#009e73", "#cc79a7", "#d55e00", "#f0e442", "#56b4e9", "#8c564b", "#999933")
SMOOTHED = 1.1
"""Means are over numbers of genes that differ by up to this factor."""
FROM_DATA = {"variable": "#4c78a8", "responsive": "#1f4e79", "expressed": "#9aa5b1"}


@shared_parameters
def gene_selection(
    adata: AnnData,
    key: str = GeneKeys().selected,
    *,
    title: str | None = None,
    palette: Palette | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | PathLike | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Fraction of each source among the best genes, for any number of genes.

    Sources alternate in the ranking, so the fractions among the first few genes change with every gene. Curves are therefore smoothed: each point is
    the mean over all numbers of genes within 10 % of it. They start at a tenth of the selected number.

    Parameters
    ----------
    {adata}
    key
        Key under which :func:`scgalore.tl.select_genes` stored its results.
    {title}
    palette
        Colors of the sources: a list of them, a dictionary, or the name of a matplotlib colormap.
    {ax}
    {show}
    {save}
    {return_fig}

    Returns
    -------
    The axes, the figure with ``return_fig``, or ``None`` if the figure was shown. A line marks the number of selected genes; the legend shows how many of
    them are from each source.

    Raises
    ------
    DataError
        If ``adata`` is not an AnnData.
    MissingKeyError
        If there is no selection under ``key``.
    OptionError
        If ``palette`` contains something that is not a color.

    See Also
    --------
    scgalore.tl.select_genes : Rank and select genes.

    Examples
    --------
    >>> import scanpy as sc, scgalore as sg
    >>> adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    >>> sg.tl.select_genes(adata, 200)
    >>> ax = sg.pl.gene_selection(adata, show=False)
    """
    result, sources = _read(adata, key)
    selected = result["sources"]["n_selected"]
    n_genes = int(selected.sum())
    names = [name for name in result["sources"].index if (sources == name).any()]
    places, shares = _shares(sources, names, n_genes)
    own = ax is None
    ax = axes_or_new(ax, (4.8, 3.4))
    colors = palette_colors(names, palette, _colors(names, tone(ax, 0.15)))
    ax.stackplot(
        places,
        shares,
        colors=[colors[name] for name in names],
        labels=[f"{name.replace('_', ' ')} ({int(selected.get(name, 0)):,})" for name in names],
        linewidth=0,
    )
    ax.axvline(n_genes, color="white", linewidth=3)
    ax.axvline(n_genes, color="black", linewidth=1.2)
    ax.set(xscale="log", xlim=(places[0], places[-1]), ylim=(0, 100))
    ax.set(xlabel="best genes", ylabel="fraction of each source (%)")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter("{x:,.0f}")
    set_title(ax, title, f"{n_genes:,} of {len(sources):,} ranked genes selected ({result['params']['gene_strategy']})")
    ax.grid(visible=False)
    ax.spines[["top", "right"]].set_visible(False)
    legend_right(ax, own=own, title="source (selected)", reverse=True)
    return finish("gene_selection", ax, ax=None if own else ax, show=show, save=save, return_fig=return_fig)


def _shares(
    sources: NDArray[np.object_], names: list[str], n_genes: int
) -> tuple[NDArray[np.integer], NDArray[np.floating]]:
    """Percentage of each source among the best genes, at numbers of genes that a logarithmic axis can show."""
    n_all = len(sources)
    every = np.arange(1, n_all + 1)
    exact = 100 * np.array([np.cumsum(sources == name) for name in names]) / every
    first = max(1, min(n_genes // 10, n_all // 2))
    places = np.unique(np.append(np.geomspace(first, n_all, 200).round().astype(np.int64), n_genes))
    low, high = np.ceil(places / SMOOTHED).astype(np.int64), np.minimum(places * SMOOTHED, n_all).astype(np.int64)
    sums = np.concatenate([np.zeros((len(names), 1)), np.cumsum(exact, axis=1)], axis=1)
    shares = (sums[:, high] - sums[:, low - 1]) / (high - low + 1)
    # The legend has the numbers of the selection, and so has the curve.
    shares[:, places == n_genes] = exact[:, [n_genes - 1]]
    return places, shares


def _read(adata: AnnData, key: str) -> tuple[Mapping[str, Any], NDArray[np.object_]]:
    """Results, and the source of each ranked gene, best first."""
    keys = GeneKeys.from_key_added(key)
    call = f"sg.tl.select_genes(adata{'' if key == GeneKeys().selected else f', key_added={key!r}'})"
    missing = f"There is no selection in adata.var[{keys.rank!r}] and adata.uns[{keys.uns!r}]. Call {call} first."
    result = read_record(adata, keys.uns, tables=("sources",), missing=missing)
    if not {keys.rank, keys.source} <= set(adata.var):
        raise MissingKeyError(missing)
    ranked = adata.var[[keys.rank, keys.source]].dropna(subset=keys.rank).sort_values(keys.rank)
    return result, ranked[keys.source].astype(str).to_numpy(dtype=object)


def _colors(names: list[str], required: str) -> dict[str, str]:
    known = {**FROM_DATA, "must_include": required}
    lists = [name for name in names if name not in known]
    return {name: known.get(name) or COLORS[lists.index(name) % len(COLORS)] for name in names}
