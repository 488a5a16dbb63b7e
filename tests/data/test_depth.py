"""Depth of cells of which a matrix holds some genes only."""

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from scgalore.data.expression import LogExpression
from scgalore.data.reading import AS_IT_IS, Reading
from scgalore.errors import DataError, MissingKeyError

N_OBS, N_VARS, KEPT = 60, 2500, 300


def whole(seed: int = 0) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    depth, mean = rng.lognormal(0, 0.5, (N_OBS, 1)), rng.gamma(0.3, 1, N_VARS)
    x = rng.poisson(depth * mean).astype(np.float32)
    x[:, 0] += 1
    return ad.AnnData(sp.csr_matrix(x), var=pd.DataFrame(index=[f"gene{i}" for i in range(N_VARS)]))


def given_by(adata: ad.AnnData, reading: Reading = AS_IT_IS) -> np.ndarray:
    return LogExpression.from_adata(adata, reading).rows(np.arange(adata.n_obs)).toarray()


def with_total_counts() -> ad.AnnData:
    adata = whole()
    sc.pp.calculate_qc_metrics(adata, inplace=True, percent_top=None)
    return adata


class TestKnown:
    @given(kept=st.lists(st.integers(0, N_VARS - 1), min_size=1, max_size=50, unique=True))
    def test_any_genes_have_the_values_of_the_whole(self, kept: list[int]) -> None:
        adata = with_total_counts()
        np.testing.assert_allclose(given_by(adata[:, kept].copy()), given_by(adata)[:, kept], rtol=1e-5)

    @pytest.mark.parametrize("where", ["view", "layer", "backed", "csc"])
    def test_whatever_holds_the_matrix(self, where: str, tmp_path: Path) -> None:
        adata = with_total_counts()
        expected, part, reading = given_by(adata)[:, :KEPT], adata[:, :KEPT], AS_IT_IS
        if where == "layer":
            part, reading = part.copy(), Reading("counts")
            part.layers["counts"] = part.X.copy()
            sc.pp.normalize_total(part)
            sc.pp.log1p(part)
        elif where == "csc":
            part = part.copy()
            part.X = sp.csc_matrix(part.X)
        elif where == "backed":
            part.copy().write_h5ad(tmp_path / "part.h5ad")
            part = ad.read_h5ad(tmp_path / "part.h5ad", backed="r")
        np.testing.assert_allclose(given_by(part, reading), expected, rtol=1e-5)

    def test_rows_in_any_order(self) -> None:
        adata = with_total_counts()
        found = LogExpression.from_adata(adata[:, :KEPT].copy())
        np.testing.assert_allclose(
            found.rows([7, 3, 3]).toarray(), given_by(adata)[[7, 3, 3], :KEPT], rtol=1e-5, atol=1e-6
        )

    def test_a_column_that_is_named(self) -> None:
        adata = whole()
        adata.obs["nCount_RNA"] = np.asarray(adata.X.sum(axis=1)).ravel()
        part = adata[:, :KEPT].copy()
        part.obs["total_counts"] = 1e6  # another one is preferred to this
        found = given_by(part, Reading(depth_key="nCount_RNA"))
        np.testing.assert_allclose(found, given_by(adata)[:, :KEPT], rtol=1e-5)

    def test_raw_counts_of_more_genes(self) -> None:
        adata = whole()
        part = adata[:, :KEPT].copy()
        part.raw = adata
        np.testing.assert_allclose(given_by(part), given_by(adata)[:, :KEPT], rtol=1e-5)
        rows = np.arange(5, 30)
        np.testing.assert_allclose(given_by(part[rows]), given_by(adata)[rows, :KEPT], rtol=1e-5)

    def test_corrected_counts_keep_the_depth_of_the_cell(self) -> None:
        adata = with_total_counts()
        part = adata[:, :KEPT].copy()
        part.X = part.X * np.float32(0.97)
        found = np.expm1(given_by(part))
        np.testing.assert_allclose(found, np.expm1(given_by(adata)[:, :KEPT]) * 0.97, rtol=1e-4)

    def test_it_is_said(self, caplog: pytest.LogCaptureFixture) -> None:
        part = with_total_counts()[:, :KEPT].copy()
        with caplog.at_level("INFO", logger="scgalore"):
            given_by(part)
            given_by(part)
        assert caplog.text.count("total counts of each cell from adata.obs['total_counts']") == 1
        assert "WARNING" not in caplog.text


