from typing import Any

import numpy as np
import pytest

from scgalore.data.collection import Collection
from scgalore.data.weighing import Weighing
from scgalore.errors import DataError, OptionError

NAMED = Collection.of({"blood": ["a.h5ad", "b.h5ad"], "lung": "c.h5ad"})
VALUES = ("T", "B", "NK")
CODES = [np.array([0, 0, 1], np.int8), np.array([0], np.int8), np.array([1, 2, 2, 2, 2], np.int8)]
GROUPS, SIZES = [0, 0, 1], [3, 1, 5]


def probabilities(**options: Any) -> np.ndarray:
    """Probability of each value in each group, ``(n_groups, n_values)``."""
    weighing = Weighing.of(NAMED, **{"shares": None, "key": None, "weights": None, **options})
    assert weighing is not None
    codes = CODES if weighing.key else None
    weights = weighing.of_cells(NAMED.names, GROUPS, SIZES, VALUES if codes else (), codes)
    found = np.zeros_like(weights)
    for number, (group, size) in enumerate(zip(GROUPS, SIZES, strict=True)):
        np.add.at(found[group], np.zeros(size, np.int8) if codes is None else codes[number], 1)
    return found * weights / (found * weights).sum()


def test_shares_of_sources() -> None:
    np.testing.assert_allclose(probabilities(shares={"blood": 7, "lung": 3})[:, 0], [0.7, 0.3])


def test_values_are_drawn_equally_often() -> None:
    np.testing.assert_allclose(probabilities(key="cell_type").sum(axis=0), [1 / 3] * 3)


def test_weights_of_values() -> None:
    np.testing.assert_allclose(probabilities(key="c", weights={"T": 2, "NK": 0}).sum(axis=0), [2 / 3, 1 / 3, 0])


def test_values_are_balanced_within_shares() -> None:
    found = probabilities(shares={"blood": 0.4, "lung": 0.6}, key="cell_type")
    np.testing.assert_allclose(found, [[0.2, 0.2, 0], [0, 0.3, 0.3]])


def test_nothing_asked_for() -> None:
    assert Weighing.of(NAMED, None, None, None) is None


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"shares": {"blood": 0.5}}, OptionError, "has no entry for the source 'lung'"),
        ({"shares": {"blood": 0.5, "lung": 0.4, "skin": 1}}, OptionError, "shares contains the unknown source 'skin'"),
        ({"shares": {"blood": 0.5, "lung": 0}}, OptionError, "0 for 'lung'; it must be a number, positive"),
        ({"shares": {"blood": 0.5, "lung": float("nan")}}, OptionError, "nan for 'lung'"),
        ({"shares": [0.5, 0.5]}, OptionError, "must be a mapping"),
        ({"weights": {"T": 1}}, OptionError, "Pass it as weights_key="),
        ({"key": "c", "weights": {"T": -1}}, OptionError, "-1 for 'T'"),
        ({"key": "c", "weights": {"mast": 1}}, OptionError, "weights has 'mast', which no cell has"),
        ({"key": "c", "weights": dict.fromkeys(VALUES, 0)}, OptionError, "no cell has a weight above 0"),
        (
            {"key": "c", "shares": {"blood": 1, "lung": 1}, "weights": {"B": 0, "NK": 0}},
            DataError,
            "source 'lung' has a share but only cells of weight 0",
        ),
    ],
)
def test_what_is_no_weight(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        probabilities(**options)


def test_shares_need_names() -> None:
    with pytest.raises(OptionError, match="needs sources with names"):
        Weighing.of(Collection.of(["a.h5ad"]), {"a.h5ad": 1.0}, None, None)


def test_a_source_without_cells() -> None:
    with pytest.raises(DataError, match="'lung' has a share but no cells"):
        Weighing({"blood": 1, "lung": 1}).of_cells(("blood", "lung"), [0], [3], (), None)
