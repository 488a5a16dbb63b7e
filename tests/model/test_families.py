"""A family that is registered from outside is loaded, saved, trained and run as scGPT is."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from tests.toy_family import BagOfGenes, bag, bag_of  # noqa: F401 -- a fixture

import scgalore as sg
from scgalore.errors import OptionError, WeightsError
from scgalore.model import FAMILIES, SCGPT, CellModel, Family
from scgalore.weights.checkpoint import read_checkpoint

LABELS: dict[str, Any] = {"labels_key": "bulk_labels", "max_epochs": 2, "batch_size": 32, "lr": 2e-2, "prior": "none"}


@pytest.fixture
def toy(few: AnnData, bag: Family) -> CellModel:  # noqa: F811
    return bag_of(few.var_names)


def test_embeds_cells_whatever_their_batch(few: AnnData, toy: CellModel) -> None:
    embedding = toy.get_latent_representation(few)
    assert (embedding.shape, embedding.dtype) == ((90, 16), np.float32)
    alone = np.vstack([toy.get_latent_representation(few[[row]].copy()) for row in (0, 40, 89)])
    np.testing.assert_allclose(alone, embedding[[0, 40, 89]], atol=1e-6)


def test_embeds_in_lower_precision(few: AnnData, toy: CellModel) -> None:
    lower = toy.run(toy.cells(few), precision="bf16-true")
    assert lower.precision == "bf16-true"
    np.testing.assert_allclose(lower.embedding, toy.get_latent_representation(few), atol=0.05)


def test_learns_classes_and_comes_back_from_its_folder(few: AnnData, toy: CellModel, tmp_path: Path) -> None:
    toy.train(few, **LABELS)
    assert toy.history["train_loss"].iloc[-1] < toy.history["train_loss"].iloc[0]
    toy.save(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["family"] == "bag"
    loaded = sg.model.load(tmp_path / "model")
    assert type(loaded.network) is BagOfGenes
    assert loaded.classes == tuple(few.obs["bulk_labels"].cat.categories)
    assert loaded.load_report is not None
    assert loaded.load_report.random == loaded.load_report.ignored == ()
    assert loaded.predict(few).equals(toy.predict(few))
    np.testing.assert_array_equal(loaded.get_latent_representation(few), toy.get_latent_representation(few))


@pytest.mark.parametrize("embedding", ["rows", "full", "frozen"])
def test_trains_in_every_mode_of_the_embedding(few: AnnData, toy: CellModel, embedding: str) -> None:
    before = toy.network.gene_table.weight.clone()
    toy.train(few, **LABELS, embedding=embedding)
    assert torch.equal(toy.network.gene_table.weight, before) == (embedding == "frozen")
    assert isinstance(toy.network.genes, torch.nn.Embedding)


def test_resumes_to_the_bit(few: AnnData, bag: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    whole, parts = bag_of(few.var_names), bag_of(few.var_names)
    whole.train(few, **{**LABELS, "max_epochs": 3}, checkpoint_dir=tmp_path / "whole")

    class Enough(Exception):
        pass

    calls = []
    encode = BagOfGenes.encode

    def stopping(self: BagOfGenes, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) > 7:
            raise Enough
        return encode(self, *args, **kwargs)

    monkeypatch.setattr(BagOfGenes, "encode", stopping)
    with pytest.raises(Enough):
        parts.train(few, **{**LABELS, "max_epochs": 3}, checkpoint_dir=tmp_path / "parts")
    monkeypatch.setattr(BagOfGenes, "encode", encode)
    parts = bag_of(few.var_names)
    parts.train(few, **{**LABELS, "max_epochs": 3}, checkpoint_dir=tmp_path / "parts", resume=True)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(parts.network.state_dict()[name], tensor), name


def test_adapter_trains_beside_the_heads_and_is_saved_alone(few: AnnData, toy: CellModel, tmp_path: Path) -> None:
    toy.save(tmp_path / "base")
    base = sg.model.load(tmp_path / "base")
    base.train(few, **LABELS, embedding="frozen", adapter="lora", adapter_options={"rank": 2, "targets": ["layer"]})
    base.save_adapter(tmp_path / "adapter")
    loaded = sg.model.load(tmp_path / "adapter")
    assert loaded.classes == base.classes
    np.testing.assert_allclose(loaded.predict(few), base.predict(few), atol=1e-6)


def test_what_it_cannot_do_is_refused_before_training(few: AnnData, toy: CellModel) -> None:
    with pytest.raises(OptionError, match="task='expression' needs a network with expression"):
        toy.train(few, max_epochs=1)
    with pytest.raises(OptionError, match="does not support perturbation flags"):
        toy.network.perturbation_variant(10, 10, seed=0)


def test_the_folder_says_which_class_it_is(few: AnnData, toy: CellModel, model: SCGPT, tmp_path: Path) -> None:
    toy.save(tmp_path / "toy")
    model.save(tmp_path / "scgpt")
    assert type(sg.model.load(tmp_path / "scgpt")) is SCGPT
    with pytest.raises(OptionError, match=r"family 'bag'.*sg\.model\.load"):
        SCGPT.from_pretrained(tmp_path / "toy")


def test_unknown_families_are_named(few: AnnData, toy: CellModel, tmp_path: Path) -> None:
    toy.save(tmp_path / "toy")
    del FAMILIES["bag"]
    with pytest.raises(OptionError, match="family 'bag'; expected 'scgpt'"):
        sg.model.load(tmp_path / "toy")


def test_configuration_of_version_0_5_0_is_read(few: AnnData, model: SCGPT, tmp_path: Path) -> None:
    model.train(few, **{**LABELS, "lr": 2e-3, "max_epochs": 1})
    model.save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["classes"] = config.pop("memory")["classes"]
    config["network"]["n_classes"] = config["network"].pop("heads")["classes"]
    del config["family"], config["task"]
    path.write_text(json.dumps(config))
    loaded = sg.model.load(tmp_path / "model")
    assert loaded.classes == model.classes
    assert loaded.predict(few).equals(model.predict(few))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda config: config.pop("network"), r"config\.json lacks network.*Save the model again"),
        (lambda config: config["network"].update(depth=3), "depth"),
    ],
)
def test_configuration_that_lacks_or_adds_something_is_refused(
    few: AnnData, toy: CellModel, tmp_path: Path, change: Callable[[dict[str, Any]], Any], match: str
) -> None:
    toy.save(tmp_path / "toy")
    path = tmp_path / "toy" / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=match):
        sg.model.load(tmp_path / "toy")


def test_folder_of_another_program_needs_a_reader_of_the_family(toy: CellModel, tmp_path: Path) -> None:
    toy.save(tmp_path / "toy")
    checkpoint = replace(read_checkpoint(tmp_path / "toy"), layout="scgpt")
    with pytest.raises(WeightsError, match="was not written by scgalore"):
        FAMILIES["bag"].config_of(checkpoint, toy.vocab)


def test_nothing_left_to_train_is_refused(few: AnnData, toy: CellModel) -> None:
    toy.train(few, **LABELS)
    for parameter in toy.network.parameters():
        parameter.requires_grad = False
    with pytest.raises(OptionError, match="There are no trainable parameters"):
        toy.train(few, **LABELS)
