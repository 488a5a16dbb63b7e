from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from tests.screens import TEST, screen, write_prediction

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError

KEYS = {"params", "scores", "summary", "observed", "version"}


@pytest.fixture
def predicted() -> AnnData:
    adata = screen()
    write_prediction(adata)
    return adata


def test_writes_one_documented_key(predicted: AnnData) -> None:
    slots = set(predicted.uns), list(predicted.obs)
    assert sg.tl.evaluate_perturbation(predicted, de=False, n_bootstrap=20) is None
    assert set(predicted.uns) - slots[0] == {"evaluate_perturbation"}
    assert list(predicted.obs) == slots[1]
    result = predicted.uns["evaluate_perturbation"]
    assert set(result) == KEYS
    assert result["params"]["key"] == "predict_perturbation"
    assert set(result["scores"]["perturbation"]) == set(TEST)
    assert set(result["summary"]["group"]) == {"all", "combo_seen2", "unseen_single"}


def test_keys_go_where_they_are_asked_for(predicted: AnnData) -> None:
    predicted.uns["mine"] = predicted.uns.pop("predict_perturbation")
    sg.tl.evaluate_perturbation(predicted, key="mine", key_added="scores", de=False, n_bootstrap=20)
    assert set(predicted.uns["scores"]) == KEYS
    assert "evaluate_perturbation" not in predicted.uns


def test_a_copy_is_returned_and_the_object_left_alone(predicted: AnnData) -> None:
    copy = sg.tl.evaluate_perturbation(predicted, de=False, n_bootstrap=20, copy=True)
    assert "evaluate_perturbation" not in predicted.uns
    assert isinstance(copy, AnnData)
    assert set(copy.uns["evaluate_perturbation"]) == KEYS


def test_written_and_read_again_it_scores_the_same(predicted: AnnData, tmp_path: Path) -> None:
    sg.tl.evaluate_perturbation(predicted, de=False, n_bootstrap=20)
    predicted.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    for table in ("scores", "summary", "observed"):
        expected = predicted.uns["evaluate_perturbation"][table]
        found = again.uns["evaluate_perturbation"][table]
        pd.testing.assert_frame_equal(
            found, expected, check_dtype=False, check_index_type=False, check_categorical=False
        )
    sg.tl.evaluate_perturbation(again, de=False, n_bootstrap=20, key_added="again")
    first, second = (again.uns[key]["summary"]["mean"].to_numpy() for key in ("evaluate_perturbation", "again"))
    np.testing.assert_allclose(first, second)


def test_counts_score_as_their_logarithms_do() -> None:
    counts = screen()
    counts.X = np.round(np.expm1(counts.X.toarray()) * 5)
    write_prediction(counts)
    logged = counts.copy()
    depth = logged.X.sum(axis=1, keepdims=True)
    logged.X = np.log1p(logged.X * (1e4 / np.maximum(depth, 1)))
    for adata in (counts, logged):
        sg.tl.evaluate_perturbation(adata, de=False, n_bootstrap=20)
    first, second = (adata.uns["evaluate_perturbation"]["scores"]["value"] for adata in (counts, logged))
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


def test_contexts_have_rows_of_their_own() -> None:
    adata = screen(contexts=("K562", "RPE1"))
    write_prediction(adata, contexts=True)
    sg.tl.evaluate_perturbation(adata, de=False, n_bootstrap=20)
    observed = adata.uns["evaluate_perturbation"]["observed"]
    assert set(observed.columns) == {f"{line} | {name}" for line in ("K562", "RPE1") for name in TEST}


def test_genes_are_found_by_symbol(predicted: AnnData) -> None:
    """Targets are symbols; their columns must leave the ranking where ``var_names`` are Ensembl ids."""
    sg.tl.evaluate_perturbation(predicted, de=False, n_bootstrap=20)
    expected = predicted.uns["evaluate_perturbation"]["scores"]
    symbols = list(predicted.var_names)
    predicted.var["symbol"] = symbols
    predicted.var_names = [f"ENSG{i:011d}" for i in range(predicted.n_vars)]
    predicted.uns["predict_perturbation"]["params"]["gene_symbols"] = "symbol"
    sg.tl.evaluate_perturbation(predicted, de=False, n_bootstrap=20)
    pd.testing.assert_frame_equal(predicted.uns["evaluate_perturbation"]["scores"], expected)
    assert list(predicted.uns["evaluate_perturbation"]["observed"].index) == symbols


def test_genes_of_the_same_name_are_told_apart_by_number() -> None:
    adata = screen()
    write_prediction(adata)
    sg.tl.evaluate_perturbation(adata, de=False, n_bootstrap=20, metrics=["mse"])
    expected = adata.uns["evaluate_perturbation"]["scores"]
    adata.var["symbol"] = [*adata.var_names[:20], "TBCE", "TBCE", *adata.var_names[22:]]
    adata.uns["predict_perturbation"]["params"]["gene_symbols"] = "symbol"
    for table in ("means", "effects"):
        adata.uns["predict_perturbation"][table].index = [
            *adata.var_names[:20],
            "TBCE",
            "TBCE-1",
            *adata.var_names[22:],
        ]
    sg.tl.evaluate_perturbation(adata, de=False, n_bootstrap=20, metrics=["mse"])
    pd.testing.assert_frame_equal(adata.uns["evaluate_perturbation"]["scores"], expected)


def test_more_genes_than_a_table_may_have_columns_are_written(tmp_path: Path) -> None:
    adata = screen(n_genes=6000, n_cells=3, n_control=6)
    write_prediction(adata)
    sg.tl.evaluate_perturbation(adata, de=False, n_bootstrap=20, baselines=["control mean"])
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert ad.read_h5ad(tmp_path / "a.h5ad").uns["evaluate_perturbation"]["observed"].shape == (6000, len(TEST))


class TestRefused:
    def test_without_a_prediction(self) -> None:
        with pytest.raises(
            MissingKeyError, match=r"no prediction in adata.uns\['predict_perturbation'\]. Call sg.tl.predict"
        ):
            sg.tl.evaluate_perturbation(screen())

    @pytest.mark.parametrize("column", ["perturbation", "split"])
    def test_without_the_columns_it_was_made_from(self, predicted: AnnData, column: str) -> None:
        del predicted.obs[column]
        with pytest.raises(MissingKeyError, match=f"='{column}' is not a column of adata.obs"):
            sg.tl.evaluate_perturbation(predicted)

    def test_genes_that_are_gone(self, predicted: AnnData) -> None:
        with pytest.raises(DataError, match="1 of 40 predicted genes are not in the data"):
            sg.tl.evaluate_perturbation(predicted[:, 1:].copy(), de=False)

    def test_options_before_anything_is_read(self, predicted: AnnData) -> None:
        predicted.X[0, 0] = -1
        with pytest.raises(OptionError, match="metrics="):
            sg.tl.evaluate_perturbation(predicted, metrics=["r2"])
        assert "evaluate_perturbation" not in predicted.uns
