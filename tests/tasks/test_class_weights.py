"""Weights of classes: scikit-learn's formula, torch's loss, and what they do to rare classes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from tests.tiny_plugin import tiny_model

import scgalore as sg
from scgalore.data import stream
from scgalore.errors import OptionError
from scgalore.model import SCGPT
from scgalore.objectives import Classification
from scgalore.pipeline import RunConfig
from scgalore.pipeline.checks import training_call
from scgalore.tasks.class_weights import CLASS_WEIGHT, class_weights, untrained_classes
from scgalore.tasks.registry import resolve_call

NAMES = ("a", "b", "c", "d")


@given(st.lists(st.sampled_from(range(4)), min_size=1, max_size=60))
def test_balanced_is_scikit_learns(codes: list[int]) -> None:
    found = class_weights("balanced", NAMES, np.bincount(codes, minlength=4))
    present = np.unique(codes)
    expected = np.ones(4)
    expected[present] = compute_class_weight("balanced", classes=present, y=np.array(codes))
    assert found is not None
    np.testing.assert_allclose(found, expected)


def test_weights_by_name() -> None:
    assert class_weights(None, NAMES, np.ones(4, dtype=int)) is None
    assert class_weights({"c": 3.0, "a": 0.5}, NAMES, None) == (0.5, 1.0, 3.0, 1.0)
    asked = CLASS_WEIGHT.plain({0: 2, 1.0: 3, "2": 4})
    for classes in (("0", "1", "2", "3"), ("0.0", "1.0", "2.0", "3.0")):
        assert class_weights(asked, classes, None) == (2.0, 3.0, 4.0, 1.0)
    with pytest.raises(OptionError, match="class_weight contains 'x', but the classes are 'a', 'b', 'c', 'd'"):
        class_weights({"a": 1.0, "x": 2.0}, NAMES, None)


@pytest.mark.parametrize(
    "value",
    [
        "balance",
        {},
        {"a": 0},
        {"a": -1},
        {"a": np.inf},
        {"a": np.nan},
        {"a": "2"},
        {None: 1},
        {1: 2, "1": 3},
        2.0,
        True,
    ],
)
def test_what_is_no_weight_is_refused(few: AnnData, value: Any) -> None:
    with pytest.raises(OptionError, match="'balanced', or a dict with positive weights"):
        sg.tl.finetune(few, "not-loaded", labels_key="bulk_labels", class_weight=value)


def test_it_belongs_to_classes(few: AnnData) -> None:
    with pytest.raises(OptionError, match="class_weight='balanced' is an argument of task='classes'"):
        sg.tl.finetune(few, "not-loaded", values_key="n_counts", class_weight="balanced")
    with pytest.raises(OptionError, match="class_weight contains 'T'"):
        sg.tl.finetune(few, "not-loaded", labels_key="bulk_labels", class_weight={"T": 2})


def test_the_loss_is_torchs(pbmc: AnnData) -> None:
    """Of the training cells' weights, on the validation cells, for the epoch that was kept."""
    adata = pbmc[:120, :150].copy()
    adata.obs["bulk_labels"] = adata.obs["bulk_labels"].astype(str)
    model = tiny_model(adata.var_names, max_length=200)
    options: dict[str, Any] = {"max_epochs": 2, "batch_size": 64, "lr": 2e-3, "validation_size": 0.3, "prior": "none"}
    sg.tl.finetune(adata, model, labels_key="bulk_labels", class_weight="balanced", **options)
    classes, parts = np.array(adata.uns["finetune"]["classes"]), adata.obs["scgpt_split"].to_numpy()
    truth = adata.obs["bulk_labels"].to_numpy()
    weights = compute_class_weight("balanced", classes=classes, y=truth[parts == "train"])
    np.testing.assert_allclose(adata.uns["finetune"]["class_weights"], weights)
    assert adata.uns["finetune"]["params"]["class_weight"] == "balanced"
    held = parts == "validation"
    expected = F.cross_entropy(
        torch.from_numpy(np.log(adata.obsm["scgpt_probabilities"][held]).astype(np.float64)),
        torch.from_numpy(np.searchsorted(classes, truth[held])),
        weight=torch.from_numpy(weights),
    )
    best = adata.uns["finetune"]["training"]["best_epoch"]
    assert model.history["validation_loss"].iloc[best] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.slow
