from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st

from scgalore.data.labels import class_codes, class_colors, class_names, doubtful_labels, encode_labels, in_order
from scgalore.errors import DataError, MissingKeyError, OptionError


def annotated(column: Any) -> AnnData:
    column = pd.Series(column).reset_index(drop=True)
    adata = AnnData(np.zeros((len(column), 1), dtype=np.float32))
    adata.obs["x"] = column.set_axis(adata.obs_names)
    return adata


class TestCodes:
    @given(st.lists(st.sampled_from(["B", "CD4+/CD25 T", "β-cell", "a b", "10"]), min_size=2, max_size=40))
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
            pytest.param([2, 10, 2], ("2", "10"), id="integers"),
            pytest.param([True, False, True], ("False", "True"), id="booleans"),
            pytest.param([1.0, 2.0, 1.0], ("1", "2"), id="few_floats"),
            pytest.param([0.5, -1.0, 0.5], ("-1", "0.5"), id="fractions"),
            pytest.param(["2", "10", "2"], ("2", "10"), id="numbers_as_text"),
            pytest.param(["1.1", "1.0", "1.1"], ("1.0", "1.1"), id="subclusters"),
            pytest.param(
                pd.Categorical([2.0, 1.0, 2.0], categories=[3.0, 2.0, 1.0]), ("2", "1"), id="float_categories"
            ),
            pytest.param(np.array([b"y", b"x", b"y"], dtype=object), ("x", "y"), id="bytes"),
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


def spellings(numbers: list[int]) -> dict[str, pd.Series]:
    """The same labels in the types that files and users have them in."""
    ints, texts = pd.Series(numbers), pd.Series(list(map(str, numbers)))
    return {
        "int": ints,
        "float": ints.astype(float),
        "nullable": ints.astype("Int64"),
        "text": texts,
        "decimals": ints.astype(float).map(lambda number: f"{number:.1f}"),
        "string": texts.astype("string"),
        "int categories": ints.astype("category"),
        "float categories": ints.astype(float).astype("category"),
        "text categories": texts.astype("category"),
        "mixed": pd.Series([n if i % 2 else f"{n}.0" for i, n in enumerate(numbers)], dtype=object),
    }


labels_of_12 = st.lists(st.integers(0, 12), min_size=2, max_size=30).filter(lambda numbers: len(set(numbers)) > 1)


class TestOneForm:
    @given(labels_of_12)
    def test_a_label_is_one_class_in_every_type(self, numbers: list[int]) -> None:
        for kind, column in spellings(numbers).items():
            codes, classes = encode_labels(annotated(column), "x")
            assert [classes[code] for code in codes] == list(map(str, numbers)), kind
            if kind != "text categories":  # which have an order of their own
                assert classes == tuple(str(number) for number in sorted(set(numbers))), kind

    @given(labels_of_12)
    def test_every_type_finds_the_classes_of_every_other(self, numbers: list[int]) -> None:
        given_classes = [
            tuple(map(str, range(13))),
            tuple(f"{n}.0" for n in range(13)),
        ]  # version 0.5.0 wrote the latter
        for classes in given_classes:
            for kind, column in spellings(numbers).items():
                assert class_codes(column, classes).tolist() == numbers, kind
                assert class_codes(column.iloc[:1], classes).tolist() == numbers[:1], kind

    @given(st.lists(st.sampled_from(["1", "1.0", "1.00", "01", "2", "B", "1e0", "+1"]), min_size=1))
    def test_no_label_of_a_column_is_lost(self, names: list[str]) -> None:
        column = pd.Series([*names, "X"], dtype=object)
        codes, _ = encode_labels(annotated(column), "x")
        assert (codes >= 0).all()

    def test_a_column_that_became_float_keeps_its_names(self) -> None:
        adata = annotated(pd.Series([0, 1, None, 10, 2], dtype=float))
        labelled = adata[adata.obs["x"].notna()].copy()
        assert encode_labels(labelled, "x")[1] == ("0", "1", "2", "10")

    def test_names_that_are_listed(self) -> None:
        assert class_names([2, 0.0, "1"]) == ("2", "0", "1")
        for twice in ([1, "1.0"], ["a", None], ["a", "a"]):
            with pytest.raises(OptionError, match="expected unique names"):
                class_names(twice)

    def test_order(self) -> None:
        assert in_order(["10", "9", "-1", "0.5"]) == ("-1", "0.5", "9", "10")
        assert in_order(["10", "9", "B"]) == ("10", "9", "B")


