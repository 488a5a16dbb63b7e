"""The strongest edges around some regulators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scgalore._docs import shared_parameters
from scgalore._keys import NetworkKeys
from scgalore.data.edges import N_EDGES, of_group
from scgalore.data.records import read_network_record
from scgalore.pl._axes import axes_or_new, finish, set_title
from scgalore.pl._edges import sources_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scgalore._typing import Label, PathLike

UP, DOWN, SOURCE = "#c0392b", "#2e6da4", "#f4c95d"
LETTER, LINE = 0.09, 0.16
"""Inches that a letter and a line take at most, at a font size of 8."""
INSIDE = 0.5
"""Radius of several regulators, where that of their targets is 1."""


@shared_parameters
def gene_network(
    adata: AnnData,
    source: str | Sequence[str] | None = None,
    *,
    group: Label | None = None,
    n_edges: int = 15,
    key: str = NetworkKeys().network,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | PathLike | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw the strongest edges of some regulators.

    Targets are placed in a circle around their regulators. The width of an edge shows its strength; edges with a negative weight are blue. A
    target of several regulators is drawn once. The size of a new figure is adapted to the names.

    Parameters
    ----------
    {adata}
    source
        One or more regulators; ``None`` selects the one with the strongest edge.
    group
        Group of cells; may be omitted if there is only one.
    n_edges
        Number of edges per regulator.
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
        If the group does not exist or is required, or a regulator has no edges.

    See Also
    --------
    scgalore.tl.gene_network : Rank edges from regulators to target genes.
    scgalore.pl.attention : Draw mean attention as a heat map.
    scgalore.get.gene_network : Read edges of a network as a table.

    Examples
    --------
    Here ``adata`` contains a network of two cell types by :func:`scgalore.tl.gene_network`.

    >>> import scgalore as sg
    >>> ax = sg.pl.gene_network(adata, "SPI1", group="CD14+ Monocyte", show=False)
    """
    n_edges = N_EDGES.check(n_edges)
    edges = of_group(read_network_record(adata, key)["edges"], group)
    sources = sources_of(edges, source)
    edges = edges[edges["source"].isin(sources)].groupby("source", sort=False).head(n_edges)
    places = _places(edges, sources)
    margin = LETTER * max(map(len, places)) + LINE
    if ax is None:
        # Large enough for names not to overlap.
        radius = max(1.5, LINE * len(places) / (2 * np.pi), 4 * LINE * len(sources) / (2 * np.pi * INSIDE))
        axes = axes_or_new(None, (2 * (radius + margin), 2 * (radius + margin) + 2 * LINE))
    else:
        axes = ax
        extent = ax.get_window_extent()
        radius = max(min(extent.width, extent.height) / ax.figure.dpi / 2 - margin, 0.1)
    _draw(axes, edges, places, sources, reach=1 + margin / radius, room=2 * np.pi * radius / len(places))
    named = ", ".join(sources) if len(sources) <= 3 else f"{len(sources)} regulators"
    set_title(axes, title, f"{named}: strongest edges")
    return finish("gene_network", axes, ax=ax, show=show, save=save, return_fig=return_fig)


def _places(edges: pd.DataFrame, sources: Sequence[str]) -> dict[str, complex]:
    """Coordinates of each gene: regulators inside a circle of radius 1, and targets on it, in the direction of their regulators."""
    inside = np.linspace(0, 2 * np.pi, len(sources), endpoint=False)
    points = dict(zip(sources, (0.0 if len(sources) == 1 else INSIDE) * np.exp(1j * inside), strict=True))
    middle = edges["source"].map(points).groupby(edges["target"], sort=False).mean()
    targets = middle.drop(index=list(sources), errors="ignore")
    targets = targets.iloc[np.argsort(np.angle(targets.to_numpy()).round(6), kind="stable")]
    ring = np.exp(1j * np.linspace(0, 2 * np.pi, len(targets), endpoint=False))
    # The ring is turned so that targets are in the direction of their regulators.
    turn = complex((targets.to_numpy() * ring.conj()).sum())
    return points | dict(zip(targets.index, ring * (turn / abs(turn) if abs(turn) > 1e-6 else 1), strict=True))


def _draw(
    ax: Axes, edges: pd.DataFrame, places: dict[str, complex], sources: Sequence[str], *, reach: float, room: float
) -> None:
    """Draw names and edges; ``reach`` is the distance from the centre to the border of the axes, and ``room`` the inches between two targets."""
    weight = edges["weight"].to_numpy(dtype=np.float64)
    size = np.abs(weight)
    # Weights may all be similar, so widths range from the weakest to the strongest drawn edge.
    width = 0.6 + 2.4 * (size - size.min()) / max(float(np.ptp(size)), 1e-12)
    fontsize = 8 * min(1.0, room / LINE)
    boxes = {}
    for gene, place in places.items():
        if gene in sources:
            box: dict[str, Any] = {
                "boxstyle": "round,pad=0.25",
                "facecolor": SOURCE,
                "edgecolor": "0.5",
                "linewidth": 0.6,
            }
            middle: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8, "weight": "bold", "color": "black"}
            boxes[gene] = ax.text(place.real, place.imag, gene, bbox=box, zorder=3, **middle).get_bbox_patch()
        else:
            # Away from the centre, and never upside down.
            at, left = place * (1 + 0.02 * reach), place.real < -1e-9
            degrees = float(np.degrees(np.angle(place))) + 180 * left
            outwards: dict[str, Any] = {
                "ha": "right" if left else "left",
                "va": "center_baseline",
                "fontsize": fontsize,
            }
            ax.text(at.real, at.imag, gene, rotation=degrees, rotation_mode="anchor", **outwards)
    for start, end, w, value in zip(edges["source"], edges["target"], width, weight, strict=True):
        look = {"arrowstyle": "-|>", "linewidth": w, "color": UP if value >= 0 else DOWN, "alpha": 0.7}
        ends = {"patchA": boxes[start], "patchB": boxes.get(end), "shrinkA": 1, "shrinkB": 1}
        tip, tail = places[end], places[start]
        ax.annotate("", (tip.real, tip.imag), (tail.real, tail.imag), arrowprops={**look, **ends}, zorder=2)
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    ax.set_axis_off()
