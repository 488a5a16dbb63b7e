"""Counts of antibodies: read from where they are kept, by name, and refused where they are none."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from scgalore.data.proteins import centred_log_ratio, read_proteins
from scgalore.errors import DataError, MissingKeyError, OptionError

NAMES = ["CD3_TotalSeqB", "CD45RA", "Mouse-IgG1", "unheard-of"]
COUNTS = np.array([[3, 0, 1, 5], [0, 9, 0, 2], [1, 1, 7, 1]], dtype=float)
KEPT = [0, 1, 3]


@pytest.fixture
def adata() -> AnnData:
    return AnnData(np.ones((3, 2), dtype=np.float32), obs=pd.DataFrame(index=["a", "b", "c"]))


def test_wherever_they_are_kept_they_are_the_same(adata: AnnData) -> None:
    adata.obsm["table"] = pd.DataFrame(COUNTS, index=adata.obs_names, columns=NAMES)
    adata.obsm["array"], adata.uns["protein_names"] = COUNTS.astype(int), np.array(NAMES)
    adata.obsm["sparse"] = sp.csr_matrix(COUNTS)
    other = AnnData(np.vstack([COUNTS[::-1], [[9, 9, 9, 9]]]), obs=pd.DataFrame(index=["c", "b", "a", "d"]))
    other.var_names = NAMES
    layered = AnnData(other.X * 0.5, obs=other.obs, var=other.var, layers={"counts": other.X})
    for found in (
        read_proteins(adata, "table"),
        read_proteins(adata, "array"),
        read_proteins(adata, "sparse"),
        read_proteins(adata, other),
        read_proteins(adata, layered, "counts"),
    ):
        np.testing.assert_array_equal(found.counts.toarray(), COUNTS[:, KEPT])
        assert found.names == ("CD3_TotalSeqB", "CD45RA", "unheard-of")
        assert found.cleaned == ("CD3", "CD45RA", "unheard-of")
        assert found.genes == ("CD3E", "PTPRC", "")
        assert found.controls == ("Mouse-IgG1",)


def test_centred_log_ratio_does_not_see_depth_of_many_counts() -> None:
    counts = np.random.default_rng(0).poisson(1000, (5, 4))
    ratio = centred_log_ratio(counts)
    np.testing.assert_allclose(ratio.sum(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(centred_log_ratio(counts * 8), ratio, atol=2e-3)
    np.testing.assert_allclose(ratio[0, 0] - ratio[0, 1], np.log1p(counts[0, 0]) - np.log1p(counts[0, 1]), rtol=1e-4)


def changed(row: int, column: int, value: float) -> NDArray[np.float64]:
    counts = COUNTS.copy()
    counts[row, column] = value
    return counts


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (
            changed(1, 0, np.nan),
            r"contains 1 NaN or infinite values in 1 of 3 cells \(for example \['b'\]\).*predict_protein",
        ),
        (changed(0, 0, -0.4), r"contains 1 values that are negative or not integers \(such as -0.4\)"),
        (np.log1p(COUNTS), r"appear to be normalised; expected antibody counts"),
        (COUNTS * [[0], [1], [1]], r"1 of 3 cells \(for example \['a'\]\) have no protein counts"),
    ],
)
def test_what_is_not_counts_is_refused(adata: AnnData, counts: NDArray[np.float64], message: str) -> None:
    adata.obsm["protein"] = pd.DataFrame(counts, index=adata.obs_names, columns=NAMES)
    with pytest.raises(DataError, match=message):
        read_proteins(adata, "protein")


def test_missing_keys_names_and_cells_are_named(adata: AnnData) -> None:
    adata.obsm["protein"] = COUNTS
    with pytest.raises(MissingKeyError, match=r"adata.obsm has no 'prot' \(it has: 'protein'\)"):
        read_proteins(adata, "prot")
    with pytest.raises(DataError, match=r"array of 4 columns without names in adata.uns\['protein_names'\]"):
        read_proteins(adata, "protein")
    other = AnnData(COUNTS[:2], obs=pd.DataFrame(index=["a", "x"]), var=pd.DataFrame(index=NAMES))
    with pytest.raises(
        DataError, match=r"2 of 3 cells with RNA have no proteins \(for example \['b', 'c'\].*intersect_obs"
    ):
        read_proteins(adata, other)
    with pytest.raises(MissingKeyError, match="'raw'"):
        read_proteins(adata[:1].copy(), other, "raw")
    adata.obsm["protein"] = pd.DataFrame(COUNTS, index=adata.obs_names, columns=["CD3", "CD3", "CD4", "CD8"])
    with pytest.raises(DataError, match="several proteins with the same name"):
        read_proteins(adata, "protein")
    adata.obsm["protein"] = pd.DataFrame(COUNTS[:, :2], index=adata.obs_names, columns=["CD3", "IgG1"])
    with pytest.raises(DataError, match="1 proteins besides isotype controls"):
        read_proteins(adata, "protein")


def test_views_and_files_are_read_in_the_order_of_the_cells(adata: AnnData, tmp_path: Path) -> None:
    other = AnnData(COUNTS[::-1], obs=pd.DataFrame(index=["c", "b", "a"]), var=pd.DataFrame(index=NAMES))
    other.write_h5ad(tmp_path / "proteins.h5ad")
    adata.obsm["table"] = pd.DataFrame(COUNTS, index=adata.obs_names, columns=NAMES)
    backed = ad.read_h5ad(tmp_path / "proteins.h5ad", backed="r")
    some = adata[["c", "a"]]  # a view
    for proteins in ("table", other, backed, other[["a", "c"]]):
        np.testing.assert_array_equal(read_proteins(some, proteins).counts.toarray(), COUNTS[[2, 0]][:, KEPT])
    backed.file.close()


def test_cells_of_one_name_are_refused(adata: AnnData) -> None:
    other = AnnData(COUNTS, obs=pd.DataFrame(index=["a", "b", "c"]), var=pd.DataFrame(index=NAMES))
    adata.obs_names = ["a", "b", "a"]
    with pytest.raises(DataError, match="with the RNA has repeated obs_names"):
        read_proteins(adata, other)
    with pytest.raises(DataError, match="with the proteins has repeated obs_names"):
        read_proteins(other, adata)


def test_a_table_has_no_layers(adata: AnnData) -> None:
    adata.obsm["table"] = pd.DataFrame(COUNTS, index=adata.obs_names, columns=NAMES)
    with pytest.raises(OptionError, match=r"adata.obsm\['table'\] has no layers"):
        read_proteins(adata, "table", "counts")
