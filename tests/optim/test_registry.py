import io
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from tests.optim.runs import supply_curvature
from torch import nn

from scgalore.errors import OptionError
from scgalore.optim import OPTIMIZERS, GaLoreAdamW, OptimizerSpec, build_optimizer, registry, state_bytes
from scgalore.optim.needs import needs_of
from scgalore.optim.registry import check_options, first_with


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(12, 16), nn.Linear(16, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 3))


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> float:
    for number in steps:
        tokens = torch.arange(number, number + 6) % 12
        supply_curvature(optimizer, network, tokens, seed=number)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(tokens), tokens % 3)
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_entry_trains_documents_itself_and_takes_its_own_defaults(name: str) -> None:
    spec = OPTIMIZERS[name]
    assert spec.name == name
    assert spec.trains
    assert spec.state_bytes
    assert spec.source
    # A training run writes its options down and reads them again.
    assert json.loads(json.dumps(spec.options)).keys() == spec.options.keys()
    network = make_network()
    optimizer = build_optimizer(name, network)
    assert all(group["lr"] == spec.lr for group in optimizer.param_groups)
    explicit = build_optimizer(name, make_network(), lr=spec.lr, weight_decay=spec.weight_decay, **spec.options)
    assert len(explicit.param_groups) == len(optimizer.param_groups)
    # Adafactor's is relative to the size of a weight.
    fast = build_optimizer(name, network, lr=3e-1 if name == "adafactor" else 1e-2)
    assert train(network, fast, range(60)) < 0.5


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_options_can_be_checked_on_a_layer_without_memory(name: str) -> None:
    layer = nn.Linear(64, 64, device="meta")
    optimizer = build_optimizer(name, layer, lr=1e-2, weight_decay=0.1)
    assert {id(param) for group in optimizer.param_groups for param in group["params"]} == set(
        map(id, layer.parameters())
    )


# What state_bytes says in words of a square matrix of 256 rows, whose galore rank is 64.
SAID = {
    "galore": 3.0,
    "galore-torch": 6.0,
    "adamw": 8.0,
    "apollo": 2.0,
    "apollo-mini": 8 / 256,
    "muon": 4.0,
    "adafactor": 8 / 256,
    "sophia": 8.0,
    "adamw-8bit": 2 + 8 / 256,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_takes_the_bytes_that_the_entry_says(name: str) -> None:
    layer = nn.Linear(256, 256, bias=False)
    optimizer = build_optimizer(name, layer)
    inputs = torch.randn(512, 256, generator=torch.Generator().manual_seed(0))
    supply_curvature(optimizer, layer, inputs, seed=0)
    layer(inputs).square().mean().backward()
    optimizer.step()
    # Counters, and the tables of the 8-bit code that all tensors share.
    slack = 2048 if name == "adamw-8bit" else 16
    assert 0 <= state_bytes(optimizer) - SAID[name] * 256**2 <= slack


def test_galore_without_projection_is_adamw() -> None:
    a, b = make_network(), make_network()
    train(a, build_optimizer("galore", a, lr=1e-2, weight_decay=0.1, rank=None), range(20))
    train(b, build_optimizer("adamw", b, lr=1e-2, weight_decay=0.1), range(20))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_galore_keeps_less_than_adamw() -> None:
    kept = {}
    for name in ("galore", "adamw"):
        network = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
        optimizer = build_optimizer(name, network)
        network(torch.randn(4, 64)).sum().backward()
        optimizer.step()
        kept[name] = state_bytes(optimizer)
    # Basis and two moments of rank d / 4 beside two full moments: 3/8, and the biases.
    assert 0.37 < kept["galore"] / kept["adamw"] < 0.40


def test_options_reach_the_optimizer() -> None:
    optimizer = build_optimizer("galore", make_network(), rank=2, update_proj_gap=3, moments="reset", betas=(0.8, 0.9))
    assert isinstance(optimizer, GaLoreAdamW)
    group = optimizer.param_groups[0]
    assert [group[key] for key in ("rank", "update_proj_gap", "moments", "betas")] == [2, 3, "reset", (0.8, 0.9)]


def test_numbers_of_numpy_do_not_reach_a_checkpoint() -> None:
    network = make_network()
    options: dict[str, Any] = {"lr": np.float64(1e-2), "weight_decay": np.float32(0.1), "rank": np.int64(4)}
    optimizer = build_optimizer("galore", network, **options, betas=(np.float64(0.8), np.float64(0.9)))
    train(network, optimizer, range(1))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["param_groups"][0]["rank"] == 4


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradient_scalers_unscale_before_the_step(name: str) -> None:
    # Lightning refuses to clip gradients in mixed precision for an optimizer that says it unscales by itself.
    assert not getattr(build_optimizer(name, make_network()), "_step_supports_amp_scaling", False)


def test_unknown_name_lists_the_choices_and_guesses() -> None:
    with pytest.raises(OptionError, match=r"Unknown optimizer='galor'; choose from .*adamw.*Did you mean 'galore'"):
        build_optimizer("galor", make_network())


def test_unknown_option_lists_the_choices_and_guesses() -> None:
    with pytest.raises(
        OptionError, match=r"no option 'ranks'; its options are lr.*update_proj_gap.*Did you mean 'rank'"
    ):
        build_optimizer("galore", make_network(), ranks=4)
    with pytest.raises(OptionError, match="'adamw' has no option 'rank'"):
        build_optimizer("adamw", make_network(), rank=4)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("options", [{"lr": -1.0}, {"lr": float("nan")}, {"weight_decay": -0.1}, {"betas": (0.9, 1.0)}])
def test_values_out_of_range_are_refused(name: str, options: dict[str, Any]) -> None:
    if not options.keys() <= {"lr", "weight_decay", *OPTIMIZERS[name].options}:
        pytest.skip("has no such option")
    with pytest.raises(OptionError, match=next(iter(options))):
        build_optimizer(name, make_network(), **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adafactor", {"d": 0.5}, "'adafactor'.*threshold d"),
        ("adafactor", {"beta2_decay": "slow"}, "'adafactor'"),
        ("adamw-8bit", {"min_8bit_size": 1.5}, "min_8bit_size=1.5"),
        ("sophia", {"rho": -1.0}, "rho=-1.0"),
        ("galore-torch", {"rank": 0}, "rank=0"),
        ("galore-torch", {"proj_type": "middle"}, "proj_type='middle'"),
    ],
)
def test_options_of_one_entry_are_refused_too(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build_optimizer(name, nn.Linear(64, 64, device="meta"), **options)


@pytest.mark.parametrize(
    ("name", "package", "install"),
    [("galore-torch", "galore_torch", "galore-torch"), ("adamw-8bit", "bitsandbytes", r'"scgalore\[lowbit\]"')],
)
def test_a_missing_package_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str, install: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(OptionError, match=f"{package}.*pip install {install}"):
        build_optimizer(name, make_network())


LIGHT = """
import logging, sys
import torch
from scgalore.optim import OPTIMIZERS, build_optimizer

layer = torch.nn.Linear(64, 64)
for name in OPTIMIZERS.keys() - {"galore-torch", "adamw-8bit"}:
    build_optimizer(name, layer)
assert not {"bitsandbytes", "galore_torch", "transformers"} & sys.modules.keys()
build_optimizer("galore-torch", layer)
assert {"bitsandbytes", "galore_torch", "transformers"} <= sys.modules.keys()
assert not any(getattr(logger, "filters", None) for logger in logging.root.manager.loggerDict.values())
"""


@pytest.mark.slow
def test_packages_are_imported_when_needed_and_in_silence() -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", LIGHT], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_8bit_state_trains_like_full_state() -> None:
    losses = {}
    for name in ("adamw", "adamw-8bit"):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Embedding(12, 64), nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64), nn.Linear(64, 3)
        )
        optimizer = build_optimizer(name, network, lr=1e-3)
        losses[name] = train(network, optimizer, range(25))
        if name == "adamw-8bit":
            weight = network.get_parameter("1.weight")
            assert optimizer.state[weight]["state1"].dtype == torch.uint8
    assert losses["adamw"] < 0.3
    assert losses["adamw-8bit"] == pytest.approx(losses["adamw"], rel=0.05)


