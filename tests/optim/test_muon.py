"""MuonAdamW against torch's two optimizers, and against its method in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scgalore.errors import OptionError
from scgalore.optim import MuonAdamW, build_optimizer, param_groups


def make_network(dtype: torch.dtype = torch.float32) -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "table": nn.Embedding(9, 16),
            "Wqkv": nn.Linear(16, 48),
            "hidden": nn.Linear(16, 32),
            "norm": nn.LayerNorm(32),
            "head": nn.Linear(32, 3),
        }
    ).to(dtype)


def give_gradients(named: dict[str, Tensor], step: int) -> None:
    for number, param in enumerate(named.values()):
        generator = torch.Generator().manual_seed(100 * step + number)
        param.grad = torch.randn(param.shape, generator=generator).to(param)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_weights_are_those_of_torchs_muon_and_adamw() -> None:
    ours, theirs = make_network(), make_network()
    optimizer = build_optimizer("muon", ours, lr=1e-2, weight_decay=0.1)
    named: dict[str, Any] = dict(ours.named_parameters())
    others: dict[str, Any] = dict(theirs.named_parameters())
    # Queries, keys and values as torch would have them: matrices of their own.
    parts = {f"Wqkv.{i}": nn.Parameter(part.clone()) for i, part in enumerate(others["Wqkv.weight"].detach().chunk(3))}
    hidden = others["hidden.weight"]
    muon = torch.optim.Muon([*parts.values(), hidden], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    rest = [param for name, param in others.items() if name not in ("Wqkv.weight", "hidden.weight")]
    decayed = [param for param in rest if param is others["head.weight"]]
    plain = [param for param in rest if param is not others["head.weight"]]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": 0.1}, {"params": plain}]
    adamw = torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.0)
    for step in range(5):
        give_gradients(named, step)
        give_gradients(others, step)
        for part, grad in zip(parts.values(), named["Wqkv.weight"].grad.chunk(3), strict=True):
            part.grad = grad.clone()
        optimizer.step()
        muon.step()
        adamw.step()
    with torch.no_grad():
        others["Wqkv.weight"].copy_(torch.cat(list(parts.values())))
    start = dict(make_network().named_parameters())
    for name, param in named.items():
        way = (others[name] - start[name]).norm()
        assert way > 0
        # torch's iterates in bfloat16.
        is_muons = name in ("Wqkv.weight", "hidden.weight")
        assert (param - others[name]).norm() <= (0.03 if is_muons else 1e-6) * way, name


@pytest.mark.parametrize("shape", [(6, 11), (11, 6), (8, 8)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_step_is_that_of_the_paper(shape: tuple[int, int], nesterov: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, *grads = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(5))
    param = nn.Parameter(weight.clone())
    optimizer = MuonAdamW([{"params": [param], "rank": 2}], lr=0.1, weight_decay=0.3, momentum=0.8, nesterov=nesterov)
    average = torch.zeros_like(weight)
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()
        average = 0.8 * average + 0.2 * grad
        u, s, vh = torch.linalg.svd(0.8 * average + 0.2 * grad if nesterov else average, full_matrices=False)
        s = s / s.norm()
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        weight = weight - 0.1 * 0.3 * weight - 0.1 * 0.2 * max(shape) ** 0.5 * (u * s) @ vh
        torch.testing.assert_close(param.detach(), weight, rtol=1e-9, atol=1e-9)


def test_step_has_singular_values_near_one_and_the_size_of_adamws() -> None:
    weight = nn.Parameter(torch.zeros(48, 64))
    optimizer = MuonAdamW([{"params": [weight], "rank": 8}], lr=1.0)
    weight.grad = torch.randn(48, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 0, 64)
    optimizer.step()
    values = torch.linalg.svdvals(weight.detach()) / (0.2 * 64**0.5)
    assert 0.3 < values.min() <= values.max() < 1.5
    assert 0.1 < weight.detach().square().mean().sqrt() < 0.4


def test_what_an_override_names_is_left_to_adamw() -> None:
    network = make_network()
    optimizer = build_optimizer("muon", network, overrides={"hidden.*": None})
    give_gradients(dict(network.named_parameters()), 0)
    optimizer.step()
    muons = [name for name, param in network.named_parameters() if "momentum_buffer" in optimizer.state[param]]
    assert muons == ["Wqkv.weight"]
    assert [group["name"] for group in optimizer.param_groups] == ["muon-qkv", "adamw", "adamw-no-decay"]


def test_half_precision_weights_have_momentum_in_float32() -> None:
    network: Any = make_network(torch.bfloat16)
    optimizer = MuonAdamW(param_groups(network), lr=0.1)
    give_gradients(dict(network.named_parameters()), 0)
    before = network["hidden"].weight.detach().clone()
    optimizer.step()
    weight = network["hidden"].weight
    assert weight.dtype == torch.bfloat16
    assert not torch.equal(weight, before)
    assert optimizer.state[weight]["momentum_buffer"].dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, r"momentum=1.0: expected a number in \[0, 1\)"),
        ({"nesterov": 1}, "nesterov=1: expected True or False"),
        ({"ns_steps": 0}, "ns_steps=0"),
        ({"ns_steps": 100}, "ns_steps=100: expected fewer than 100"),
        ({"rank": 4}, "no option 'rank'"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build_optimizer("muon", nn.Linear(16, 16), **options)
