from typing import Any

import torch
from torch import nn

from scgalore.optim import GaLoreAdamW, state_bytes


class Holder:
    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = [matrix]


def with_state(**state: Any) -> torch.optim.Optimizer:
    param = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([param], lr=0.1)
    optimizer.state[param] = state
    return optimizer


def test_no_state_is_no_bytes() -> None:
    assert state_bytes(torch.optim.AdamW([nn.Parameter(torch.zeros(3))])) == 0


def test_adamw_keeps_two_moments_and_a_counter() -> None:
    param = nn.Parameter(torch.zeros(10, 7))
    optimizer = torch.optim.AdamW([param])
    param.grad = torch.ones(10, 7)
    optimizer.step()
    assert state_bytes(optimizer) == 2 * 70 * 4 + 4


def test_view_counts_as_what_it_keeps_alive() -> None:
    large = torch.zeros(100, 100)
    assert state_bytes(with_state(basis=large[:, :3])) == 40_000
    assert state_bytes(with_state(basis=large[:, :3].clone())) == 1_200


def test_shared_storage_counts_once() -> None:
    large = torch.zeros(100)
    assert state_bytes(with_state(a=large[:50], b=large[50:], c=[large])) == 400


def test_tensors_inside_containers_and_objects_are_found() -> None:
    a, b, c = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    cyclic: list[Any] = [c]
    cyclic.append(cyclic)
    assert state_bytes(with_state(object=Holder(a), nested={"x": (b,)}, cyclic=cyclic, number=3, text="x")) == 24


def test_galore_torch_keeps_the_whole_svd_and_ours_does_not() -> None:
    from galore_torch import GaLoreAdamW as Reference

    sizes = []
    for build in (GaLoreAdamW, lambda groups: Reference(groups, no_deprecation_warning=True)):
        param = nn.Parameter(torch.zeros(64, 64))
        optimizer = build([{"params": [param], "rank": 4, "update_proj_gap": 10, "scale": 1.0, "proj_type": "std"}])
        param.grad = torch.randn(64, 64)
        optimizer.step()
        sizes.append(state_bytes(optimizer))
    moments = 2 * 64 * 4 * 4
    assert sizes == [moments + 64 * 4 * 4, moments + 64 * 64 * 4]