def test_one_more_entry_is_one_more_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(module: nn.Module, *, lr: float, weight_decay: float, momentum: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(module.parameters(), lr=lr, weight_decay=weight_decay, momentum=momentum)

    monkeypatch.setitem(OPTIMIZERS, "sgd", OptimizerSpec("sgd", build, lr=0.5, options={"momentum": 0.9}))
    optimizer = build_optimizer("sgd", make_network(), momentum=0.5)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]) == (0.5, 0.5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_entry_says_of_an_optimizer_what_that_says_of_itself(name: str) -> None:
    spec, needs = OPTIMIZERS[name], needs_of(build_optimizer(name, make_network()))
    assert (spec.shardable, spec.per_layer) == (needs.shardable, needs.per_layer)
    assert spec.needs_curvature == needs.needs_curvature()


def test_optimizers_of_others_need_nothing() -> None:
    network = make_network()
    before = [param.clone() for param in network.parameters()]
    needs = needs_of(torch.optim.SGD(network.parameters(), lr=1.0))
    assert (needs.shardable, needs.per_layer, needs.needs_curvature()) == (True, True, False)
    needs.refresh()
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_the_first_entry_with_a_capability_is_the_alternative(monkeypatch: pytest.MonkeyPatch) -> None:
    assert OPTIMIZERS[first_with("shardable")].shardable
    chosen = {name: OPTIMIZERS[name] for name in ("sophia", "adafactor", "adamw")}
    monkeypatch.setattr(registry, "OPTIMIZERS", chosen)
    assert first_with("per_layer") == "adafactor"


def test_options_can_be_checked_before_there_is_a_network() -> None:
    assert check_options("galore", {"rank": 4}) is OPTIMIZERS["galore"]
    for name, options in (("galor", {}), ("adamw", {"rank": 4}), ("adamw", {"betas": (1.0, 1.0)})):
        with pytest.raises(OptionError):
            check_options(name, options)
