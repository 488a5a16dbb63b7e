"""Edges of a gene network as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgalore._docs import shared_parameters
from scgalore._keys import NetworkKeys
from scgalore.data.edges import N_EDGES, difference, of_group
from scgalore.data.records import read_network_record
from scgalore.errors import OptionError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from scgalore._typing import Label


@shared_parameters
def gene_network(
    adata: AnnData,
    *,
    group: Label | None = None,
    versus: Label | None = None,
    n_edges: int | None = None,
    key: str = NetworkKeys().network,
) -> pd.DataFrame:
    """Read the edges that :func:`scgalore.tl.gene_network` wrote.

    Parameters
    ----------
    {adata}
    group
        Group of cells; ``None`` returns the edges of all.
    versus
        Another group: ``weight`` is then the difference, ``group`` minus ``versus``, for edges stored for both,
        sorted by absolute value.
    n_edges
        Number of edges to return, the strongest of each group.
    {key}

    Returns
    -------
    A copy with one row per edge: ``group``, ``source``, ``target``, ``weight``, ``rank`` and ``n_cells``, in
    decoupler's format. With ``versus``: ``source``, ``target`` and ``weight``.

    Raises
    ------
    DataError
        If ``adata`` is not an AnnData.
    MissingKeyError
        If there is no network under ``key``.
    OptionError
        If a group does not exist.

    See Also
    --------
    scgalore.tl.gene_network : Rank edges from regulators to target genes.
    scgalore.pl.gene_network : Draw the strongest edges of some regulators.
    scgalore.pl.attention : Draw mean attention as a heat map.

    Examples
    --------
    Here ``adata`` contains a network of two cell types by :func:`scgalore.tl.gene_network`.

    >>> import scgalore as sg
    >>> edges = sg.get.gene_network(adata, group="CD14+ Monocyte", n_edges=100)
    >>> import networkx as nx
    >>> graph = nx.from_pandas_edgelist(edges, edge_attr=True, create_using=nx.DiGraph)
    """
    record = read_network_record(adata, key)
    edges = record["edges"]
    if group is None and versus is not None:
        msg = f"versus={versus!r} needs the group to compare it with. Pass group=."
        raise OptionError(msg)
    if versus is not None:
        edges = difference(edges, group, versus)
    elif group is not None:
        edges = of_group(edges, group)
    if n_edges is not None:
        n_edges = N_EDGES.check(n_edges)
        edges = edges.groupby("group", observed=True).head(n_edges) if "group" in edges else edges.head(n_edges)
    return edges.reset_index(drop=True).copy()
