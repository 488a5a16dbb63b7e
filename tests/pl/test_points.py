import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt

from scgalore.pl._points import name_points, robust_limits


def test_a_few_far_values_do_not_stretch_the_limits() -> None:
    values = np.append(np.linspace(0, 1, 60), [50, -40, 45])
    assert robust_limits(values, margin=0) == (0, 1)
    assert robust_limits(np.append(np.linspace(0, 1, 5), 90), margin=0) == (0, 1)


def test_long_tails_and_groups_are_kept() -> None:
    rng = np.random.default_rng(0)
    normal, groups = rng.normal(size=200), np.append(np.zeros(20), np.full(20, 100.0))
    for values in (normal, groups, [0.0, 1.0], [3.0], np.zeros(50)):
        low, high = robust_limits(values)
        assert low < np.min(values)
        assert high > np.max(values)


@given(st.lists(st.floats(-1e6, 1e6), max_size=60), st.floats(0.01, 100))
def test_limits_are_in_order_and_change_with_the_unit(values: list[float], unit: float) -> None:
    low, high = robust_limits(values)
    assert low < high
    if values and np.ptp(values) > 1e-3:
        assert robust_limits(unit * np.array(values)) == pytest.approx((unit * low, unit * high), rel=1e-6, abs=1e-6)


def test_names_are_in_order_and_one_that_does_not_fit_is_left_out() -> None:
    ax = plt.figure(figsize=(2, 2)).subplots()
    ax.set(xlim=(0, 1), ylim=(0, 1))
    name_points(
        ax, [0.5, 0.51, 0.5], [0.5, 0.5, 0.1], ["first", "second", "a name that is far too long for these axes"]
    )
    assert [text.get_text() for text in ax.texts] == ["first", "second"]
    name_points(ax, [], [], [])
