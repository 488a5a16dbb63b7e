"""Where the parts of a figure end up when it is drawn."""

from itertools import combinations
from typing import Any

from matplotlib.artist import Artist
from matplotlib.text import Text
from matplotlib.transforms import Bbox

__all__ = ["assert_apart", "assert_inside"]


def assert_inside(*parts: Artist | None) -> None:
    """All of each part is inside of its figure."""
    for part, box, figure in drawn(parts):
        if isinstance(part, Text) and not part.get_text():
            continue
        frame = figure.bbox.padded(1)
        assert frame.contains(box.x0, box.y0), part
        assert frame.contains(box.x1, box.y1), part


def assert_apart(*parts: Artist | None) -> None:
    """No two parts overlap."""
    for (a, one, _), (b, other, _) in combinations(drawn(parts), 2):
        assert not one.padded(-0.5).overlaps(other.padded(-0.5)), (a, b)


def drawn(parts: tuple[Artist | None, ...]) -> list[tuple[Artist, Bbox, Any]]:
    found = [part for part in parts if part is not None]
    assert len(found) == len(parts)
    root: Any = found[0].figure.figure if found else None
    if root is not None:
        root.draw_without_rendering()
    return [(part, part.get_window_extent(), root) for part in found]
