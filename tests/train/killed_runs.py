"""Runs that are killed and resumed, for ``test_resume.py``: ``python killed_runs.py FOLDER RUN``.

Every attempt is a process of its own, forked before anything is computed, so that the imports are paid for once.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import scanpy as sc
import torch
from torch._subclasses.fake_tensor import is_fake

import scgalore.train.runner
from scgalore.data.vocab import GeneVocab
from scgalore.model import SCGPT
from scgalore.nn import SCGPTConfig
from scgalore.objectives import Classification, MaskedExpression

RUNS: dict[str, dict[str, Any]] = {
    "galore-classes": {"optimizer": "galore", "labels_key": "bulk_labels", "prior": "none"},
    "adamw-masked": {"optimizer": "adamw", "labels_key": None},
}
TRAINING: dict[str, Any] = {
    "max_epochs": 6,
    "batch_size": 16,
    "patience": 2,
    "lr": 2e-3,
    "validation_size": 0.2,
    "rng": 3,
}


def main(folder: Path, name: str) -> None:
    """Train a run without interruption, and once more killed twice and resumed."""
    # Frequent refreshes, so that bases change on both sides of the interruption.
    options = {"update_proj_gap": 3, "rank": 4} if RUNS[name]["optimizer"] == "galore" else {}
    run = {**TRAINING, **RUNS[name], "optimizer_options": options}
    for attempt, die in (("killed", in_epoch(1)), ("killed again", while_saving), ("resumed", unharmed)):
        code = in_child(folder / "resumed", run, die)
        expected = 0 if attempt == "resumed" else -signal.SIGKILL
        assert code == expected, (attempt, code)
    assert in_child(folder / "whole", run, unharmed) == 0


def in_child(folder: Path, run: dict[str, Any], die: Callable[[], Any]) -> int:
    """Give the exit code of a process that trains."""
    child = os.fork()
    if child == 0:
        try:
            with die():
                train(folder, run)
        except BaseException as error:  # noqa: BLE001 -- whatever it is, the parent must hear of it
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train(folder: Path, run: dict[str, Any]) -> None:
    """Train a model and write down all that the run left."""
    torch.set_num_threads(1)
    adata = cells()
    vocab = GeneVocab.from_genes(adata.var_names)
    size: dict[str, Any] = {"d_model": 16, "n_heads": 2, "d_hid": 32, "n_layers": 2, "dropout": 0.2, "max_length": 40}
    model = SCGPT.from_config(SCGPTConfig(n_tokens=len(vocab), pad_id=vocab.pad_id, **size), vocab)
    model.train(adata, **run, checkpoint_dir=folder / "checkpoints", resume=True)
    torch.save(model.network.state_dict(), folder / "weights.pt")
    model.history.to_csv(folder / "history.csv")
    pd.Series(model.result.summary()).to_csv(folder / "training.csv")


def cells() -> Any:
    """75 real cells of the frequent labels, 120 genes, many of them with more tokens than the model takes."""
    reduced = sc.datasets.pbmc68k_reduced()
    adata = reduced.raw.to_adata()
    adata.obs = reduced.obs.copy()
    frequent = adata.obs["bulk_labels"].value_counts().index[:3]
    return adata[adata.obs["bulk_labels"].isin(frequent)][:75, :120].copy()


@contextmanager
def unharmed() -> Iterator[None]:
    """Let the run live."""
    yield


def in_epoch(epoch: int) -> Callable[[], Any]:
    """Kill the run at the third training step of an epoch."""

    @contextmanager
    def die() -> Iterator[None]:
        for objective in (Classification, MaskedExpression):
            objective.__call__ = _counted(objective.__call__, epoch)  # type: ignore[method-assign]
        yield

    return die


def _counted(loss: Any, epoch: int) -> Any:
    steps = count()
    per_epoch = -(-60 // TRAINING["batch_size"])

    def counted(self: Any, network: Any, batch: Any) -> Any:
        if network.training and not is_fake(batch.genes) and next(steps) == epoch * per_epoch + 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(self, network, batch)

    return counted


@contextmanager
def while_saving() -> Iterator[None]:
    """Kill the run in the middle of writing a checkpoint over another."""
    save = torch.save
    calls = count()

    def half(content: Any, path: Any, *args: Any, **options: Any) -> None:
        save(content, path, *args, **options)
        if next(calls) == 1:
            whole = Path(path).read_bytes()
            Path(path).write_bytes(whole[: len(whole) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half  # type: ignore[assignment]
    yield


if __name__ == "__main__":
    assert scgalore.train.runner  # imported before the first fork
    main(Path(sys.argv[1]), sys.argv[2])
