import warnings
from typing import cast

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scgalore.data import readers
from scgalore.data.matrix import CellMatrix, layer_names
from scgalore.errors import DataError, MissingKeyError, OptionError

N_OBS, N_VARS = 60, 23


def table():
    x = np.random.default_rng(0).poisson(0.4, (N_OBS, N_VARS)).astype(np.float32)
    x[5] = 0  # a cell without genes
    x[:, 7] = 0
    return x


DENSE = table()
OBS = np.random.default_rng(1).permutation(N_OBS)[:40]
VAR = np.random.default_rng(2).permutation(N_VARS)[:11]


def untidy(x):
    """The same numbers with unsorted indices, an entry in two halves, and stored zeros."""
    coo = sp.coo_matrix(x)
    order = np.random.default_rng(3).permutation(coo.nnz)
    rows, columns, data = coo.row[order], coo.col[order], coo.data[order].astype(np.float64)
    rows, columns = np.concatenate([rows, rows, [5, 5]]), np.concatenate([columns, columns, [7, 3]])
    data = np.concatenate([data / 2, data / 2, [0, 0]])
    order = np.argsort(rows, kind="stable")
    indptr = np.searchsorted(rows[order], np.arange(len(x) + 1))
    csr = sp.csr_matrix((data[order], columns[order], indptr), shape=x.shape)
    assert not csr.has_canonical_format
    return csr


