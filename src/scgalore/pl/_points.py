"""Points in a plane: limits that are robust to outliers, and labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.transforms import Bbox

from scgalore.pl._colors import tone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

__all__ = ["name_points", "robust_limits"]

OFFSETS = [(5, 3), (-5, 3), (5, -8), (-5, -8), (0, 7), (0, -13), (14, 10), (-14, 10), (14, -16), (-14, -16)]
"""Where a name is tried next to its point, in typographic points."""
KEPT = 0.95
"""Fraction of the points that decide the limits where the others are far from them."""
STRETCHED = 2.5
"""Ranges that are longer than this many times that of most points are cut."""


def robust_limits(values: ArrayLike, *, margin: float = 0.08) -> tuple[float, float]:
    """Limits of an axis that include all values, except for a few outliers that would compress the others.

    Parameters
    ----------
    values
        Coordinates, of any number of points.
    margin
        Margin at both ends, as a fraction of the range.

    Returns
    -------
    Lower and upper limit. Values are left outside if the shortest interval with 95 % of them (all but one of less than 40) is less than 0.4 of the whole range,
    and if they are farther from it than half of its length.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64)[np.isfinite(values)])
    if len(ordered) == 0:
        return -1.0, 1.0
    low, high = ordered[0], ordered[-1]
    n_kept = len(ordered) - max(1, int((1 - KEPT) * len(ordered)))
    if n_kept > 2:
        lengths = ordered[n_kept - 1 :] - ordered[: len(ordered) - n_kept + 1]
        first = int(np.argmin(lengths))
        length = float(lengths[first])
        if 0 < STRETCHED * length < high - low:
            near = ordered[(ordered >= ordered[first] - length / 2) & (ordered <= ordered[first] + 1.5 * length)]
            low, high = near[0], near[-1]
    room = margin * (high - low) if high > low else 1.0
    return float(low - room), float(high + room)


def name_points(
    axes: Axes, x: ArrayLike, y: ArrayLike, names: Sequence[str], *, others: ArrayLike | None = None
) -> None:
    """Write names next to points, in order; names without space are omitted.

    Limits, title and legend must be final, since names avoid them.

    Parameters
    ----------
    axes
        Axes with the points.
    x, y
        Coordinates of the points that are named.
    names
        Their names.
    others
        Coordinates of further points that no name may cover, one per row.
    """
    if len(names) == 0:
        return
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    points = np.column_stack([x, y]).astype(np.float64)
    avoided = points if others is None else np.concatenate([points, np.asarray(others, dtype=np.float64)])
    frame = axes.get_window_extent()
    taken = [Bbox.from_extents(*(place - 4), *(place + 4)) for place in axes.transData.transform(avoided)]
    legend = axes.get_legend()
    taken += [] if legend is None else [legend.get_window_extent()]
    line = {"arrowstyle": "-", "color": tone(axes, 0.6), "linewidth": 0.5}
    for point, name in zip(points.tolist(), names, strict=True):
        for dx, dy in OFFSETS:
            side = "left" if dx > 0 else "right" if dx < 0 else "center"
            text = axes.annotate(
                name, point, (dx, dy), textcoords="offset points", ha=side, fontsize=7,
                arrowprops=line if abs(dx) > 10 else None,
            )  # fmt: skip
            box = text.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()
