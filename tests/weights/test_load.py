from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scgalore.errors import WeightsError
from scgalore.nn import SCGPTConfig, SCGPTNetwork
from scgalore.weights import Checkpoint, LoadReport, load_tensors, read_scgpt

MakeFolder = Callable[..., Path]


def build(checkpoint: Checkpoint, **overrides: Any) -> SCGPTNetwork:
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.items()}
    return SCGPTNetwork(SCGPTConfig.from_args(checkpoint.args, shapes=shapes, pad_id=200, **overrides))


def snapshot(network: SCGPTNetwork) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def without(checkpoint: Checkpoint, *prefixes: str) -> Checkpoint:
    kept = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith(prefixes)}
    return replace(checkpoint, tensors=kept)


def with_another(checkpoint: Checkpoint) -> Checkpoint:
    """Add a tensor that no network has a place for."""
    return replace(checkpoint, tensors={**checkpoint.tensors, "another_encoder.weight": torch.zeros(2, 32)})


@pytest.mark.parametrize("file", ["full_wqkv.pt", "full_impl_wqkv.pt", "full_in_proj.pt"])
def test_everything_is_loaded(make_folder: MakeFolder, file: str) -> None:
    checkpoint = read_scgpt(make_folder(file))
    network = build(checkpoint)
    report = load_tensors(network, checkpoint)
    assert len(report.loaded) == 52
    assert report.random == report.ignored == ()
    expected = torch.load(make_folder("full_wqkv.pt", name="flash") / "best_model.pt", weights_only=True)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())


def test_released_file_for_a_new_task(make_folder: MakeFolder) -> None:
    checkpoint = with_another(read_scgpt(make_folder()))
    network = build(checkpoint, heads={"classes": 5})
    before = snapshot(network)
    report = load_tensors(network, checkpoint, allow_random=("cls_decoder.",))
    assert report.ignored == ("another_encoder.weight",)
    assert len(report.random) == 10
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name] if name in report.random else checkpoint.tensors[name])
    assert report.summary() == "43 of 53 tensors loaded; left random: cls_decoder (10); ignored: another_encoder (1)"
    assert str(report).splitlines()[0] == report.summary()
    assert "  random  cls_decoder.out_layer.bias" in str(report).splitlines()
    assert str(report).splitlines()[-1] == "  ignored another_encoder.weight"


def test_summary_when_all_is_well() -> None:
    report = LoadReport(loaded=("a.b",), random=(), ignored=())
    assert str(report) == "1 of 1 tensors loaded; left random: none; ignored: none"


def test_head_of_another_number_of_classes_is_left_random(make_folder: MakeFolder) -> None:
    checkpoint = read_scgpt(make_folder("full_wqkv.pt"))
    report = load_tensors(build(checkpoint, heads={"classes": 9}), checkpoint)
    assert report.random == report.ignored == ("cls_decoder.out_layer.weight", "cls_decoder.out_layer.bias")
    assert "cls_decoder._decoder.0.weight" in report.loaded
    with pytest.raises(WeightsError, match="cls_decoder.out_layer.weight"):
        load_tensors(build(checkpoint, heads={"classes": 9}), checkpoint, allow_random=("decoder.",))


@pytest.mark.parametrize("part", ["encoder.enc_norm", "value_encoder.linear1", "transformer_encoder.layers.1.norm2"])
@pytest.mark.parametrize("allow_random", [None, ("",), ("encoder.", "value_encoder.", "transformer_encoder.")])
def test_encoder_never_stays_random(make_folder: MakeFolder, part: str, allow_random: tuple[str, ...] | None) -> None:
    checkpoint = read_scgpt(make_folder())
    network = build(checkpoint)
    before = snapshot(network)
    with pytest.raises(WeightsError, match=rf"{part}.weight, {part}.bias would stay random"):
        load_tensors(network, without(checkpoint, part), allow_random=allow_random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_encoder_of_the_checkpoint_is_never_ignored(make_folder: MakeFolder) -> None:
    checkpoint = read_scgpt(make_folder())
    with pytest.raises(WeightsError, match=r"no place for transformer_encoder.layers.1.*and 8 more"):
        load_tensors(build(checkpoint, n_layers=1), checkpoint)


def test_heads_stay_random_only_where_allowed(make_folder: MakeFolder) -> None:
    checkpoint = read_scgpt(make_folder())
    network = build(checkpoint)
    headless = with_another(without(checkpoint, "mvc_decoder."))
    assert len(load_tensors(network, headless).random) == 3
    with pytest.raises(WeightsError, match=r"mvc_decoder.gene2query.weight.*another_encoder.weight"):
        load_tensors(network, headless, allow_random=("cls_decoder.",))


@pytest.mark.parametrize("name", ["encoder.embedding.weight", "decoder.fc.0.weight"])
def test_shapes_must_agree(make_folder: MakeFolder, name: str) -> None:
    checkpoint = read_scgpt(make_folder())
    network = build(checkpoint)
    before = snapshot(network)
    rows, width = checkpoint.tensors[name].shape
    wrong = replace(checkpoint, tensors={**checkpoint.tensors, name: torch.zeros(rows - 1, width)})
    with pytest.raises(WeightsError, match=rf"{name} is \({rows - 1}, {width}\) .* \({rows}, {width}\) in the network"):
        load_tensors(network, wrong)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_values_are_cast_to_the_networks_dtype(make_folder: MakeFolder, dtype: torch.dtype) -> None:
    checkpoint = read_scgpt(make_folder())
    network = build(checkpoint)
    cast = {name: tensor.to(dtype) for name, tensor in checkpoint.tensors.items()}
    report = load_tensors(network, replace(checkpoint, tensors=cast))
    own = network.state_dict()
    assert all(own[name].dtype == torch.float32 for name in own)
    assert all(torch.equal(own[name], cast[name].float()) for name in report.loaded)


def test_network_does_not_share_memory_with_the_file(make_folder: MakeFolder) -> None:
    checkpoint = read_scgpt(make_folder())
    network = build(checkpoint)
    report = load_tensors(network, checkpoint)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert all(checkpoint.tensors[name].any() for name in report.loaded)
    assert all(parameter.requires_grad for parameter in network.parameters())
