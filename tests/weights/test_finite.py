import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from scgalore.errors import WeightsError
from scgalore.nn import SCGPTConfig, SCGPTNetwork
from scgalore.weights import load_tensors, read_scgpt
from scgalore.weights.finite import is_finite, refuse_not_finite, tensors_in

MakeFolder = Callable[..., Path]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
WORST = [math.nan, math.inf, -math.inf]


@given(
    values=st.lists(st.floats(-1e4, 1e4) | st.sampled_from(WORST), max_size=8),
    dtype=st.sampled_from(DTYPES),
)
def test_finite_is_what_torch_says(values: list[float], dtype: torch.dtype) -> None:
    tensor = torch.tensor(values, dtype=dtype)
    assert is_finite(tensor) == bool(torch.isfinite(tensor).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("worst", WORST)
@pytest.mark.parametrize("place", [0, 7, -1])
def test_one_value_is_enough(dtype: torch.dtype, worst: float, place: int) -> None:
    tensor = torch.zeros(4, 5, dtype=dtype)
    assert is_finite(tensor)
    tensor.view(-1)[place] = worst
    assert not is_finite(tensor)


def test_what_is_cast_must_stay_finite() -> None:
    tensor = torch.tensor([1e300, 1.0], dtype=torch.float64)
    assert is_finite(tensor)
    assert not is_finite(tensor, torch.float32)
    assert is_finite(torch.tensor([7]), torch.float32)
    assert is_finite(torch.zeros(0))


def test_tensors_and_numbers_of_values_are_named() -> None:
    good = torch.zeros(3)
    mixed = torch.tensor([math.nan, math.nan, math.inf, 0.0])
    refuse_not_finite({"a": good}, where="file")
    with pytest.raises(
        WeightsError, match=r"^file holds .*'b' \(2 NaN and 1 infinite of 4 values\), 'c' \(1 infinite of 1 "
    ) as caught:
        refuse_not_finite({"a": good, "b": mixed, "c": torch.tensor([-math.inf])}, where="file")
    assert "'a'" not in str(caught.value)


def test_many_are_counted() -> None:
    with pytest.raises(WeightsError, match=r"'t3' .* and 6 more tensors"):
        refuse_not_finite({f"t{i}": torch.tensor([math.nan]) for i in range(10)}, where="file")


def test_nested_tensors_are_found() -> None:
    content = {0: {"exp_avg": torch.zeros(2), "step": 3}, "list": [torch.ones(1), (torch.ones(1),)], "none": None}
    assert [name for name, _ in tensors_in(content)] == ["0.exp_avg", "list.0", "list.1.0"]


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "best_model.pt", weights_only=True)


@pytest.mark.parametrize("layout", ["best_model.pt", "model.safetensors"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name", ["encoder.embedding.weight", "transformer_encoder.layers.1.norm2.bias", "decoder.fc.4.bias"]
)
def test_files_with_a_bad_value_are_not_loaded(
    make_folder: MakeFolder, layout: str, dtype: torch.dtype, name: str
) -> None:
    folder = make_folder("full_wqkv.pt")
    tensors = {key: tensor.to(dtype) for key, tensor in tensors_of(folder).items()}
    tensors[name].view(-1)[-1] = math.nan
    (folder / "best_model.pt").unlink()
    if layout == "best_model.pt":
        torch.save(tensors, folder / layout)
    else:
        save_file(tensors, folder / layout)
    checkpoint = read_scgpt(folder)
    network = SCGPTNetwork(SCGPTConfig.from_args(checkpoint.args, shapes=checkpoint.shapes, pad_id=200))
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    n = tensors[name].numel()
    with pytest.raises(WeightsError, match=rf"{layout} holds .*'{name}' \(1 NaN of {n:,} values\)"):
        load_tensors(network, checkpoint)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_values_beyond_the_dtype_of_the_network(make_folder: MakeFolder) -> None:
    folder = make_folder("full_wqkv.pt")
    tensors = {key: tensor.double() for key, tensor in tensors_of(folder).items()}
    tensors["encoder.enc_norm.weight"][3] = 1e300
    torch.save(tensors, folder / "best_model.pt")
    checkpoint = read_scgpt(folder)
    network = SCGPTNetwork(SCGPTConfig.from_args(checkpoint.args, shapes=checkpoint.shapes, pad_id=200))
    with pytest.raises(WeightsError, match=r"'encoder.enc_norm.weight' \(1 infinite of 32 values\)"):
        load_tensors(network, checkpoint)


def test_tensors_without_a_place_do_not_matter(make_folder: MakeFolder) -> None:
    folder = make_folder()
    torch.save(
        {**tensors_of(folder), "another_encoder.weight": torch.full((2, 32), math.nan)}, folder / "best_model.pt"
    )
    checkpoint = read_scgpt(folder)
    network = SCGPTNetwork(SCGPTConfig.from_args(checkpoint.args, shapes=checkpoint.shapes, pad_id=200))
    assert "another_encoder.weight" in load_tensors(network, checkpoint).ignored
