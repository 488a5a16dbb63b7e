"""Colours of classes and of lines, in any style of matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import is_color_like, to_hex, to_rgb, to_rgba

from scgalore.data.texts import texts_of
from scgalore.errors import OptionError

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

__all__ = ["Palette", "class_colors", "ink_on", "palette_colors", "tone"]

Palette = str | Sequence[str] | Mapping[str, str]
"""Name of a matplotlib colormap, colours in order, or colours by name."""


def tone(axes: Axes, share: float) -> str:
    """A grey between the foreground (0) and the background (1) of the axes, in light and dark styles.

    Parameters
    ----------
    axes
        Axes to draw on.
    share
        Position between foreground and background, from 0 to 1.
    """
    behind = _background(axes)
    ink = 0.0 if ink_on(behind) == "black" else 1.0
    return to_hex(tuple((1 - share) * ink + share * part for part in behind))  # type: ignore[arg-type] # three parts


def ink_on(color: Any) -> str:
    """Black or white, whichever is easier to read on a colour.

    Parameters
    ----------
    color
        Any colour of matplotlib.
    """
    return "black" if np.dot(to_rgb(color), (0.299, 0.587, 0.114)) > 0.5 else "white"


def palette_colors(names: Sequence[str], palette: Palette | None, default: Mapping[str, str]) -> dict[str, str]:
    """Colour of each name.

    Parameters
    ----------
    names
        Names to draw, in order.
    palette
        Palette given by the caller; names missing in a dictionary keep their default color.
    default
        Colours without a palette.

    Raises
    ------
    OptionError
        If the palette is not a colormap, or contains something that is not a colour.
    """
    if palette is None:
        return dict(default)
    if isinstance(palette, str):
        if palette not in colormaps:
            msg = f"palette={palette!r} is not a matplotlib colormap. Pass the name of one, a list of colors, or a dictionary from names to colors."
            raise OptionError(msg)
        cmap = colormaps[palette]
        # Qualitative maps are lists of colours; the ends of continuous maps are omitted, as they are often black or white.
        at = np.arange(len(names)) % cmap.N if cmap.N <= 20 else np.linspace(0.08, 0.92, len(names))
        return {name: to_hex(cmap(x)) for name, x in zip(names, at, strict=True)}
    given = dict(palette) if isinstance(palette, Mapping) else dict(_in_turn(names, list(palette)))
    if wrong := [color for color in given.values() if not is_color_like(color)]:
        msg = f"palette holds {wrong[0]!r}, which is not a color of matplotlib."
        raise OptionError(msg)
    return {**default, **{name: given[name] for name in names if name in given}}


def class_colors(adata: AnnData, key: str, classes: Sequence[str]) -> dict[str, str]:
    """Colours that scanpy stores for the categories of a column in ``adata.uns[f"{key}_colors"]``; empty without them.

    Parameters
    ----------
    adata
        Annotated data matrix.
    key
        Column of ``adata.obs``.
    classes
        Names to look up, as text.
    """
    colors = adata.uns.get(f"{key}_colors")
    column = adata.obs.get(key)
    if colors is None or column is None or not isinstance(column.dtype, pd.CategoricalDtype):
        return {}
    names = texts_of(column.cat.categories)
    found = dict(zip(names, map(str, np.atleast_1d(colors)), strict=False))
    return {name: found[name] for name in classes if name in found and is_color_like(found[name])}


def _in_turn(names: Sequence[str], colors: list[str]) -> list[tuple[str, str]]:
    if not colors:
        msg = "palette is empty. Pass at least one colour, or None for the default ones."
        raise OptionError(msg)
    return [(name, colors[i % len(colors)]) for i, name in enumerate(names)]


def _background(axes: Axes) -> tuple[float, float, float]:
    """Background colour: that of the axes, or of the figure if the axes are transparent."""
    figure: Any = axes.figure
    color = (1.0, 1.0, 1.0)
    for red, green, blue, alpha in (to_rgba(figure.get_facecolor()), to_rgba(axes.get_facecolor())):
        below = [(1 - alpha) * part for part in color]
        color = (alpha * red + below[0], alpha * green + below[1], alpha * blue + below[2])
    return color