def test_rare_classes_are_found(pbmc: AnnData) -> None:
    """Weights do what they are for: rare blood cells are recognised that are never named without."""
    adata = pbmc[:, :300].copy()
    options: dict[str, Any] = {
        "max_epochs": 2,
        "batch_size": 64,
        "lr": 1e-3,
        "optimizer": "adamw",
        "rng": 0,
        "prior": "none",
    }
    recalls = {}
    for class_weight in (None, "balanced"):
        sg.tl.finetune(adata, "scgpt-mini", labels_key="bulk_labels", class_weight=class_weight, **options)
        assert ("class_weights" in adata.uns["finetune"]) == (class_weight is not None)
        hits = adata.obs["scgpt_label"].astype(str) == adata.obs["bulk_labels"].astype(str)
        recalls[class_weight] = hits.groupby(adata.obs["bulk_labels"], observed=True).mean()
    counts = adata.obs["bulk_labels"].value_counts()
    rare = counts.index[counts < counts.median()]
    assert recalls["balanced"][rare].mean() > recalls[None][rare].mean() + 0.1


def test_a_dict_survives_a_file(few: AnnData, model: SCGPT, tmp_path: Path) -> None:
    few.obs["bulk_labels"] = few.obs["bulk_labels"].cat.rename_categories(["a/b", "1.0", "c"])
    sg.tl.finetune(few, model, labels_key="bulk_labels", class_weight={"a/b": 2, "c": 0.5}, max_epochs=1, batch_size=32)
    few.write_h5ad(tmp_path / "few.h5ad")
    content = anndata.read_h5ad(tmp_path / "few.h5ad").uns["finetune"]
    assert list(content["classes"]) == ["a/b", "1.0", "c"]
    assert content["class_weights"].tolist() == [2, 1, 0.5]


def test_another_weight_is_another_run(few: AnnData, make_model: Callable[..., SCGPT], tmp_path: Path) -> None:
    options: dict[str, Any] = {"labels_key": "bulk_labels", "max_epochs": 1, "batch_size": 32}
    sg.tl.finetune(few, make_model(few.var_names), **options, checkpoint_dir=tmp_path)
    options |= {"checkpoint_dir": tmp_path, "resume": True, "class_weight": "balanced"}
    with pytest.raises(OptionError, match="class_weights was None"):
        sg.tl.finetune(few, make_model(few.var_names), **options)


def test_streams_count_their_cells(few: AnnData, model: SCGPT) -> None:
    parts = [few[:35].copy(), few[35:].copy()]
    batches = stream(parts, model.vocab, config=model.tokenizer_config(), batch_size=8, labels_key="bulk_labels")
    task, call = resolve_call(
        {"labels_key": "bulk_labels", "class_weight": "balanced"}, task=None, seed=0, function=model.train
    )
    objective = task.prepare(task.read(batches, call), model, call).objective
    classes, labels = np.array(batches.classes), few.obs["bulk_labels"].to_numpy(str)
    assert isinstance(objective, Classification)
    assert objective.class_weights is not None
    np.testing.assert_allclose(objective.class_weights, compute_class_weight("balanced", classes=classes, y=labels))
    model.train(batches, class_weight="balanced", max_epochs=1)

    class Unread:
        n_obs, var = few.n_obs, few.var

        def __iter__(self) -> Any:
            raise AssertionError

    loader = stream(Unread(), model.vocab, labels_key="bulk_labels", classes=list(batches.classes))
    with pytest.raises(OptionError, match="needs the number of cells of each class"):
        model.train(loader, class_weight="balanced", max_epochs=1)


@pytest.mark.parametrize("value", ["balanced", {"NK": 2.0, "a/b": 0.5}])
def test_runs_have_it(tmp_path: Path, value: Any) -> None:
    config = RunConfig(tmp_path / "x.h5ad", tmp_path / "out", labels_key="l", class_weight=value)
    (tmp_path / "config.json").write_text(config.to_json())
    again = RunConfig.from_json(tmp_path / "config.json")
    assert not again.differences(config)
    assert training_call(again).arguments["class_weight"] == value
    assert RunConfig(tmp_path / "x.h5ad", tmp_path / "out", labels_key="l").differences(config)


def test_classes_without_training_cells_are_named() -> None:
    assert untrained_classes(NAMES, np.array([3, 1, 2, 9]), np.array([2, 1, 1, 8])) is None
    message = untrained_classes(NAMES, np.array([3, 7, 2, 1]), np.array([2, 0, 1, 0]))
    assert message is not None
    assert "2 of 4 classes have no training cell" in message
    assert "'b' (7 cells), 'd' (1 cells)" in message
