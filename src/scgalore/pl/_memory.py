"""Where the bytes of a training run go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from scgalore._docs import shared_parameters
from scgalore.errors import DataError
from scgalore.pl._axes import axes_or_new, show_or_return

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
def memory(data: Any, *, ax: Axes | None = None, show: bool | None = None) -> Axes | None:
    """Bytes of a training run by part, as stacked bars with the peak at their ends.

    Parameters
    ----------
    data
        Result of :func:`scgalore.model.savings`; or an estimate of :func:`scgalore.estimate_memory`, or several by
        name.
    {ax}
    {show}

    Returns
    -------
    The axes, or ``None`` if the figure was shown. The bars stand in the order of the data, the first one on top; parts that
    are empty in all of them are left out.

    Raises
    ------
    DataError
        If ``data`` is none of these.

    Examples
    --------
    >>> import scgalore as sg
    >>> table = sg.model.savings("scgpt", genes_per_cell=3000, batch_size=8, accelerator="cuda")
    >>> sg.pl.memory(table)  # doctest: +SKIP
    """
    table = _table(data)
    parts = [part for part in table.columns if part != PEAK and (table[part] > 0).any()]
    unit, name = (1e9, "GB") if table[PEAK].max() >= 1e9 else (1e6, "MB")
    drawn = axes_or_new(ax, (7.0, 1.2 + 0.42 * len(table)))
    start = pd.Series(0.0, index=table.index)
    place = range(len(table))
    for part in parts:
        width = table[part] / unit
        drawn.barh(place, width, left=start, height=0.7, color=COLORS.get(part), label=part.replace("_", " "))
        start += width
    longest = start.max()
    for y, (end, peak) in enumerate(zip(start, table[PEAK] / unit, strict=True)):
        drawn.text(end + 0.01 * longest, y, f"{peak:.3g}", va="center", fontsize=8)
    drawn.set_yticks(place, labels=[str(row) for row in table.index])
    drawn.invert_yaxis()
    drawn.set_xlim(0, 1.1 * longest)
    drawn.set_xlabel(f"memory ({name})")
    drawn.spines[["top", "right"]].set_visible(False)
    drawn.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return show_or_return(drawn, show=show, own_figure=ax is None)


def _table(data: Any) -> pd.DataFrame:
    """One row a bar, one column a part, and the peak."""
    if isinstance(data, pd.DataFrame):
        table = data
    else:
        named = data if isinstance(data, Mapping) else {"": data}
        if not named or not all(hasattr(estimate, "to_frame") for estimate in named.values()):
            msg = (
                f"sg.pl.memory draws estimates of memory, not a {type(data).__name__}. Pass sg.model.savings(...), an "
                "estimate of sg.estimate_memory(...), or a dict of them."
            )
            raise DataError(msg)
        table = pd.DataFrame({name: estimate.to_frame()["bytes"] for name, estimate in named.items()}).T
    if PEAK not in table or len(table) == 0:
        msg = f"The table has the columns {list(table.columns)} and lacks {PEAK!r}. Pass the result of sg.model.savings(...)."
        raise DataError(msg)
    return table
