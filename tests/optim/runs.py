"""A small transformer and a way to train it with any entry of the registry; ``python runs.py FOLDER THREADS`` resumes.

Beside the tests, since a resumed run has to be a process of its own.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scgalore.optim import OPTIMIZERS, build_optimizer, sample_classes
from scgalore.optim.needs import needs_of

N_TOKENS, N_CLASSES, WIDTH = 40, 5, 64
INTERRUPTED, END = 7, 15


class SmallTransformer(nn.Module):
    """One block with a packed q/k/v weight; its matrices have the 4,096 entries from which 8-bit state begins."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(N_TOKENS, WIDTH)
        self.Wqkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out_proj = nn.Linear(WIDTH, WIDTH)
        self.linear1 = nn.Linear(WIDTH, 2 * WIDTH)
        self.linear2 = nn.Linear(2 * WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, N_CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)  # (b, s, d)
        q, k, v = self.Wqkv(x).chunk(3, dim=-1)
        x = x + self.out_proj(F.scaled_dot_product_attention(q, k, v))
        x = x + self.linear2(F.gelu(self.linear1(x)))
        return self.head(self.norm(x).mean(dim=1))


def make_network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return SmallTransformer().to(dtype)


def make_optimizer(name: str, network: nn.Module) -> torch.optim.Optimizer:
    """Build an entry such that bases change on both sides of an interruption."""
    options: dict[str, Any] = {"update_proj_gap": 3, "curvature_every": 3}
    options = {key: value for key, value in options.items() if key in OPTIMIZERS[name].options}
    return build_optimizer(name, network, lr=1e-2, weight_decay=0.1, **options)


def supply_curvature(optimizer: torch.optim.Optimizer, network: nn.Module, tokens: Tensor, seed: int) -> None:
    """Do for an optimizer that asks for it what a training loop does."""
    needs = needs_of(optimizer)
    if needs.needs_curvature():
        logits = network(tokens)
        drawn = sample_classes(logits, torch.Generator().manual_seed(seed))
        needs.update_curvature(F.cross_entropy(logits.float(), drawn), n_terms=len(drawn))


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> float:
    """Train on batches that the number of the step decides, and give the last loss."""
    last = float("nan")
    for number in steps:
        generator = torch.Generator().manual_seed(number)
        tokens = torch.randint(N_TOKENS, (16, 6), generator=generator)
        supply_curvature(optimizer, network, tokens, number)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(tokens).float(), tokens[:, 0] % N_CLASSES)
        loss.backward()
        optimizer.step()
        last = loss.item()
    return last


def save(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    torch.save({"weights": network.state_dict(), "optimizer": optimizer.state_dict()}, path)


def resume(folder: Path) -> None:
    """Continue every interrupted run to its end."""
    for path in sorted(folder.glob("*.interrupted")):
        content = torch.load(path, weights_only=True)
        network = make_network()
        network.load_state_dict(content["weights"])
        optimizer = make_optimizer(path.stem, network)
        optimizer.load_state_dict(content["optimizer"])
        train(network, optimizer, range(INTERRUPTED, END))
        save(path.with_suffix(".resumed"), network, optimizer)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    resume(Path(sys.argv[1]))
