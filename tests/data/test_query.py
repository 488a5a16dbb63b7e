from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scgalore.data.query import Query
from scgalore.errors import OptionError

N = 60


def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "is_primary_data": rng.random(N) < 0.5,
            "disease": pd.Categorical(rng.choice(["normal", "COVID-19", "flu"], N)),
            "site": rng.choice(["a", "b'c"], N),
            "n_genes": rng.integers(0, 40, N),
            "share": rng.random(N).round(1),
            "donor": pd.Categorical(rng.integers(1, 4, N)),
            "cell type": pd.Categorical(rng.choice(["T", "B"], N)),
        }
    )
    frame.loc[3, "share"] = np.nan
    frame.loc[5, "disease"] = np.nan
    frame.loc[7, "site"] = None
    return frame


TABLE = table()


def rows(text: str, frame: pd.DataFrame = TABLE) -> list[bool]:
    query = Query.of(text)
    return query.rows({key: frame[key] for key in query.columns}).tolist()


def numbers() -> st.SearchStrategy[str]:
    column = st.sampled_from(["n_genes", "share", "donor"])
    sums = st.tuples(column, st.sampled_from("+-*"), st.sampled_from(["3", "0.5", "n_genes"])).map(" ".join)
    return st.one_of(column, sums.map("({})".format))


def comparisons() -> st.SearchStrategy[str]:
    ordered = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
    by_number = st.tuples(numbers(), ordered, st.one_of(st.integers(-5, 40).map(str), numbers())).map(" ".join)
    texts = st.sampled_from(["disease", "site", "`cell type`"])
    by_text = st.tuples(texts, st.sampled_from(["==", "!="]), st.sampled_from(["'normal'", "'T'", '"b\'c"', "'none'"]))
    within = st.tuples(texts, st.sampled_from(["in", "not in"]), st.sampled_from(["['normal', 'a']", "['T']"]))
    flag = st.sampled_from(["is_primary_data", "not is_primary_data", "(not is_primary_data)"])
    return st.one_of(by_number, by_text.map(" ".join), within.map(" ".join), flag)


def queries() -> st.SearchStrategy[str]:
    return st.recursive(
        comparisons(),
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(" ".join), inner.map("({})".format)
        ),
        max_leaves=5,
    )


@given(text=queries())
@settings(max_examples=150)
def test_means_what_pandas_means(text: str) -> None:
    frame = TABLE.copy()
    # pandas orders no categories, which are numbers all the same.
    frame["donor"] = frame["donor"].astype(int)
    # `not` of a part of a comparison binds in pandas as in Python.
    found = frame.query(text, engine="python").index
    assert np.flatnonzero(rows(text)).tolist() == found.tolist()


def test_only_the_columns_named_are_read() -> None:
    query = Query.of("`cell type` == 'T' and (n_genes > 3 or n_genes / 2 < share) and site != '`no`'")
    assert query.columns == ("cell type", "n_genes", "share", "site")


def test_missing_values_equal_nothing() -> None:
    assert not rows("disease == 'normal'")[5]
    assert rows("disease != 'normal'")[5]
    assert not rows("share < 2")[3]
    assert rows("site not in ['a']")[7]


@pytest.mark.parametrize("dtype", [object, "boolean", "category"])
def test_flags_may_be_kept_as_anything(dtype: Any) -> None:
    frame = pd.DataFrame({"flag": pd.Series([True, False, None], dtype=object).astype(dtype)})
    assert rows("flag", frame) == [True, False, False]
    assert rows("not flag", frame) == [False, True, True]


def test_chained_comparisons() -> None:
    assert rows("5 < n_genes <= 20") == ((TABLE["n_genes"] > 5) & (TABLE["n_genes"] <= 20)).tolist()


@pytest.mark.parametrize(
    "text",
    [
        "@x == 1",
        "n_genes.max() > 3",
        "n_genes.__class__ == 1",
        "__import__('os')",
        "n_genes[0] == 1",
        "[n for n in site]",
        "(lambda: 1)() == n_genes",
        "n_genes == f'{1}'",
        "n_genes ** 9 > 2",
        "n_genes if True else 3",
        "(x := n_genes) > 3",
        "n_genes is None",
        "'a' in site",
        "site in n_genes",
        "n_genes in [share]",
        "n_genes == [1, 2]",
        "n_genes > 1 & share < 1",
        "~is_primary_data",
        "n_genes == 3 | share == 1",
        "n_genes = 3",
        "n_genes ==",
        "n_genes == 1; n_genes == 2",
        "True",
        "1 < 2",
        "",
        "n_genes == 1j",
        "n_genes == b'a'",
        "(" * 500 + "n_genes" + ")" * 500,
        "n_genes == '" + "x" * 20_000 + "'",
        "not " * 3000 + "is_primary_data",
    ],
)
def test_anything_else_is_refused_with_the_text(text: str) -> None:
    with pytest.raises(OptionError) as raised:
        Query.of(text)
    assert text[:30] in str(raised.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("n_genes", "the column 'n_genes', which contains .* is not boolean"),
        ("disease", "not boolean"),
        ("n_genes + 1", "not boolean"),
        ("site > 3", "cannot be compared"),
        ("disease + 1 > 3", "the column 'disease', which contains .* is not a number"),
        ("site * 99999999999 == 'a'", "not a number"),
    ],
)
def test_what_cannot_be_compared_is_refused(text: str, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        rows(text)
