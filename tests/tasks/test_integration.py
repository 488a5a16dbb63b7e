"""Integration from end to end on few cells: what is written, kept, refused and said."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from anndata import AnnData

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError, WeightsError
from scgalore.integration.scores import batch_variance
from scgalore.model import SCGPT
from scgalore.objectives import Integration as Objective

OPTIONS: dict[str, Any] = {"max_epochs": 2, "batch_size": 16, "lr": 1e-3, "accelerator": "cpu", "task": "integration"}


@pytest.fixture
def batches(few: AnnData) -> AnnData:
    """Three batches; in the second some genes are measured higher, in the third others lower."""
    codes = np.arange(few.n_obs) % 3
    x = few.X.toarray()
    x[codes == 1, :40] *= 1.2
    x[codes == 2, 40:90] *= 0.8
    few.X = x
    few.obs["batch"] = np.array(["a", "b", "c"])[codes]
    return few


def codes_of(adata: AnnData) -> Any:
    return np.unique(adata.obs["batch"].to_numpy(str), return_inverse=True)[1]


def test_the_batch_is_taken_out_and_results_survive_a_file(batches: AnnData, model: SCGPT, tmp_path: Path) -> None:
    sg.tl.finetune(batches, model, batch_key="batch", **{**OPTIONS, "correction": "none"}, key_added="left")
    before = batch_variance(batches.obsm["left"].astype(float), codes_of(batches))
    fitted = sg.tl.finetune(batches, model, batch_key="batch", **OPTIONS)
    after = batch_variance(batches.obsm["X_scGPT"].astype(float), codes_of(batches))
    assert after < before / 2
    assert batches.obsm["X_scGPT"].shape == (90, 50)
    assert batches.obsm["X_scGPT"].dtype == np.float32
    found = batches.uns["finetune"]
    assert found["params"]["task"] == "integration"
    assert found["params"]["batch_key"] == "batch"
    assert dict(found["batches"]["n_cells"]) == {"a": 30, "b": 30, "c": 30}
    assert {"train_adversary", "validation_reconstruction", "train_mse_from_cell"} <= set(fitted.history)
    batches.write_h5ad(tmp_path / "cells.h5ad")


@pytest.mark.parametrize("batch_norm", [False, True])
def test_embed_gives_what_was_written_also_after_loading(
    batches: AnnData, model: SCGPT, tmp_path: Path, batch_norm: bool
) -> None:
    fitted = sg.tl.finetune(batches, model, batch_key="batch", batch_norm=batch_norm, **OPTIONS)
    written = batches.obsm["X_scGPT"].copy()
    fitted.save(tmp_path / "model")
    loaded = sg.model.load(tmp_path / "model")
    assert loaded.memory == fitted.memory
    some = batches[::-2].copy()
    sg.tl.embed(some, loaded)  # the column has the name that it had
    np.testing.assert_allclose(some.obsm["X_scGPT"], written[::-2], rtol=1e-4, atol=1e-5)
    some.obs["lane"] = some.obs["batch"]
    again = loaded.get_latent_representation(some[:, 10:].copy(), batch_key="lane")
    assert again.shape == (45, 50)  # genes may be absent


@pytest.mark.parametrize("batch_norm", [False, True])
def test_batches_that_training_has_not_seen(
    batches: AnnData, model: SCGPT, caplog: pytest.LogCaptureFixture, batch_norm: bool
) -> None:
    known, new = batches[batches.obs["batch"] != "c"].copy(), batches[batches.obs["batch"] == "c"].copy()
    fitted = sg.tl.finetune(known, model, batch_key="batch", batch_norm=batch_norm, **OPTIONS)
    weights = {name: tensor.clone() for name, tensor in fitted.network.state_dict().items()}
    with caplog.at_level(logging.INFO, logger="scgalore"):
        sg.tl.embed(batches, fitted, batch_key="batch")
    assert "new batches: 'c' (30 cells)" in caplog.text
    rows = (batches.obs["batch"] != "c").to_numpy()
    np.testing.assert_allclose(batches.obsm["X_scGPT"][rows], known.obsm["X_scGPT"], rtol=1e-4, atol=1e-5)
    sg.tl.embed(new, fitted, batch_key="batch")
    np.testing.assert_allclose(batches.obsm["X_scGPT"][~rows], new.obsm["X_scGPT"], rtol=1e-4, atol=1e-5)
    for name, tensor in fitted.network.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    with caplog.at_level(logging.WARNING, logger="scgalore"):
        sg.tl.embed(new[:5].copy(), fitted, batch_key="batch")
    assert "'c' have fewer than 20 cells" in caplog.text


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_query_is_learned_alone_and_the_reference_stays(
    batches: AnnData, model: SCGPT, tmp_path: Path, batch_norm: bool
) -> None:
    reference, query = batches[batches.obs["batch"] != "c"].copy(), batches[batches.obs["batch"] == "c"].copy()
    more = query.copy()
    more.obs["batch"] = "d"
    fitted = sg.tl.finetune(reference, model, batch_key="batch", batch_norm=batch_norm, **OPTIONS)
    for cells in (query, more):
        sg.tl.finetune(cells, fitted, batch_key="batch", adapter="lora", **{**OPTIONS, "lr": 5e-2})
    assert fitted.memory.batches == ("a", "b", "c", "d")
    fitted.save(tmp_path / "model")
    for loaded in (fitted, sg.model.load(tmp_path / "model")):
        for cells in (reference, query, more):
            again = cells.copy()
            sg.tl.embed(again, loaded)
            np.testing.assert_allclose(again.obsm["X_scGPT"], cells.obsm["X_scGPT"], rtol=1e-4, atol=1e-5)
    together = batches.copy()
    sg.tl.embed(together, fitted)
    rows = (together.obs["batch"] == "c").to_numpy()
    np.testing.assert_allclose(together.obsm["X_scGPT"][rows], query.obsm["X_scGPT"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(together.obsm["X_scGPT"][~rows], reference.obsm["X_scGPT"], rtol=1e-4, atol=1e-5)
    assert np.abs(query.obsm["X_scGPT"] - more.obsm["X_scGPT"]).max() > 1e-3  # each has an adapter of its own
    with pytest.raises(DataError, match="batches that the model was trained on: 'c'"):
        sg.tl.finetune(query, fitted, batch_key="batch", adapter="lora", **OPTIONS)


def test_an_adapter_without_a_reference_needs_several_batches(batches: AnnData, model: SCGPT) -> None:
    one = batches[batches.obs["batch"] == "c"].copy()
    with pytest.raises(DataError, match="only one batch, 'c'"):
        sg.tl.finetune(one, model, batch_key="batch", adapter="lora", **OPTIONS)
    fitted = sg.tl.finetune(batches, model, batch_key="batch", adapter="lora", **OPTIONS)
    assert fitted.memory.adapters == ()
    again = batches[batches.obs["batch"] != "a"].copy()
    refitted = sg.tl.finetune(again, fitted, batch_key="batch", **OPTIONS)  # all of it anew
    assert refitted.memory.batches == ("b", "c")
    assert refitted.network.config.n_batches == 2


def test_interrupted_training_is_resumed_to_the_bit(
    batches: AnnData, make_model: Callable[..., SCGPT], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**OPTIONS, "batch_key": "batch", "labels_key": "bulk_labels", "batch_norm": True}
    whole, parts = (make_model(batches.var_names) for _ in range(2))
    expected = batches.copy()
    sg.tl.finetune(expected, whole, **options)
    loss, seen = Objective.__call__, []

    def stopping(self: Objective, network: Any, batch: Any) -> Any:
        seen.append(1)
        if len(seen) > 9:
            raise KeyboardInterrupt
        return loss(self, network, batch)

    monkeypatch.setattr(Objective, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        sg.tl.finetune(batches, parts, checkpoint_dir=tmp_path, **options)
    monkeypatch.setattr(Objective, "__call__", loss)
    sg.tl.finetune(batches, parts, checkpoint_dir=tmp_path, resume=True, **options)
    np.testing.assert_array_equal(batches.obsm["X_scGPT"], expected.obsm["X_scGPT"])


def test_zeros_and_labels_are_learned_from(batches: AnnData, model: SCGPT, tmp_path: Path) -> None:
    batches.obs["type"] = batches.obs["bulk_labels"].astype(object)
    batches.obs.loc[batches.obs_names[:30], "type"] = np.nan
    how: dict[str, Any] = {"batch_key": "batch", "labels_key": "type", "zeros_weight": 1.0, "max_length": 40}
    fitted = sg.tl.finetune(batches, model, **how, **OPTIONS, save_dir=tmp_path / "model")
    assert {"train_zeros", "train_zeros_from_cell", "train_classes"} <= set(fitted.history)
    query = batches.copy()
    sg.tl.embed(query, sg.model.load(tmp_path / "model"), batch_key="batch")
    np.testing.assert_allclose(query.obsm["X_scGPT"], batches.obsm["X_scGPT"], rtol=1e-4, atol=1e-5)


def test_without_prior_and_correction_the_embedding_is_the_network_s(batches: AnnData, model: SCGPT) -> None:
    fitted = sg.tl.finetune(batches, model, batch_key="batch", prior="none", correction="none", **OPTIONS)
    assert fitted.memory.map is None
    assert batches.obsm["X_scGPT"].shape == (90, 16)
    np.testing.assert_allclose(np.linalg.norm(batches.obsm["X_scGPT"], axis=1), 1, rtol=1e-4)


def test_test_cells_do_not_change_what_is_fitted(batches: AnnData, make_model: Callable[..., SCGPT]) -> None:
    batches.obs["split"] = np.where(np.arange(90) < 60, "train", np.where(np.arange(90) < 75, "validation", "test"))
    other = batches.copy()
    x = other.X.copy()
    x[75:] = x[75:][:, ::-1]
    other.X = x
    found = [
        sg.tl.finetune(cells, make_model(batches.var_names), batch_key="batch", split_key="split", **OPTIONS)
        for cells in (batches, other)
    ]
    first, second = (model.memory.map for model in found)
    np.testing.assert_array_equal(first.axes, second.axes)
    np.testing.assert_array_equal(first.correction.shifts, second.correction.shifts)


# Bad input ------------------------------------------------------------------------------------------------------------


def _one(adata: AnnData) -> None:
    adata.obs["batch"] = "a"


def _single(adata: AnnData) -> None:
    adata.obs["batch"] = ["z", *adata.obs["batch"][1:]]


def _missing(adata: AnnData) -> None:
    adata.obs["batch"] = [np.nan, *adata.obs["batch"][1:]]


def _barcodes(adata: AnnData) -> None:
    adata.obs["batch"] = adata.obs_names


def _untrained(adata: AnnData) -> None:
    adata.obs["split"] = np.where(adata.obs["batch"] == "b", "test", "train")


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (None, {"batch_key": None}, OptionError, "task='integration' needs batch_key="),
        (None, {"batch_key": "donor"}, MissingKeyError, "batch_key='donor' is not a column of adata.obs"),
        (_one, {}, DataError, "only one batch, 'a'"),
        (_single, {}, DataError, r"batches with a single cell: 'z' \(1 in total\)"),
        (_missing, {}, DataError, "1 of 90 cells have no batch"),
        (_barcodes, {}, DataError, "90 different names in 90 cells"),
        (_untrained, {"split_key": "split"}, DataError, "Batch 'b' of .* has no training cells"),
        (None, {"labels_key": "batch"}, OptionError, "batch_key and labels_key are both 'batch'"),
        (None, {"adversary_weight": -1.0}, OptionError, "a weight must be a non-negative number"),
        (None, {"mask_ratio": 2.0}, OptionError, "between 0 and 1"),
        (
            None,
            dict.fromkeys(("tokens_weight", "cell_weight", "similarity_weight", "adversary_weight"), 0.0),
            OptionError,
            "All weights are 0",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_loaded(
    batches: AnnData, change: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    if change is not None:
        change(batches)
    slots = [*batches.obs, *batches.obsm, *batches.uns]
    with pytest.raises(error, match=message):
        sg.tl.finetune(batches, "no such weights", **{**OPTIONS, "batch_key": "batch", **options})
    assert [*batches.obs, *batches.obsm, *batches.uns] == slots


def test_labels_of_one_batch_each_are_warned_of(
    batches: AnnData, model: SCGPT, caplog: pytest.LogCaptureFixture
) -> None:
    batches.obs["type"] = batches.obs["batch"].map({"a": "x", "b": "y", "c": "x"}).to_numpy()
    with caplog.at_level(logging.WARNING, logger="scgalore"):
        sg.tl.finetune(batches, model, batch_key="batch", labels_key="type", **{**OPTIONS, "max_epochs": 1})
    assert "confounded" not in caplog.text  # x is in two
    batches.obs["type"] = batches.obs["batch"].map({"a": "x", "b": "y", "c": "z"}).to_numpy()
    with caplog.at_level(logging.WARNING, logger="scgalore"):
        sg.tl.finetune(batches, model, batch_key="batch", labels_key="type", **{**OPTIONS, "max_epochs": 1})
    assert "occurs in only one batch of adata.obs['batch']" in caplog.text


def test_models_are_asked_for_what_they_can(batches: AnnData, model: SCGPT) -> None:
    with pytest.raises(OptionError, match="batch_key='batch' is for models that remove batch effects"):
        sg.tl.embed(batches, model, batch_key="batch")
    fitted = sg.tl.finetune(batches, model, batch_key="batch", batch_norm=True, **OPTIONS)
    query = batches.copy()
    del query.obs["batch"]
    with pytest.raises(MissingKeyError, match="No column 'batch' in adata.obs.*Pass batch_key="):
        sg.tl.embed(query, fitted)
    with pytest.raises(OptionError, match="cannot annotate cells"):
        sg.tl.annotate(batches, fitted)
    others: list[dict[str, Any]] = [{"labels_key": "bulk_labels"}, {"task": "expression"}]
    for task in others:
        with pytest.raises(OptionError, match="normalises its inputs within batches"):
            sg.tl.finetune(batches, fitted, **task, max_epochs=1, accelerator="cpu", key_added="x")
    fitted = sg.tl.finetune(batches, fitted, batch_key="batch", **OPTIONS)  # without the norm of before
    with pytest.raises(OptionError, match="has decoders that receive the batch"):
        sg.tl.finetune(batches, fitted, task="expression", max_epochs=1, accelerator="cpu", key_added="x")
    sg.tl.finetune(batches, fitted, labels_key="bulk_labels", max_epochs=1, accelerator="cpu", key_added="x")
    assert fitted.memory.task == "classes"


def test_what_an_export_leaves_behind_is_said(
    batches: AnnData, model: SCGPT, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fitted = sg.tl.finetune(batches, model, batch_key="batch", batch_norm=True, **OPTIONS)
    with caplog.at_level(logging.WARNING, logger="scgalore"):
        cast("SCGPT", fitted).export_scgpt(tmp_path / "export")
    assert "a batch correction, which cannot be stored in the original layout" in caplog.text
    again = sg.model.load(tmp_path / "export").network
    assert (again.config.n_batches, again.config.batch_norm, again.config.adversary) == (3, "per-batch", True)
    for name, tensor in fitted.network.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize("batch_norm", [False, True])
def test_memory_is_estimated(batches: AnnData, model: SCGPT, batch_norm: bool) -> None:
    few_genes, more = (
        sg.estimate_memory(model, genes_per_cell=n, batch_size=8, task="integration", accelerator="cpu")
        for n in (20, 60)
    )
    assert 0 < few_genes.activations < more.activations
    options = {**OPTIONS, "batch_size": "auto", "max_epochs": 1, "batch_norm": batch_norm}
    fitted = sg.tl.finetune(batches, model, batch_key="batch", **options)
    assert fitted.result.batch_size == 32


def test_a_damaged_map_is_named(batches: AnnData, model: SCGPT, tmp_path: Path) -> None:
    sg.tl.finetune(batches, model, batch_key="batch", **OPTIONS, save_dir=tmp_path / "model")
    (tmp_path / "model" / "batch_map.safetensors").write_bytes(b"no map")
    with pytest.raises(WeightsError, match="batch_map.safetensors is damaged"):
        sg.model.load(tmp_path / "model")
