from typing import Any

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tests.drawing import assert_apart, assert_inside

import scgalore as sg
from scgalore.errors import DataError
from scgalore.train import MemoryEstimate

ONE = MemoryEstimate(10**9, 2 * 10**9, 3 * 10**9, 4 * 10**9, 0)
OTHER = MemoryEstimate(10**9, 0, 10**9, 10**9, 10**9)


@pytest.fixture
def ax() -> Any:
    return Figure().subplots()


def ends(ax: mpl.axes.Axes) -> list[float]:
    """Right end of each bar."""
    patches = [patch for container in ax.containers for patch in container]
    places = sorted({round(patch.get_y(), 3) for patch in patches})
    return [max(p.get_x() + p.get_width() for p in patches if round(p.get_y(), 3) == y) for y in places]


def test_bars_end_at_the_peak_and_parts_have_their_widths(ax: Any) -> None:
    returned: object = sg.pl.memory({"before": ONE, "after": OTHER}, ax=ax)
    assert returned == ax
    assert ends(ax) == pytest.approx([10, 4])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["before", "after"]
    widths = {container.get_label(): [patch.get_width() for patch in container] for container in ax.containers}
    assert widths["optimizer state"] == pytest.approx([3, 1])
    assert [text.get_text() for text in ax.texts] == ["10.00 GB", "4.00 GB"]
    assert ax.get_xlabel() == "memory (GB)"
    assert ax.yaxis_inverted()


def test_parts_that_nothing_has_are_left_out(ax: Any) -> None:
    sg.pl.memory(ONE, ax=ax)
    assert "workspace" not in {container.get_label() for container in ax.containers}
    assert len(ends(ax)) == 1


def test_one_estimate_has_its_name_and_every_part_its_size(ax: Any) -> None:
    sg.pl.memory(ONE, ax=ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["training"]
    assert "optimizer state (3.00 GB)" in [text.get_text() for text in ax.get_legend().get_texts()]
    assert ax.get_title() == "Peak memory of training: 10.00 GB"


def test_nothing_overlaps_or_leaves_the_figure() -> None:
    table = pd.DataFrame({f"run number {i} with a long name": {**ONE.parts(), "peak": ONE.peak} for i in range(30)}).T
    for data in (ONE, table.rename_axis("setting")):
        ax = sg.pl.memory(data, show=False)
        assert isinstance(ax, Axes)
        parts = [*ax.texts, ax.title, ax.xaxis.label, ax.get_legend()]
        assert_inside(*parts, ax.yaxis.label, *ax.get_yticklabels())
        assert_apart(*parts)


def test_small_runs_are_in_megabytes(ax: Any) -> None:
    sg.pl.memory(MemoryEstimate(10**6, 10**6, 10**6, 10**6, 10**6), ax=ax)
    assert ax.get_xlabel() == "memory (MB)"
    assert ends(ax) == pytest.approx([5])


def test_a_table_of_savings_is_drawn_row_by_row(ax: Any) -> None:
    table = sg.model.savings("scgpt", genes_per_cell=500, batch_size=2, accelerator="cuda")
    before = table.copy()
    sg.pl.memory(table, ax=ax)
    assert ends(ax) == pytest.approx((table["peak"] / 1e9).tolist())
    pd.testing.assert_frame_equal(table, before)


@pytest.mark.parametrize("data", [{}, 5, {"a": 5}, None, pd.DataFrame({"x": [1]}), pd.DataFrame({"peak": []})])
def test_anything_else_is_refused(data: Any) -> None:
    with pytest.raises(DataError, match=r"sg\.model\.savings"):
        sg.pl.memory(data)
