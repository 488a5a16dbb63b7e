import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from scgalore.errors import OptionError
from scgalore.optim import OPTIMIZERS, GaLoreAdamW, OptimizerSpec, build_optimizer, state_bytes
from scgalore.optim.registry import check_options


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(12, 16), nn.Linear(16, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 3))


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> float:
    for number in steps:
        tokens = torch.arange(number, number + 6) % 12
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
    assert spec.source
    network = make_network()
    optimizer = build_optimizer(name, network)
    assert all(group["lr"] == spec.lr for group in optimizer.param_groups)
    explicit = build_optimizer(name, make_network(), lr=spec.lr, weight_decay=spec.weight_decay, **spec.options)
    assert len(explicit.param_groups) == len(optimizer.param_groups)
    fast = build_optimizer(name, network, lr=1e-2)
    assert train(network, fast, range(60)) < 0.5


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_entry_resumes_bit_for_bit(name: str) -> None:
    options: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1}
    straight = make_network()
    train(straight, build_optimizer(name, straight, **options), range(30))
    first = make_network()
    optimizer = build_optimizer(name, first, **options)
    train(first, optimizer, range(13))
    file = io.BytesIO()
    torch.save([first.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    second = make_network()
    second.load_state_dict(weights)
    resumed = build_optimizer(name, second, **options)
    resumed.load_state_dict(state)
    train(second, resumed, range(13, 30))
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), second.parameters(), strict=True))


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
    with pytest.raises(OptionError, match=r"'galor' is not known; choose one of .*adamw.*Did you mean 'galore'"):
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
    with pytest.raises(OptionError, match=next(iter(options))):
        build_optimizer(name, make_network(), **options)


def test_one_more_entry_is_one_more_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(module: nn.Module, *, lr: float, weight_decay: float, momentum: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(module.parameters(), lr=lr, weight_decay=weight_decay, momentum=momentum)

    monkeypatch.setitem(OPTIMIZERS, "sgd", OptimizerSpec("sgd", build, lr=0.5, options={"momentum": 0.9}))
    optimizer = build_optimizer("sgd", make_network(), momentum=0.5)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]) == (0.5, 0.5)


def test_options_can_be_checked_before_there_is_a_network() -> None:
    assert check_options("galore", {"rank": 4}) is OPTIMIZERS["galore"]
    for name, options in (("galor", {}), ("adamw", {"rank": 4}), ("adamw", {"betas": (1.0, 1.0)})):
        with pytest.raises(OptionError):
            check_options(name, options)
