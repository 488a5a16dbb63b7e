from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from scgalore.adapters import ADAPTERS, attach_adapter, check_adapter, target_layers
from scgalore.errors import OptionError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.Wqkv, self.out_proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.linear1, self.linear2 = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.Wqkv(x).chunk(3, dim=-1)
        x = x + self.out_proj(nn.functional.scaled_dot_product_attention(q, k, v))
        return x + self.linear2(torch.relu(self.linear1(x)))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(12, 16)
        self.layers = nn.Sequential(Block(), Block())
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embedding(tokens)))


TOKENS = torch.arange(48).view(8, 6) % 12


def train(network: nn.Module, adapter: Any, n_steps: int = 40) -> float:
    optimizer = torch.optim.AdamW((p for p in network.parameters() if p.requires_grad), lr=1e-2)
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(TOKENS).flatten(0, 1), TOKENS.flatten() % 3)
        loss.backward()
        optimizer.step()
        adapter.after_step()
    return loss.item()


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("others", ["freeze", "train"])
def test_each_entry_documents_itself_trains_merges_and_goes(name: str, others: str) -> None:
    spec = ADAPTERS[name]
    assert spec.name == name
    assert spec.trains
    assert spec.state_bytes
    assert spec.source
    network = Network()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    adapter = attach_adapter(name, network, rank=4, targets="all", others=others)
    assert adapter.name == name
    assert train(network, adapter) < 0.1
    expected = network.eval()(TOKENS)
    for change in (adapter.merge, adapter.merge, adapter.unmerge, adapter.unmerge, adapter.detach):
        change()
        torch.testing.assert_close(network(TOKENS), expected, rtol=1e-6, atol=1e-5)
    after = network.state_dict()
    assert list(after) == list(before)
    adapted = {f"{key}.weight" for key in target_layers(network, "all")}
    changed = {key for key in before if not torch.equal(after[key], before[key])}
    frozen = {key for key in before if key.startswith("layers.")} - adapted if others == "freeze" else set()
    assert changed == before.keys() - frozen


@pytest.mark.parametrize("name", ADAPTERS)
def test_each_entry_is_remade_from_its_options_and_tensors(name: str) -> None:
    network = Network()
    adapter = attach_adapter(name, network, rank=4, others="freeze", targets=("*.Wqkv", "*.linear1"), seed=np.int64(3))
    head = network.head
    head.requires_grad_(False)
    network.embedding.requires_grad_(False)
    train(network, adapter, n_steps=25)
    assert adapter.options.keys() == ADAPTERS[name].options.keys()
    assert type(adapter.options["seed"]) is int
    copy = Network()
    other = attach_adapter(name, copy, **adapter.options)
    other.load_tensors(adapter.tensors())
    torch.testing.assert_close(copy.eval()(TOKENS), network.eval()(TOKENS), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", ADAPTERS)
def test_each_entry_takes_its_own_defaults(name: str) -> None:
    options = ADAPTERS[name].options
    assert check_adapter(name, options) is ADAPTERS[name]
    given = attach_adapter(name, Network(), **options)
    assert given.options == attach_adapter(name, Network()).options == options


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("lorra", {}, r"adapter='lorra' does not exist.*Did you mean 'lora'\?"),
        ("lora", {"rnk": 4}, r"no option 'rnk'.*rank, alpha.*Did you mean 'rank'\?"),
        ("lora", {"lr": 1e-3}, "no option 'lr'"),
        ("lora", {"n_heads": 4}, "no option 'n_heads'"),
        ("lora", {"rank": 0}, "rank=0: expected a whole number >= 1"),
        ("lora", {"rank": 2.0}, "rank=2.0"),
        ("lora", {"rank": True}, "rank=True"),
        ("lora", {"alpha": 0}, "alpha=0: expected a number > 0"),
        ("lora", {"alpha": float("nan")}, "alpha=nan"),
        ("lora", {"dropout": 1.0}, r"dropout=1.0: expected a number in \[0, 1\)"),
        ("lora", {"targets": "atention"}, r"targets='atention'.*Did you mean 'attention'\?"),
        ("lora", {"targets": []}, r"targets=\[\]"),
        ("lora", {"targets": [3]}, r"targets=\[3\]"),
        ("lora", {"others": "frozen"}, r"others='frozen'.*Did you mean 'freeze'\?"),
        ("lora", {"variant": "qlora"}, "variant='qlora'.*'lora', 'dora', 'pissa'"),
        ("lora", {"seed": -1}, "seed=-1: expected a whole number >= 0"),
        ("lte", {"merge_every": 0}, "merge_every=0"),
        ("lte", {"n_heads": "4"}, "n_heads='4'"),
        ("lte", {"dropout": 0.1}, "no option 'dropout'"),
    ],
)
def test_bad_names_and_values_are_told_without_a_network(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        check_adapter(name, options)
    network = Network()
    with pytest.raises(OptionError, match=says):
        attach_adapter(name, network, **options)
    assert list(network.state_dict()) == list(Network().state_dict())
