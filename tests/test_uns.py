"""What to_uns returns must survive write_h5ad and read_h5ad, whatever went in."""

import dataclasses
import string
from collections import namedtuple
from datetime import UTC, date, datetime, timedelta
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scgalore._uns import table_in, to_uns


class Colour(Enum):
    RED = "red"


class Style(str, Enum):  # noqa: UP042 - the older spelling is what other packages hand over
    FAST = "fast"


class Level(IntEnum):
    LOW = 1


@dataclasses.dataclass(frozen=True)
class Options:
    rank: int
    folder: Path
    styles: tuple[Style, ...]


Point = namedtuple("Point", ["x", "y"])


def through_file(value: Any, folder: Path) -> Any:
    adata = ad.AnnData(np.zeros((1, 1), dtype=np.float32))
    adata.uns["value"] = value
    adata.write_h5ad(folder / "value.h5ad")
    return ad.read_h5ad(folder / "value.h5ad").uns["value"]


def same(written: Any, read: Any) -> bool:
    """Equality up to what h5ad always does: lists come back as arrays."""
    if isinstance(written, dict):
        return isinstance(read, dict) and written.keys() == read.keys() and all(same(written[k], read[k]) for k in read)
    if isinstance(written, pd.DataFrame):
        # pandas 3 reads text as a type of its own.
        texts = {name: object for name in read if isinstance(read[name].dtype, pd.StringDtype)}
        pd.testing.assert_frame_equal(
            written.astype(texts), read.astype(texts), check_column_type=False, check_index_type=False
        )
        return True
    if isinstance(written, list | np.ndarray):
        a, b = np.asarray(written), np.asarray(read)
        if a.size == 0 or a.dtype.kind in "OSU":
            return a.shape == b.shape and a.tolist() == b.tolist()
        return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(written, float):
        return written == read or (np.isnan(written) and np.isnan(read))
    return written == read


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(None, None, id="none"),
        pytest.param(Path("a/b"), "a/b", id="path"),
        pytest.param(Colour.RED, "red", id="enum"),
        pytest.param(Style.FAST, "fast", id="string_enum"),
        pytest.param(Level.LOW, 1, id="integer_enum"),
        pytest.param((1, 2), [1, 2], id="tuple"),
        pytest.param({"b", "a"}, ["a", "b"], id="set_is_sorted"),
        pytest.param({3: "x"}, {"3": "x"}, id="integer_key"),
        pytest.param({"a/b": 1}, {"a_b": 1}, id="slash_in_key"),
        pytest.param({"a/b": 1, "a_b": 2}, {"a_b": 1, "a_b_2": 2}, id="keys_that_would_collide"),
        pytest.param({1: "x", "1": "y"}, {"1": "x", "1_2": "y"}, id="number_and_its_text"),
        pytest.param({"": 1, ".": 2}, {"_": 1, "__": 2}, id="names_hdf5_takes_for_the_group_itself"),
        pytest.param(
            Options(8, Path("w"), (Style.FAST,)), {"rank": 8, "folder": "w", "styles": ["fast"]}, id="dataclass"
        ),
        pytest.param(Point(1, None), {"x": 1, "y": None}, id="named_tuple"),
        pytest.param([1, 2.5], [1.0, 2.5], id="integers_and_floats"),
        pytest.param([1, "a"], {"0": 1, "1": "a"}, id="mixed_list"),
        pytest.param([{"a": 1}, {"a": 2}], {"0": {"a": 1}, "1": {"a": 2}}, id="list_of_dicts"),
        pytest.param(np.float32(0.5), 0.5, id="numpy_scalar"),
        pytest.param(np.array(3), 3, id="array_without_axes"),
        pytest.param(2**70, str(2**70), id="integer_beyond_64_bits"),
        pytest.param("a\x00b", "a\\x00b", id="nul_in_text"),
        pytest.param("\udc80", "\\udc80", id="byte_that_is_not_utf8"),
        pytest.param(date(2024, 5, 1), "2024-05-01", id="date"),
        pytest.param(datetime(2024, 5, 1, 12, tzinfo=UTC), "2024-05-01T12:00:00+00:00", id="datetime"),
        pytest.param(timedelta(seconds=90), "0:01:30", id="duration"),
        pytest.param(np.datetime64("2024-05-01"), "2024-05-01", id="numpy_datetime"),
        pytest.param(dict, "dict", id="class"),
        pytest.param(through_file, "through_file", id="function"),
        pytest.param(range(3), [0, 1, 2], id="range"),
    ],
)
def test_value_is_converted_and_survives(value: Any, expected: Any, tmp_path: Path) -> None:
    converted = to_uns(value)
    assert converted == expected
    assert type(converted) is type(expected)
    assert same(converted, through_file(converted, tmp_path))


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(pd.DataFrame({"a": ["x", None]}), id="none_among_strings"),
        pytest.param(pd.DataFrame({"a": [1, None]}, dtype=object), id="none_among_numbers"),
        pytest.param(pd.DataFrame({"a": [1, None]}, dtype="Int64"), id="nullable_integers"),
        pytest.param(pd.DataFrame({"a": [1.5, None]}, dtype="Float64"), id="nullable_floats"),
        pytest.param(pd.DataFrame({"a": ["x", None]}, dtype="string"), id="nullable_strings"),
        pytest.param(pd.DataFrame({"a": [Path("x"), Colour.RED]}), id="objects"),
        pytest.param(pd.DataFrame({"a/b": [1], "a_b": [2]}), id="slash_in_column"),
        pytest.param(pd.DataFrame([[1, 2]], columns=["a", "a"]), id="repeated_column"),
        pytest.param(pd.DataFrame({("a", "b"): [1], ("a", "c"): [2]}), id="columns_of_two_levels"),
        pytest.param(pd.DataFrame({"a": [1], "b": [2]}, index=pd.Index(["i"], name="a")), id="index_named_as_a_column"),
        pytest.param(pd.DataFrame({"a": [1]}, index=pd.MultiIndex.from_tuples([("x", 1)])), id="index_of_two_levels"),
        pytest.param(pd.DataFrame({"a": [1]}, index=[None]), id="missing_index"),
        pytest.param(pd.DataFrame({"a": [pd.Timestamp("2024-05-01"), pd.NaT]}), id="dates"),
        pytest.param(pd.DataFrame({"a": pd.Categorical(["x", None, "y"])}), id="categories_with_gap"),
        pytest.param(pd.DataFrame({"_index": [1]}), id="column_anndata_reserves"),
        pytest.param(pd.DataFrame({1: [1], 2: ["x"]}), id="integer_columns"),
        pytest.param(pd.DataFrame(), id="empty"),
        pytest.param(pd.DataFrame({"a": []}), id="no_rows"),
        pytest.param(pd.Series([1.0, 2.0], index=["x", "y"], name="score"), id="series"),
    ],
)
def test_table_survives(table: Any, tmp_path: Path) -> None:
    before = table.copy(deep=True)
    converted = to_uns(table)
    assert converted.shape == (table.to_frame() if isinstance(table, pd.Series) else table).shape
    assert same(converted, through_file(converted, tmp_path))
    assert same(converted, to_uns(converted))
    assert table.equals(before), "the caller's table was changed"


