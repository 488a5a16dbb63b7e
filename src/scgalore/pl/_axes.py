"""Axes of a plot, and rules for showing, saving and returning it, the same for every plot and as in scanpy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scgalore import _logging as logg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scgalore._typing import PathLike

__all__ = ["axes_or_new", "finish", "legend_right", "set_title"]

ROW_POINTS = 13.0
"""Height of one row of a legend in small type."""


def axes_or_new(ax: Axes | None, figsize: tuple[float, float]) -> Axes:
    """Return the given axes, or those of a new figure.

    Parameters
    ----------
    ax
        Axes passed by the caller.
    figsize
        Size of a new figure in inches.
    """
    if ax is not None:
        return ax
    # pyplot is used only here: with given axes, no figure is registered.
    from matplotlib import pyplot as plt

    return plt.subplots(figsize=figsize, layout="constrained")[1]


def set_title(axes: Axes, title: str | None, default: str = "") -> None:
    """Set the title given by the caller, or the default title.

    Parameters
    ----------
    axes
        Axes of the plot.
    title
        What the caller passed; ``""`` leaves the title out.
    default
        Title if the caller passed ``None``.
    """
    axes.set_title(default if title is None else title, fontsize="medium")


def legend_right(axes: Axes, *, own: bool, title: str | None = None, reverse: bool = False) -> None:
    """Draw the legend to the right of the axes, in as many columns as its height requires.

    A figure of ours grows by the width of the legend. In a figure without a layout engine the axes become narrower
    instead, as in scanpy, so that the legend does not cover other axes.

    Parameters
    ----------
    axes
        Axes with labelled artists.
    own
        Whether the figure was made for this plot.
    title
        Title of the legend.
    reverse
        Whether the last artist comes first, as in a stack.
    """
    figure: Any = axes.figure.figure
    height = axes.get_window_extent().height * 72 / figure.dpi
    n_rows = max(1, int(height / ROW_POINTS) - (title is not None))
    n_entries = len(axes.get_legend_handles_labels()[0])
    legend = axes.legend(
        title=title, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8, title_fontsize=8,
        alignment="left", ncols=-(-n_entries // n_rows), reverse=reverse,
    )  # fmt: skip
    width = legend.get_window_extent().width
    if own:
        figure.set_figwidth(figure.get_figwidth() + width / figure.dpi)
    elif figure.get_layout_engine() is None:
        box = axes.get_position()
        narrower = width / figure.bbox.width
        axes.set_position((box.x0, box.y0, max(0.3 * box.width, box.width - narrower), box.height))


def finish(
    name: str, axes: Axes, *, ax: Axes | None, show: bool | None, save: bool | PathLike | None, return_fig: bool
) -> Axes | Figure | None:
    """Save and show the figure, and return the axes, the figure or ``None``, as scanpy's plots do.

    Parameters
    ----------
    name
        Name of the plot, used as start of generated file names.
    axes
        Axes that were drawn on.
    ax
        Axes passed by the caller, if any. Their figure is neither shown nor saved by default, since it may not be
        complete.
    show
        What the caller passed. ``None`` shows a new figure unless ``sc.settings.autoshow`` is off.
    save
        What the caller passed. ``None`` saves a new figure if ``sc.settings.autosave`` is on.
    return_fig
        Whether to return the figure, which is then not shown.
    """
    own = ax is None
    figure: Any = axes.figure.figure
    save = (own and _scanpy_setting("autosave", default=False)) if save is None else save
    show = (own and not return_fig and _scanpy_setting("autoshow", default=True)) if show is None else show
    if save:
        _save(figure, name, save)
    if show:
        from matplotlib import pyplot as plt

        plt.show()
    if save and own and not return_fig:
        from matplotlib import pyplot as plt

        plt.close(figure)  # a notebook would draw it again at the end of the cell
    if return_fig:
        return figure
    return None if show else axes


def _save(figure: Figure, name: str, save: Literal[True] | PathLike) -> None:
    """Save the figure to the given file, or to scanpy's folder of figures under the name of the plot."""
    text = "" if save is True else str(save)
    if text and not text.startswith(("_", ".")) or "/" in text:
        path = Path(text)
    else:
        path = (
            Path(_scanpy_setting("figdir", default="./figures/"))
            / f"{name}{_scanpy_setting('plot_suffix', default='')}{text}"
        )
    if not path.suffix:
        path = path.with_name(f"{path.name}.{_scanpy_setting('file_format_figs', default='pdf')}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight")
    logg.info(f"Saved the figure to {path}.")


def _scanpy_setting(setting: str, *, default: Any) -> Any:
    """A setting of scanpy; its default if scanpy was not imported, since it cannot have been changed then."""
    return getattr(getattr(sys.modules.get("scanpy"), "settings", None), setting, default)
