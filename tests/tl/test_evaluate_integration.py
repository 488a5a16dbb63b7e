import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData
from sklearn.decomposition import PCA

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.integration.scores import SCORES

N_OBS, N_GENES = 240, 60


@pytest.fixture
def cells() -> AnnData:
    """Counts of three types in two batches, and embeddings with and without the difference between batches."""
    rng = np.random.default_rng(0)
    types, batches = np.arange(N_OBS) % 3, (np.arange(N_OBS) // 3) % 2
    rates = rng.gamma(1, 2, size=(3, N_GENES))[types] * rng.gamma(20, 0.05, size=(2, N_GENES))[batches]
    obs = pd.DataFrame(
        {"type": np.array(["B", "NK", "T"])[types], "assay": np.array(["3p", "5p"])[batches]},
        index=[f"cell{i}" for i in range(N_OBS)],
    )
    adata = AnnData(sp.csr_matrix(rng.poisson(rates).astype(np.float32)), obs=obs)
    adata.var_names = [f"gene{i}" for i in range(N_GENES)]
    mixed = np.eye(3)[types] * 3 + rng.normal(size=(N_OBS, 3))
    adata.obsm["X_mixed"] = mixed.astype(np.float32)
    adata.obsm["X_apart"] = np.hstack([mixed, 10.0 * batches[:, None]])
    return adata


def evaluate(adata: Any, **options: Any) -> Any:
    options = {"embeddings": ["X_mixed", "X_apart"], "baselines": (), **options}
    return sg.tl.evaluate_integration(adata, "assay", "type", **options)


def untouched(adata: AnnData) -> Callable[[], None]:
    """Function that compares the object with what it is now."""
    before = adata.copy()

    def compare() -> None:
        assert list(adata.uns) == list(before.uns)
        assert list(adata.obsm) == list(before.obsm)
        pd.testing.assert_frame_equal(adata.obs, before.obs)
        assert abs(adata.X - before.X).sum() == 0

    return compare


def test_one_row_for_each_embedding_and_baseline_and_one_column_for_each_score(cells: AnnData) -> None:
    evaluate(cells, baselines=("Harmony", "PCA"))
    result = cells.uns["evaluate_integration"]
    assert list(result["scores"].index) == ["PCA", "Harmony", "X_mixed", "X_apart"]
    assert list(result["scores"].columns) == list(result["columns"].index) == [score.name for score in SCORES]
    assert result["scores"].notna().to_numpy().all()
    assert result["n_cells"].to_numpy().sum() == N_OBS
    assert result["n_cells"].loc["NK", "5p"] == N_OBS / 6


def test_batches_apart_are_found_and_harmony_mixes_what_pca_leaves(cells: AnnData) -> None:
    evaluate(cells, baselines=("PCA", "Harmony"))
    batch = cells.uns["evaluate_integration"]["scores"]["batch"]
    assert batch["X_mixed"] > 0.8 > batch["X_apart"]
    assert batch["Harmony"] > batch["PCA"]


def test_the_baseline_is_pca_of_log_normalised_expression(cells: AnnData) -> None:
    evaluate(cells, baselines=("PCA",))
    counts = cells.X.toarray()
    logs = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    cells.obsm["X_own_pca"] = PCA(50, svd_solver="full").fit_transform(logs)
    evaluate(cells, embeddings="X_own_pca", baselines=("PCA",), key_added="own")
    expected, found = (table.to_numpy() for _, table in cells.uns["own"]["scores"].iterrows())
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_an_embedding_without_integration_takes_the_place_of_pca(cells: AnnData) -> None:
    cells.X = sp.csr_matrix(cells.shape, dtype=np.float32)  # nothing to compute components from
    evaluate(cells, embeddings="X_mixed", baselines=("PCA", "Harmony"), unintegrated="X_apart")
    scores = cells.uns["evaluate_integration"]["scores"]
    assert list(scores.index) == ["X_apart", "Harmony", "X_mixed"]
    assert scores.loc["X_apart", "pcr_comparison"] == 0
    assert scores.loc["X_mixed", "pcr_comparison"] > 0.9
    assert scores.loc["Harmony", "batch"] > scores.loc["X_apart", "batch"] + 0.1
    evaluate(cells, baselines="PCA", unintegrated="X_apart", key_added="both")
    pd.testing.assert_frame_equal(cells.uns["both"]["scores"], scores.loc[["X_apart", "X_mixed"]])


def test_results_survive_a_file(cells: AnnData, tmp_path: Path) -> None:
    evaluate(cells, unintegrated="X_apart")
    cells.write_h5ad(tmp_path / "cells.h5ad")
    read = ad.read_h5ad(tmp_path / "cells.h5ad").uns["evaluate_integration"]
    for name in ("scores", "columns", "n_cells"):
        pd.testing.assert_frame_equal(
            read[name],
            cells.uns["evaluate_integration"][name],
            check_names=False,
            check_index_type=False,
            check_column_type=False,
        )
    assert read["params"]["embeddings"].tolist() == ["X_mixed", "X_apart"]


def test_the_same_rng_gives_the_same_table_whatever_else_is_scored(cells: AnnData) -> None:
    evaluate(cells, rng=1, unintegrated="X_apart")
    evaluate(cells, rng=1, unintegrated="X_apart", baselines=("Harmony",), embeddings="X_apart", key_added="again")
    again = cells.uns["again"]["scores"].loc["X_apart"]
    pd.testing.assert_series_equal(again, cells.uns["evaluate_integration"]["scores"].loc["X_apart"])


@pytest.mark.parametrize("make", [pd.DataFrame, sp.csr_matrix], ids=["table", "sparse"])
def test_embeddings_of_other_kinds_are_read(cells: AnnData, make: Callable[..., Any]) -> None:
    evaluate(cells, unintegrated="X_apart")
    x = cells.obsm["X_mixed"]
    cells.obsm["X_mixed"] = make(x, index=cells.obs_names) if make is pd.DataFrame else make(x)
    evaluate(cells, unintegrated="X_apart", key_added="again")
    pd.testing.assert_frame_equal(cells.uns["again"]["scores"], cells.uns["evaluate_integration"]["scores"])


def test_copy_view_and_mudata(cells: AnnData) -> None:
    compare = untouched(cells)
    result = evaluate(cells, unintegrated="X_apart", copy=True)
    compare()
    expected = result.uns["evaluate_integration"]["scores"]
    mdata = MuData({"rna": cells.copy()})
    evaluate(mdata, unintegrated="X_apart")
    pd.testing.assert_frame_equal(mdata["rna"].uns["evaluate_integration"]["scores"], expected)
    view = cells[:120]
    evaluate(view, unintegrated="X_apart")
    assert view.uns["evaluate_integration"]["n_cells"].to_numpy().sum() == 120
    compare()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"embeddings": "X_scGPT"}, MissingKeyError, "has no 'X_scGPT'; it has 'X_mixed', 'X_apart'.*sg.tl.embed"),
        ({"unintegrated": "X_pca"}, MissingKeyError, "has no 'X_pca'"),
        ({"embeddings": ["X_mixed", "X_mixed"]}, OptionError, "'X_mixed' occurs more than once in embeddings="),
        ({"embeddings": []}, OptionError, "No embedding to score"),
        ({"baselines": ["scVI"]}, OptionError, "'scVI' is neither 'PCA' nor 'Harmony'"),
        ({"layer": "counts", "baselines": ["PCA"]}, MissingKeyError, "counts"),
        ({"rng": -1}, OptionError, "rng is -1"),
        ({"key_added": "a/b"}, OptionError, "without '/'"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
def test_wrong_calls_change_nothing(
    cells: AnnData, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    compare = untouched(cells)
    with pytest.raises(error, match=message):
        evaluate(cells, **options)
    compare()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_embeddings_with_holes_are_counted_and_refused(cells: AnnData, value: float) -> None:
    cells.obsm["X_mixed"][[3, 5], 0] = value
    with pytest.raises(DataError, match=r"NaN or infinite values in 2 of 240 cells.*np.isfinite"):
        evaluate(cells)
    assert "evaluate_integration" not in cells.uns
    evaluate(cells[np.isfinite(cells.obsm["X_mixed"]).all(axis=1)].copy(), unintegrated="X_apart")


def test_one_batch_and_missing_labels_are_refused(cells: AnnData) -> None:
    with pytest.raises(DataError, match="only one batch"):
        evaluate(cells[cells.obs["assay"] == "3p"].copy())
    cells.obs.loc[["cell3"], "type"] = None
    with pytest.raises(DataError, match=r"1 of 240 cells have no label"):
        evaluate(cells)
    with pytest.raises(MissingKeyError, match=r"batch_key='donor' is not a column"):
        sg.tl.evaluate_integration(cells, "donor", "type", embeddings="X_mixed")
    assert not cells.uns


def test_labels_within_batches_are_warned_of_and_what_is_undefined_is_named(
    cells: AnnData, caplog: pytest.LogCaptureFixture
) -> None:
    cells.obs["type"] = cells.obs["type"] + cells.obs["assay"]
    with caplog.at_level(logging.WARNING, logger="scgalore"):
        evaluate(cells, unintegrated="X_apart")
    said = " ".join(caplog.messages)
    assert "are confounded" in said
    assert "excluded from the means: BRAS, kBET, ASW batch" in said
    assert cells.uns["evaluate_integration"]["scores"]["bras"].isna().all()


def test_a_batch_or_label_of_one_cell_is_warned_of(cells: AnnData, caplog: pytest.LogCaptureFixture) -> None:
    cells.obs.loc["cell0", "assay"] = "10x"
    cells.obs.loc["cell1", "type"] = "HSC"
    with caplog.at_level(logging.WARNING, logger="scgalore"):
        evaluate(cells, baselines=("PCA", "Harmony"))
    said = " ".join(caplog.messages)
    assert "Batches with a single cell" in said
    assert "Labels with a single cell" in said
    assert cells.uns["evaluate_integration"]["scores"].notna().to_numpy().all()
