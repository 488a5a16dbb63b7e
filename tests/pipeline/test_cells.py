from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st

from scgalore.data.reading import Reading
from scgalore.errors import DataError, MissingKeyError
from scgalore.pipeline.cells import CellFile, data_digest, draw_rows, on_selected_genes


def counts(n_obs: int = 30, n_vars: int = 12) -> AnnData:
    rng = np.random.default_rng(0)
    adata = AnnData(sp.csr_matrix(rng.poisson(1.0, (n_obs, n_vars)).astype(np.float32)))
    adata.X[0, 0] = 3  # no cell is empty
    adata.layers["doubled"] = adata.X * 2
    adata.obs["type"] = pd.Categorical(rng.choice(["a", "b"], n_obs))
    return adata


@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6), most=st.integers(1, 200), seed=st.integers(0, 2**16))
def test_groups_keep_their_shares(sizes: list[int], most: int, seed: int) -> None:
    labels = np.repeat(np.arange(len(sizes)).astype(str), sizes)
    obs = pd.DataFrame({"type": np.random.default_rng(0).permutation(labels)})
    rows = draw_rows(obs, ["type"], most=most, seed=seed)
    assert (np.diff(rows) > 0).all()
    n = min(most, sum(sizes))
    taken = obs["type"].iloc[rows].value_counts().reindex([str(i) for i in range(len(sizes))], fill_value=0).to_numpy()
    assert n <= len(rows) <= n + len(sizes)
    if min(sizes) * n >= sum(sizes):  # no group needs more than its share
        assert len(rows) == n
    assert (taken >= 1).all()
    assert (np.abs(taken - np.maximum(np.array(sizes) * n / sum(sizes), 1)) < 1.000001).all()
    np.testing.assert_array_equal(rows, draw_rows(obs, ["type"], most=most, seed=seed))


def test_cells_without_a_label_are_never_chosen() -> None:
    obs = pd.DataFrame({"type": ["a", None, "b", np.nan, "a"]})
    assert draw_rows(obs, ["type"], most=None, seed=0).tolist() == [0, 2, 4]
    assert draw_rows(obs, [], most=None, seed=0).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, np.asarray])
def test_rows_of_a_file_are_those_of_the_object(
    tmp_path: Path, suffix: str, form: Callable[[np.ndarray], object]
) -> None:
    adata = counts()
    adata.X = form(adata.X.toarray())
    adata.uns["split"] = {"groups": {"a": ["x"]}}
    path = tmp_path / f"cells{suffix}"
    (adata.write_h5ad if suffix == ".h5ad" else adata.write_zarr)(path)
    file = CellFile.of(path)
    rows = np.array([1, 4, 5, 20])
    for layer in (None, "doubled"):
        read = file.read(rows, layer, uns=["split", "absent"])
        expected = adata[rows].X if layer is None else adata[rows].layers[layer]
        expected = expected.toarray() if sp.issparse(expected) else expected
        np.testing.assert_array_equal(read.X.toarray(), expected)
        assert read.X.dtype == np.float32
        pd.testing.assert_frame_equal(read.obs, adata.obs.iloc[rows])
        assert list(read.uns) == ["split"]


def test_missing_entries_are_named(tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    counts().write_h5ad(path)
    file = CellFile.of(path)
    with pytest.raises(MissingKeyError, match=r"labels_key='kind'.*'type'"):
        file.require("obs", "labels_key", "kind")
    with pytest.raises(MissingKeyError, match=r"layer='x'.*'doubled'"):
        file.require("layers", "layer", "x")
    file.require("obs", "labels_key", None)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.h5ad").write_bytes(b"not HDF5")
    (tmp_path / "cells.csv").touch()
    with h5py.File(tmp_path / "other.h5ad", "w") as other:
        other["x"] = 1
    with pytest.raises(DataError, match="no obs and var"):
        CellFile.of(tmp_path / "other.h5ad")
    adata = counts()
    adata.X = None
    adata.write_h5ad(tmp_path / "without.h5ad")
    with pytest.raises(MissingKeyError, match=r"has no X. Pass layer= with one of \['doubled'\]"):
        CellFile.of(tmp_path / "without.h5ad").read(np.arange(2), None)
    for name, match in (("broken.h5ad", "cannot be opened"), ("cells.csv", "neither"), ("x.h5ad", "does not exist")):
        with pytest.raises(DataError, match=match):
            CellFile.of(tmp_path / name)


def test_counts_are_normalised_over_all_genes_before_some_are_selected() -> None:
    adata = counts()
    reference = adata.copy()
    sc.pp.normalize_total(reference, target_sum=1e4)
    sc.pp.log1p(reference)
    selected = np.isin(np.arange(adata.n_vars), [0, 3, 7, 8, 9])
    kept, n_without = on_selected_genes(adata, selected)
    cells = kept.obs_names
    np.testing.assert_allclose(kept.X.toarray(), reference[cells, selected].X.toarray(), rtol=1e-6)
    without = np.asarray(adata[:, selected].X.sum(axis=1)).ravel() == 0
    assert n_without == without.sum() == adata.n_obs - kept.n_obs


def test_cells_that_express_no_selected_gene_are_left_out() -> None:
    x = np.array([[1.0, 0, 2], [0, 3, 0], [4, 1, 0]], dtype=np.float32)
    adata = AnnData(sp.csr_matrix(x))
    kept, n_without = on_selected_genes(adata, np.array([True, False, True]))
    assert (kept.obs_names.tolist(), n_without) == (["0", "2"], 1)
    with pytest.raises(DataError, match="Select more"):
        on_selected_genes(AnnData(sp.csr_matrix(x[:1])), np.array([False, True, False]))


@pytest.mark.parametrize(("base", "record"), [(None, {"base": None}), (2, {"base": 2})])
def test_what_is_kept_says_to_which_base_its_logarithms_are(base: float | None, record: dict[str, Any]) -> None:
    selected = np.arange(12) < 6
    kept, _ = on_selected_genes(counts(), selected)
    assert kept.uns["log1p"] == {"base": None}
    adata = counts()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata, base=base)
    del adata.uns["log1p"]
    kept, _ = on_selected_genes(adata, selected)
    assert kept.uns["log1p"] == record


def test_scaled_counts_are_log_normalised_like_counts() -> None:
    selected, scaled = np.arange(12) < 6, counts()
    scaled.X = scaled.X * np.float32(0.97)
    found, expected = (on_selected_genes(adata, selected)[0].X.toarray() for adata in (scaled, counts()))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    told, n_without = on_selected_genes(scaled, selected, Reading(data_type="log1p"))
    assert n_without == 0
    np.testing.assert_array_equal(told.X.toarray(), scaled.X[:, :6].toarray())


def test_hash_of_a_folder_sees_names_and_contents(tmp_path: Path) -> None:
    path = tmp_path / "cells.zarr"
    counts().write_zarr(path)
    before = data_digest(path)
    assert data_digest(path) == before
    (path / "more").write_bytes(b"1")
    assert data_digest(path) != before
    assert ad.read_zarr(path).n_obs == 30
