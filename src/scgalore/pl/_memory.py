"""Memory of a training run by component."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib import rcParams

from scgalore._docs import shared_parameters
from scgalore._words import format_bytes
from scgalore.errors import DataError
from scgalore.pl._axes import axes_or_new, finish, set_title
from scgalore.pl._colors import palette_colors, tone

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scgalore._typing import PathLike
    from scgalore.pl._colors import Palette

PEAK = "peak"
COLORS = {
    "parameters": "#4c72b0",
    "gradients": "#8fa8d0",
    "optimizer_state": "#55a868",
    "activations": "#c44e52",
    "workspace": "#e3a08c",
    "copies": "0.7",
}


@shared_parameters
def memory(
    data: Any,
    *,
    title: str | None = None,
    palette: Palette | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | PathLike | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Memory of a training run by component, as stacked bars labelled with their peak.

    Parameters
    ----------
    data
        Result of :func:`scgalore.model.savings`; or an estimate of :func:`scgalore.estimate_memory`, or several by
        name.
    title
        Title of the plot; ``None`` shows the peak if there is a single estimate, ``""`` nothing.
    palette
        Colors of the components: a list of them, a dictionary, or the name of a matplotlib colormap.
    {ax}
    {show}
    {save}
    {return_fig}

    Returns
    -------
    The axes, the figure with ``return_fig``, or ``None`` if the figure was shown. The bars are in the order of ``data``, the first one on top; components
    that are 0 in all of them are omitted.

    Raises
    ------
    DataError
        If ``data`` has another type.
    OptionError
        If ``palette`` contains something that is not a color.

    See Also
    --------
    scgalore.estimate_memory : Estimate the memory of fine-tuning.
    scgalore.model.savings : Memory as memory-saving settings are added.

    Examples
    --------
    >>> import scgalore as sg
    >>> table = sg.model.savings("scgpt", genes_per_cell=3000, batch_size=8, accelerator="cuda")
    >>> ax = sg.pl.memory(table, show=False)
    """
    table = _table(data)
    parts = [part for part in table.columns if part != PEAK and (table[part] > 0).any()]
    peak = table[PEAK].to_numpy(dtype=np.float64)
    unit, name = (1e9, "GB") if peak.max() >= 1e9 else (1e6, "MB")
    one = len(table) == 1
    drawn = axes_or_new(ax, (7.0, 1.2 + 0.42 * len(table)))
    defaults = {part: COLORS.get(part, tone(drawn, 0.6)) for part in parts}
    colors = palette_colors(parts, palette, defaults)
    start = np.zeros(len(table))
    place = np.arange(len(table))
    for part in parts:
        width = table[part].to_numpy(dtype=np.float64) / unit
        label = part.replace("_", " ") + (f" ({format_bytes(int(table[part].iloc[0]))})" if one else "")
        drawn.barh(place, width, left=start, height=0.7, color=colors[part], label=label)
        start = start + width
    for y, (end, size) in enumerate(zip(start, peak, strict=True)):
        drawn.annotate(format_bytes(int(size)), (end, y), (4, 0), textcoords="offset points", va="center", fontsize=8)
    drawn.set_yticks(place, labels=[str(row) for row in table.index])
    drawn.invert_yaxis()
    drawn.set_xlim(0, 1.15 * start.max())
    drawn.set(xlabel=f"memory ({name})", ylabel=str(table.index.name or ""))
    drawn.grid(visible=False)
    drawn.spines[["top", "right"]].set_visible(False)
    # Below the name of the axis, which has a line for the numbers and one for itself.
    below = 0.5 * rcParams["font.size"]
    drawn.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=below)
    set_title(drawn, title, f"Peak memory of training: {format_bytes(int(peak[0]))}" if one else "Memory of training")
    return finish("memory", drawn, ax=ax, show=show, save=save, return_fig=return_fig)


def _table(data: Any) -> pd.DataFrame:
    """Table with one row per bar, one column per component, and the peak."""
    if isinstance(data, pd.DataFrame):
        table = data
    else:
        named = data if isinstance(data, Mapping) else {"training": data}
        if not named or not all(hasattr(estimate, "to_frame") for estimate in named.values()):
            msg = (
                f"data is a {type(data).__name__}; expected memory estimates. Pass sg.model.savings(...), "
                "sg.estimate_memory(...), or a dict of estimates."
            )
            raise DataError(msg)
        table = pd.DataFrame({name: estimate.to_frame()["bytes"] for name, estimate in named.items()}).T
    if PEAK not in table or len(table) == 0:
        msg = f"The table has the columns {list(table.columns)} and lacks {PEAK!r}. Pass the result of sg.model.savings(...)."
        raise DataError(msg)
    return table
