"""Highly variable genes, held against scanpy's."""

import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

from scgalore.data.matrix import CellMatrix
from scgalore.data.moments import Moments
from scgalore.data.variable import median_rank, normalised_dispersions, standardised_variances


def codes(adata: ad.AnnData, key: str | None) -> np.ndarray:
    return np.zeros(adata.n_obs, dtype=np.int64) if key is None else np.unique(adata.obs[key], return_inverse=True)[1]


def of_counts(adata: ad.AnnData, key: str | None) -> np.ndarray:
    matrix, batch = CellMatrix.from_adata(adata), codes(adata, key)
    return standardised_variances(matrix, batch, Moments.of(matrix, batch, batch.max() + 1))


def of_logs(adata: ad.AnnData, key: str | None) -> np.ndarray:
    undone = ad.AnnData(sp.csr_matrix(adata.X).expm1())
    batch = codes(adata, key)
    return normalised_dispersions(Moments.of(CellMatrix.from_adata(undone), batch, batch.max() + 1))


def scanpys(adata: ad.AnnData, flavor: str, key: str | None) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sc.pp.highly_variable_genes(adata, flavor=flavor, n_top_genes=adata.n_vars, batch_key=key, inplace=False)


def random_counts(seed: int = 0) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    mean = rng.gamma(0.7, 2.0, 400)
    x = rng.negative_binomial(2, 1 / (1 + mean / 2), (700, 400)).astype(np.float32)
    x[:, 0] = 0
    obs = pd.DataFrame({"batch": pd.Categorical(rng.choice(["a", "b", "c"], 700))}, index=np.arange(700).astype(str))
    return ad.AnnData(sp.csr_matrix(x), obs=obs)


def assert_like_scanpys(adata: ad.AnnData, key: str | None) -> None:
    scores, expected = of_counts(adata, key), scanpys(adata, "seurat_v3", key)
    np.testing.assert_allclose(scores.mean(axis=0), expected["variances_norm"], rtol=1e-9, atol=1e-10)
    # Genes with equal scores have ranks by position there, and share one here.
    alone = np.ones(adata.n_vars, dtype=bool)
    for row in scores.astype(np.float32):
        _, place, n = np.unique(row, return_inverse=True, return_counts=True)
        alone &= n[place] == 1
    assert alone.sum() > 100
    np.testing.assert_array_equal(median_rank(scores)[alone], expected["highly_variable_rank"].to_numpy()[alone])


@pytest.mark.parametrize(("key", "dense"), [(None, False), ("batch", False), ("batch", True)])
def test_standardised_variances_of_random_counts_are_scanpys(key: str | None, dense: bool) -> None:
    adata = random_counts()
    if dense:
        adata.X = adata.X.toarray()
    assert_like_scanpys(adata, key)


@pytest.mark.parametrize("key", [None, "condition"])
def test_standardised_variances_of_real_counts_are_scanpys(key: str | None, shared_data: Path) -> None:
    assert_like_scanpys(sc.read_h5ad(shared_data / "kang18_pbmc_ifnb_9015genes.h5ad"), key)


@pytest.mark.parametrize("key", [None, "phase"])
def test_dispersions_of_real_data_are_scanpys(key: str | None, pbmc: ad.AnnData) -> None:
    expected = scanpys(pbmc, "seurat", key)["dispersions_norm"].to_numpy()
    np.testing.assert_allclose(of_logs(pbmc, key), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("key", [None, "batch"])
def test_dispersions_of_random_data_are_scanpys(key: str | None) -> None:
    adata = random_counts(1)
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    expected = scanpys(adata, "seurat", key)["dispersions_norm"].to_numpy()
    # scanpy gives 0 to a gene that a batch lacks, and NaN to one that has no variance in a matrix of one batch.
    np.testing.assert_allclose(of_logs(adata, key), expected, rtol=1e-4, atol=1e-5)


def test_cells_without_a_batch_do_not_count() -> None:
    adata = random_counts()
    matrix, batch = CellMatrix.from_adata(adata), codes(adata, "batch")
    batch[batch == 2] = -1
    found = standardised_variances(matrix, batch, Moments.of(matrix, batch, 2))
    kept = adata[adata.obs["batch"].isin(["a", "b"]).to_numpy()].copy()
    np.testing.assert_allclose(found, of_counts(kept, "batch"), rtol=1e-9)


@pytest.mark.parametrize("n_vars", [1, 2, 5, 31])
def test_few_or_like_genes_are_scored_without_a_local_fit(n_vars: int) -> None:
    x = np.tile(np.random.default_rng(0).poisson(1.0, (40, 1)), (1, n_vars)).astype(np.float32)
    x[:, -1] = np.arange(40) % 7
    scores = of_counts(ad.AnnData(x), None)
    assert np.isfinite(scores).all()
    assert (scores >= 0).all()


def test_the_order_of_columns_changes_no_score() -> None:
    adata = random_counts()
    order = np.random.default_rng(1).permutation(adata.n_vars)
    np.testing.assert_array_equal(of_counts(adata[:, order].copy(), None), of_counts(adata, None)[:, order])
