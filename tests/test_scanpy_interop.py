"""Results as scanpy's own functions use them, on real data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData
from mudata import MuData

import scgalore as sg
from scgalore.model import SCGPT

RUN: dict[str, Any] = {"labels_key": "bulk_labels", "max_epochs": 1, "batch_size": 32, "max_length": 64}


@pytest.fixture(scope="module")
def results(_pbmc_once: AnnData, make_model: Callable[..., SCGPT], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with all that fine-tuning writes; its labels have names like "CD4+/CD25 T Reg"."""
    path = tmp_path_factory.mktemp("interop") / "results.h5ad"
    adata = _pbmc_once.copy()
    sg.tl.finetune(adata, make_model(adata.var_names), **RUN)
    adata.write_h5ad(path)
    return path


@pytest.fixture
def adata(results: Path) -> AnnData:
    return sc.read_h5ad(results)


def test_neighbours_umap_and_plot(adata: AnnData) -> None:
    assert any("/" in label for label in adata.obs["scgpt_label"].cat.categories)
    sc.pp.neighbors(adata, use_rep="X_scGPT", n_neighbors=10)
    assert adata.uns["neighbors"]["params"]["use_rep"] == "X_scGPT"
    sc.tl.umap(adata, maxiter=5)
    assert np.isfinite(adata.obsm["X_umap"]).all()
    axes = sc.pl.umap(adata, color=["scgpt_label", "bulk_labels", "scgpt_label_score", "scgpt_split"], show=False)
    assert len(axes) == 4
    shown = {text.get_text() for text in axes[0].get_legend().get_texts()}
    assert set(adata.obs["scgpt_label"]) <= shown


def test_groups_by_predicted_label(adata: AnnData, tmp_path: Path) -> None:
    assert (adata.obs["scgpt_split"] == "test").sum() == 70
    sc.pp.neighbors(adata, use_rep="X_scGPT", n_neighbors=10)
    sc.tl.dendrogram(adata, "bulk_labels", use_rep="X_scGPT")
    sc.tl.rank_genes_groups(adata, "scgpt_split", method="t-test")
    adata.write_h5ad(tmp_path / "again.h5ad")


def test_subsets_and_concatenation_carry_the_results(adata: AnnData) -> None:
    halves = [adata[:300].copy(), adata[300:].copy()]
    joined = anndata.concat(halves, uns_merge="first")
    np.testing.assert_array_equal(joined.obsm["X_scGPT"], adata.obsm["X_scGPT"])
    assert joined.obs["scgpt_label"].tolist() == adata.obs["scgpt_label"].tolist()
    assert joined.uns["finetune"]["weights"] == adata.uns["finetune"]["weights"]


def test_filters_and_normalisation_before(shared_data: Path, make_model: Callable[..., SCGPT]) -> None:
    counts = sc.read_h5ad(shared_data / "kang18_pbmc_ifnb_9015genes.h5ad")[:200].copy()
    sc.pp.filter_cells(counts, min_genes=1)
    model = make_model(counts.var_names, max_length=100)
    sg.tl.embed(counts, model)
    logged = counts.copy()
    sc.pp.normalize_total(logged)
    sc.pp.log1p(logged)
    sg.tl.embed(logged, model)
    # Values are binned within a cell: neither depth nor logarithm matters, but the sample of a long cell hangs on its
    # values, so only cells that are read as a whole are compared.
    short = np.diff(counts.X.indptr) < 100
    whole = make_model(counts.var_names, max_length=10_000)
    pair = [whole.get_latent_representation(adata[:20]) for adata in (counts, logged)]
    assert (pair[0] * pair[1]).sum(axis=1).min() > 0.95
    assert (counts.obsm["X_scGPT"] * logged.obsm["X_scGPT"])[short].sum(axis=1).min(initial=1) > 0.95


def test_annotation_of_another_data_set(pbmc: AnnData, shared_data: Path, make_model: Callable[..., SCGPT]) -> None:
    """Genes of the query are others, in another order; labels come from what both have."""
    reference = pbmc
    query = sc.read_h5ad(shared_data / "citeseq_500cells_citefuse.h5ad")[:100].copy()
    model = sg.tl.finetune(reference, make_model(reference.var_names), **RUN)
    common = query.var_names.isin(reference.var_names).sum()
    assert 0 < common < query.n_vars
    query = query[np.asarray(query[:, query.var_names.isin(reference.var_names)].X.sum(axis=1)).ravel() > 0].copy()
    sg.tl.annotate(query, model)
    assert query.obs["scgpt_label"].isin(reference.obs["bulk_labels"].cat.categories).all()
    assert query.uns["annotate"]["genes"]["matched"] >= common
    sc.pp.neighbors(query, use_rep="X_scGPT")


def test_raw_and_scaled_matrix_of_the_tutorial(make_model: Callable[..., SCGPT]) -> None:
    """The object that scanpy ships: ``.X`` is scaled, ``.raw`` log-normalised."""
    reduced = sc.datasets.pbmc68k_reduced()
    model = make_model(reduced.raw.var_names, max_length=64)
    with pytest.raises(ValueError, match=r"looks scaled.*adata\.raw\.to_adata\(\)"):
        sg.tl.embed(reduced, model)
    adata = reduced.raw.to_adata()
    sg.tl.embed(adata, model)
    assert "bulk_labels" in adata.obs
    assert adata.obsm["X_scGPT"].shape == (700, 16)


def test_muon_style_object(pbmc: AnnData, make_model: Callable[..., SCGPT], tmp_path: Path) -> None:
    rna = pbmc[:120].copy()
    mdata = MuData({"rna": rna, "prot": AnnData(np.ones((120, 2), dtype=np.float32), obs=rna.obs[[]])})
    sg.tl.finetune(mdata, make_model(rna.var_names), **RUN)
    sc.pp.neighbors(mdata["rna"], use_rep="X_scGPT")
    mdata.write_h5mu(tmp_path / "results.h5mu")
    assert mdata.obs["rna:scgpt_label"].tolist() == mdata["rna"].obs["scgpt_label"].tolist()
