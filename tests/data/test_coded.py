from typing import Any

import numpy as np
import pandas as pd
import pytest

from scgalore.data.coded import CodedColumn, refuse_unknown
from scgalore.data.tables import Table
from scgalore.errors import DataError, MissingKeyError


def table(labels: Any, name: str = "a.h5ad") -> Table:
    return Table.of_frame(pd.DataFrame({"kind": pd.Series(labels, dtype=object)}), "obs", name)


def test_codes_of_all_sources_mean_the_same() -> None:
    column = CodedColumn("kind")
    sources: list[list[object]] = [["b", "a", "b"], ["c", "a"], [1, "a"]]
    rows = [None, None, np.array([1])]
    for labels, which in zip(sources, rows, strict=True):
        column.read(table(labels), which)
    assert column.names == ("a", "b", "c")
    assert [[column.names[code] for code in codes] for codes in column.codes()] == [["b", "a", "b"], ["c", "a"], ["a"]]


@pytest.mark.parametrize(("n_names", "n_bytes"), [(100, 1), (200, 2)])
def test_codes_take_few_bytes(n_names: int, n_bytes: int) -> None:
    names = [f"t{n:03}" for n in range(n_names)] * 40
    column = CodedColumn("kind")
    column.read(table(list(names)), None)
    (codes,) = column.codes()
    assert codes.itemsize == n_bytes
    assert [column.names[code] for code in codes] == names


def test_labels_that_are_not_known() -> None:
    with pytest.raises(DataError, match=r"a\.h5ad has the labels \['c'\], which are not among the 2 classes"):
        CodedColumn("kind", ["a", "b"]).read(table(["c", "a"]), None)
    number: Any = 1.0
    refuse_unknown([number], ["1"], "a")  # the same label
    with pytest.raises(DataError, match=r"1 of 2 cells have no label in obs\['kind'\] of b\.h5ad"):
        CodedColumn("kind").read(table(["a", None], "b.h5ad"), None)


def test_sources_without_the_column_are_named_together() -> None:
    column = CodedColumn("kind")
    column.read(table(["a"]), None)
    column.require()
    for name in ("b.h5ad", "c.h5ad", "d.h5ad", "e.h5ad"):
        column.read(Table.of_frame(pd.DataFrame({"type": ["a"]}), "obs", name), None)
    message = (
        r"no column 'kind' in 4 of 5 sources: 'b\.h5ad', 'c\.h5ad', 'd\.h5ad', \.\.\.\. That of b\.h5ad has \['type'\]"
    )
    with pytest.raises(MissingKeyError, match=message):
        column.require()
