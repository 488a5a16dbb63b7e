from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from scgalore.errors import DataError, MissingKeyError
from scgalore.perturb.labels.compounds import Compounds
from scgalore.perturb.labels.vectors import read_vectors

LABELS = ["ctrl", "b", "a", "b"]
TABLE = pd.DataFrame([[1.0, 2.0], [3.0, 5.0], [0.0, 7.0]], index=["a", "b", "unused"], columns=["c0", "c1"])


def adata_with(**slots: Any) -> AnnData:
    return AnnData(np.ones((4, 1), dtype=np.float32), obs=pd.DataFrame({"drug": LABELS}, index=list("wxyz")), **slots)


def read(adata: AnnData) -> pd.DataFrame:
    return read_vectors(adata, "v", Compounds.from_doses(adata.obs["drug"]))


@pytest.mark.parametrize(
    "value",
    [TABLE, TABLE.astype(np.float32), {name: row.to_numpy() for name, row in TABLE.iterrows()}, TABLE.astype(int)],
    ids=["table", "float32", "dictionary", "integers"],
)
def test_of_a_table(value: Any) -> None:
    found = read(adata_with(uns={"v": value}))
    assert found.index.tolist() == ["a", "b", "unused"]
    np.testing.assert_array_equal(found.to_numpy(), TABLE.to_numpy())


@pytest.mark.parametrize("make", [np.asarray, sp.csr_matrix, lambda x: pd.DataFrame(x, list("wxyz"), ["c0", "c1"])])
def test_of_cells(make: Any) -> None:
    rows = TABLE.reindex(LABELS).to_numpy()
    rows[0] = 0
    found = read(adata_with(obsm={"v": make(rows)}))
    assert found.index.tolist() == ["b", "a"]
    np.testing.assert_array_equal(found.to_numpy(), TABLE.loc[["b", "a"]].to_numpy())


@pytest.mark.parametrize(
    ("slots", "error", "message"),
    [
        pytest.param({}, MissingKeyError, "vectors_key='v' is neither in adata.uns", id="absent"),
        pytest.param(
            {"uns": {"v": TABLE.drop("a")}}, DataError, "1 of 2 compounds have no vector under 'v': 'a'", id="lacking"
        ),
        pytest.param({"uns": {"v": TABLE.replace(5.0, np.nan)}}, DataError, "NaN or infinity", id="nan"),
        pytest.param({"uns": {"v": pd.concat([TABLE, TABLE])}}, DataError, "several vectors of 'a'", id="twice"),
        pytest.param({"uns": {"v": TABLE.astype(str) + "x"}}, DataError, "cannot be read as vectors", id="text"),
        pytest.param(
            {"uns": {"v": TABLE.set_axis([0, 1], axis=1)}}, DataError, "are named '0', '1'.*astype", id="columns"
        ),
        pytest.param(
            {"obsm": {"v": pd.DataFrame(np.ones((4, 2)), list("wxyz"))}}, DataError, "of adata.obsm.'v'.", id="of_cells"
        ),
        pytest.param({"uns": {"v": 3}}, DataError, "cannot be read as vectors of compounds", id="number"),
        pytest.param({"uns": {"v": {"a": [1.0], "b": [1.0, 2.0]}}}, DataError, "vectors of one length", id="lengths"),
        pytest.param(
            {"obsm": {"v": np.arange(8.0).reshape(4, 2)}}, DataError, "Cells of 'b' have different", id="differ"
        ),
    ],
)
def test_what_is_no_vector_of_each_compound(slots: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read(adata_with(**slots))
