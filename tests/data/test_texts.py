"""Labels in any type are one text, whichever way they come."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgalore.data.texts import looks_missing, same_label, texts_of

whole = st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=20)


@given(whole)
def test_whole_numbers_have_one_text_in_every_type(numbers):
    expected = list(map(str, numbers))
    as_float = pd.Series(numbers, dtype=float)
    for column in (
        numbers,
        np.array(numbers),
        pd.Series(numbers),
        pd.Series(numbers, dtype="Int64"),
        as_float,
        pd.Series(numbers, dtype="category"),
        as_float.astype("category"),
        pd.Series(numbers).astype(str),
        as_float.map(lambda number: f"{number:.1f}"),
        pd.Series(expected, dtype="string"),
        pd.Series(expected, dtype="category"),
        pd.Series(numbers, dtype=object),
    ):
        assert texts_of(column).tolist() == expected


@given(whole, st.data())
def test_a_missing_value_changes_no_other_label(numbers, data):
    place = data.draw(st.integers(0, len(numbers) - 1))
    for dtype in ("Int64", float, object, "category"):
        column = pd.Series(numbers, dtype=dtype)
        column[place] = None
        texts = texts_of(column)
        assert texts[place] is None
        assert [t for i, t in enumerate(texts) if i != place] == [str(n) for i, n in enumerate(numbers) if i != place]


def test_labels_that_are_no_whole_numbers_stay_as_they_are():
    assert texts_of(["1.0", "1.1"]).tolist() == ["1.0", "1.1"]  # subclusters
    assert texts_of(["1.0", "B"]).tolist() == ["1.0", "B"]
    assert texts_of([0.5, 1.0, 10.0]).tolist() == ["0.5", "1", "10"]
    assert texts_of([True, False]).tolist() == ["True", "False"]
    assert texts_of([b"T", "T"]).tolist() == ["T", "T"]
    assert texts_of([]).tolist() == []
    assert texts_of([np.inf, 1.0]).tolist() == ["inf", "1"]


@pytest.mark.parametrize("label", [0, 0.0, "0", "0.0", np.int8(0), np.float32(0)], ids=repr)
def test_a_label_is_found_in_whatever_type_it_is_given(label):
    assert same_label(label, texts_of(pd.Series([0, 1, 2], dtype="category"))) == "0"
    assert same_label(label, ["1", "2"]) is None


def test_a_label_is_found_in_its_own_spelling_first():
    assert same_label("1.0", ["1.0", "1"]) == "1.0"
    assert same_label(None, ["1"]) is None


def test_words_for_missing():
    assert all(map(looks_missing, ["nan", "NaN", " NA ", "None", "<NA>", ""]))
    assert not any(map(looks_missing, ["T", "NAN1", "NANOG", "Unassigned"]))
