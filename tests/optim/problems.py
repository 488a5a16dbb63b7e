"""Small problems that the tests of the optimizers share; also imported by the processes that some tests start."""

from typing import Any

import torch
from torch import Tensor, nn

from scgalore.optim import GaLoreAdamW, param_groups


class Regression:
    """``W -> |X (W - target)'|^2``, its gradient small enough for float32 rounding to stay below eps."""

    def __init__(self, shape: tuple[int, int], *, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(32, shape[1], generator=generator).to(dtype)
        self.target = torch.randn(shape, generator=generator).to(dtype)
        self.weight = nn.Parameter((0.1 * torch.randn(shape, generator=generator)).to(dtype))

    def loss(self) -> Tensor:
        return 1e-3 * (self.inputs @ (self.weight - self.target).T).square().mean()

    def run(self, optimizer: torch.optim.Optimizer, n_steps: int) -> Tensor:
        for _ in range(n_steps):
            optimizer.zero_grad()
            self.loss().backward()
            optimizer.step()
        return self.weight.detach().clone()


def make_network(dtype: torch.dtype = torch.float32) -> nn.Module:
    # Smooth: Adam would make whole steps of the rounding errors in the gradients of units that hardly fire.
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 24), nn.Tanh(), nn.Linear(24, 24), nn.LayerNorm(24), nn.Linear(24, 3)).to(dtype)


def make_batch(number: int, size: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(size, 20, generator=generator), torch.randint(3, (size,), generator=generator)


def make_optimizer(network: nn.Module, *, lr: float = 1e-2, proj_type: Any = "std", **options: Any) -> GaLoreAdamW:
    groups = param_groups(network, rank=4, update_proj_gap=5, proj_type=proj_type, weight_decay=0.01)
    return GaLoreAdamW(groups, lr=lr, **options)


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    dtype = next(network.parameters()).dtype
    for number in steps:
        inputs, classes = make_batch(number)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(inputs.to(dtype)), classes)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def equal_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
