import json
from dataclasses import FrozenInstanceError, fields

import pytest

from scgalore.errors import WeightsError
from scgalore.nn import SCGPTConfig, SCGPTNetwork

OFFICIAL = {"embsize": 32, "nheads": 4, "d_hid": 32, "nlayers": 2}
EMBEDDING = {"encoder.embedding.weight": (203, 32)}

PARTS = {
    "model/best_model.pt": {"heads": {}, "generative": True},
    "model/full_wqkv.pt": {"heads": {"classes": 5}},
    "integration/best_model.pt": {
        "heads": {"classes": 5},
        "n_batches": 2,
        "batch_labels": True,
        "batch_norm": "per-batch",
        "adversary": True,
        "zero_probabilities": True,
    },
    "styles/category.pt": {"heads": {"classes": 5}, "value_style": "category", "n_value_bins": 53},
    "styles/scaling.pt": {"heads": {"classes": 5}, "value_style": "scaling"},
    "styles/batchnorm.pt": {"heads": {"classes": 5}, "batch_norm": "shared"},
    "perturb/default.pt": {"heads": {"classes": 1}, "mvc": False, "perturbation": True},
    "perturb/mvc_cls_ecs.pt": {"heads": {"classes": 1}, "perturbation": True},
}


@pytest.mark.parametrize("weights", PARTS)
def test_parts_are_read_from_the_tensors(original, weights):
    sizes = {"n_tokens": 203, "pad_id": 200, "d_model": 32, "n_heads": 4, "d_hid": 32, "n_layers": 2, "n_layers_cls": 3}
    assert original.config(weights) == SCGPTConfig(**sizes, **PARTS[weights], dropout=0.0)


def test_conventions_are_read_from_the_args():
    args = {
        **OFFICIAL,
        "dropout": 0.1,
        "n_bins": 7,
        "max_seq_len": 55,
        "mask_value": -4,
        "pad_value": -5,
        "n_layers_cls": 2,
    }
    config = SCGPTConfig.from_args(args, shapes=EMBEDDING, pad_id=0)
    assert (config.dropout, config.n_bins, config.max_length, config.n_layers_cls) == (0.1, 7, 55, 2)
    assert (config.mask_value, config.pad_value) == (-4, -5)


def test_args_may_state_sizes_alone():
    # The pan-cancer file leaves out most of what the whole-human file states.
    config = SCGPTConfig.from_args(OFFICIAL, shapes=EMBEDDING, pad_id=0)
    assert (config.n_bins, config.max_length, config.mask_value, config.pad_value) == (51, 1200, -1, -2)


def test_overrides_win():
    config = SCGPTConfig.from_args(OFFICIAL, shapes=EMBEDDING, pad_id=0, cell_style="w-pool", n_layers=1)
    assert (config.cell_style, config.n_layers) == ("w-pool", 1)


@pytest.mark.parametrize("weights", PARTS)
def test_args_survive_a_round_trip(original, weights):
    config = original.config(weights)
    shapes = {name: tuple(tensor.shape) for name, tensor in SCGPTNetwork(config).state_dict().items()}
    args = json.loads(json.dumps(config.to_args()))
    assert SCGPTConfig.from_args(args, shapes=shapes, pad_id=config.pad_id) == config


def test_dicts_survive_a_round_trip(original):
    config = original.config("integration/best_model.pt", decoder_activation="ReLU")
    content = json.loads(json.dumps(config.to_dict()))
    assert SCGPTConfig.from_dict(content) == config
    assert set(content) == {field.name for field in fields(SCGPTConfig)}
    with pytest.raises(WeightsError, match="flux_capacitor.*newer version"):
        SCGPTConfig.from_dict({**content, "flux_capacitor": 1})


def test_configs_do_not_change():
    config = SCGPTConfig(n_tokens=5, pad_id=0)
    with pytest.raises(FrozenInstanceError):
        config.n_layers = 3
    assert (config.replace(n_layers=3).n_layers, config.n_layers) == (3, 12)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: SCGPTConfig.from_args({"embsize": 32}, shapes=EMBEDDING, pad_id=0), "nheads.*d_hid.*nlayers"),
        (lambda: SCGPTConfig.from_args(OFFICIAL, shapes={"decoder.weight": (1,)}, pad_id=0), "decoder.weight"),
        (lambda: SCGPTConfig(n_tokens=0, pad_id=0), "n_tokens is 0"),
        (lambda: SCGPTConfig(n_tokens=5, pad_id=0, n_layers=0), "n_layers is 0"),
        (lambda: SCGPTConfig(n_tokens=5, pad_id=0, d_model=30, n_heads=4), "30 is not a multiple of n_heads=4"),
        (lambda: SCGPTConfig(n_tokens=5, pad_id=0, dropout=1.0), r"dropout is 1\.0"),
    ],
    ids=["args-without-sizes", "no-embedding", "no-tokens", "no-layers", "uneven-heads", "dropout-of-one"],
)
def test_bad_input(call, says):
    with pytest.raises(WeightsError, match=says):
        call()