class TestNotUsed:
    def own(self, part: ad.AnnData) -> np.ndarray:
        """Values by the sums of the matrix."""
        bare = ad.AnnData(part.X.copy(), var=part.var[[]])
        return given_by(bare)

    @pytest.mark.parametrize(
        "change",
        [lambda x: x / 1000, lambda x: np.where(x > x.mean(), np.nan, x), lambda x: -x],
        ids=["less", "missing", "negative"],
    )
    def test_total_counts_that_cannot_be_right(
        self, change: Callable[[np.ndarray], np.ndarray], caplog: pytest.LogCaptureFixture
    ) -> None:
        part = with_total_counts()[:, :KEPT].copy()
        part.obs["total_counts"] = change(part.obs["total_counts"].to_numpy())
        np.testing.assert_array_equal(given_by(part), self.own(part))
        assert "adata.obs['total_counts'] is not used" in caplog.text

    def test_scaled_counts_are_not_shares_of_total_counts(self) -> None:
        adata = with_total_counts()
        sc.pp.normalize_total(adata, target_sum=1e4)
        np.testing.assert_allclose(given_by(adata), self.own(adata))
        part = adata[:, :KEPT].copy()
        part.obs["total_counts"] = part.obs["total_counts"] * 100
        np.testing.assert_array_equal(given_by(part), self.own(part))

    def test_logarithms_have_their_depth_taken_out(self) -> None:
        adata = with_total_counts()
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
        part = adata[:, :KEPT].copy()
        np.testing.assert_array_equal(given_by(part), part.X.toarray())

    def test_raw_that_holds_logarithms(self) -> None:
        adata = whole()
        part = adata[:, :KEPT].copy()
        sc.pp.normalize_total(adata)
        sc.pp.log1p(adata)
        part.raw = adata
        np.testing.assert_array_equal(given_by(part), self.own(part))


class TestUnknown:
    def warned(self, adata: ad.AnnData, caplog: pytest.LogCaptureFixture) -> str:
        given_by(adata)
        given_by(adata)
        texts = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert len(texts) <= 1
        return "".join(texts)

    def test_few_genes(self, caplog: pytest.LogCaptureFixture) -> None:
        text = self.warned(whole()[:, :KEPT].copy(), caplog)
        assert "only 300 genes" in text
        assert "depth_key=" in text

    def test_a_choice_that_is_marked(self, caplog: pytest.LogCaptureFixture) -> None:
        adata = whole()
        adata.var["highly_variable"] = True
        assert "adata.var['highly_variable']" in self.warned(adata, caplog)

    def test_cells_that_had_more_genes(self, caplog: pytest.LogCaptureFixture) -> None:
        adata = whole()
        adata.obs["n_genes"] = np.diff(adata.X.indptr) * 3
        assert "adata.obs['n_genes']" in self.warned(adata, caplog)

    def test_another_column_is_proposed(self, caplog: pytest.LogCaptureFixture) -> None:
        part = whole()[:, :KEPT].copy()
        part.obs["nCount_RNA"] = 1000
        assert "depth_key='nCount_RNA'" in self.warned(part, caplog)

    def test_a_whole_transcriptome_is_no_choice(self, caplog: pytest.LogCaptureFixture) -> None:
        assert self.warned(whole(), caplog) == ""

    def test_known_depth_is_no_reason_to_warn(self, caplog: pytest.LogCaptureFixture) -> None:
        part = whole()[:, :KEPT].copy()
        sc.pp.calculate_qc_metrics(part, inplace=True, percent_top=None)  # a panel: these are all genes
        assert self.warned(part, caplog) == ""


class TestRefused:
    def test_a_column_that_is_not_there(self) -> None:
        with pytest.raises(MissingKeyError, match="depth_key='umis' is not a column"):
            given_by(whole(), Reading(depth_key="umis"))

    @pytest.mark.parametrize(
        ("values", "match"),
        [(1.0, "less than the sum"), (np.nan, "missing"), (-5.0, "negative"), ("many", "not a number")],
    )
    def test_a_named_column_that_cannot_be_right(self, values: object, match: str) -> None:
        adata = whole()
        adata.obs["depth"] = values
        with pytest.raises(DataError, match=rf"adata\.obs\['depth'\].*{match}.*depth_key="):
            given_by(adata, Reading(depth_key="depth"))
