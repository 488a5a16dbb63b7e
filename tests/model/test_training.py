"""Embedding modes, adapters and optimizers on whole models: what is trained, what is merged, what is saved."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from anndata import AnnData
from torch import Tensor

from scgalore.errors import OptionError, WeightsError
from scgalore.model import SCGPT
from scgalore.optim import OPTIMIZERS

QUICK: dict[str, Any] = {"max_epochs": 2, "batch_size": 16, "lr": 1e-3}


def weights(model: SCGPT) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.fixture
def big(few: AnnData, make_model: Callable[..., SCGPT]) -> Callable[..., SCGPT]:
    """Give a function that makes a model whose vocabulary holds far more genes than the data, in another order."""
    names = [*(f"absent{i}" for i in range(200)), *reversed(few.var_names), *(f"more{i}" for i in range(100))]

    def make(**config: Any) -> SCGPT:
        return make_model(names, mvc=True, **config)

    return make


class TestVocabularySlicing:
    @pytest.mark.parametrize("optimizer", ["galore", "adamw"])
    @pytest.mark.parametrize("labels_key", ["bulk_labels", None])
    def test_is_the_full_table_to_the_last_bit(
        self, few: AnnData, big: Callable[..., SCGPT], optimizer: str, labels_key: str | None
    ) -> None:
        models = [big(), big()]
        for model, embedding in zip(models, ("rows", "full"), strict=True):
            # Sampled genes, masks, dropout and a clipped norm included.
            model.train(
                few,
                labels_key=labels_key,
                optimizer=optimizer,
                embedding=embedding,
                max_length=32,
                clip_norm=0.1,
                **QUICK,
            )
        assert differing(weights(models[0]), weights(models[1])) == []
        losses = ["train_loss", "validation_loss"]
        assert models[0].history[losses].equals(models[1].history[losses])

    def test_state_of_absent_genes_does_not_exist(self, few: AnnData, big: Callable[..., SCGPT]) -> None:
        state = {}
        for embedding in ("rows", "full", "frozen"):
            model = big()
            model.train(few, embedding=embedding, optimizer="adamw", **QUICK)
            state[embedding] = model.result.optimizer_bytes
        d, n_tokens = model.network.config.d_model, model.network.config.n_tokens
        counter = 4  # AdamW's step of the table
        assert state["full"] - state["frozen"] == 2 * 4 * d * n_tokens + counter
        assert state["rows"] - state["frozen"] == 2 * 4 * d * len(model.cells(few).tokens()) + counter

    def test_genes_of_the_data_learn_and_the_others_stay(self, few: AnnData, big: Callable[..., SCGPT]) -> None:
        model = big()
        before = weights(model)["encoder.embedding.weight"]
        model.train(few, **QUICK)
        moved = (weights(model)["encoder.embedding.weight"] != before).any(dim=1).nonzero().flatten().tolist()
        assert set(moved) <= set(model.cells(few).tokens().tolist())
        assert len(moved) > few.n_vars // 2

    def test_merged_table_is_what_is_saved_and_exported(
        self, few: AnnData, big: Callable[..., SCGPT], tmp_path: Path
    ) -> None:
        model = big()
        model.train(few, labels_key="bulk_labels", **QUICK)
        model.save(tmp_path / "own")
        model.export_scgpt(tmp_path / "upstream")
        for folder in ("own", "upstream"):
            read = weights(SCGPT.from_pretrained(tmp_path / folder))
            table = "encoder.embedding.weight"
            assert torch.equal(read[table], weights(model)[table])

    def test_rows_can_be_projected(self, few: AnnData, big: Callable[..., SCGPT]) -> None:
        state = {}
        for overrides in (None, {"encoder.embedding.weight": {"rank": 4}}):
            model = big()
            model.train(few, optimizer_options={"overrides": overrides}, **QUICK)
            state[overrides is None] = model.result.optimizer_bytes
        n, d = len(model.cells(few).tokens()), model.network.config.d_model
        assert state[True] - state[False] == 4 * (2 * n * d + 1) - 4 * 4 * (2 * n + d)

    def test_override_of_nothing_is_refused(self, few: AnnData, big: Callable[..., SCGPT]) -> None:
        model = big()
        before = weights(model)
        with pytest.raises(OptionError, match="encoder.embedding.weight"):
            model.train(few, optimizer_options={"overrides": {"encoder.embeding.weight": {"rank": 4}}}, **QUICK)
        assert differing(before, weights(model)) == []

    def test_frozen_table_stays(self, few: AnnData, big: Callable[..., SCGPT]) -> None:
        model = big()
        before = weights(model)
        model.train(few, embedding="frozen", **QUICK)
        changed = differing(before, weights(model))
        assert "encoder.embedding.weight" not in changed
        assert "encoder.enc_norm.weight" in changed


class TestAdapters:
    @pytest.mark.parametrize("adapter", ["lora", "lte"])
    def test_end_in_weights_of_the_same_structure(self, few: AnnData, big: Callable[..., SCGPT], adapter: str) -> None:
        model = big()
        before = weights(model)
        model.train(few, adapter=adapter, embedding="frozen", **QUICK)
        after = weights(model)
        assert after.keys() == before.keys()
        attention = [n for n in before if n.endswith(("Wqkv.weight", "out_proj.weight"))]
        assert set(attention) <= set(differing(before, after))
        assert all(param.requires_grad for param in model.network.parameters())

    def test_lora_leaves_all_but_its_targets_and_heads(self, few: AnnData, big: Callable[..., SCGPT]) -> None:
        model = big()
        before = weights(model)
        model.train(
            few, labels_key="bulk_labels", adapter="lora", adapter_options={"targets": "mlp"}, prior="none", **QUICK
        )
        changed = differing(before, weights(model))
        assert {name.split(".")[-2] for name in changed if not name.startswith("cls_decoder")} == {"linear1", "linear2"}

    @pytest.mark.parametrize("adapter", ["lora", "lte"])
    def test_embedding_of_the_trained_model_is_that_of_training(
        self, few: AnnData, big: Callable[..., SCGPT], adapter: str
    ) -> None:
        model = big()
        plain = model.get_latent_representation(few)
        model.train(few, labels_key="bulk_labels", adapter=adapter, prior="none", **QUICK)
        assert abs(model.get_latent_representation(few) - plain).max() > 1e-3
        # The score that chose the epoch was measured with the adapter attached; here it is merged.
        assert model.split is not None
        truth = few.obs["bulk_labels"].cat.codes.to_numpy()[model.split.validation]
        probabilities = model.predict(few).to_numpy()[model.split.validation]
        loss = torch.nn.functional.nll_loss(torch.tensor(probabilities).log(), torch.tensor(truth, dtype=torch.int64))
        assert model.result is not None
        assert model.result.best_epoch is not None
        best = model.history.loc[model.result.best_epoch, "validation_loss"]
        assert loss.item() == pytest.approx(best, abs=1e-5)

    def test_failing_training_leaves_weights_and_flags_as_they_were(
        self, few: AnnData, big: Callable[..., SCGPT], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = big()
        before, head = weights(model), model.network.cls_decoder
        monkeypatch.setattr("scgalore.train.callbacks.History.on_train_epoch_end", _fail)
        with pytest.raises(KeyboardInterrupt):
            model.train(few, labels_key="bulk_labels", adapter="lora", adapter_options={"variant": "pissa"}, **QUICK)
        assert weights(model).keys() == before.keys()
        assert differing(before, weights(model)) == []
        assert model.network.cls_decoder is head
        assert all(param.requires_grad for param in model.network.parameters())

    def test_choices_are_independent(self, few: AnnData, big: Callable[..., SCGPT]) -> None:
        model = big()
        before = weights(model)
        model.train(few, adapter="lte", optimizer="galore", embedding="frozen", optimizer_options={"rank": 4}, **QUICK)
        changed = differing(before, weights(model))
        # Attention through the adapter, the rest by GaLore, the table not at all.
        assert {
            "transformer_encoder.layers.0.linear1.weight",
            "transformer_encoder.layers.0.self_attn.Wqkv.weight",
        } <= set(changed)
        assert "encoder.embedding.weight" not in changed


def _fail(*_: Any) -> None:
    raise KeyboardInterrupt


class TestSavedAdapter:
    @pytest.fixture
    def base(self, big: Callable[..., SCGPT], tmp_path: Path) -> Path:
        big().save(tmp_path / "base")
        return tmp_path / "base"

    @pytest.fixture
    def trained(self, few: AnnData, base: Path) -> SCGPT:
        model = SCGPT.from_pretrained(base)
        model.train(few, labels_key="bulk_labels", adapter="lora", **QUICK)
        return model

    def test_gives_the_model_back(self, few: AnnData, trained: SCGPT, tmp_path: Path) -> None:
        trained.save_adapter(tmp_path / "adapter")
        read = SCGPT.from_pretrained(tmp_path / "adapter")
        assert read.classes == trained.classes
        difference = read.predict(few) - trained.predict(few)
        assert difference.abs().to_numpy().max() < 1e-6

    def test_holds_the_adapter_and_the_trained_head_alone(self, trained: SCGPT, tmp_path: Path) -> None:
        trained.save_adapter(tmp_path / "adapter")
        trained.save(tmp_path / "whole")
        size = (tmp_path / "adapter" / "adapter.safetensors").stat().st_size
        assert size < (tmp_path / "whole" / "model.safetensors").stat().st_size
        assert trained.result.adapter is not None
        assert {name.split(".")[0] for name in trained.result.adapter[0].heads} == {"cls_decoder"}

    def test_of_a_loaded_one_can_be_saved_again(self, few: AnnData, trained: SCGPT, tmp_path: Path) -> None:
        trained.save_adapter(tmp_path / "one")
        SCGPT.from_pretrained(tmp_path / "one").save_adapter(tmp_path / "two")
        one, two = ((tmp_path / name / "adapter.safetensors").read_bytes() for name in ("one", "two"))
        assert one == two

    def test_finds_a_base_that_has_moved(self, few: AnnData, trained: SCGPT, base: Path, tmp_path: Path) -> None:
        trained.save_adapter(tmp_path / "adapter")
        base.rename(tmp_path / "elsewhere")
        with pytest.raises((OptionError, WeightsError)):
            SCGPT.from_pretrained(tmp_path / "adapter")
        read = SCGPT.from_pretrained(tmp_path / "adapter", base=tmp_path / "elsewhere")
        assert (read.predict(few) - trained.predict(few)).abs().to_numpy().max() < 1e-6

    def test_of_other_weights_is_refused(self, big: Callable[..., SCGPT], trained: SCGPT, tmp_path: Path) -> None:
        trained.save_adapter(tmp_path / "adapter")
        big(rng=1).save(tmp_path / "other")
        with pytest.raises(WeightsError, match="has other weights"):
            SCGPT.from_pretrained(tmp_path / "adapter", base=tmp_path / "other")

    @pytest.mark.parametrize("damage", ["no tensors", "cut", "no json", "foreign"])
    def test_damaged_folder_is_refused(self, trained: SCGPT, tmp_path: Path, damage: str) -> None:
        folder = tmp_path / "adapter"
        trained.save_adapter(folder)
        tensors, config = folder / "adapter.safetensors", folder / "adapter.json"
        if damage == "no tensors":
            tensors.unlink()
        elif damage == "cut":
            tensors.write_bytes(tensors.read_bytes()[:100])
        elif damage == "no json":
            config.write_text("{")
        else:
            config.write_text(json.dumps({"peft_type": "LORA"}))
        with pytest.raises(WeightsError, match="does not contain an adapter written by scgalore"):
            SCGPT.from_pretrained(folder)

    def test_needs_an_adapter(self, few: AnnData, base: Path, tmp_path: Path) -> None:
        model = SCGPT.from_pretrained(base)
        model.train(few, **QUICK)
        with pytest.raises(OptionError, match="no adapter to save alone"):
            model.save_adapter(tmp_path / "adapter")
        assert not (tmp_path / "adapter").exists()

    def test_needs_a_frozen_rest(self, few: AnnData, base: Path, tmp_path: Path) -> None:
        model = SCGPT.from_pretrained(base)
        model.train(few, adapter="lora", adapter_options={"others": "train"}, **QUICK)
        with pytest.raises(OptionError, match="others='train'"):
            model.save_adapter(tmp_path / "adapter")

    def test_needs_a_base_in_a_file(self, few: AnnData, big: Callable[..., SCGPT], tmp_path: Path) -> None:
        model = big()
        model.train(few, adapter="lora", **QUICK)
        with pytest.raises(OptionError, match="are not saved in a file"):
            model.save_adapter(tmp_path / "adapter")

    def test_base_is_for_adapters(self, base: Path) -> None:
        with pytest.raises(OptionError, match="is for an adapter"):
            SCGPT.from_pretrained(base, base=base)


class TestPerLayerUpdate:
    @pytest.mark.parametrize("optimizer", ["galore", "adamw"])
    def test_is_the_ordinary_step_to_the_last_bit(
        self, few: AnnData, big: Callable[..., SCGPT], optimizer: str
    ) -> None:
        models = [big(), big()]
        for model, per_layer in zip(models, (False, True), strict=True):
            options: dict[str, Any] = {"optimizer": optimizer, "clip_norm": float("inf"), "per_layer_update": per_layer}
            model.train(few, **options, **QUICK)
        assert differing(weights(models[0]), weights(models[1])) == []

    def test_leaves_no_hooks(self, few: AnnData, big: Callable[..., SCGPT]) -> None:
        model = big()
        model.train(few, per_layer_update=True, clip_norm=float("inf"), **QUICK)
        assert all(not param._post_accumulate_grad_hooks for param in model.network.parameters())


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_every_optimizer_learns(few: AnnData, big: Callable[..., SCGPT], optimizer: str) -> None:
    model = big(dropout=0.0)
    model.train(few, labels_key="bulk_labels", optimizer=optimizer, max_epochs=4, batch_size=16, validation_size=0.0)
    loss = model.history["train_loss"]
    assert loss.iloc[-1] < loss.iloc[0]
