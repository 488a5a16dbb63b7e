from collections.abc import Iterator

import pytest
import torch
from torch import distributed, nn

from scgalore.errors import OptionError
from scgalore.optim import build_optimizer
from scgalore.optim.needs import needs_of
from scgalore.optim.sharded import ShardedOptimizer


@pytest.fixture(autouse=True)
def group_of_one() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_an_optimizer_that_works_on_all_parameters_is_refused() -> None:
    with pytest.raises(OptionError, match="SophiaG needs all parameters at once"):
        ShardedOptimizer(build_optimizer("sophia", nn.Linear(4, 4)))


def test_needs_are_those_of_the_optimizer_inside() -> None:
    layer = nn.Linear(16, 16, bias=False)
    sharded = ShardedOptimizer(build_optimizer("galore", layer, rank=2, update_proj_gap=100))
    assert not needs_of(sharded).needs_curvature()
    bases = []
    for step in range(3):
        layer(torch.randn(8, 16)).square().sum().backward()
        if step == 2:
            needs_of(sharded).refresh()
        sharded.step()
        bases.append(sharded.state[layer.weight]["basis"].clone())
    assert torch.equal(bases[0], bases[1])
    assert not torch.equal(bases[1], bases[2])


def test_an_optimizer_that_knows_nothing_of_needs_has_none() -> None:
    sharded = ShardedOptimizer(build_optimizer("adamw", nn.Linear(4, 4)))
    needs_of(sharded).refresh()
    assert not needs_of(sharded).needs_curvature()


def test_an_optimizer_that_has_begun_is_refused() -> None:
    layer = nn.Linear(4, 4)
    optimizer = build_optimizer("adamw", layer)
    layer(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    with pytest.raises(OptionError, match="already has state"):
        ShardedOptimizer(optimizer)


def test_without_a_process_group_there_is_nobody_to_share_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "is_initialized", lambda: False)
    with pytest.raises(OptionError, match="requires a process group"):
        ShardedOptimizer(build_optimizer("adamw", nn.Linear(4, 4)))
