"""One run: attach, train, score."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from scgalore.adapters import attach_adapter
from scgalore.adapters.base import target_layers

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.lowrank_claims.data import Part
    from benchmarks.lowrank_claims.tasks import Task
    from torch import Tensor

    from scgalore.adapters import Adapter

Method = Literal["full", "matrices", "head", "lora", "lte"]
WARMUP = 0.05  # of the steps
PRETRAINING_LR = 2e-3
PRETRAINING_BATCH = 32


@dataclass(frozen=True)
class Arm:
    """One way to train on one task.

    Attributes
    ----------
    claim
        Letter of the claim.
    task
        What is learnt.
    name
        Row of the table.
    method
        What trains at the learning rate that is tuned: "full" everything but the heads, "matrices" the linear layers of
        the blocks, "head" the heads, "lora" and "lte" the adapter.
    steps, batch
        Steps of the optimizer, and samples in a batch.
    lr
        Where the search for the learning rate begins.
    options
        Of the adapter.
    decay
        Whether the learning rates follow a half cosine to zero; otherwise they are constant after the warm-up.
    score_every
        Steps between scores on the test part; 0 scores at the end alone.
    """

    claim: str
    task: Task
    name: str
    method: Method
    steps: int
    batch: int
    lr: float
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    decay: bool = True
    score_every: int = 0


@dataclass(frozen=True)
class Trainable:
    """Trained parameters of a run: at the tuned learning rate, and at that of the others."""

    tuned: list[nn.Parameter]
    rest: list[nn.Parameter]
    adapter: Adapter | None


def prepare(network: Any, arm: Arm, seed: int) -> Trainable:
    """Attach what the arm attaches, and freeze what it freezes."""
    if arm.method in ("lora", "lte"):
        adapter = attach_adapter(arm.method, network, seed=seed, **arm.options)
        own = {id(param) for param in adapter.parameters()}
        return _sorted(network, own, adapter)
    if arm.method == "matrices":
        return _sorted(network, {id(layer.weight) for layer in target_layers(network, "all").values()}, None)
    body = {id(param) for name, part in network.named_children() if name in network.body for param in part.parameters()}
    heads = {id(param) for param in network.parameters()} - body
    if arm.method == "full":
        return _sorted(network, body, None)
    for param in network.parameters():
        param.requires_grad_(id(param) in heads)
    return _sorted(network, heads, None)


def _sorted(network: nn.Module, tuned: set[int], adapter: Adapter | None) -> Trainable:
    trains = [param for param in network.parameters() if param.requires_grad]
    return Trainable([p for p in trains if id(p) in tuned], [p for p in trains if id(p) not in tuned], adapter)


def factor(step: int, steps: int, *, decay: bool) -> float:
    """Share of the learning rate at a step."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    if not decay:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(arm: Arm, lr: float, seed: int, base: dict[str, Tensor] | None) -> dict[str, Any]:
    """Train one arm once; scores on both held-out parts, the curve, and what it took."""
    began = time.process_time()
    network = arm.task.network(seed, base)
    trainable = prepare(network, arm, seed)
    optimizer = AdamW(
        [
            {"params": group, "lr": rate}
            for group, rate in ((trainable.tuned, lr), (trainable.rest, arm.task.rest_lr))
            if group
        ],
        weight_decay=0.0,
        fused=True,
    )
    schedule = LambdaLR(optimizer, lambda step: factor(step, arm.steps, decay=arm.decay))
    curve = []
    for step, batch in enumerate(islice(arm.task.batches(seed, arm.batch), arm.steps), start=1):
        network.train()
        arm.task.loss(network, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if trainable.adapter is not None:
            trainable.adapter.after_step()
        if arm.score_every and step % arm.score_every == 0:
            curve.append(score(arm.task, network, "test"))
    if trainable.adapter is not None:
        trainable.adapter.detach()  # same outputs; sixteen heads side by side are slow to evaluate
    return {
        "validation": score(arm.task, network, "validation"),
        "test": score(arm.task, network, "test"),
        "curve": curve,
        "n_tuned": sum(param.numel() for param in trainable.tuned),
        "n_rest": sum(param.numel() for param in trainable.rest),
        "seconds": round(time.process_time() - began, 2),
    }


@torch.no_grad()
def score(task: Task, network: nn.Module, part: Part) -> dict[str, float]:
    """Score in evaluation mode; a loss that is not a number is infinite, so that no search prefers it."""
    network.eval()
    scores = task.evaluate(network, part)
    if not math.isfinite(scores["loss"]):
        scores["loss"] = math.inf
    return {key: round(value, 6) for key, value in scores.items()}


def pretrain(task: Task, steps: int) -> dict[str, Tensor]:
    """Train all parameters of a network from random weights; the same bits every time."""
    network = task.network(0, None)
    network.train()
    optimizer = AdamW(network.parameters(), lr=PRETRAINING_LR, weight_decay=0.0, fused=True)
    schedule = LambdaLR(optimizer, lambda step: factor(step, steps, decay=True))
    for batch in islice(task.batches(0, PRETRAINING_BATCH), steps):
        task.loss(network, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return network.state_dict()


def base_weights(task: Task, folder: Path) -> dict[str, Tensor] | None:
    """Weights that fine-tuning starts from, trained when first asked for."""
    if task.base is None:
        return None
    path = folder / f"{type(task).__name__}-{task.pretraining_steps}.pt"
    if not path.exists():
        torch.save(pretrain(task.base, task.pretraining_steps), path)
    return torch.load(path, weights_only=True)
