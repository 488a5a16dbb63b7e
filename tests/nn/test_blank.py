"""Layers whose first weights nobody reads."""

import pytest
import torch
from torch import nn

from scgalore.nn import SCGPTConfig, SCGPTNetwork
from scgalore.nn.blank import WithoutDraws, on_meta_device

LAYERS = {
    "linear": lambda: nn.Linear(3, 4),
    "embedding": lambda: nn.Embedding(5, 3, padding_idx=1),
    "attention": lambda: nn.init.xavier_uniform_(nn.Parameter(torch.empty(3, 4))),
    "norm": lambda: nn.LayerNorm(3),
}


@pytest.mark.parametrize("name", LAYERS)
def test_nothing_is_drawn(name: str) -> None:
    before = torch.random.get_rng_state()
    with WithoutDraws():
        LAYERS[name]()
    with on_meta_device():
        LAYERS[name]()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_values_that_are_not_drawn_are_set() -> None:
    with WithoutDraws():
        norm = nn.LayerNorm(3)
    assert norm.weight.tolist() == [1, 1, 1]
    assert norm.bias.tolist() == [0, 0, 0]


def test_a_network_on_the_meta_device_has_the_shapes_of_one_with_memory() -> None:
    config = SCGPTConfig(n_tokens=9, d_model=8, n_heads=2, d_hid=8, n_layers=1, pad_id=0)
    with on_meta_device():
        network = SCGPTNetwork(config)
    assert all(tensor.is_meta for tensor in network.state_dict().values())
    shapes = {name: tensor.shape for name, tensor in SCGPTNetwork(config).state_dict().items()}
    assert {name: tensor.shape for name, tensor in network.state_dict().items()} == shapes
