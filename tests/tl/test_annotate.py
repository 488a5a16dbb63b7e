from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData
from tests.trained_screens import counts, trained

import scgalore as sg
from scgalore.errors import DataError, OptionError
from scgalore.model import SCGPT

RUN: dict[str, Any] = {"labels_key": "bulk_labels", "max_epochs": 2, "batch_size": 32, "lr": 2e-3}
KEYS = {
    "obs": {"scgpt_label", "scgpt_label_score"},
    "obsm": {"X_scGPT", "scgpt_probabilities"},
    "uns": {"annotate"},
}


def keys(adata: AnnData) -> dict[str, set[str]]:
    return {slot: set(getattr(adata, slot)) for slot in ("obs", "var", "obsm", "varm", "obsp", "layers", "uns")}


def added(adata: AnnData, before: dict[str, set[str]]) -> dict[str, set[str]]:
    return {slot: names - before[slot] for slot, names in keys(adata).items() if names != before[slot]}


@pytest.fixture
def fitted(few: AnnData, model: SCGPT) -> SCGPT:
    model.train(few, **RUN)
    return model


@pytest.fixture
def query(few: AnnData) -> AnnData:
    """The same cells in another order with other genes, unlabelled."""
    rng = np.random.default_rng(0)
    extra = AnnData(sp.random(90, 20, density=0.3, format="csr", random_state=0), obs=few.obs[[]])
    extra.var_names = [f"unheard-of-{i}" for i in range(20)]
    wider = anndata.concat([few[:, rng.permutation(few.n_vars)[:120]], extra], axis=1)
    return wider[rng.permutation(90), rng.permutation(140)].copy()


def test_keys_and_agreement(query: AnnData, fitted: SCGPT) -> None:
    before = keys(query)
    assert sg.tl.annotate(query, fitted) is None
    assert added(query, before) == KEYS
    expected = fitted.predict(query)
    np.testing.assert_array_equal(query.obsm["scgpt_probabilities"], expected)
    assert query.obs["scgpt_label"].tolist() == expected.idxmax(axis=1).tolist()
    assert query.obs["scgpt_label_score"].tolist() == expected.max(axis=1).tolist()
    assert query.obs["scgpt_label"].cat.categories.tolist() == query.uns["annotate"]["classes"] == list(fitted.classes)
    assert query.uns["annotate"]["genes"]["matched"] == 120


def test_same_cells_get_the_labels_of_fine_tuning(few: AnnData, model: SCGPT) -> None:
    query = few[::-1].copy()
    sg.tl.finetune(few, model, **RUN)
    sg.tl.annotate(query, model)
    pd.testing.assert_series_equal(query.obs["scgpt_label"][::-1], few.obs["scgpt_label"])
    np.testing.assert_allclose(query.obsm["X_scGPT"][::-1], few.obsm["X_scGPT"], atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batch_size_changes_nothing(query: AnnData, fitted: SCGPT, batch_size: int) -> None:
    sg.tl.annotate(query, fitted, max_length=20)
    expected = query.obsm["scgpt_probabilities"]
    sg.tl.annotate(query, fitted, max_length=20, batch_size=batch_size)
    np.testing.assert_allclose(query.obsm["scgpt_probabilities"], expected, atol=1e-6)


def test_saved_model_labels_alike(query: AnnData, fitted: SCGPT, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    mine = sg.tl.annotate(query, fitted, copy=True)
    assert mine is not None
    sg.tl.annotate(query, tmp_path / "model")
    np.testing.assert_array_equal(query.obsm["scgpt_probabilities"], mine.obsm["scgpt_probabilities"])
    assert query.uns["annotate"]["weights"]["name"] == str(tmp_path / "model")


def test_copy_leaves_the_query(query: AnnData, fitted: SCGPT) -> None:
    before = keys(query)
    copied = sg.tl.annotate(query, fitted, copy=True)
    assert isinstance(copied, AnnData)
    assert added(copied, before) == KEYS
    assert added(query, before) == {}


def test_key_added_is_taken_verbatim(query: AnnData, fitted: SCGPT) -> None:
    before = keys(query)
    sg.tl.annotate(query, fitted, key_added="B")
    assert added(query, before) == {
        "obs": {"B_label", "B_label_score"},
        "obsm": {"B", "B_probabilities"},
        "uns": {"B"},
    }


def test_view_becomes_an_object_of_its_own(query: AnnData, fitted: SCGPT) -> None:
    view, before = query[:30], keys(query)
    sg.tl.annotate(view, fitted)
    assert not view.is_view
    assert view.obsm["scgpt_probabilities"].shape == (30, 3)
    assert added(query, before) == {}


def test_one_cell_is_enough(query: AnnData, fitted: SCGPT) -> None:
    one = query[[5]].copy()
    sg.tl.annotate(one, fitted)
    np.testing.assert_allclose(one.obsm["scgpt_probabilities"][0], fitted.predict(query).iloc[5], atol=1e-6)


def test_mudata(query: AnnData, fitted: SCGPT) -> None:
    mdata = MuData({"rna": query})
    copied = sg.tl.annotate(mdata, fitted, copy=True)
    assert isinstance(copied, MuData)
    assert "rna:scgpt_label" in copied.obs
    assert "rna:scgpt_label" not in mdata.obs
    assert "scgpt_label" not in mdata["rna"].obs


def test_every_key_survives_h5ad(few: AnnData, query: AnnData, model: SCGPT, tmp_path: Path) -> None:
    few.obs["bulk_labels"] = few.obs["bulk_labels"].cat.rename_categories(lambda name: f"CD8+/{name}")
    model.train(few, **RUN)
    sg.tl.annotate(query, model)
    query.write_h5ad(tmp_path / "query.h5ad")
    read = anndata.read_h5ad(tmp_path / "query.h5ad")
    assert keys(read) == keys(query)
    pd.testing.assert_frame_equal(read.obs, query.obs)
    assert list(read.uns["annotate"]["classes"]) == query.uns["annotate"]["classes"]


def test_model_without_classes_is_refused(few: AnnData, make_model: Callable[..., SCGPT]) -> None:
    before = keys(few)
    with pytest.raises(OptionError, match="was not trained to predict anything for cells"):
        sg.tl.annotate(few, make_model(few.var_names))
    assert added(few, before) == {}


def test_model_of_a_screen_has_nothing_to_annotate_with() -> None:
    adata = counts()
    model = trained(adata)
    before = keys(adata)
    for call in (lambda: sg.tl.annotate(adata, model), lambda: model.predict(adata)):
        with pytest.raises(OptionError, match=r"task='perturbation'.*Use sg\.tl\.embed"):
            call()
    assert added(adata, before) == {}


def test_copy_of_a_backed_file_is_refused(few: AnnData, fitted: SCGPT, tmp_path: Path) -> None:
    few.write_h5ad(tmp_path / "few.h5ad")
    backed = anndata.read_h5ad(tmp_path / "few.h5ad", backed="r")
    with pytest.raises(DataError, match=r"copy=True cannot copy an AnnData that is backed.*to_memory"):
        sg.tl.annotate(backed, fitted, copy=True)
    sg.tl.annotate(backed, fitted)
    assert backed.obsm["scgpt_probabilities"].shape == (90, 3)
