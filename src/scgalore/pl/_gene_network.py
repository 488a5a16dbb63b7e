"""The strongest edges around some regulators."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgalore._docs import shared_parameters
from scgalore._keys import NetworkKeys
from scgalore.data.edges import N_EDGES, of_group
from scgalore.data.records import read_network_record
from scgalore.pl._axes import axes_or_new, show_or_return
from scgalore.pl._edges import sources_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

    from scgalore._typing import Label

UP, DOWN, SOURCE, TARGET = "#c0392b", "#2e6da4", "#f4c95d", "#dfe6ec"


@shared_parameters
def gene_network(
    adata: AnnData,
    source: str | Sequence[str] | None = None,
    *,
    group: Label | None = None,
    n_edges: int = 15,
    key: str = NetworkKeys().network,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes | None:
    """Draw the strongest edges of some regulators.

    Each regulator has its targets around it, the stronger the edge the thicker; edges with a negative weight are blue. A target of several
    regulators is drawn once.

    Parameters
    ----------
    {adata}
    source
        One regulator or several; ``None`` takes that of the strongest edge.
    group
        Group of cells; may be left out where there is one.
    n_edges
        Edges of each regulator.
    {key}
    {ax}
    {show}

    Returns
    -------
    The axes, or ``None`` if the figure was shown.

    Raises
    ------
    DataError
        If ``adata`` is not an AnnData.
    MissingKeyError
        If there is no network under ``key``.
    OptionError
        If the group does not exist or is not named where there are several, or a regulator has no edges.

    Examples
    --------
    >>> import scgalore as sg
    >>> sg.pl.gene_network(adata, "SPI1")  # doctest: +SKIP
    """
    n_edges = N_EDGES.check(n_edges)
    edges = of_group(read_network_record(adata, key)["edges"], group)
    sources = sources_of(edges, source)
    edges = edges[edges["source"].isin(sources)].groupby("source", sort=False).head(n_edges)
    size = 4.5 if len(sources) == 1 else 7.0
    axes = axes_or_new(ax, (size, size))
    _draw(axes, edges, _places(edges, sources), sources)
    return show_or_return(axes, show=show, own_figure=ax is None)


def _places(edges: pd.DataFrame, sources: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Coordinates of each gene: targets in a circle, in the direction of their regulators, which are inside."""
    inside = np.linspace(0, 2 * np.pi, len(sources), endpoint=False)
    radius = 0.0 if len(sources) == 1 else 0.45
    points = dict(zip(sources, radius * np.exp(1j * inside), strict=True))
    middle = edges["source"].map(points).groupby(edges["target"], sort=False).mean()
    targets = middle.drop(index=list(sources), errors="ignore")
    order = targets.index[np.argsort(np.angle(targets.to_numpy()), kind="stable")]
    # The ring is turned so that its first target is in its direction.
    first = float(np.angle(targets[order[0]])) if len(order) else 0.0
    ring = first + np.linspace(0, 2 * np.pi, len(order), endpoint=False)
    points |= dict(zip(order, np.exp(1j * ring), strict=True))
    return {gene: (float(point.real), float(point.imag)) for gene, point in points.items()}


def _draw(ax: Axes, edges: pd.DataFrame, places: dict[str, tuple[float, float]], sources: Sequence[str]) -> None:
    weight = edges["weight"].to_numpy(dtype=np.float64)
    size = np.abs(weight)
    # Weights of one method may all be close to each other, so widths go from the weakest to the strongest that is drawn.
    width = 0.6 + 2.4 * (size - size.min()) / max(float(np.ptp(size)), 1e-12)
    boxes = {}
    for gene, place in places.items():
        color = SOURCE if gene in sources else TARGET
        box = {"boxstyle": "round,pad=0.25", "facecolor": color, "edgecolor": "0.5", "linewidth": 0.6}
        bold = "bold" if gene in sources else "normal"
        name = ax.text(place[0], place[1], gene, ha="center", va="center", fontsize=8, weight=bold, bbox=box, zorder=1)
        boxes[gene] = name.get_bbox_patch()
    for start, end, w, value in zip(edges["source"], edges["target"], width, weight, strict=True):
        # Drawn after the names, whose boxes they end at: these have a size only then.
        look = {"arrowstyle": "-|>", "linewidth": w, "color": UP if value >= 0 else DOWN, "alpha": 0.7}
        ends = {"patchA": boxes[start], "patchB": boxes[end], "shrinkA": 1, "shrinkB": 1}
        ax.annotate("", places[end], places[start], arrowprops={**look, **ends}, zorder=2)
    xy = np.array(list(places.values()))
    for limit, values in ((ax.set_xlim, xy[:, 0]), (ax.set_ylim, xy[:, 1])):
        margin = 0.15 * max(float(np.ptp(values)), 1e-3)
        limit(values.min() - margin, values.max() + margin)
    ax.set_axis_off()
    ax.set_title(f"{', '.join(sources)}: strongest edges", fontsize=10)
