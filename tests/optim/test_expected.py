"""State counted beforehand is the state that is there after a step."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.optim.runs import supply_curvature
from torch import nn

from scgalore.optim import OPTIMIZERS, OptimizerSpec, SophiaG, build_optimizer, state_bytes
from scgalore.optim.expected import weights_of
from scgalore.optim.sharded import dealt


def network_of(device: str, *, width: int = 32, table: int = 50, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return nn.Sequential(
        nn.Embedding(table, width, device=device, dtype=dtype),
        nn.Linear(width, 3 * width, device=device, dtype=dtype),
        nn.Linear(3 * width, 2 * width, device=device, dtype=dtype),
        nn.LayerNorm(2 * width, device=device, dtype=dtype),
        nn.Linear(2 * width, 5, device=device, dtype=dtype),
    )


def counted(name: str, network: nn.Module, **options: Any) -> int:
    spec = OPTIMIZERS[name]
    optimizer = build_optimizer(name, network, **options)
    return spec.count_state(weights_of(optimizer), {**spec.options, **options})


def kept(name: str, network: nn.Module, n_steps: int = 3, **options: Any) -> int:
    optimizer = build_optimizer(name, network, **options)
    generator = torch.Generator().manual_seed(0)
    for number in range(n_steps):
        if isinstance(optimizer, SophiaG):
            supply_curvature(optimizer, network, torch.arange(6), seed=number)
        for param in network.parameters():
            param.grad = torch.randn(param.shape, generator=generator).to(param) if param.requires_grad else None
        optimizer.step()
    return state_bytes(optimizer)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("width", [16, 40, 64])
def test_count_is_the_state_after_real_steps(name: str, width: int) -> None:
    assert counted(name, network_of("meta", width=width)) == kept(name, network_of("cpu", width=width))


@pytest.mark.parametrize("proj_type", ["std", "reverse_std", "left", "right", "full"])
@pytest.mark.parametrize("name", ["galore", "galore-torch"])
def test_every_side_of_a_projection_is_counted(name: str, proj_type: str) -> None:
    options: dict[str, Any] = {"rank": 5, "proj_type": proj_type}
    if name == "galore-torch":
        options["overrides"] = {"1.weight": {"rank": 7}}
    assert counted(name, network_of("meta"), **options) == kept(name, network_of("cpu"), **options)


@pytest.mark.parametrize("basis", ["warm", "svd", "randomized", "random"])
def test_count_holds_over_refreshes(basis: str) -> None:
    options: dict[str, Any] = {"rank": 6, "basis": basis, "update_proj_gap": 2, "lazy": True}
    assert counted("galore", network_of("meta"), **options) == kept("galore", network_of("cpu"), 6, **options)


@given(rank=st.integers(1, 40), rows=st.integers(1, 60), columns=st.integers(1, 60))
def test_count_of_galore_holds_for_every_shape_and_rank(rank: int, rows: int, columns: int) -> None:
    real, meta = (nn.Linear(columns, rows, device=device) for device in ("cpu", "meta"))
    assert counted("galore", meta, rank=rank) == kept("galore", real, 1, rank=rank)


@pytest.mark.parametrize("name", ["galore", "galore-torch", "adamw", "adafactor", "sophia"])
def test_count_knows_half_precision_weights(name: str) -> None:
    options = {"rank": 4} if name.startswith("galore") else {}
    real, meta = (network_of(device, dtype=torch.bfloat16) for device in ("cpu", "meta"))
    assert counted(name, meta, **options) == kept(name, real, **options)


def test_small_tensors_stay_in_full_precision_with_8_bits() -> None:
    sizes = {n: counted("adamw-8bit", nn.Linear(64, 64, bias=False, device="meta"), min_8bit_size=n) for n in (1, 5000)}
    real = {n: kept("adamw-8bit", nn.Linear(64, 64, bias=False), min_8bit_size=n) for n in sizes}
    assert sizes == real
    assert sizes[5000] == 8 * 64 * 64


def test_packed_queries_keys_and_values_have_three_bases() -> None:
    def packed(device: str) -> nn.Module:
        return nn.ModuleDict({"Wqkv": nn.Linear(24, 72, device=device)})

    assert counted("galore", packed("meta"), rank=4) == kept("galore", packed("cpu"), rank=4)


def test_what_is_frozen_has_no_state() -> None:
    real, meta = network_of("cpu"), network_of("meta")
    for network in (real, meta):
        network[0].weight.requires_grad_(False)
    assert counted("adamw", meta) == kept("adamw", real)


def test_an_entry_that_does_not_count_is_taken_for_adamw() -> None:
    spec = OptimizerSpec("sgd", torch.optim.SGD, lr=0.1)
    weight = torch.empty(7, 3, device="meta")
    assert spec.count_state([(weight, {})], {}) == 2 * 21 * 4 + 4


@pytest.mark.parametrize("name", ["adamw", "apollo-mini", "muon"])
def test_shares_of_processes_are_about_equal_and_whole(name: str) -> None:
    optimizer = build_optimizer(name, network_of("meta"))
    weights, count = weights_of(optimizer), OPTIMIZERS[name].counter({})
    owners = dealt(weights, 2, count)
    loads = [sum(count(param, group) for param, group in weights if owners[param] == rank) for rank in range(2)]
    assert sum(loads) == counted(name, network_of("meta"))
    assert max(loads) - min(loads) <= max(count(param, group) for param, group in weights)
