"""Tune and repeat every arm in a pool of processes; every finished run is a line of a file, and is never run again."""

from __future__ import annotations

import hashlib
import json
import math
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import torch
from benchmarks.lowrank_claims.training import base_weights, train

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from benchmarks.lowrank_claims.training import Arm

TUNING_SEED = 1000  # none of the seeds that are reported
FACTOR = math.sqrt(10)  # between two neighbouring learning rates of a search


@dataclass(frozen=True)
class Budget:
    """What every arm is given: runs to find its learning rate, and seeds at the one it found."""

    n_trials: int
    n_seeds: int


def next_exponent(losses: Mapping[float, tuple[float, ...]]) -> float:
    """Where a search looks next, in powers of :data:`FACTOR`.

    It climbs in whole steps until the best value has a worse one on either side, then looks half a step from the best
    towards the better side.
    """
    if not losses:
        return 0.0
    best = min(losses, key=lambda exponent: (losses[exponent], exponent))
    for neighbour in (best + 1, best - 1):
        if neighbour not in losses:
            return neighbour
    side = 1 if losses[best + 1] <= losses[best - 1] else -1
    step = 0.5
    while best + side * step in losses:
        step /= 2
    return best + side * step


def run_key(arm: Arm, lr: float, seed: int) -> str:
    """Name of a run: the arm in words and as a digest of all its numbers, learning rate and seed."""
    digest = hashlib.sha256(repr(arm).encode()).hexdigest()[:12]
    return f"{arm.claim} | {arm.task.name} | {arm.name} | {digest} | lr {lr:.3g} | seed {seed}"


def read_runs(path: Path) -> dict[str, dict[str, Any]]:
    """Finished runs by key; a line that an interruption cut short is left out."""
    runs = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            run = json.loads(line)
        except json.JSONDecodeError:
            continue
        runs[run["key"]] = run
    return runs


def study(arm: Arm, budget: Budget, folder: Path) -> dict[str, Any]:
    """Find the learning rate of an arm on the validation part, then repeat it with other seeds."""
    path = folder / "runs.jsonl"
    done = read_runs(path)
    base = base_weights(arm.task, folder)

    def run(lr: float, seed: int) -> dict[str, Any]:
        key = run_key(arm, lr, seed)
        if key not in done:
            done[key] = {"key": key, "lr": lr, "seed": seed, **train(arm, lr, seed, base)}
            with path.open("a") as file:
                file.write(json.dumps(done[key]) + "\n")
        return done[key]

    trials: dict[float, dict[str, Any]] = {}
    while len(trials) < budget.n_trials:
        exponent = next_exponent({tried: arm.task.criterion(trial["validation"]) for tried, trial in trials.items()})
        trials[exponent] = run(float(f"{arm.lr * FACTOR**exponent:.3g}"), TUNING_SEED)
    best = min(trials, key=lambda tried: (arm.task.criterion(trials[tried]["validation"]), tried))
    lr = trials[best]["lr"]
    return {
        "claim": arm.claim,
        "task": arm.task.name,
        "arm": arm.name,
        "method": arm.method,
        "options": arm.options,
        "steps": arm.steps,
        "batch": arm.batch,
        "score_every": arm.score_every,
        "rest_lr": arm.task.rest_lr,
        "lr": lr,
        # The best of the rates tried was the largest or smallest of them: a better one may lie beyond.
        "lr_at_edge": best in (min(trials), max(trials)),
        "trials": list(trials.values()),
        "runs": [run(lr, seed) for seed in range(budget.n_seeds)],
    }


def study_all(arms: Sequence[Arm], budgets: Mapping[str, Budget], folder: Path, n_workers: int) -> list[dict[str, Any]]:
    """Study arms side by side, in the order given; the results are in that order, too.

    Parameters
    ----------
    arms
        All arms.
    budgets
        Budget of each claim, by its letter.
    folder
        Keeps finished runs and pre-trained networks.
    n_workers
        Processes, of one thread each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # One thread each: the arms are independent, and a sum over threads would hang on their number.
    with ProcessPoolExecutor(
        n_workers, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        # First, since two processes that need the same pre-trained network would both make it.
        tasks = list({(arm.task.base, arm.task.pretraining_steps): arm.task for arm in arms}.values())
        list(pool.map(base_weights, tasks, [folder] * len(tasks)))
        waiting = {pool.submit(study, arm, budgets[arm.claim], folder): i for i, arm in enumerate(arms)}
        found: dict[int, dict[str, Any]] = {}
        for future in as_completed(waiting):
            i = waiting[future]
            found[i] = future.result()
            print(f"{len(found)}/{len(arms)}: {arms[i].claim}, {arms[i].task.name}, {arms[i].name}", flush=True)
    return [found[i] for i in range(len(arms))]
