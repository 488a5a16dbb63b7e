"""NaN and infinity never get through: not into an AnnData, not into a file, not into a model."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from safetensors.torch import load_file, save_file
from tests.test_bad_input import files, fingerprint
from tests.trained_screens import TRAINING, counts, log_normalised, untrained
from torch._subclasses.fake_tensor import is_fake

import scgalore as sg
from scgalore.errors import DataError, WeightsError
from scgalore.model import SCGPT, load
from scgalore.nn.finite import refuse_not_finite_outputs
from scgalore.objectives import Classification, MaskedExpression, Regression
from scgalore.train import runner

WORST = [math.nan, math.inf, -math.inf]
QUICK: dict[str, Any] = {"max_epochs": 2, "batch_size": 16, "validation_size": 0.2}


def poison(model: SCGPT, name: str, value: float) -> None:
    """Set one weight, as a run that diverged leaves it."""
    with torch.no_grad():
        model.network.state_dict()[name].view(-1)[0] = value


def refused(call: Callable[[], object], error: type[Exception], match: str, *things: Any) -> None:
    """A call raises, and changes none of some objects."""
    before = [fingerprint(thing) for thing in things]
    with pytest.raises(error, match=match):
        call()
    assert [fingerprint(thing) for thing in things] == before


class TestWeightsInMemory:
    """No file is read, so the outputs say it."""

    @pytest.mark.parametrize("value", [*WORST, 3e38])
    @pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
    def test_embed(self, few: AnnData, model: SCGPT, value: float, precision: str) -> None:
        poison(model, "transformer_encoder.layers.0.norm1.weight", value)
        with sg.settings.override(precision=precision):
            try:
                sg.tl.embed(few, model)
            except DataError:
                assert "X_scGPT" not in few.obsm
            else:  # layer norms may bring a large weight back
                assert np.isfinite(few.obsm["X_scGPT"]).all()

    @pytest.mark.parametrize("value", WORST)
    def test_embed_writes_nothing(self, few: AnnData, model: SCGPT, value: float) -> None:
        poison(model, "transformer_encoder.layers.1.norm2.weight", value)
        refused(lambda: sg.tl.embed(few, model), DataError, r"NaN or infinite values as the embedding of \d+ of", few)
        cells = model.cells(few)
        refused(lambda: model.run(cells), DataError, "NaN or infinite values as the embedding", few)
        refused(lambda: model.get_latent_representation(few), DataError, "NaN or infinite values as the embedding", few)

    def test_norm_beyond_all_floats_is_no_embedding_of_zeros(self, few: AnnData, model: SCGPT) -> None:
        for value in ("weight", "bias"):
            model.network.state_dict()[f"transformer_encoder.layers.1.norm2.{value}"].fill_(1e30)
        refused(lambda: sg.tl.embed(few, model), DataError, r"as the embedding of \d+ of", few)

    @pytest.mark.parametrize("task", ["classes", "regression"])
    @pytest.mark.parametrize("value", WORST)
    def test_heads(self, few: AnnData, model: SCGPT, task: str, value: float) -> None:
        few.obs["age"] = np.linspace(0, 1, few.n_obs)
        key: dict[str, Any] = {"classes": {"labels_key": "bulk_labels"}, "regression": {"values_key": "age"}}[task]
        model.train(few, **key, **QUICK)
        name = {"classes": "cls_decoder.out_layer.bias", "regression": "heads.regression.out_layer.bias"}[task]
        poison(model, name, value)
        refused(lambda: sg.tl.annotate(few, model), DataError, f"as head '{task}' of", few)
        refused(lambda: model.predict(few), DataError, f"as head '{task}' of", few)

    def test_outputs_of_any_shape(self) -> None:
        good = np.ones((3, 2), np.float32)
        refuse_not_finite_outputs({"a": good, "b": good[:, 0]}, np.arange(3))
        for shape in ((3,), (3, 2)):
            bad = np.ones(shape, np.float32)
            bad[1] = np.inf
            with pytest.raises(DataError, match=r"as b of 1 of 3 cells, such as cell 8.*32-true"):
                refuse_not_finite_outputs({"a": good, "b": bad}, np.array([7, 8, 9]), precision=torch.bfloat16)


class TestFiles:
    """Every file that holds numbers of a model."""

    def test_saved_model(self, few: AnnData, model: SCGPT, tmp_path: Path) -> None:
        poison(model, "transformer_encoder.layers.0.linear1.weight", math.nan)
        model.save(tmp_path / "ours")
        model.export_scgpt(tmp_path / "theirs")
        for folder, file in (("ours", "model.safetensors"), ("theirs", "best_model.pt")):
            match = rf"{file} holds .*'transformer_encoder.layers.0.linear1.weight' \(1 NaN of 512 values\)"
            at = tmp_path / folder
            refused(partial(sg.tl.embed, few, at), WeightsError, match, few)
            refused(partial(load, at), WeightsError, match)

    @pytest.mark.parametrize(
        "part", ["encoder.embedding.weight", "transformer_encoder.layers.1.norm2.bias", "cls_decoder.out_layer.weight"]
    )
    @pytest.mark.parametrize("value", WORST)
    def test_any_tensor(self, few: AnnData, model: SCGPT, tmp_path: Path, part: str, value: float) -> None:
        model.put_heads({"classes": 3}, seed=0)
        poison(model, part, value)
        model.save(tmp_path / "m")
        refused(lambda: load(tmp_path / "m"), WeightsError, rf"'{part}' \(1 ")

    @pytest.mark.parametrize("value", WORST)
    @pytest.mark.parametrize("adapter", ["lora", "lte"])
    def test_adapter(self, few: AnnData, model: SCGPT, tmp_path: Path, adapter: str, value: float) -> None:
        model.save(tmp_path / "base")
        base = SCGPT.load(tmp_path / "base")
        options = {"others": "freeze"} if adapter == "lte" else {}
        base.train(few, labels_key="bulk_labels", adapter=adapter, adapter_options={"rank": 2, **options}, **QUICK)
        base.save_adapter(tmp_path / "adapter")
        path = tmp_path / "adapter" / "adapter.safetensors"
        tensors = load_file(path)
        name = next(name for name in tensors if name.startswith("adapter:"))
        tensors[name].view(-1)[-1] = value
        path.unlink()
        save_file(tensors, path)
        refused(lambda: load(tmp_path / "adapter"), WeightsError, r"adapter\.safetensors holds values .* \(1 ")


def diverging(kind: type[Any], monkeypatch: pytest.MonkeyPatch, *, value: float, training: bool, after: int) -> None:
    """Let the loss of an objective become a value, in training or in validation."""
    loss, calls = kind.__call__, [0]

    def called(self: Any, network: Any, batch: Any) -> Any:
        result = loss(self, network, batch)
        # Neither tracing of memory, nor evaluation where training is meant.
        if network.training != training or torch.is_grad_enabled() != training or is_fake(batch.values):
            return result
        calls[0] += 1
        return result._replace(total=result.total * 0 + value) if calls[0] > after else result

    monkeypatch.setattr(kind, "__call__", called)


TASKS: list[tuple[type[Any], dict[str, Any]]] = [
    (Classification, {"labels_key": "bulk_labels", "prior": "none"}),
    (Regression, {"values_key": "age", "prior": "none"}),
    (MaskedExpression, {}),
]


class TestTraining:
    @pytest.mark.parametrize(("kind", "key"), TASKS, ids=["classes", "regression", "expression"])
    @pytest.mark.parametrize(("part", "value"), [("train", math.nan), ("validation", math.inf)])
    def test_ends_at_once_and_changes_nothing(
        self,
        few: AnnData,
        model: SCGPT,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        kind: type[Any],
        key: dict[str, Any],
        value: float,
        part: str,
    ) -> None:
        few.obs["age"] = np.linspace(0, 1, few.n_obs)
        after = {"train": 6, "validation": 3}[part]
        diverging(kind, monkeypatch, value=value, training=part == "train", after=after)
        refused(
            lambda: sg.tl.finetune(few, model, **key, **QUICK, checkpoint_dir=tmp_path),
            DataError,
            rf"{part}_loss became {value} in epoch 1, batch \d+, .*Use a lower lr.*precision='32-true'.*clip_norm",
            few,
            model,
        )
        # That of the last good epoch.
        assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
        checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
        assert checkpoint["epoch"] == 0
        assert all(bool(torch.isfinite(tensor).all()) for tensor in checkpoint["state_dict"].values())

    @pytest.mark.parametrize("adapter", [None, "lora"])
    @pytest.mark.parametrize("validation_size", [0.0, 0.2])
    def test_last_step_of_an_epoch(
        self,
        few: AnnData,
        model: SCGPT,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        adapter: str | None,
        validation_size: float,
    ) -> None:
        """No loss has seen these weights, and without validation cells none would."""
        epoch_ends = runner.History.on_train_epoch_end

        def poisoned(self: Any, trainer: Any, pl_module: Any) -> None:
            epoch_ends(self, trainer, pl_module)
            if trainer.current_epoch == 1:
                with torch.no_grad():
                    pl_module.module.network.state_dict()["encoder.enc_norm.weight"][0] = math.nan

        monkeypatch.setattr(runner.History, "on_train_epoch_end", poisoned)
        options = {**QUICK, "validation_size": validation_size, "adapter": adapter, "prior": "none"}
        refused(
            lambda: sg.tl.finetune(few, model, labels_key="bulk_labels", **options, checkpoint_dir=tmp_path),
            DataError,
            r"encoder.enc_norm.weight' \(1 NaN of 16 values\) in epoch 1, so training was stopped",
            few,
            model,
        )
        assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 0

    def test_learning_rate_far_too_high(self, few: AnnData, model: SCGPT, tmp_path: Path) -> None:
        run: dict[str, Any] = {**QUICK, "lr": 1e30, "optimizer": "adamw", "clip_norm": math.inf, "warmup": 0.0}
        refused(
            lambda: sg.tl.finetune(few, model, labels_key="bulk_labels", **run, checkpoint_dir=tmp_path),
            DataError,
            "in epoch 0",
            few,
            model,
        )
        assert files(tmp_path) == {}

    def test_resuming_from_a_state_that_is_not_finite(self, few: AnnData, model: SCGPT, tmp_path: Path) -> None:
        run: dict[str, Any] = {"labels_key": "bulk_labels", **QUICK, "checkpoint_dir": tmp_path}
        model.train(few, **run)
        path = tmp_path / "last.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        state = next(iter(checkpoint["optimizer_states"][0]["state"].values()))
        next(tensor for tensor in state.values() if isinstance(tensor, torch.Tensor) and tensor.ndim).view(-1)[0] = (
            math.inf
        )
        torch.save(checkpoint, path)
        fresh = SCGPT(model.network.__class__(model.network.config), model.vocab)
        with pytest.raises((WeightsError, sg.errors.OptionError)):
            fresh.train(few, **run, resume=True)


class TestPerturbations:
    @pytest.fixture
    def fitted(self) -> tuple[AnnData, Any]:
        adata = log_normalised(counts())
        return adata, sg.tl.finetune(adata, untrained(), task="perturbation", split_key="split", **TRAINING)

    @pytest.mark.parametrize("what", ["network", "prior"])
    def test_predictions(self, fitted: tuple[AnnData, Any], what: str, tmp_path: Path) -> None:
        adata, model = fitted
        adata.uns.pop("predict_perturbation", None)
        if what == "prior":
            model.memory.prior.pooled.rules[0].intercept[0] = np.nan
        else:
            decoder = model.network.decoder.coeff_decoder.fc
            torch.nn.init.ones_(decoder[-1].weight)
            poison(model, "decoder.coeff_decoder.fc.0.weight", math.nan)
        refused(lambda: sg.tl.predict_perturbation(adata, model=model), DataError, "NaN or infinite", adata)
        model.save(tmp_path / "m")
        match = "screen.safetensors holds" if what == "prior" else "model.safetensors holds"
        refused(lambda: load(tmp_path / "m"), WeightsError, match)
