import json
import math
from dataclasses import dataclass

import numpy as np

from scgalore.data.identity import KIND, parts_of
from scgalore.data.tokens import TokenizerConfig


def test_fields_are_numbers_and_texts() -> None:
    parts = parts_of(TokenizerConfig(max_length=7))
    assert parts[KIND] == "TokenizerConfig"
    assert parts["max_length"] == 7
    assert json.loads(json.dumps(parts)) == parts


def test_other_values_are_told_apart_by_their_text() -> None:
    @dataclass
    class Holder:
        values: np.ndarray

    one, two = (parts_of(Holder(np.array([1.0, last])), "held") for last in (2.0, 3.0))
    assert json.loads(json.dumps(one)) == one != two
    assert one[KIND] == "held"


def test_scalars_of_numpy_and_nan_are_texts() -> None:
    @dataclass
    class Holder:
        value: object

    for value in (np.float64(0.5), np.int64(3), math.nan):
        assert isinstance(parts_of(Holder(value))["value"], str)
        assert parts_of(Holder(value)) == parts_of(Holder(type(value)(value)))


def test_what_has_no_fields_is_its_text() -> None:
    assert parts_of((1, 2)) == "(1, 2)"
