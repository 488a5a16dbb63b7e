"""A network that corrects a linear model: used where it helps on cells that chose nothing else, and never where it does not."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from tests.tiny_plugin import tiny_model

import scgalore as sg
from scgalore.data.reading import AS_IT_IS
from scgalore.errors import OptionError, WeightsError
from scgalore.model import SCGPT
from scgalore.objectives.gain import choice_by_gain, gains
from scgalore.tasks.linear_model import PRIOR_FILE
from scgalore.tasks.registry import resolve_call

RUN: dict[str, Any] = {"max_epochs": 2, "batch_size": 32, "lr": 2e-3, "validation_size": 0.3, "test_size": 0.2}
KEYS: dict[str, dict[str, Any]] = {"classes": {"labels_key": "bulk_labels"}, "regression": {"values_key": "n_genes"}}


@pytest.fixture(params=list(KEYS))
def key(request: pytest.FixtureRequest) -> dict[str, Any]:
    return KEYS[request.param]


def outputs(adata: AnnData) -> Any:
    return adata.obsm["scgpt_probabilities"] if "scgpt_probabilities" in adata.obsm else adata.obs["scgpt_value"]


class TestStart:
    def test_without_a_gain_the_model_is_its_linear_model(
        self, few: AnnData, model: SCGPT, key: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
        with caplog.at_level(logging.INFO, "scgalore"):
            sg.tl.finetune(few, model, **key, **{**RUN, "lr": 1e-12})
        assert model.result is not None
        assert model.result.best_epoch == -1
        assert "than the linear model alone" in caplog.text
        after = model.network.state_dict()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        expected = model.memory.prior.predict(few, AS_IT_IS)
        raw = model.run(model.cells(few)).heads
        assert not next(iter(raw.values())).any()
        if "scgpt_label" in few.obs:
            classes = np.array(model.classes)
            assert few.obs["scgpt_label"].astype(str).tolist() == classes[expected.argmax(axis=1)].tolist()
        else:
            values = expected[:, 0] * model.memory.std + model.memory.mean
            np.testing.assert_allclose(few.obs["scgpt_value"], values, rtol=1e-5)

    def test_a_second_run_starts_from_the_linear_model_again(self, few: AnnData, model: SCGPT) -> None:
        run = {**KEYS["classes"], **RUN}
        sg.tl.finetune(few, model, **{**run, "lr": 5e-2, "optimizer": "adamw"})
        sg.tl.finetune(few, model, **{**run, "lr": 1e-12})
        assert not model.run(model.cells(few)).heads["classes"].any()


class TestGain:
    @pytest.mark.slow
    def test_a_network_that_sees_what_the_linear_model_cannot_is_used(self, pbmc: AnnData) -> None:
        """One class has a gene at a middle level, the other a low or a high one, which no slope tells apart."""
        rng = np.random.default_rng(0)
        level = rng.integers(0, 3, 400)
        adata = AnnData(rng.uniform(1, 2, (400, 12)).astype(np.float32))
        adata.var_names = pbmc.var_names[:12].tolist()
        adata.X[:, 0] = np.array([0.5, 1.5, 3])[level]
        adata.obs["type"] = np.where(level == 1, "middle", "others")
        run: dict[str, Any] = {"max_epochs": 30, "batch_size": 16, "lr": 1e-3, "optimizer": "adamw", "dropout": 0.0}
        sg.tl.finetune(
            adata, "scgpt-mini", labels_key="type", data_type="log1p", validation_size=0.2, test_size=0.3, **run
        )
        found = adata.uns["finetune"]
        assert found["training"]["best_epoch"] >= 0
        of_test = found["prior"]["metrics"].loc["test"]
        assert of_test["accuracy"] < 0.75
        assert found["metrics"].loc["test", "accuracy"] > of_test["accuracy"] + 0.15
        assert of_test["gain"] == pytest.approx(found["metrics"].loc["test", "accuracy"] - of_test["accuracy"])
        assert of_test["gain"] > 2 * of_test["gain_se"]
        history = found["history"]
        assert history["validation_choice"].idxmin() == found["training"]["best_epoch"]

    def test_the_best_epoch_above_a_poor_prior_is_kept(self, few: AnnData, model: SCGPT) -> None:
        """One that says nothing: every class is as likely as the others."""
        options = {**KEYS["classes"], "max_epochs": 8, "batch_size": 16, "lr": 5e-3, "optimizer": "adamw"}
        task, call = resolve_call(options, task=None, seed=0, function=sg.tl.finetune, validation_size=0.3)
        prepared: Any = task.prepare(task.read(few, call), model, call)
        zeros = {name: (0.0 * weight, 0.0 * bias) for name, (weight, bias) in prepared.start.items()}
        nothing = np.zeros_like(prepared.source.targets["prior"])
        source = prepared.source.with_targets(prior=nothing, start=nothing)
        objective = prepared.objective.after_prior(source.targets, prepared.split.validation)
        assert objective.start_score == pytest.approx(np.log(3), rel=1e-5)
        model.fit(replace(prepared, source=source, objective=objective, start=zeros))
        history = model.history
        assert model.result is not None
        assert model.result.best_epoch == history["validation_choice"].idxmin() >= 0
        best = history.loc[model.result.best_epoch]
        assert best["validation_choice"] == pytest.approx(np.log(3) - best["validation_gain"], rel=1e-4)
        assert best["validation_choice"] == pytest.approx(best["validation_loss"], rel=1e-3)

    @pytest.mark.parametrize("noise", [0.0, 10.0])
    def test_an_epoch_counts_above_one_standard_error(self, noise: float) -> None:
        rng = np.random.default_rng(0)
        of_prior = torch.from_numpy(rng.normal(1, 0.1, 100))
        gain = torch.from_numpy(rng.normal(0.05, 0.01 + noise, 100))
        parts = []
        for rows in (slice(0, 70), slice(70, 100)):  # batches of unequal size
            part = gains(of_prior[rows], of_prior[rows] - gain[rows])
            parts.append({**part, "n": torch.tensor(len(gain[rows]))})
        found = choice_by_gain(parts, 3.0)
        error = gain.std() / 10
        assert found["gain_error"] == pytest.approx(float(error), rel=1e-3)
        assert found["choice"] == (pytest.approx(3.0 - float(gain.mean())) if gain.mean() > error else 3.0)
        assert (found["choice"] == 3.0) == bool(noise)
        assert not found["hopeless"]
        worse = [{**part, "gain": -part["gain"]} for part in parts]
        assert choice_by_gain(worse, 3.0)["hopeless"] == (not noise)

    def test_one_validation_cell_decides_nothing(self) -> None:
        part = gains(torch.tensor([2.0]), torch.tensor([1.0]))
        assert choice_by_gain([{**part, "n": torch.tensor(1)}], 2.0)["choice"] == 2.0


def test_logits_of_training_cells_are_of_folds_that_have_not_seen_them(few: AnnData, model: SCGPT) -> None:
    """With labels by chance, a network sees in the logits that nothing can be learnt; those of a fit to them would say otherwise."""
    few.obs["bulk_labels"] = np.random.default_rng(0).permutation(few.obs["bulk_labels"].astype(str))
    task, call = resolve_call({**KEYS["classes"], "max_epochs": 1}, task=None, seed=0, function=sg.tl.finetune)
    prepared: Any = task.prepare(task.read(few, call), model, call)
    train, labels = prepared.split.train, prepared.source.targets["labels"]
    shown = prepared.source.targets["prior"][train].argmax(axis=1) == labels[train]
    fitted = prepared.memory.prior.predict(few, AS_IT_IS)[train].argmax(axis=1) == labels[train]
    assert shown.mean() < fitted.mean()


def test_test_cells_decide_nothing(few: AnnData, key: dict[str, Any]) -> None:
    few.obs["part"] = np.array(["train", "train", "train", "validation", "test"])[np.arange(few.n_obs) % 5]
    spoilt = few.copy()
    test = (few.obs["part"] == "test").to_numpy()
    x = spoilt.X.toarray()
    x[test] = x[test][:, ::-1]
    spoilt.X = x
    for column in ("bulk_labels", "n_genes"):
        spoilt.obs.loc[test, column] = spoilt.obs.loc[~test, column].iloc[0]
    models = []
    for adata in (few, spoilt):
        models.append(tiny_model(few.var_names, max_length=200))
        run = {name: value for name, value in RUN.items() if not name.endswith("_size")}
        sg.tl.finetune(adata, models[-1], **key, split_key="part", **run)
    one, other = models
    assert one.memory.prior == other.memory.prior
    assert getattr(one.memory, "calibration", None) == getattr(other.memory, "calibration", None)
    assert one.history.drop(columns="seconds").equals(other.history.drop(columns="seconds"))


class TestSaved:
    def test_it_travels_with_the_model(self, few: AnnData, model: SCGPT, key: dict[str, Any], tmp_path: Path) -> None:
        sg.tl.finetune(few, model, **key, **RUN, save_dir=tmp_path / "model")
        assert (tmp_path / "model" / PRIOR_FILE).is_file()
        loaded = sg.model.load(tmp_path / "model")
        assert loaded.memory == model.memory
        other = few.copy()
        sg.tl.annotate(other, loaded)
        np.testing.assert_array_equal(outputs(other), outputs(few))
        np.testing.assert_array_equal(np.squeeze(loaded.predict(few).to_numpy()), outputs(few))

    def test_a_damaged_file_is_refused(self, few: AnnData, model: SCGPT, key: dict[str, Any], tmp_path: Path) -> None:
        sg.tl.finetune(few, model, **key, **{**RUN, "max_epochs": 1}, save_dir=tmp_path / "model")
        (tmp_path / "model" / PRIOR_FILE).write_bytes(b"nothing")
        with pytest.raises(WeightsError, match=f"{PRIOR_FILE} is damaged"):
            sg.model.load(tmp_path / "model")


class TestNone:
    def test_the_network_is_trained_alone(self, few: AnnData, model: SCGPT, key: dict[str, Any]) -> None:
        sg.tl.finetune(few, model, **key, **RUN, prior="none")
        assert model.memory.prior is None
        assert "prior" not in few.uns["finetune"]
        assert "validation_choice" not in model.history
        assert few.uns["finetune"]["params"]["prior"] == "none"

    def test_other_words_are_refused(self, few: AnnData, key: dict[str, Any]) -> None:
        with pytest.raises(OptionError, match=r"prior='mixed'"):
            sg.tl.finetune(few, "not-loaded", **key, prior="mixed")


def test_genes_that_the_vocabulary_lacks_are_seen_by_the_linear_model(few: AnnData) -> None:
    """One gene tells the classes apart, and no model has heard of it."""
    codes = np.arange(few.n_obs) % 2
    x = few.X.toarray()
    x[:, 0] = 3.0 * codes
    few.X = x
    few.var_names = ["unheard-of", *few.var_names[1:]]
    few.obs["type"] = np.array(["a", "b"])[codes]
    model = tiny_model(few.var_names[1:], max_length=200)
    sg.tl.finetune(few, model, labels_key="type", **{**RUN, "max_epochs": 1})
    assert few.uns["finetune"]["metrics"].loc["test", "accuracy"] == 1
