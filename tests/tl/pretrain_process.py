"""What each of the processes does that ``test_pretrain_distributed`` starts: pre-train, and write down what it has at the end."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tests.steps import is_step
from torch import distributed

from scgalore._settings import settings
from scgalore.objectives import MaskedExpression
from scgalore.tl import pretrain
from scgalore.train import runner

READ: dict[str, Any] = {"block_size": 4, "buffer_size": 16, "batch_size": 8, "validation_cells": 9}
RUN: dict[str, Any] = {**READ, "max_steps": 12, "steps_per_epoch": 3, "accelerator": "cpu", "rng": 1}
# Small steps of a smooth optimizer keep the rounding of another order of adding up from growing.
SMOOTH: dict[str, Any] = {"optimizer": "adamw", "optimizer_options": {"eps": 1e-3}}

#: Name of each run, options of the network, options of the training.
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "pass": ({}, {"max_steps": 5, "steps_per_epoch": 5}),
    "together": (
        {"dropout": 0.0},
        {**SMOOTH, "batch_size": 41, "buffer_size": 41, "max_steps": 6, "lr": 1e-3, "validation_cells": 8},
    ),
    "muon": ({}, {"optimizer": "muon"}),
    "sharded_muon": ({}, {"optimizer": "muon", "shard_optimizer": True}),
    "hours": ({}, {"max_steps": None, "max_hours": 2 / 3600}),
}


class Stop(Exception):
    """Ends a run."""


@contextmanager
def watched(left: int = 10**6) -> Iterator[list[list[int]]]:
    """Note the cells of each step of this process, and end it at one of them."""
    loss, seen = MaskedExpression.__call__, list[list[int]]()

    def noted(self: Any, network: Any, batch: Any) -> Any:
        if is_step(network, batch):
            if len(seen) == left:
                raise Stop
            seen.append(batch.cells.tolist())
        return loss(self, network, batch)

    MaskedExpression.__call__ = noted  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        MaskedExpression.__call__ = loss  # type: ignore[method-assign]


def train(folder: Path, network: dict[str, Any], options: dict[str, Any]) -> Any:
    """Pre-train a tiny model from the same random weights."""
    from tests.tiny_plugin import tiny_model

    names = (folder / "genes.txt").read_text(encoding="utf-8").split()
    given = {name: value for name, value in {**RUN, **options}.items() if value is not None}
    return pretrain(sorted((folder / "cells").iterdir()), tiny_model(names, **network), **given)


def result(model: Any, seen: list[list[int]]) -> dict[str, Any]:
    """What a run has left."""
    return {
        "weights": model.network.state_dict(),
        "history": model.history.reset_index().to_dict("list"),
        "training": model.result.summary(),
        "seen": seen,
    }


def attempt(folder: Path, network: dict[str, Any], options: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Do one run."""
    with watched() as seen:
        return result(train(folder, network, {**options, **more}), seen)


def interrupted(folder: Path, network: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Train until the eighth step fails, which is inside an epoch, and go on from the checkpoint."""
    more: dict[str, Any] = {"checkpoint_dir": folder / "run", "checkpoint_every": 1, "keep_best": 2, "logger": "csv"}
    with watched(7):
        try:
            train(folder, network, {**options, **more})
        except Stop:
            distributed.barrier()
    return attempt(folder, network, options, **more, resume=True, save_dir=folder / "model")


def main(folder: Path) -> None:
    """Do all runs."""
    settings.verbosity = 0
    runs: dict[str, Callable[[], dict[str, Any]]] = {
        name: lambda spec=spec: attempt(folder, *spec)  # type: ignore[misc]
        for name, spec in RUNS.items()
    }
    runs["resumed_sharded_muon"] = lambda: interrupted(folder, *RUNS["sharded_muon"])
    for name, run in runs.items():
        found = run()
        torch.save(found, folder / f"{name}-{distributed.get_rank()}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    assert runner
    main(Path(sys.argv[1]))
