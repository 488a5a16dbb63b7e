"""Attention weights between regulators and targets as a heat map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgalore._docs import shared_parameters
from scgalore._keys import NetworkKeys
from scgalore._options import COUNT, Option
from scgalore.data.edges import difference, of_group
from scgalore.data.records import read_network_record
from scgalore.errors import OptionError
from scgalore.pl._axes import axes_or_new, finish, set_title
from scgalore.pl._edges import sources_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scgalore._typing import Label, PathLike


N_GENES = Option("n_genes", COUNT, "", 20)
ROUNDS = 5
"""How often targets are chosen for the regulators, and these for the targets."""


@shared_parameters
def attention(
    adata: AnnData,
    source: str | Sequence[str] | None = None,
    target: str | Sequence[str] | None = None,
    *,
    group: Label | None = None,
    versus: Label | None = None,
    n_genes: int = 20,
    key: str = NetworkKeys().network,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | PathLike | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Heat map of mean attention of targets to regulators, or of the difference between two groups.

    Draws the edges stored by :func:`scgalore.tl.gene_network`, with any method; pairs that were not stored are grey.
    With ``n_edges=None`` all are stored.

    Parameters
    ----------
    {adata}
    source
        Regulators, in rows. ``None`` selects those with the most and strongest edges to the drawn targets.
    target
        Targets, in columns. ``None`` selects those with the most and strongest edges from the drawn regulators.
    group
        Group of cells; may be omitted if there is only one.
    versus
        Another group, whose weights are subtracted. Only edges of both groups are used; those with the largest differences are drawn.
    n_genes
        Maximum number of regulators and targets, if these are not given.
    {key}
    {title}
    {ax}
    {show}
    {save}
    {return_fig}

    Returns
    -------
    The axes, the figure with ``return_fig``, or ``None`` if the figure was shown.

    Raises
    ------
    DataError
        If ``adata`` is not an AnnData.
    MissingKeyError
        If there is no network under ``key``.
    OptionError
        If ``n_genes`` is not a positive number, a group does not exist or is required, or a gene has no edges.

    See Also
    --------
    scgalore.tl.gene_network : Rank edges from regulators to target genes.
    scgalore.pl.gene_network : Draw the strongest edges of some regulators.
    scgalore.get.gene_network : Read edges of a network as a table.

    Examples
    --------
    Here ``adata`` contains a network of two cell types by :func:`scgalore.tl.gene_network`.

    >>> import scgalore as sg
    >>> ax = sg.pl.attention(adata, group="CD14+ Monocyte", versus="Dendritic", show=False)
    """
    n_genes = N_GENES.check(n_genes)
    edges = read_network_record(adata, key)["edges"]
    edges = of_group(edges, group) if versus is None else difference(edges, group, versus)
    if edges.empty:
        msg = f"No edge is stored for both {group!r} and {versus!r}. Store all edges with sg.tl.gene_network(adata, n_edges=None)."
        raise OptionError(msg)
    wanted = None if source is None else sources_of(edges, source)
    if wanted is not None:
        edges = edges[edges["source"].isin(wanted)]
    if target is not None:
        target = [target] if isinstance(target, str) else list(target)
        if absent := [name for name in target if name not in set(edges["target"])]:
            msg = f"target={absent[0]!r} has no edge from these regulators. Keep all with sg.tl.gene_network(adata, n_edges=None)."
            raise OptionError(msg)
        edges = edges[edges["target"].isin(target)]
    chosen = _chosen(edges, n_genes)
    sources, targets = chosen[0] if wanted is None else wanted, chosen[1] if target is None else target
    edges = edges[edges["source"].isin(sources)]
    wide = edges.pivot(index="source", columns="target", values="weight")
    shown = wide.reindex(index=sources, columns=targets).to_numpy(dtype=np.float64)
    label = "weight" if versus is None else f"weight, {group} minus {versus}"
    axes = axes_or_new(ax, (0.28 * len(targets) + 2.2, 0.28 * len(sources) + 1.6))
    signed = bool(np.nanmin(shown, initial=0) < 0)
    most = float(np.nanmax(np.abs(shown), initial=1e-12)) if signed else None
    image = axes.pcolormesh(
        np.ma.masked_invalid(shown), cmap="RdBu_r" if signed else "viridis", vmin=-most if most else None, vmax=most
    )
    axes.set_facecolor("0.85")
    axes.set_xticks(np.arange(len(targets)) + 0.5, labels=targets, rotation=90, fontsize=8)
    axes.set_yticks(np.arange(len(sources)) + 0.5, labels=sources, fontsize=8)
    axes.set(xlabel="target (attends)", ylabel="regulator (attended to)")
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.figure.colorbar(image, ax=axes, label=label, shrink=0.8)
    set_title(axes, title)
    return finish("attention", axes, ax=ax, show=show, save=save, return_fig=return_fig)


def _chosen(edges: pd.DataFrame, n: int) -> tuple[list[str], list[str]]:
    """At most ``n`` regulators and ``n`` targets with many and strong edges among themselves, sorted by their strongest edge."""
    codes, names = zip(*(pd.factorize(edges[side]) for side in ("source", "target")), strict=True)
    # The strongest edge has twice the weight of the weakest stored one.
    worth = 1 - np.arange(len(edges)) / (2 * len(edges))
    shown = [np.arange(min(n, len(side))) for side in names]  # sorted by the strongest edge
    for _ in range(ROUNDS):
        for side in (1, 0):
            total = np.bincount(codes[side], worth * np.isin(codes[1 - side], shown[1 - side]), len(names[side]))
            best = np.argsort(-total, kind="stable")[:n]
            shown[side] = np.sort(best[total[best] > 0])
    return list(names[0][shown[0]]), list(names[1][shown[1]])
