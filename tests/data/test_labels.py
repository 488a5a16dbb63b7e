from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st

from scgalore.data.labels import class_codes, encode_labels
from scgalore.errors import DataError, MissingKeyError


def annotated(column: Any) -> AnnData:
    column = pd.Series(column).reset_index(drop=True)
    adata = AnnData(np.zeros((len(column), 1), dtype=np.float32))
    adata.obs["x"] = column.set_axis(adata.obs_names)
    return adata


class TestCodes:
    @given(st.lists(st.sampled_from(["B", "CD4+/CD25 T", "β-cell", "a b", ""]), min_size=2, max_size=40))
    def test_names_are_read_back(self, names: list[str]) -> None:
        if len(set(names)) < 2:
            return
        codes, classes = encode_labels(annotated(names), "x")
        assert [classes[code] for code in codes] == names
        assert list(classes) == sorted(set(names))
        assert codes.dtype == np.int64

    @pytest.mark.parametrize(
        ("column", "expected"),
        [
            pytest.param(
                pd.Categorical(["b", "a", "b"], categories=["z", "b", "a"]),
                ("b", "a"),
                id="unused_category_and_own_order",
            ),
            pytest.param([2, 10, 2], ("10", "2"), id="integers"),
            pytest.param([True, False, True], ("False", "True"), id="booleans"),
            pytest.param([1.0, 2.0, 1.0], ("1.0", "2.0"), id="few_floats"),
            pytest.param(pd.array(["x", "y", "x"], dtype="string"), ("x", "y"), id="string_array"),
        ],
    )
    def test_kinds_of_columns(self, column: Any, expected: tuple[str, ...]) -> None:
        codes, classes = encode_labels(annotated(column), "x")
        assert classes == expected
        assert codes[0] == codes[2] != codes[1]

    def test_row_order_changes_no_code(self) -> None:
        names = np.array(["c", "a", "b", "a", "c"])
        codes, classes = encode_labels(annotated(names), "x")
        again, same = encode_labels(annotated(names[::-1]), "x")
        assert classes == same
        assert again[::-1].tolist() == codes.tolist()


class TestRefusals:
    def test_missing_column_lists_the_others(self) -> None:
        with pytest.raises(MissingKeyError, match=r"No column 'y' in adata\.obs; it has \['x'\]"):
            encode_labels(annotated(["a", "b"]), "y")

    @pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
    def test_missing_label(self, missing: Any) -> None:
        with pytest.raises(DataError, match=r"1 of 3 cells have no label.*notna\(\).*annotate"):
            encode_labels(annotated(["a", "b", missing]), "x")

    def test_one_class(self) -> None:
        with pytest.raises(DataError, match="one class only, 'a'"):
            encode_labels(annotated(["a", "a"]), "x")

    @pytest.mark.parametrize(
        ("column", "what"),
        [
            pytest.param(np.linspace(0, 1, 300), "300 different numbers", id="score"),
            pytest.param(np.arange(300) % 150, "150 different numbers", id="counts"),
            pytest.param([f"barcode-{i}" for i in range(300)], "300 different names", id="barcodes"),
        ],
    )
    def test_column_that_names_no_classes(self, column: Any, what: str) -> None:
        with pytest.raises(DataError, match=f"{what} in 300 cells; labels_key must name classes"):
            encode_labels(annotated(column), "x")

    @pytest.mark.parametrize("column", [np.arange(300) % 30, [f"type {i}" for i in range(20)], np.arange(20)])
    def test_many_classes_are_fine(self, column: Any) -> None:
        assert len(encode_labels(annotated(column), "x")[1]) == len(np.unique(column))


@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1), st.booleans())
def test_codes_among_given_classes(names: list[str], categorical: bool) -> None:
    column = pd.Series(pd.Categorical(names, categories=["c", "z", "a", "b"]) if categorical else names)
    codes = class_codes(column, ("b", "q", "c"))
    assert codes.tolist() == [{"b": 0, "c": 2, "a": -1}[name] for name in names]
    assert codes.dtype == np.int64


def test_a_label_that_is_missing_is_no_class() -> None:
    assert class_codes(pd.Series(pd.Categorical(["a", None])), ("b", "a")).tolist() == [1, -1]