def test_missing_values_of_a_table_stay_missing() -> None:
    table = to_uns(pd.DataFrame({"text": ["x", None], "number": pd.array([1.5, None], dtype="Float64")}))
    assert table.isna().to_numpy().tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(np.arange(6).reshape(2, 3), id="integers"),
        pytest.param(np.array(["a", "b"]), id="fixed_width_text"),
        pytest.param(np.array(["a", "b"], dtype=object), id="text"),
        pytest.param(np.array([["a"], ["b"]], dtype=object), id="text_matrix"),
        pytest.param(np.array(["2024-05-01"], dtype="datetime64[D]"), id="dates"),
        pytest.param(np.array([], dtype=object), id="empty"),
        pytest.param(np.rec.fromrecords([("g", 1.5)]), id="records"),
        pytest.param(np.array([1, "a", None], dtype=object), id="mixed"),
        pytest.param(pd.Index(["a", "b"]), id="index"),
        pytest.param(pd.Categorical(["a", "b"]), id="categories"),
    ],
)
def test_array_survives(array: Any, tmp_path: Path) -> None:
    converted = to_uns(array)
    read = through_file(converted, tmp_path)
    if isinstance(converted, np.recarray):
        assert converted.tolist() == read.tolist()
    else:
        assert same(converted, read)


def test_tensor_becomes_array() -> None:
    torch = pytest.importorskip("torch")
    array = to_uns(torch.ones(2, requires_grad=True))
    assert isinstance(array, np.ndarray)
    assert array.tolist() == [1.0, 1.0]
    assert to_uns(torch.tensor(3)) == 3


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from([Colour.RED, Style.FAST, Level.LOW, Path("a/b"), np.float32(1.5), np.int8(3), np.bool_(True)]),
)
names = st.one_of(
    st.text(string.printable, max_size=6), st.text(max_size=3), st.integers(0, 5), st.sampled_from(list(Colour))
)
nested = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(names, inner, max_size=3),
        st.frozensets(scalars, max_size=3),
    ),
    max_leaves=8,
)
cells = st.one_of(st.none(), st.text(max_size=4), st.integers(-5, 5), st.floats(allow_nan=False), st.booleans())
tables = st.integers(0, 3).flatmap(
    lambda n: st.dictionaries(names, st.lists(cells, min_size=n, max_size=n), max_size=3).map(pd.DataFrame)
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.one_of(nested, tables))
def test_anything_survives(value: Any, tmp_path: Path) -> None:
    converted = to_uns(value)
    assert same(converted, to_uns(converted)), "a second conversion changes the first"
    assert same(converted, through_file(converted, tmp_path))


names_of_columns = st.lists(st.text("a/_. |", max_size=4), min_size=1, max_size=5, unique=True)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=names_of_columns, twice=st.booleans())
def test_names_of_columns_come_back_whatever_they_hold(names: list[str], twice: bool, tmp_path: Path) -> None:
    table = pd.DataFrame(np.arange(2.0 * len(names)).reshape(2, -1), columns=names)
    record = to_uns({"effects": table})
    if twice:
        assert to_uns(record).keys() == record.keys()
        record = to_uns(record)
    for found in (record, through_file(record, tmp_path)):
        restored = table_in(found, "effects")
        assert restored.columns.tolist() == names
        np.testing.assert_array_equal(restored.to_numpy(), table.to_numpy())
        assert not any("/" in column for column in found["effects"].columns)
    assert ("effects_columns" in record) == (record["effects"].columns.tolist() != names)
