"""A column is read if it is there once, and without gaps where none are allowed."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgalore.data.columns import read_column
from scgalore.errors import DataError, MissingKeyError

names = st.lists(st.text(max_size=4), min_size=1, max_size=6)


@given(names, names)
def test_reads_what_is_there_once_and_refuses_all_else(columns: list[str], keys: list[str]) -> None:
    table = pd.DataFrame(np.arange(2 * len(columns)).reshape(2, -1), columns=columns)
    for key in keys:
        n = columns.count(key)
        if n == 1:
            assert read_column(table, key).tolist() == table.iloc[:, columns.index(key)].tolist()
        else:
            with pytest.raises(MissingKeyError if n == 0 else DataError, match="adata.obs"):
                read_column(table, key)


@pytest.mark.parametrize("key", [["a"], {"a"}, None, float("nan")])
def test_what_names_no_column_is_missing(key: object) -> None:
    with pytest.raises(
        MissingKeyError, match=r"labels_key=.* is not a column of adata\.obs, which has \['a'\]\. Try it\."
    ):
        read_column(pd.DataFrame({"a": [1]}), key, asked="labels_key", hint="Try it.")


@pytest.mark.parametrize(
    "values",
    [["x", None], [1.0, float("nan")], pd.Categorical(["x", None]), pd.array([1, None], dtype="Int64"), [pd.NaT, "x"]],
)
def test_gaps_are_read_or_refused(values: object) -> None:
    table = pd.DataFrame({"a": values})
    assert read_column(table, "a").isna().sum() == 1
    with pytest.raises(DataError, match=r"adata\.var\['a'\] is empty for 1 of 2 genes\. Fill or remove them\."):
        read_column(table, "a", slot="adata.var", gaps=False)


def test_several_columns_of_the_name_are_counted() -> None:
    table = pd.DataFrame([[1, 2, 3]], columns=["a", "b", "a"])
    with pytest.raises(DataError, match=r"obs of x\.h5ad has 2 columns named 'a'"):
        read_column(table, "a", slot="obs of x.h5ad")
    assert read_column(table, "b").tolist() == [2]
