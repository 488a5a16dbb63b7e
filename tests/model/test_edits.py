import math

import numpy as np
import pytest

from scgalore.errors import OptionError
from scgalore.model.edits import Edit


@pytest.mark.parametrize(
    ("mode", "level", "says"),
    [
        ("knock-out", None, "Did you mean 'knockout'"),
        ("knockout", 1.0, "not for a knock-out"),
        ("overexpress", None, "expected a number, more than 0"),
        ("overexpress", 0, "expected a number, more than 0"),
        ("set", None, "expected a number, 0 or more"),
        ("set", -1.0, "expected a number, 0 or more"),
        ("set", math.nan, "expected a number"),
        ("set", True, "expected a number"),
    ],
)
def test_mode_and_level_belong_together(mode: str, level: float | None, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        Edit(mode, level)


def test_what_each_mode_does_to_expression() -> None:
    x = np.array([0.0, 1.5, 3.0])
    assert Edit("knockout").apply(x).tolist() == [0, 0, 0]
    assert Edit("overexpress", 2).apply(x).tolist() == [2, 3.5, 5]
    assert Edit("set", 2).apply(x).tolist() == [2, 2, 2]
