"""What a selection of genes is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scgalore._docs import shared_parameters
from scgalore._keys import GeneKeys
from scgalore.data.records import read_record
from scgalore.errors import MissingKeyError
from scgalore.pl._axes import axes_or_new, show_or_return

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

# Of sources that are lists; quantities of the data keep theirs in every plot. Told apart by the colour-blind.
COLORS = ("#e69f00", "#009e73", "#cc79a7", "#d55e00", "#f0e442", "#56b4e9", "#8c564b", "#999933")
FROM_DATA = {"variable": "#4c78a8", "responsive": "#1f4e79", "expressed": "#9aa5b1", "must_include": "#222222"}


@shared_parameters
def gene_selection(
    adata: AnnData, key: str = GeneKeys().selected, *, ax: Axes | None = None, show: bool | None = None
) -> Axes | None:
    """Share of each source among the best genes, for any number of genes.

    Parameters
    ----------
    {adata}
    key
        Key that :func:`scgalore.tl.select_genes` wrote under.
    {ax}
    {show}

    Returns
    -------
    The axes, or ``None`` if the figure was shown. A line marks the number of genes that were selected; the legend has how many of
    these each source placed.

    Raises
    ------
    DataError
        If ``adata`` is no AnnData.
    MissingKeyError
        If no selection was written under ``key``.

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
    place = np.arange(1, len(sources) + 1)
    counts = np.array([np.cumsum(sources == name) for name in names])
    own = ax is None
    ax = axes_or_new(ax, (6.6, 3.4))
    ax.stackplot(
        place,
        100 * counts / place,
        colors=_colors(names),
        labels=[f"{name.replace('_', ' ')} ({int(selected.get(name, 0)):,})" for name in names],
        linewidth=0,
    )
    ax.axvline(n_genes, color="white", linewidth=3)
    ax.axvline(n_genes, color="black", linewidth=1.2)
    # The share of the first few genes jumps, and says nothing.
    ax.set(xscale="log", xlim=(min(10, len(place) / 2), len(place)), ylim=(0, 100))
    ax.set(xlabel="best genes", ylabel="share of each source (%)")
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set_title(
        f"{n_genes:,} of {len(place):,} ranked genes selected ({result['params']['gene_strategy']})", fontsize=10
    )
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(
        handles[::-1], labels[::-1], title="source (selected)", loc="center left", bbox_to_anchor=(1.01, 0.5),
        frameon=False, fontsize=8, title_fontsize=8, alignment="left",
    )  # fmt: skip
    ax.grid(visible=False)
    ax.spines[["top", "right"]].set_visible(False)
    return show_or_return(ax, show=show, own_figure=own)


def _read(adata: AnnData, key: str) -> tuple[Mapping[str, Any], NDArray[np.object_]]:
    """Results, and source of each ranked gene, best first."""
    keys = GeneKeys.from_key_added(key)
    call = f"sg.tl.select_genes(adata{'' if key == GeneKeys().selected else f', key_added={key!r}'})"
    missing = f"There is no selection in adata.var[{keys.rank!r}] and adata.uns[{keys.uns!r}]. Call {call} first."
    result = read_record(adata, keys.uns, tables=("sources",), missing=missing)
    if not {keys.rank, keys.source} <= set(adata.var):
        raise MissingKeyError(missing)
    ranked = adata.var[[keys.rank, keys.source]].dropna(subset=keys.rank).sort_values(keys.rank)
    return result, ranked[keys.source].astype(str).to_numpy(dtype=object)


def _colors(names: list[str]) -> list[str]:
    lists = [name for name in names if name not in FROM_DATA]
    return [FROM_DATA.get(name) or COLORS[lists.index(name) % len(COLORS)] for name in names]
