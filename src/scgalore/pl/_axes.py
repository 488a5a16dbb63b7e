"""Where a plot is drawn, and whether it is shown: the same rules for every plot."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["axes_or_new", "show_or_return"]


def axes_or_new(ax: Axes | None, figsize: tuple[float, float]) -> Axes:
    """Give the axes of the caller, or those of a new figure.

    Parameters
    ----------
    ax
        What the caller passed.
    figsize
        Inches of a new figure.
    """
    if ax is not None:
        return ax
    # Only here is pyplot touched: with axes given, no figure is registered anywhere.
    from matplotlib import pyplot as plt

    return plt.subplots(figsize=figsize, layout="constrained")[1]


def show_or_return(ax: Axes, *, show: bool | None, own_figure: bool) -> Axes | None:
    """Show the figure or hand back its axes, as scanpy's plots do.

    Parameters
    ----------
    ax
        Axes that were drawn on.
    show
        What the caller passed. ``None`` shows a new figure unless ``sc.settings.autoshow`` is off, and never one that
        the caller is still composing.
    own_figure
        Whether the figure was made for this plot.
    """
    if show is None:
        show = own_figure and _autoshow()
    if not show:
        return ax
    from matplotlib import pyplot as plt

    plt.show()
    return None


def _autoshow() -> bool:
    settings = getattr(sys.modules.get("scanpy"), "settings", None)
    return bool(getattr(settings, "autoshow", True))
