"""A task and a family that are registered from outside the package work everywhere, without touching one of its files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from tests.toy_family import BagOfGenes, bag, bag_of  # noqa: F401 -- a fixture
from tests.toy_task import MarkerLoss, MarkerTask, marker_task  # noqa: F401 -- a fixture

import scgalore as sg
from scgalore.errors import OptionError, WeightsError
from scgalore.model import CellModel
from scgalore.tasks import TASKS

OPTIONS: dict[str, Any] = {"max_epochs": 3, "batch_size": 16, "lr": 2e-2, "accelerator": "cpu"}

pytestmark = pytest.mark.usefixtures("bag", "marker_task")


@pytest.fixture
def markers(few: AnnData) -> list[str]:
    """Two genes that about half of the cells express."""
    share = np.asarray((few.X > 0).mean(axis=0)).ravel()
    return few.var_names[np.argsort(np.abs(share - 0.5))[:2]].tolist()


@pytest.fixture(params=["bag", "scgpt"])
def start(request: pytest.FixtureRequest, few: AnnData, make_model: Callable[..., CellModel]) -> CellModel:
    """A model of the family from outside, and one of scGPT."""
    return bag_of(few.var_names) if request.param == "bag" else make_model(few.var_names)


def test_finetune_embed_save_load_and_annotate(
    few: AnnData, markers: list[str], start: CellModel, tmp_path: Path
) -> None:
    model = sg.tl.finetune(few, start, markers=markers, save_dir=tmp_path / "model", **OPTIONS)
    stem = model.family.stem
    assert few.obsm[f"{stem}_markers"].shape == (90, 2)
    assert few.uns["finetune"]["params"]["task"] == "markers"
    assert list(few.uns["finetune"]["params"]["markers"]) == markers
    assert model.history["train_loss"].iloc[-1] < model.history["train_loss"].iloc[0]
    loaded = sg.model.load(tmp_path / "model")
    assert loaded.memory == model.memory
    query = few[::2].copy()
    sg.tl.annotate(query, loaded, key_added="again")
    np.testing.assert_allclose(query.obsm["again_markers"], few.obsm[f"{stem}_markers"][::2], rtol=1e-5)
    sg.tl.embed(query, loaded)
    assert query.obsm[model.family.embedding].shape == (45, 16)
    few.write_h5ad(tmp_path / "cells.h5ad")


def test_interrupted_training_is_resumed_to_the_bit(
    few: AnnData, markers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = bag_of(few.var_names), bag_of(few.var_names)
    whole.train(few, markers=markers, **OPTIONS)
    loss = MarkerLoss.__call__
    seen: list[int] = []

    def stopping(self: MarkerLoss, network: Any, batch: Any) -> Any:
        seen.append(1)
        if len(seen) > 9:
            raise KeyboardInterrupt
        return loss(self, network, batch)

    monkeypatch.setattr(MarkerLoss, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        parts.train(few, markers=markers, checkpoint_dir=tmp_path, **OPTIONS)
    monkeypatch.setattr(MarkerLoss, "__call__", loss)
    parts.train(few, markers=markers, checkpoint_dir=tmp_path, resume=True, **OPTIONS)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(parts.network.state_dict()[name], tensor), name


def test_pipeline_runs_and_reports(few: AnnData, markers: list[str], tmp_path: Path) -> None:
    few.write_h5ad(tmp_path / "cells.h5ad")
    bag_of(few.var_names).save(tmp_path / "weights")
    config = sg.pipeline.RunConfig(
        tmp_path / "cells.h5ad",
        tmp_path / "run",
        markers=markers,
        model=tmp_path / "weights",
        must_include=markers,
        **OPTIONS,
    )
    folder = sg.pipeline.run(config)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["task"] == "markers"
    assert 0 <= metrics["test"]["accuracy"] <= 1
    assert "to predict which markers a cell expresses" in (folder / "report.md").read_text()
    assert json.loads((folder / "config.json").read_text())["markers"] == markers
    fitted = sg.model.load(folder / "checkpoints" / "model")
    assert type(fitted.network) is BagOfGenes
    assert sg.pipeline.RunConfig.from_json(folder / "config.json").arguments == {"markers": markers}


def test_memory_is_estimated(few: AnnData) -> None:
    estimate = sg.estimate_memory(
        bag_of(few.var_names), genes_per_cell=60, batch_size=8, task="markers", accelerator="cpu"
    )
    longer = sg.estimate_memory(
        bag_of(few.var_names), genes_per_cell=120, batch_size=8, task="markers", accelerator="cpu"
    )
    assert 0 < estimate.activations < longer.activations
    assert estimate.gradients > 0


def test_arguments_of_the_task_belong_to_it(few: AnnData, markers: list[str], start: CellModel) -> None:
    with pytest.raises(OptionError, match=r"markers=.* is an argument of task='markers', but the task is 'classes'"):
        sg.tl.finetune(few, start, labels_key="bulk_labels", task="classes", markers=markers)
    with pytest.raises(OptionError, match=r"markers=3: it must be a list of names"):
        sg.tl.finetune(few, start, markers=3)


def test_a_task_that_is_no_longer_registered_is_named(
    few: AnnData, markers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bag_of(few.var_names)
    model.train(few, markers=markers, **OPTIONS)
    model.save(tmp_path / "model")
    monkeypatch.delitem(TASKS, "markers")
    with pytest.raises(WeightsError, match="trained for task='markers', which is not registered"):
        sg.model.load(tmp_path / "model")


def test_a_family_without_flags_refuses_perturbations(few: AnnData) -> None:
    few.obs["perturbation"] = np.where(np.arange(few.n_obs) % 2 == 0, "control", few.var_names[0])
    few.obs["split"] = "train"
    with pytest.raises(OptionError, match="task='perturbation' needs a network with flags"):
        sg.tl.finetune(few, bag_of(few.var_names), pert_key="perturbation", split_key="split")
