import math
from typing import Any

import numpy as np
import pytest
import torch

from scgalore import settings
from scgalore.adapters import ADAPTERS
from scgalore.errors import OptionError
from scgalore.optim import OPTIMIZERS, OptimizerSpec
from scgalore.train import TrainConfig

PER_LAYER: dict[str, Any] = {"per_layer_update": True, "clip_norm": math.inf}


def function(adata: Any, *, labels_key: str | None = None, **options: Any) -> None:
    """Stand in for a user's function."""


class TestValues:
    def test_defaults_are_valid_and_plain(self) -> None:
        config = TrainConfig()
        assert config.to_dict()["optimizer"] == "galore"
        assert TrainConfig(**config.to_dict()) == config

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            pytest.param({"max_epochs": 0}, "max_epochs=0: .* at least 1", id="max_epochs_zero"),
            pytest.param({"max_epochs": 1.5}, "max_epochs=1.5", id="max_epochs_fraction"),
            pytest.param({"max_epochs": True}, "max_epochs=True", id="max_epochs_bool"),
            pytest.param({"batch_size": 0}, "batch_size=0", id="batch_size_zero"),
            pytest.param({"batch_size": "64"}, "batch_size='64'", id="batch_size_string"),
            pytest.param({"max_length": 1}, "max_length=1: .* at least 2", id="max_length_without_genes"),
            pytest.param({"accumulate": -1}, "accumulate=-1", id="accumulate_negative"),
            pytest.param({"patience": 0}, "patience=0", id="patience_zero"),
            pytest.param({"seed": -1}, "seed=-1", id="seed_negative"),
            pytest.param({"lr": -1e-3}, "lr=-0.001: .* positive", id="lr_negative"),
            pytest.param({"lr": 0}, "lr=0", id="lr_zero"),
            pytest.param({"lr": math.nan}, "lr=nan", id="lr_nan"),
            pytest.param({"lr": math.inf}, "lr=inf", id="lr_inf"),
            pytest.param({"lr": "1e-3"}, "lr='1e-3'", id="lr_string"),
            pytest.param({"clip_norm": 0}, "clip_norm=0", id="clip_norm_zero"),
            pytest.param({"clip_norm": None}, "clip_norm=None.*inf", id="clip_norm_none"),
            pytest.param({"dropout": 1.0}, r"dropout=1.0: .*\[0, 1\)", id="dropout_of_everything"),
            pytest.param({"dropout": -0.1}, "dropout=-0.1", id="dropout_negative"),
            pytest.param({"dropout": math.nan}, "dropout=nan", id="dropout_nan"),
            pytest.param({"dropout": True}, "dropout=True", id="dropout_bool"),
            pytest.param({"warmup": 1.1}, r"warmup=1.1.*\[0, 1\]", id="warmup_above_one"),
            pytest.param({"weight_decay": -0.1}, "weight_decay=-0.1", id="weight_decay_negative"),
            pytest.param({"weight_decay": math.nan}, "weight_decay=nan", id="weight_decay_nan"),
            pytest.param({"precision": "fp16"}, "precision='fp16': choose one of '32-true'", id="precision"),
            pytest.param({"accelerator": "tpu"}, "accelerator='tpu': choose one of 'auto'", id="accelerator"),
            pytest.param({"optimizer": "galor"}, "Did you mean 'galore'", id="optimizer_name"),
            pytest.param({"optimizer": None}, "optimizer=None", id="optimizer_none"),
            pytest.param({"optimizer_options": [1]}, r"optimizer_options=\[1\]", id="optimizer_options_list"),
            pytest.param({"optimizer_options": {"rnk": 1}}, "no option 'rnk'.*Did you mean 'rank'", id="option_name"),
            pytest.param({"optimizer_options": {"rank": 0}}, "rank=0", id="option_value"),
            pytest.param(
                {"optimizer": "adamw", "optimizer_options": {"betas": (2, 0)}}, "betas|beta", id="option_of_adamw"
            ),
            pytest.param({"adapter": "lor"}, "adapter='lor'.*Did you mean 'lora'", id="adapter_name"),
            pytest.param({"adapter": 3}, "adapter=3", id="adapter_number"),
            pytest.param(
                {"adapter": "lora", "adapter_options": {"rnk": 4}}, "'rnk'.*Did you mean 'rank'", id="adapter_option"
            ),
            pytest.param({"adapter": "lte", "adapter_options": {"n_heads": 0}}, "n_heads=0", id="adapter_option_value"),
            pytest.param(
                {"adapter": "lora", "adapter_options": None}, "adapter_options=None", id="adapter_options_none"
            ),
            pytest.param({"adapter_options": {"rank": 4}}, "without an adapter", id="adapter_options_alone"),
            pytest.param({"embedding": "row"}, "embedding='row': choose one of 'rows'", id="embedding"),
            pytest.param({**PER_LAYER, "clip_norm": 1.0}, "does not support clip_norm=1.0", id="per_layer_clipping"),
            pytest.param({**PER_LAYER, "accumulate": 2}, "does not support accumulate=2", id="per_layer_accumulation"),
            pytest.param(
                {**PER_LAYER, "precision": "16-mixed"}, "does not support precision='16-mixed'", id="per_layer_scaler"
            ),
            pytest.param({**PER_LAYER, "devices": 2}, "does not support devices=2", id="per_layer_devices"),
            pytest.param(
                {**PER_LAYER, "devices": [0, 1]}, r"does not support devices=\[0, 1\]", id="per_layer_device_list"
            ),
            pytest.param({**PER_LAYER, "num_nodes": 2}, "does not support num_nodes=2", id="per_layer_nodes"),
            pytest.param({"batch_tokens": 0}, "batch_tokens=0: .* at least 1", id="batch_tokens_zero"),
            pytest.param({"num_workers": -1}, "num_workers=-1", id="num_workers_negative"),
            pytest.param({"num_nodes": 0}, "num_nodes=0", id="num_nodes_zero"),
            pytest.param({"strategy": "fsdp"}, "strategy='fsdp': choose one of 'auto', 'ddp'", id="strategy"),
            pytest.param({"devices": 0}, "devices=0: expected a number", id="devices_zero"),
            pytest.param({"devices": "0"}, "devices='0': expected a number", id="devices_zero_in_text"),
            pytest.param({"devices": "-2"}, "devices='-2'", id="devices_negative_in_text"),
            pytest.param({"devices": np.int64(-2)}, "devices=np.int64", id="devices_negative"),
            pytest.param({"devices": 1.0}, "devices=1.0", id="devices_float"),
            pytest.param({"devices": []}, r"devices=\[\]", id="devices_none"),
            pytest.param({"devices": "two"}, "devices='two'", id="devices_word"),
            pytest.param({"devices": True}, "devices=True", id="devices_bool"),
            pytest.param(
                {"gradient_checkpointing": 1}, "gradient_checkpointing=1: it must be True or False", id="switch"
            ),
            pytest.param(
                {"shard_optimizer": True, "optimizer": "sophia"},
                "does not support optimizer='sophia'",
                id="sharded_sophia",
            ),
            pytest.param(
                {**PER_LAYER, "optimizer": "sophia"}, "does not support optimizer='sophia'", id="per_layer_sophia"
            ),
        ],
    )
    def test_out_of_range_is_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(OptionError, match=message):
            TrainConfig(**options)

    @pytest.mark.parametrize(
        ("option", "capability"), [("shard_optimizer", "shardable"), ("per_layer_update", "per_layer")]
    )
    def test_what_an_optimizer_cannot_do_is_refused_with_one_that_can(
        self, monkeypatch: pytest.MonkeyPatch, option: str, capability: str
    ) -> None:
        def build(module: torch.nn.Module, *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
            return torch.optim.SGD(module.parameters(), lr=lr, weight_decay=weight_decay)

        without: dict[str, Any] = {capability: False}
        monkeypatch.setitem(OPTIMIZERS, "sgd", OptimizerSpec("sgd", build, lr=0.5, **without))
        options: dict[str, Any] = {option: True, "clip_norm": math.inf}
        with pytest.raises(
            OptionError, match=f"{option}=True does not support optimizer='sgd'.*Set optimizer='galore'"
        ):
            TrainConfig(optimizer="sgd", **options)
        monkeypatch.setitem(OPTIMIZERS, "sgd", OptimizerSpec("sgd", build, lr=0.5))
        assert getattr(TrainConfig(optimizer="sgd", **options), option)

    @pytest.mark.parametrize("dropout", [None, 0, 0.0, 0.999])
    def test_dropout_that_is_a_probability_or_the_networks_own(self, dropout: float | None) -> None:
        assert TrainConfig(dropout=dropout).dropout == dropout

    def test_compiler_is_asked_for_before_it_is_needed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", "no-such-compiler")
        assert not TrainConfig().compile
        with pytest.raises(OptionError, match=r"compile=True requires a C\+\+ compiler.*no-such-compiler"):
            TrainConfig(compile=True)

    def test_learning_rate_is_the_optimizers_times_the_adapters(self) -> None:
        lr, factor = OPTIMIZERS["adamw"].lr, ADAPTERS["lora"].lr_factor
        assert TrainConfig(optimizer="adamw").peak_lr == lr
        assert TrainConfig(optimizer="adamw", adapter="lora").peak_lr == lr * factor
        assert TrainConfig(optimizer="adamw", adapter="lora", lr=0.5).peak_lr == 0.5

    def test_a_step_has_a_number_of_batches_or_of_tokens(self) -> None:
        both: dict[str, Any] = {"accumulate": 2, "accumulate_tokens": 5000}
        match = "accumulate=2 and accumulate_tokens=5000: .* Omit one of them"
        with pytest.raises(OptionError, match=match):
            TrainConfig.from_options(**both)
        with pytest.raises(OptionError, match=match):
            TrainConfig.from_call(both, seed=0, function=TrainConfig)
        both["accumulate"] = 1  # as a configuration file has it that was not told
        assert TrainConfig.from_call(both, seed=0, function=TrainConfig).accumulate_tokens == 5000

    def test_numbers_of_numpy_become_plain(self) -> None:
        config = TrainConfig(max_epochs=np.int64(3), lr=np.float32(0.5), clip_norm=1, seed=np.uint32(7))  # type: ignore[arg-type]
        assert config == TrainConfig(max_epochs=3, lr=0.5, seed=7)
        assert {type(config.max_epochs), type(config.seed)} == {int}
        assert {type(config.lr), type(config.clip_norm)} == {float}


class TestFromOptions:
    def test_none_is_the_default(self) -> None:
        assert TrainConfig.from_options(max_epochs=None, optimizer=None, lr=1e-3) == TrainConfig(lr=1e-3)

    def test_unknown_option_gets_a_suggestion(self) -> None:
        with pytest.raises(OptionError, match=r"Unknown training option 'max_epoch'\. Did you mean 'max_epochs'\?"):
            TrainConfig.from_options(max_epoch=3)

    def test_unknown_option_lists_the_others(self) -> None:
        with pytest.raises(OptionError, match=r"Choose from accelerator, .*, weight_decay\."):
            TrainConfig.from_options(zzz=3)


class TestFromCall:
    def test_accelerator_is_that_of_the_settings(self) -> None:
        with settings.override(accelerator="cpu"):
            assert TrainConfig.from_call({}, seed=1, function=function).accelerator == "cpu"
            assert TrainConfig.from_call({"accelerator": None}, seed=1, function=function).accelerator == "cpu"
            assert TrainConfig.from_call({"accelerator": "gpu"}, seed=1, function=function).accelerator == "gpu"

    def test_misspelt_parameter_of_the_function_is_suggested(self) -> None:
        with pytest.raises(OptionError, match="'label_key'.*Did you mean 'labels_key'"):
            TrainConfig.from_call({"label_key": "x"}, seed=1, function=function)

    def test_seed_is_called_rng(self) -> None:
        with pytest.raises(OptionError, match="pass rng=3 instead"):
            TrainConfig.from_call({"seed": 3}, seed=1, function=function)