class TestColours:
    def colours(self, column: Any, colors: Any) -> Any:
        adata = annotated(column)
        adata.uns["x_colors"] = colors
        found = class_colors(adata, "x", encode_labels(adata, "x")[1])
        return None if found is None else found.tolist()

    def test_they_belong_to_categories(self) -> None:
        column = pd.Categorical(["b", "a", "b"], categories=["a", "z", "b"])
        assert self.colours(column, np.array(["#a", "#z", "#b"])) == ["#a", "#b"]
        assert self.colours(column, ["#a", "#z", "#b", "#more"]) == ["#a", "#b"]
        assert self.colours(pd.Categorical([2, 1, 2], categories=[2, 1]), ("#2", "#1")) == ["#2", "#1"]

    @pytest.mark.parametrize("colors", [["#a", "#b"], {"a": "#a"}, "red", np.array([]), None])
    def test_other_things_are_left_alone(self, colors: Any) -> None:
        assert self.colours(pd.Categorical(["b", "a"], categories=["a", "z", "b"]), colors) is None

    def test_texts_have_no_order_that_colours_could_follow(self) -> None:
        assert self.colours(["b", "a"], ["#a", "#b"]) is None


class TestDoubts:
    def doubts(self, names: list[str]) -> list[str]:
        classes, counts = np.unique(names, return_counts=True)
        return doubtful_labels(tuple(classes.tolist()), counts, "here")

    @pytest.mark.parametrize("name", ["Unknown", "unassigned", "UNCLASSIFIED", "not_assigned", "?", "-", "unk"])
    def test_cells_without_a_type(self, name: str) -> None:
        (found,) = self.doubts(["T"] * 5 + [name] * 3)
        assert f"{name!r} (3 cells)" in found
        assert "sg.tl.annotate" in found

    @pytest.mark.parametrize("other", ["T ", " T", "t", "T\t"])
    def test_names_that_differ_in_case_and_blanks(self, other: str) -> None:
        (found,) = self.doubts(["T"] * 5 + [other] * 3 + ["B"] * 2)
        assert "differ only in case and spaces" in found
        assert "'T' (5 cells)" in found
        assert f"{other!r} (3 cells)" in found
        assert "'B'" not in found

    def test_a_blank_at_the_end(self) -> None:
        (found,) = self.doubts(["T "] * 5 + ["B"] * 2)
        assert "'T ' (5 cells)" in found
        assert "strip" in found

    def test_a_class_of_one_cell(self) -> None:
        (found,) = self.doubts(["T"] * 5 + ["B", "NK"])
        assert "classes with a single cell (2 in total)" in found
        assert "'B', 'NK'" in found

    def test_usual_labels_are_beyond_doubt(self) -> None:
        assert self.doubts(["T", "T", "CD4 T", "CD4 T", "T-cell", "T-cell", "Unknown-like B", "Unknown-like B"]) == []


class TestRefusals:
    def test_missing_column_lists_the_others(self) -> None:
        with pytest.raises(MissingKeyError, match=r"No column 'y' in adata\.obs; it has \['x'\]"):
            encode_labels(annotated(["a", "b"]), "y")

    @pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
    def test_missing_label(self, missing: Any) -> None:
        with pytest.raises(DataError, match=r"1 of 3 cells have no label.*notna\(\).*annotate"):
            encode_labels(annotated(["a", "b", missing]), "x")

    @pytest.mark.parametrize("word", ["nan", "NaN", "", " ", "NA", "<NA>", "None", "null"])
    def test_words_for_missing_are_no_class(self, word: str) -> None:
        names = ["a", "b", word, "a", word]
        with pytest.raises(DataError, match=r"2 of 5 cells have no label.*rename it") as caught:
            encode_labels(annotated(names), "x")
        adata = annotated(names)
        chosen = str(caught.value).partition("adata[")[2].partition("], and")[0]  # the call that the message proposes
        labelled = adata[eval(chosen, {"adata": adata})]
        assert labelled.obs["x"].tolist() == ["a", "b", "a"]

    def test_no_cells(self) -> None:
        with pytest.raises(DataError, match="has no labels"):
            encode_labels(annotated(np.array([], dtype=object)), "x")

    def test_one_class(self) -> None:
        with pytest.raises(DataError, match="only one class, 'a'"):
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
        with pytest.raises(DataError, match=f"{what} in 300 cells; expected classes"):
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