IN_MEMORY = {
    "dense": lambda x: x,
    "dense-fortran": np.asfortranarray,
    "dense-int": lambda x: x.astype(np.int32),
    "dense-float16": lambda x: x.astype(np.float16),
    "csr": sp.csr_matrix,
    "csr-array": sp.csr_array,
    "csr-uint8": lambda x: sp.csr_matrix(x.astype(np.uint8)),
    "csr-untidy": untidy,
    "csc": sp.csc_matrix,
    "csc-float64": lambda x: sp.csc_matrix(x.astype(np.float64)),
}
ON_DISK = ["dense", "dense-int", "csr", "csr-untidy", "csc"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Each way to hold DENSE, and what its rows are."""
    folder = tmp_path_factory.mktemp("matrices")
    found = {}
    for name, make in IN_MEMORY.items():
        adata = ad.AnnData(make(DENSE))
        found[name] = CellMatrix.from_adata(adata), DENSE
        found[f"{name}-view"] = CellMatrix.from_adata(adata[OBS, VAR]), DENSE[np.ix_(OBS, VAR)]
        layered = ad.AnnData(np.zeros_like(DENSE), layers={"counts": make(DENSE)})
        found[f"{name}-layer"] = CellMatrix.from_adata(layered, layer="counts"), DENSE
        layered_view = CellMatrix.from_adata(layered[OBS][:, VAR], layer="counts")
        found[f"{name}-layer-view"] = layered_view, DENSE[np.ix_(OBS, VAR)]
    found["bool"] = CellMatrix.from_adata(ad.AnnData(sp.csr_matrix(DENSE > 0))), (DENSE > 0).astype(np.float32)
    for name in ON_DISK:
        path = folder / f"{name}.h5ad"
        ad.AnnData(IN_MEMORY[name](DENSE), layers={"double": sp.csr_matrix(DENSE * 2)}).write_h5ad(path)
        backed = ad.read_h5ad(path, backed="r")
        found[f"{name}-backed"] = CellMatrix.from_adata(backed), DENSE
        found[f"{name}-backed-view"] = CellMatrix.from_adata(backed[OBS, VAR]), DENSE[np.ix_(OBS, VAR)]
        found[f"{name}-backed-slice"] = CellMatrix.from_adata(backed[10:50:2, 3:]), DENSE[10:50:2, 3:]
        found[f"{name}-backed-layer"] = CellMatrix.from_adata(backed[OBS], layer="double"), 2 * DENSE[OBS]
        group = zarr.open_group(folder / f"{name}.zarr", mode="w")
        with warnings.catch_warnings(action="ignore"):  # of what the next zarr will change
            ad.io.write_elem(group, "X", IN_MEMORY[name](DENSE))
        on_zarr = ad.io.sparse_dataset(group["X"]) if name.startswith("cs") else group["X"]
        reader = readers.open_matrix(on_zarr, "zarr")
        found[f"{name}-zarr"] = CellMatrix(reader, DENSE.shape, name="zarr"), DENSE
    return found


NAMES = [f"{name}{how}" for name in IN_MEMORY for how in ("", "-view", "-layer", "-layer-view")] + ["bool"]
NAMES += [
    f"{name}-{how}" for name in ON_DISK for how in ("backed", "backed-view", "backed-slice", "backed-layer", "zarr")
]


def assert_canonical(csr):
    assert type(csr) is sp.csr_matrix
    assert csr.dtype == np.float32
    assert (csr.data != 0).all()
    fresh = sp.csr_matrix((csr.data, csr.indices, csr.indptr), shape=csr.shape)  # flags are recomputed
    assert fresh.has_canonical_format


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_are_those_of_the_dense_matrix(sources, name, data):
    cells, dense = sources[name]
    assert (cells.n_obs, cells.n_vars) == dense.shape
    rows = data.draw(st.lists(st.integers(0, len(dense) - 1), max_size=30))
    found = cells.rows(np.array(rows, dtype=np.int64))
    assert_canonical(found)
    np.testing.assert_array_equal(found.toarray(), dense[rows])


@pytest.mark.parametrize("name", NAMES)
def test_chunks_cover_every_row_once(sources, name, monkeypatch):
    # Small enough that dense matrices are read in several blocks, also within a run of rows.
    monkeypatch.setattr(readers, "_BLOCK_VALUES", 50)
    cells, dense = sources[name]
    starts, chunks = zip(*cells.chunks(size=17), strict=True)
    assert list(starts) == list(range(0, len(dense), 17))
    np.testing.assert_array_equal(sp.vstack(chunks).toarray(), dense)


@pytest.mark.parametrize("name", NAMES)
def test_summary_is_that_of_the_dense_matrix(sources, name):
    cells, dense = sources[name]
    summary = cells.summary()
    assert (summary.min, summary.max) == (dense.min(), dense.max())
    assert summary.n_empty == (dense == 0).all(axis=1).sum()
    assert summary.is_whole
    assert cells.summary() is summary


def test_the_matrix_is_left_alone():
    csr = untidy(DENSE)
    before = csr.copy()
    cells = CellMatrix.from_adata(ad.AnnData(csr))
    for rows in (np.arange(N_OBS), [3, 3, 1]):
        found = cells.rows(rows)
        found.data[:] = 9
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(csr, name), getattr(before, name))


# Judging the values -----------------------------------------------------------------------------------------------


def with_value(value, *, sparse):
    x = DENSE.astype(np.float64)
    x[2, 3] = value
    return CellMatrix.from_adata(ad.AnnData(sp.csr_matrix(x) if sparse else x))


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.nan, "1 NaN and 0 infinite"),
        (-np.inf, "0 NaN and 1 infinite"),
        (1e300, "0 NaN and 1 infinite"),
        (-0.5, "1 negative values .smallest -0.5.*looks scaled.*layer=.*raw.to_adata"),
        (-1, "looks scaled"),
    ],
    ids=["nan", "inf", "beyond-float32", "scaled", "negative-counts"],
)
def test_unusable_values(value, says, sparse):
    cells = with_value(value, sparse=sparse)
    with pytest.raises(DataError, match=f"^adata.X .*{says}"):
        cells.check()


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
def test_usable_values(sparse):
    for value, is_whole in ((3, True), (0.5, False)):
        cells = with_value(value, sparse=sparse)
        cells.check()
        assert cells.summary().is_whole == is_whole


def test_summary_counts_each_kind():
    x = np.array([[np.nan, np.inf, -1], [0.5, -np.inf, 2], [0, 0, 0]])
    summary = CellMatrix.from_adata(ad.AnnData(x)).summary()
    assert (summary.n_nan, summary.n_inf, summary.n_negative, summary.n_fractional, summary.n_empty) == (1, 2, 1, 1, 1)
    assert (summary.min, summary.max) == (-1, 2)


def test_summary_of_no_finite_value():
    summary = CellMatrix.from_adata(ad.AnnData(np.full((2, 2), np.nan))).summary()
    assert np.isnan([summary.min, summary.max]).all()


def test_smallest_value_without_any_zero():
    assert CellMatrix.from_adata(ad.AnnData(np.full((2, 2), 3.0))).summary().min == 3


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty_matrix(shape):
    cells = CellMatrix.from_adata(ad.AnnData(sp.csr_matrix(shape)))
    with pytest.raises(DataError, match=f"{shape[0]} cells x {shape[1]} genes"):
        cells.check()
    assert cells.rows([]).shape == (0, shape[1])


def without_x():
    return ad.AnnData(obs={"a": [1, 2]}, var={"b": [1]})


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (
            lambda: CellMatrix.from_adata(ad.AnnData(DENSE), layer="counts"),
            MissingKeyError,
            "no 'counts' .it has: none",
        ),
        (
            lambda: CellMatrix.from_adata(ad.AnnData(DENSE, layers={"raw": DENSE}), layer="counts"),
            MissingKeyError,
            "it has: 'raw'",
        ),
        (lambda: CellMatrix.from_adata(without_x()), DataError, "adata.X is not set. Pass layer="),
        (lambda: CellMatrix.from_adata(ad.AnnData(DENSE)).rows([0, N_OBS]), OptionError, "0 to 59"),
        (lambda: CellMatrix.from_adata(ad.AnnData(DENSE)).rows([-1]), OptionError, "0 to 59"),
        (lambda: CellMatrix.from_adata(ad.AnnData(DENSE)).rows(np.ones(N_OBS, dtype=bool)), OptionError, "integers"),
    ],
    ids=["no-layers", "unknown-layer", "no-x", "beyond", "negative-row", "mask"],
)
def test_bad_input(call, error, says):
    with pytest.raises(error, match=says):
        call()


def test_x_is_not_a_layer() -> None:
    class Newer:
        layers = {None: DENSE, "counts": DENSE}  # as from anndata 0.13 on

    assert layer_names(cast("ad.AnnData", Newer)) == ("counts",)
