import logging
import pickle
import tracemalloc

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata.abc import CSRDataset
from anndata.io import sparse_dataset

from scgalore.data.matrix import CellMatrix
from scgalore.data.readers import open_matrix
from scgalore.data.sources import open_file
from scgalore.errors import DataError

# That each reader returns the right rows is tested in test_matrix.py; here, what it costs and says.

DENSE = np.random.default_rng(0).poisson(0.4, (60, 23)).astype(np.float32)
OBS = np.random.default_rng(1).permutation(60)[:40]
VAR = np.random.default_rng(2).permutation(23)[:11]


def test_a_matrix_too_big_to_be_dense(tmp_path):
    n_obs, n_vars = 30_000, 40_000  # 4.8 GB as float32
    rows = np.arange(n_obs)
    csr = sp.csr_matrix((np.ones(n_obs, dtype=np.float32), (rows, rows)), shape=(n_obs, n_vars))
    for make in (sp.csr_matrix, sp.csc_matrix):
        adata = ad.AnnData(make(csr))
        adata.write_h5ad(tmp_path / "x.h5ad")
        backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
        tracemalloc.start()
        for source, first in [(adata, 0), (adata[10:], 10), (backed, 0), (backed[10:], 10)]:
            cells = CellMatrix.from_adata(source)
            assert cells.rows([n_obs - 11, 0]).indices.tolist() == [n_obs - 11 + first, first]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 20e6
        backed.file.close()


def test_backed_csr_is_never_loaded_whole(tmp_path, monkeypatch):
    path = tmp_path / "x.h5ad"
    ad.AnnData(sp.csr_matrix(DENSE)).write_h5ad(path)
    monkeypatch.setattr(CSRDataset, "to_memory", None)
    backed = ad.read_h5ad(path, backed="r")
    for source, dense in [(backed, DENSE), (backed[OBS, VAR], DENSE[np.ix_(OBS, VAR)])]:
        np.testing.assert_array_equal(CellMatrix.from_adata(source).rows([9, 2, 2]).toarray(), dense[[9, 2, 2]])


def test_backed_dense_is_read_by_rows(tmp_path, monkeypatch):
    path = tmp_path / "x.h5ad"
    ad.AnnData(DENSE).write_h5ad(path)
    read = []
    original = h5py.Dataset.__getitem__

    def getitem(self, args, *more, **options):
        found = original(self, args, *more, **options)
        if self.name == "/X":
            read.append(len(found))
        return found

    backed = ad.read_h5ad(path, backed="r")
    monkeypatch.setattr(h5py.Dataset, "__getitem__", getitem)
    CellMatrix.from_adata(backed[:, VAR]).rows([50, 3, 1, 50])
    assert read == [3, 1]  # rows 1 to 3 in one go, then row 50


def test_backed_csc_says_that_it_is_read_into_memory(tmp_path, caplog):
    path = tmp_path / "x.h5ad"
    ad.AnnData(sp.csc_matrix(DENSE)).write_h5ad(path)
    with caplog.at_level(logging.INFO, logger="scgalore"):
        CellMatrix.from_adata(ad.read_h5ad(path, backed="r"))
    assert "read into memory once" in caplog.text


@pytest.mark.parametrize(
    "held", ["csr", "csc", "dense", "view", "file", "dense_file", "view_of_a_file", "zarr", "dense_zarr"]
)
def test_readers_can_be_sent_to_another_process(tmp_path, held):
    x = DENSE if "dense" in held else sp.csc_matrix(DENSE) if held == "csc" else sp.csr_matrix(DENSE)
    adata = ad.AnnData(x)
    rows = np.array([1, 4, 5, 39])
    if "zarr" in held:
        adata.write_zarr(tmp_path / "x.zarr")
        group = open_file(tmp_path / "x.zarr")["X"]
        read = open_matrix(group if "dense" in held else sparse_dataset(group), "X")
    else:
        if "file" in held:
            adata.write_h5ad(tmp_path / "x.h5ad")
            adata = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
        read = CellMatrix.from_adata(adata[OBS, VAR] if "view" in held else adata)._read
    sent = pickle.loads(pickle.dumps(read))
    expected = DENSE[np.ix_(OBS, VAR)] if "view" in held else DENSE
    np.testing.assert_array_equal(sent(rows).toarray(), expected[rows])
    np.testing.assert_array_equal(read(rows).toarray(), expected[rows])  # and the original reads on


def test_a_closed_file_is_opened_again(tmp_path):
    path = tmp_path / "x.h5ad"
    ad.AnnData(sp.csr_matrix(DENSE)).write_h5ad(path)
    backed = ad.read_h5ad(path, backed="r")
    backed.file.close()
    np.testing.assert_array_equal(CellMatrix.from_adata(backed).rows([4]).toarray(), DENSE[[4]])


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (pd.DataFrame(DENSE), "layers.* is a pandas.*DataFrame; expected.*to_memory"),
        ([[1.0]], "builtins.list"),
        (DENSE.astype(complex), "complex128; expected numbers"),
        (DENSE.astype(str), "type <U"),
        (None, "not set. Pass layer="),
    ],
    ids=["frame", "list", "complex", "strings", "nothing"],
)
def test_what_is_no_matrix_of_numbers(x, says):
    with pytest.raises(DataError, match=says):
        open_matrix(x, "adata.layers['a']")
