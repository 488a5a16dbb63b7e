"""Held-out quality of every optimizer and adapter on real cells.

Each entry fine-tunes the bundled weights on two tasks and trains random ones on the third. Its learning rate is chosen from a grid of the same size
for all, by the validation loss on a split used for nothing else; five other splits, the same for all, are then scored on
held-out cells, so that differences between entries are paired. Finished fits are kept in a file of JSON lines: a run
that was stopped goes on where it was, and a variant is soon compared:

    python benchmarks/optimizer_quality.py --data DIR
    python benchmarks/optimizer_quality.py --tasks pbmc68k --entries galore adamw --set rank=32
    python benchmarks/optimizer_quality.py --quick

``DIR`` holds ``kang18_pbmc_ifnb_muscat.h5ad`` and ``citeseq_500cells_citefuse.h5ad``; a task without its file is left out.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import cached_property, lru_cache, partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import torch
from scipy import stats
from sklearn.metrics import f1_score
from torch.optim.optimizer import register_optimizer_step_post_hook

import scgalore as sg
from scgalore.data.labels import encode_labels
from scgalore.data.sampler import BatchRequest, sorted_batches
from scgalore.data.split import Split, random_split
from scgalore.errors import DataError, OptionError
from scgalore.model import SCGPT
from scgalore.objectives import MaskedExpression
from scgalore.optim import OPTIMIZERS
from scgalore.pipeline.measure import versions
from scgalore.tasks import CellTask, Prepared, task_named
from scgalore.tasks.calibration import softmax
from scgalore.tasks.classes import HEAD, ClassesMemory
from scgalore.train import TrainConfig

if TYPE_CHECKING:
    from scgalore.data.cells import TokenCells

Json = dict[str, Any]

RESULTS = Path(__file__).parent / "results"
TUNING_SEED = 100
SEEDS = (1, 2, 3, 4, 5)
# The defaults of the registry are for a network eight times as wide; the best learning rate falls about as the width
# grows, so the grid surrounds ten times the default.
GRID = (3.0, 10.0, 30.0, 100.0)
SPACING = GRID[1] / GRID[0]
MOST_EXTENSIONS = 2
REFERENCE = "adamw"


@dataclass(frozen=True)
class Task:
    """What is learnt from which cells, and for how long; the same for all entries.

    ``max_length`` limits the tokens of a training cell, ``read_length`` those of validation and held-out cells, and
    ``n_cells`` the cells, taken evenly from the classes. ``from_scratch`` starts from random weights, drawn with the seed.
    """

    name: str
    file: str | None
    labels_key: str | None
    epochs: int
    batch_size: int = 16
    max_length: int = 128
    read_length: int = 400
    n_cells: int = 800
    from_scratch: bool = False

    @property
    def metrics(self) -> dict[str, int]:
        """Held-out numbers, with 1 where more is better and -1 where less is."""
        return (
            {"masked error": -1, "loss": -1} if self.labels_key is None else {"accuracy": 1, "macro F1": 1, "loss": -1}
        )


CITE_SEQ = "citeseq_500cells_citefuse.h5ad"
TASKS = {
    task.name: task
    for task in (
        Task("pbmc68k", None, "bulk_labels", epochs=8, max_length=96, read_length=200),
        Task(
            "kang", "kang18_pbmc_ifnb_muscat.h5ad", "cluster_id", epochs=6, max_length=96, read_length=200, n_cells=600
        ),
        # Small batches of short cells: with fewer steps some seeds are still at a constant prediction at the end.
        Task("cite-seq", CITE_SEQ, None, epochs=12, batch_size=8, max_length=96, read_length=200, from_scratch=True),
        # The bundled weights know these cells: next to nothing is left to learn, and nothing to tell entries apart by.
        Task("cite-seq-tuned", CITE_SEQ, None, epochs=12, batch_size=8, max_length=96, read_length=200),
    )
}
FULL_RUN = ("pbmc68k", "kang", "cite-seq")
WHAT = {
    "pbmc68k": "annotation of pbmc68k (scanpy's 700 cells, 10 classes)",
    "kang": "annotation of Kang et al. 2018 (PBMC with and without interferon beta, 5 classes)",
    "cite-seq": "masked expression on the RNA of Mimitou et al. 2019 (CITE-seq, PBMC), from random weights",
    "cite-seq-tuned": "masked expression on the RNA of Mimitou et al. 2019 (CITE-seq, PBMC), fine-tuned",
}


@dataclass(frozen=True)
class Entry:
    """One row of the table: fields of :class:`~scgalore.train.TrainConfig`, and a factor on its grid of rates."""

    label: str
    train: Json = field(default_factory=dict)
    lr_shift: float = 1.0

    @property
    def options(self) -> Json:
        """All settings that affect the outcome besides learning rate and seed, including defaults of the registry."""
        spec = OPTIMIZERS[self.train["optimizer"]]
        chosen: Json = dict(self.train)
        chosen["optimizer_options"] = {**spec.options, **self.train.get("optimizer_options", {})}
        if adapter := self.train.get("adapter"):
            chosen["adapter_options"] = {**_adapter(adapter).options, **self.train.get("adapter_options", {})}
        return chosen

    def fits(self, task: Task) -> bool:
        """Whether it can learn the task: LoRA keeps the weights that it starts from, which must not be random."""
        return not (task.from_scratch and self.train.get("adapter") == "lora")

    @property
    def grid(self) -> list[float]:
        """Learning rates to try."""
        factor = _adapter(self.train["adapter"]).lr_factor if self.train.get("adapter") else 1.0
        return [_rounded(OPTIMIZERS[self.train["optimizer"]].lr * factor * self.lr_shift * step) for step in GRID]

    def variant(self, settings: Mapping[str, Any]) -> Entry | None:
        """Entry with other options, named ``rank`` or ``adapter.rank`` or ``train.clip_norm``; ``None`` without them."""
        known, train = self.options, dict(self.train)
        for key, value in settings.items():
            home, _, name = key.rpartition(".")
            if home == "train":
                train[name] = value
                continue
            place = "adapter_options" if home == "adapter" else "optimizer_options"
            if name not in known.get(place, {}):
                return None
            train[place] = {**train.get(place, {}), name: value}
        return replace(self, label=", ".join([self.label, *(f"{k}={v}" for k, v in settings.items())]), train=train)


def _adapter(name: str) -> Any:
    from scgalore.adapters import ADAPTERS

    return ADAPTERS[name]


def _rounded(lr: float) -> float:
    return float(f"{lr:.2g}")


def _entry(label: str, optimizer: str, *, lr_shift: float = 1.0, **train: Any) -> Entry:
    return Entry(label, {"optimizer": optimizer, **train}, lr_shift)


ENTRIES = {
    entry.label: entry
    for entry in (
        _entry("galore", "galore"),
        _entry("galore, rank 8", "galore", optimizer_options={"rank": 8}),
        _entry("galore-torch", "galore-torch"),
        _entry("galore-torch, gap 20", "galore-torch", optimizer_options={"update_proj_gap": 20}),
        _entry("adamw", "adamw"),
        _entry("apollo", "apollo"),
        _entry("apollo-mini", "apollo-mini"),
        _entry("muon", "muon"),
        _entry("adamw-8bit", "adamw-8bit"),
        # Its rate is relative to the size of the weights, which does not hang on the width.
        _entry("adafactor", "adafactor", lr_shift=0.1),
        _entry("sophia", "sophia"),
        # Ten times the default for the width and ten times for the adapter is too much in short trials.
        _entry("lora + adamw", "adamw", lr_shift=0.3, adapter="lora"),
        _entry(
            "lora + galore",
            "galore",
            lr_shift=0.3,
            adapter="lora",
            adapter_options={"targets": "attention", "others": "train"},
        ),
        _entry("lte + galore", "galore", adapter="lte"),
    )
}

# Cells


@lru_cache(maxsize=1)
def read_task(task: Task, data: str | None, weights: str) -> tuple[ad.AnnData, TokenCells]:
    """Cells of a task, and the same made ready for the network, once in a process."""
    adata = (
        sc.datasets.pbmc68k_reduced().raw.to_adata() if task.file is None else ad.read_h5ad(Path(data or "", task.file))
    )
    labels = None if task.labels_key is None else encode_labels(adata, task.labels_key)[0]
    if adata.n_obs > task.n_cells:
        left_out = 1 - task.n_cells / adata.n_obs
        adata = adata[random_split(adata.n_obs, validation_size=0, test_size=left_out, strata=labels).train].copy()
    cells = SCGPT.from_pretrained(weights).cells(adata, max_length=task.read_length)
    if task.labels_key is not None:
        cells = cells.with_targets(labels=encode_labels(adata, task.labels_key)[0])
    return adata, cells


def split_for(cells: TokenCells, seed: int) -> Split:
    """Parts of the cells: 70 % train; while tuning all others choose the rate, afterwards 20 % are held out."""
    validation, test = (0.3, 0.0) if seed == TUNING_SEED else (0.1, 0.2)
    return random_split(
        cells.n_obs, validation_size=validation, test_size=test, strata=cells.targets.get("labels"), seed=seed
    )


# One fit


def untrained_model(job: Json) -> SCGPT:
    """What a fit starts from."""
    model = SCGPT.from_pretrained(job["weights"])
    if not job["task"]["from_scratch"]:
        return model
    return SCGPT.from_config(replace(model.network.config, heads={}), model.vocab, rng=job["seed"])


def run_job(job: Json, data: str | None) -> Json:
    """Train once and score once; a job is plain data, so that it travels to another process and into a file.

    Returns
    -------
    What was measured; ``{"unavailable": reason}`` if this machine cannot run the entry.
    """
    task = Task(**job["task"])
    adata, cells = read_task(task, data, job["weights"])
    split = split_for(cells, job["seed"])
    if "reference" in job:
        return {"held_out": references_of(task)[job["reference"]](job, cells, split)}
    model = untrained_model(job)
    started = time.process_time()
    try:
        config = TrainConfig(
            **job["train"],
            lr=job["lr"],
            seed=job["seed"],
            max_epochs=task.epochs,
            batch_size=task.batch_size,
            max_length=task.max_length,
            accelerator=job["accelerator"],
        )
        learnt = task_named("expression" if task.labels_key is None else "classes")
        assert isinstance(learnt, CellTask)
        memory = None if task.labels_key is None else ClassesMemory(encode_labels(adata, task.labels_key)[1])
        objective = learnt.objective(model.network, memory)
        model.fit(Prepared(learnt, cells, split, objective, config, memory=memory))
    except (OptionError, ImportError) as error:
        return {"unavailable": str(error)}
    except DataError as error:  # a loss that is not finite
        return {"failed": str(error), "seconds": time.process_time() - started}
    assert model.result is not None
    n_steps = len(model.history) * -(-len(split.train) // task.batch_size)
    seconds = time.process_time() - started
    return {
        "validation_loss": float(model.history["validation_loss"].min()),
        "best_epoch": model.result.best_epoch,
        "optimizer_bytes": model.result.optimizer_bytes,
        "seconds": seconds,
        "ms_per_training_step": 1e3 * seconds / n_steps,
        "held_out": held_out(model, adata, cells, split) if len(split.test) else None,
    }


def held_out(model: SCGPT, adata: ad.AnnData, cells: TokenCells, split: Split) -> dict[str, float]:
    """Metrics of the held-out cells, named as in :attr:`Task.metrics`."""
    if "labels" not in cells.targets:
        return masked_errors(model, cells, split.test)
    rows, truth = split.test, cells.targets["labels"][split.test]
    test = model.cells(adata[rows], max_length=cells.tokenizer.config.max_length)
    logits = model.run(test, accelerator="cpu").heads[HEAD]
    return label_scores(softmax(logits), truth)  # not calibrated: what the optimizer itself has reached


def label_scores(probabilities: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Accuracy, macro F1 over the classes that occur, and cross entropy."""
    guess = probabilities.argmax(axis=1)
    likelihood = probabilities[np.arange(len(truth)), truth]
    return {
        "accuracy": float((guess == truth).mean()),
        "macro F1": float(f1_score(truth, guess, average="macro", labels=np.unique(truth))),
        "loss": float(-np.log(np.maximum(likelihood, 1e-12)).mean()),
    }


def masked_batches(cells: TokenCells, rows: np.ndarray, *, batch_size: int = 32) -> Iterator[Any]:
    """Held-out cells with the same 40 % of their genes hidden, whatever was trained."""
    for request in sorted_batches(rows, cells.lengths[rows], batch_size=batch_size):
        yield MaskedExpression().corrupt(cells.batch(request), seed=0, draw=0)


@torch.inference_mode()
def masked_errors(model: SCGPT, cells: TokenCells, rows: np.ndarray) -> dict[str, float]:
    """Mean squared error of the hidden bins, from the tokens and with that from the cell embedding added."""
    objective = MaskedExpression(mask_value=model.network.config.mask_value)
    total, error, n = 0.0, 0.0, 0
    for batch in masked_batches(cells, rows):
        loss, n_masked = objective(model.network, batch), int(batch.targets["masked"].sum())
        total, error, n = (
            total + float(loss.total) * n_masked,
            error + float(loss.parts["mse"]) * n_masked,
            n + n_masked,
        )
    return {"masked error": error / n, "loss": total / n}


# What needs no training


def class_frequencies(job: Json, cells: TokenCells, split: Split) -> dict[str, float]:
    """Frequencies of the classes among the training cells, for every cell."""
    labels = cells.targets["labels"]
    shares = np.bincount(labels[split.train], minlength=labels.max() + 1) / len(split.train)
    return label_scores(np.tile(shares, (len(split.test), 1)), labels[split.test])


def gene_means(job: Json, cells: TokenCells, split: Split) -> dict[str, float]:
    """Mean bin of each gene in the training cells that express it; their overall mean for a gene not seen there."""
    train = cells.batch(BatchRequest(split.train))
    seen = ~train.padding
    seen[:, 0] = False  # <cls> has no expression
    table = pd.DataFrame({"gene": train.genes[seen], "bin": train.values[seen]})
    means, errors = table.groupby("gene")["bin"].mean(), []
    for batch in masked_batches(cells, split.test):
        masked = batch.targets["masked"]
        guess = means.reindex(batch.genes[masked].numpy()).fillna(table["bin"].mean()).to_numpy()
        errors.append((guess - batch.targets["expression"][masked].numpy()) ** 2)
    return {"masked error": float(np.concatenate(errors).mean())}


def untrained(job: Json, cells: TokenCells, split: Split) -> dict[str, float]:
    """Score the weights as they are before training."""
    return masked_errors(untrained_model(job), cells, split.test)


LABEL_REFERENCES = {"class frequencies": class_frequencies}
MASKED_REFERENCES = {"gene means": gene_means, "before training": untrained}


def references_of(task: Task) -> Mapping[str, Callable[[Json, TokenCells, Split], dict[str, float]]]:
    """What the entries of a task are held against."""
    return MASKED_REFERENCES if task.labels_key is None else LABEL_REFERENCES


# Many fits


def source_digest() -> str:
    """Short digest of the package's code, to notice fits that another version made."""
    root = Path(sg.__file__).parent
    files = chain.from_iterable(
        (root / room).glob("*.py") for room in ("adapters", "nn", "objectives", "optim", "train")
    )
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()[:12]


def _prepare() -> None:
    """One thread, no messages, and scvi-tools loaded before a clock runs."""
    import scgalore.train.runner  # noqa: F401

    torch.set_num_threads(1)
    sg.settings.verbosity = 0


class Ledger:
    """Finished fits, in memory and in a file of JSON lines.

    Parameters
    ----------
    path
        The file; read if it exists, appended to.
    data
        Folder of the data.
    workers
        Processes that fit side by side, one thread each; with 1, this process fits.
    say
        What is called with each line of progress; printed when left out.
    """

    def __init__(self, path: Path, data: str | None, *, workers: int, say: Callable[[str], None] | None = None) -> None:
        self.path, self.data, self.workers = path, data, workers
        self.say = partial(print, flush=True) if say is None else say
        self.code = source_digest()
        self.unavailable: dict[str, str] = {}
        self.done: dict[str, Json] = {}
        if path.exists():
            whole, _, unfinished = path.read_text(encoding="utf-8").rpartition("\n")
            self.done = {_key(record["job"]): record for record in map(json.loads, whole.splitlines())}
            if unfinished:  # the run was killed while it wrote
                path.write_text(whole + "\n" if whole else "", encoding="utf-8")

    def __getitem__(self, job: Json) -> Json | None:
        record = self.done.get(_key(job))
        return None if record is None else record["result"]

    def run(self, jobs: Iterable[tuple[str, Json]]) -> None:
        """Run what is not done yet; each comes with the label of its entry."""
        unique = {_key(job): (label, job) for label, job in jobs if label not in self.unavailable}
        todo = [value for key, value in unique.items() if key not in self.done]
        for number, (label, job, result) in enumerate(self._results(todo), start=1):
            if "unavailable" in result:
                if label not in self.unavailable:
                    self.say(f"    {label} is left out: {result['unavailable']}")
                self.unavailable[label] = result["unavailable"]
                continue
            record = {"job": job, "result": result, "label": label, "code": self.code}
            self.done[_key(job)] = record
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            self.say(f"    {number}/{len(todo)} {label}: {_in_words(job, result)}")

    def _results(self, todo: Sequence[tuple[str, Json]]) -> Iterator[tuple[str, Json, Json]]:
        if self.workers == 1 or len(todo) < 2:
            _prepare()
            for label, job in todo:
                if label not in self.unavailable:
                    yield label, job, run_job(job, self.data)
            return
        futures = {self._pool.submit(run_job, job, self.data): (label, job) for label, job in todo}
        for future in as_completed(futures):
            yield *futures[future], future.result()

    @cached_property
    def _pool(self) -> ProcessPoolExecutor:
        """Kept for the whole run: a new process takes seconds to load the packages."""
        return ProcessPoolExecutor(self.workers, get_context("spawn"), _prepare)


def _key(job: Json) -> str:
    return json.dumps(job, sort_keys=True)


def _in_words(job: Json, result: Json) -> str:
    if "failed" in result:
        return f"lr {job['lr']:g}, seed {job['seed']}: loss not finite"
    numbers = result["held_out"] or {"validation loss": result.get("validation_loss")}
    scores = ", ".join(f"{name} {value:.4f}" for name, value in numbers.items())
    rate = f"lr {job['lr']:g}, " if "lr" in job else ""
    return f"{rate}seed {job['seed']}: {scores}" + (f", {result['seconds']:.0f} s" if "seconds" in result else "")


@dataclass(frozen=True)
class Study:
    """Learning rates first, then the scores.

    Attributes
    ----------
    ledger
        Where fits are run and kept.
    seeds
        Splits that are scored.
    weights
        Name or folder of what is fine-tuned.
    accelerator
        Where, in Lightning's words.
    """

    ledger: Ledger
    seeds: Sequence[int] = SEEDS
    weights: str = "scgpt-mini"
    accelerator: str = "cpu"

    def job(self, task: Task, entry: Entry, lr: float, seed: int) -> Json:
        """Plain data that says all of a fit."""
        place = {"weights": self.weights, "accelerator": self.accelerator}
        return {"task": asdict(task), "train": entry.options, "lr": lr, "seed": seed, **place}

    def reference_job(self, task: Task, name: str, seed: int) -> Json:
        """Plain data for a score without training."""
        return {"task": asdict(task), "reference": name, "seed": seed, "weights": self.weights}

    def tune(self, task: Task, entries: Sequence[Entry]) -> dict[str, list[float]]:
        """Run the grids; one whose best rate is at its edge is extended beyond it.

        Returns
        -------
        Rates that were tried, sorted, by label; entries that cannot run are left out.
        """
        grids = {entry.label: sorted(entry.grid) for entry in entries}
        self._run_grids(task, entries, grids)
        for _ in range(MOST_EXTENSIONS):
            for entry in self._usable(entries):
                grids[entry.label] = extended(
                    grids[entry.label], self.validation_losses(task, entry, grids[entry.label])
                )
            self._run_grids(task, entries, grids)
        return {entry.label: grids[entry.label] for entry in self._usable(entries)}

    def _run_grids(self, task: Task, entries: Sequence[Entry], grids: Mapping[str, Sequence[float]]) -> None:
        usable = self._usable(entries)
        self.ledger.run((e.label, self.job(task, e, lr, TUNING_SEED)) for e in usable for lr in grids[e.label])

    def _usable(self, entries: Sequence[Entry]) -> list[Entry]:
        return [entry for entry in entries if entry.label not in self.ledger.unavailable]

    def validation_losses(self, task: Task, entry: Entry, lrs: Sequence[float]) -> list[float]:
        """Lowest validation loss at each rate; infinity where training failed."""
        results = [self.ledger[self.job(task, entry, lr, TUNING_SEED)] or {} for lr in lrs]
        return [result.get("validation_loss", float("inf")) for result in results]

    def score(self, task: Task, entries: Sequence[Entry], grids: Mapping[str, Sequence[float]]) -> list[Json]:
        """Fit each seed at the best rate; one row for each entry and seed, references included."""
        best = {
            e.label: grids[e.label][int(np.argmin(self.validation_losses(task, e, grids[e.label])))]
            for e in self._usable(entries)
        }
        jobs = [(e, self.job(task, e, best[e.label], s)) for e in self._usable(entries) for s in self.seeds]
        self.ledger.run((entry.label, job) for entry, job in jobs)
        rows = []
        for entry, job in jobs:
            row = {"task": task.name, "entry": entry.label, "seed": job["seed"], "lr": job["lr"]}
            result = self.ledger[job] or {}
            rows.append(row | {k: v for k, v in result.items() if k != "held_out"} | (result.get("held_out") or {}))
        references = [(name, self.reference_job(task, name, s)) for name in references_of(task) for s in self.seeds]
        self.ledger.run(references)
        for name, job in references:
            rows.append({"task": task.name, "entry": name, "seed": job["seed"], **(self.ledger[job] or {})["held_out"]})
        return rows


def extended(lrs: Sequence[float], losses: Sequence[float]) -> list[float]:
    """Rates with one more beyond the edge at which the lowest loss is, if it is at one."""
    best = int(np.argmin(losses))
    if not np.isfinite(losses[best]):
        return [_rounded(lrs[0] / SPACING), *lrs]
    below = [_rounded(lrs[0] / SPACING)] if best == 0 else []
    above = [_rounded(lrs[-1] * SPACING)] if best == len(lrs) - 1 else []
    return [*below, *lrs, *above]


# Time of a step


def trained_optimizer(task: Task, entry: Entry, study: Study) -> torch.optim.Optimizer:
    """Optimizer of a short real training, with the gradients of its last batch: what a step meets in use."""
    task = replace(task, n_cells=min(task.n_cells, 100), epochs=1)
    found: list[tuple[torch.optim.Optimizer, list[torch.Tensor | None]]] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # Lightning clears the gradients when training has ended.
        found[:] = [(optimizer, [param.grad for param in _params(optimizer)])]

    hook = register_optimizer_step_post_hook(note)
    try:
        result = run_job(study.job(task, entry, entry.grid[0], TUNING_SEED), study.ledger.data)
    finally:
        hook.remove()
    if not found:
        raise RuntimeError(str(result))
    optimizer, grads = found[0]
    for param, grad in zip(_params(optimizer), grads, strict=True):
        param.grad = grad
    return optimizer


def _params(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def step_times(task: Task, entries: Sequence[Entry], study: Study, *, rounds: int) -> dict[str, Json]:
    """CPU time of an optimizer step in ms, on one thread; entries take turns, so that they meet the same machine.

    The gradients stay as they are. Counted is ``step()``: not the second pass of Sophia's curvature, nor LTE's merge.
    """
    _prepare()
    optimizers = {entry.label: trained_optimizer(task, entry, study) for entry in entries}
    times: dict[str, list[float]] = {label: [] for label in optimizers}
    for _ in range(rounds):
        for label, optimizer in optimizers.items():
            started = time.process_time()
            optimizer.step()
            times[label].append(1e3 * (time.process_time() - started))
    return {
        label: {"median": float(np.median(t)), "mean": float(np.mean(t)), "slowest": max(t)}
        for label, t in times.items()
    }


# Tables


def paired(rows: pd.DataFrame, metric: str, entry: str, other: str) -> tuple[float, float, int]:
    """Mean of the differences between two entries on the same splits, its standard error, and their number."""
    table = rows.pivot(index="seed", columns="entry", values=metric)
    if entry not in table or other not in table:
        return float("nan"), float("nan"), 0
    difference = (table[entry] - table[other]).dropna()
    error = float(difference.std(ddof=1) / np.sqrt(len(difference))) if len(difference) > 1 else float("nan")
    return float(difference.mean()), error, len(difference)


def verdict(difference: float, error: float, n: int, *, better: int) -> str:
    """Say whether a 95 % t interval of a paired difference excludes zero; ``better`` is the sign of an improvement."""
    if n < 2 or not np.isfinite(error):
        return "not enough fits"
    if abs(difference) <= stats.t.ppf(0.975, n - 1) * error:
        return "within noise"
    return "better" if difference * better > 0 else "worse"


def summary(
    task: Task, rows: pd.DataFrame, grids: Mapping[str, Sequence[float]], times: Mapping[str, Json]
) -> list[Json]:
    """One dictionary for each entry, the references last."""
    lines: list[Json] = []
    for label, part in rows.groupby("entry", sort=False):
        line: Json = {"entry": label, "n": int(part["loss"].notna().sum()) if "loss" in part else 0}
        for metric, better in task.metrics.items():
            values = part[metric] if metric in part else pd.Series(dtype=float)
            difference, error, n = paired(rows, metric, str(label), REFERENCE)
            line[metric] = {
                "mean": float(values.mean()),
                "sd": float(values.std(ddof=1)),
                f"minus {REFERENCE}": difference,
                "standard error": error,
                "verdict": verdict(difference, error, n, better=better) if label != REFERENCE else "",
            }
        if label in grids:
            tried = list(grids[str(label)])
            line |= {"lr": float(part["lr"].iloc[0]), "lrs": tried, "extended": len(tried) - len(GRID)}
            line["state bytes"] = float(part["optimizer_bytes"].max())
            line["training step ms"] = float(part["ms_per_training_step"].median())
            line["step ms"] = times.get(str(label))
        lines.append(line)
    return lines


def markdown(task: Task, lines: Sequence[Json], n_seeds: int) -> str:
    """Table of one task."""
    head = ["entry", "lr"]
    for metric in task.metrics:
        head += [metric, f"minus {REFERENCE}"]
    head += ["step, ms (mean)", "training step, ms", "state, kB"]
    body = [[_label(line, n_seeds), _rate(line), *_scores(task, line), *_costs(line)] for line in lines]
    return _table([head, *body])


def _label(line: Json, n_seeds: int) -> str:
    failed = n_seeds - line["n"] if "lr" in line else 0
    return f"{line['entry']} ({failed} of {n_seeds} not finite)" if failed else line["entry"]


def _rate(line: Json) -> str:
    return "" if "lr" not in line else f"{line['lr']:g}" + "*" * min(1, line["extended"])


def _scores(task: Task, line: Json) -> list[str]:
    cells = []
    for metric in task.metrics:
        value = line[metric]
        digits = 2 if task.labels_key is None else 3
        spread = "" if np.isnan(value["sd"]) else f" ± {value['sd']:.{digits}f}"
        cells.append("" if np.isnan(value["mean"]) else f"{value['mean']:.{digits}f}{spread}")
        difference, error = value[f"minus {REFERENCE}"], value["standard error"]
        shown = np.isfinite(error) and line["entry"] != REFERENCE
        mark = _mark(value["verdict"])
        cells.append(f"{difference:+.{digits}f} ± {error:.{digits}f}{mark}" if shown else "")
    return cells


def _costs(line: Json) -> list[str]:
    if "lr" not in line:
        return ["", "", ""]
    step = line["step ms"]
    times = f"{step['median']:.2f} ({step['mean']:.2f})" if step else ""
    return [times, f"{line['training step ms']:.0f}", f"{line['state bytes'] / 1e3:,.0f}"]


def loss_ratios(rows: pd.DataFrame, other: str, *, labels: Iterable[str]) -> list[Json]:
    """Held-out loss of each entry in units of another's, over all tasks and splits: geometric mean and standard error."""
    losses = np.log(rows.pivot_table(index=["task", "seed"], columns="entry", values="loss"))
    found = []
    for label in labels:
        if label == other or label not in losses or other not in losses:
            continue
        ratio = (losses[label] - losses[other]).dropna()
        error = float(ratio.std(ddof=1) / np.sqrt(len(ratio))) if len(ratio) > 1 else float("nan")
        mean, n = float(ratio.mean()), len(ratio)
        found.append(
            {
                "entry": label,
                "other": other,
                "percent": 100 * float(np.expm1(mean)),
                "standard error": 100 * error,
                "n": n,
                "verdict": verdict(mean, error, n, better=-1),
            }
        )
    return found


def comparison(ratios: Mapping[str, Sequence[Json]], other: str) -> str:
    """Table of :func:`loss_ratios` with a column for each key."""
    head = [f"held-out loss against {other}", *ratios]
    labels = dict.fromkeys(ratio["entry"] for column in ratios.values() for ratio in column)
    body = [[label, *(_percent(column, label) for column in ratios.values())] for label in labels]
    return _table([head, *body])


def _percent(column: Sequence[Json], label: str) -> str:
    found = [ratio for ratio in column if ratio["entry"] == label]
    return "".join(f"{r['percent']:+.1f} % ± {r['standard error']:.1f}{_mark(r['verdict'])}" for r in found)


def _mark(verdict: str) -> str:
    return f" ({verdict})" if verdict in ("better", "worse") else ""


def _table(rows: Sequence[Sequence[str]]) -> str:
    align = [":---", *["---:"] * (len(rows[0]) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], align, *rows[1:]])


# The whole run


def settings_from(texts: Iterable[str]) -> Json:
    """Options from ``name=value``; a value that is no Python literal is a word."""
    settings: Json = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            msg = f"--set {text}: expected option=value, for example rank=32."
            raise SystemExit(msg)
        try:
            settings[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[name] = value
    return settings


def chosen_entries(labels: Sequence[str], settings: Mapping[str, Any], say: Callable[[str], None]) -> list[Entry]:
    """Entries of these labels that this version of the package has, then their variants with other settings."""
    found = []
    for label in labels:
        try:
            ENTRIES[label].options  # noqa: B018
        except (KeyError, ImportError) as error:
            say(f"{label} is left out: this version has no {error}")
            continue
        found.append(ENTRIES[label])
    variants = [variant for entry in found if settings and (variant := entry.variant(settings))]
    if settings and not variants:
        msg = f"None of the entries {labels} takes all of {sorted(settings)}."
        raise SystemExit(msg)
    return [*found, *variants]


def present_tasks(names: Sequence[str], data: str | None, say: Callable[[str], None]) -> list[Task]:
    """Tasks whose data are there."""
    found = []
    for name in names:
        file = TASKS[name].file
        if file is not None and (data is None or not Path(data, file).exists()):
            say(f"{name} is left out: it needs {file}; give its folder with --data.")
            continue
        found.append(TASKS[name])
    return found


def arguments_from(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the data")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(FULL_RUN))
    parser.add_argument("--entries", nargs="+", choices=list(ENTRIES), default=list(ENTRIES), metavar="ENTRY")
    parser.add_argument("--set", nargs="+", default=[], metavar="OPTION=VALUE", help="add variants of the entries")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="splits to score")
    parser.add_argument("--weights", default="scgpt-mini", help="name or folder of a checkpoint")
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--rounds", type=int, default=200, help="steps of each entry that are timed")
    parser.add_argument("--fits", type=Path, default=Path("optimizer_quality.jsonl"), help="file of finished fits")
    parser.add_argument("--out", type=Path, help="folder of the results; a full run has benchmarks/results")
    parser.add_argument("--name", default="optimizer_quality", help="of the files of the results")
    parser.add_argument("--quick", action="store_true", help="a minute: one task, two entries, few cells, two splits")
    arguments = parser.parse_args(argv)
    is_full = not arguments.set and (arguments.tasks, arguments.entries) == (list(FULL_RUN), list(ENTRIES))
    if arguments.out is None and is_full and not arguments.quick:
        arguments.out = RESULTS
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Tune, score, time, and write the tables."""
    arguments = arguments_from(argv)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the workers, before they load torch
    _prepare()
    tasks = present_tasks(arguments.tasks, arguments.data, print)
    seeds: Sequence[int] = range(1, 1 + arguments.seeds)
    if arguments.quick:
        tasks = [replace(task, epochs=1, n_cells=120, max_length=48, read_length=96) for task in tasks[:1]]
        arguments.entries, arguments.workers, arguments.rounds, seeds = ["galore", "adamw"], 1, 5, (1, 2)
    entries = chosen_entries(arguments.entries, settings_from(arguments.set), print)
    ledger = Ledger(arguments.fits, arguments.data, workers=arguments.workers)
    study = Study(ledger, seeds, arguments.weights, arguments.accelerator)
    run(study, tasks, entries, rounds=arguments.rounds, out=arguments.out, name=arguments.name)


def run(
    study: Study,
    tasks: Sequence[Task],
    entries: Sequence[Entry],
    *,
    rounds: int,
    out: Path | None,
    name: str = "optimizer_quality",
) -> str:
    """Do everything and return the text that was printed, and written to ``out`` if that is given."""
    grids, rows = {}, []
    for task in tasks:
        study.ledger.say(f"{task.name}: {WHAT[task.name]}")
        fitting = [entry for entry in entries if entry.fits(task)]
        grids[task.name] = study.tune(task, fitting)
        rows += study.score(task, fitting, grids[task.name])
    usable = [entry for entry in entries if entry.label not in study.ledger.unavailable]
    on_cpu = study.accelerator == "cpu"
    times = {task.name: step_times(task, usable, study, rounds=rounds) if on_cpu else {} for task in tasks[:1]}
    table, timed = pd.DataFrame(rows), tasks[0].name
    sections, report = [], {}
    for task in tasks:
        part = table[table["task"] == task.name].dropna(axis="columns", how="all")
        report[task.name] = summary(task, part, grids[task.name], times[timed])
        sections.append(f"**{task.name}**: {WHAT[task.name]}\n\n{markdown(task, report[task.name], len(study.seeds))}")
    labels = [entry.label for entry in usable]
    parts = {task.name: table[table["task"] == task.name] for task in tasks}
    parts |= {"all tasks": table} if len(tasks) > 1 else {}
    ratios = {
        other: {name: loss_ratios(part, other, labels=labels) for name, part in parts.items()}
        for other in (REFERENCE, "galore-torch")
        if other in labels and len(labels) > 1
    }
    sections += [comparison(found, other) for other, found in ratios.items()]
    text = "\n\n".join([*sections, notes(study, tasks, timed, rounds)]) + "\n"
    print("\n" + text)
    if out is not None:
        write(out / name, text, {"summary": report, "loss ratios": ratios, "step ms": times, "scores": rows}, study)
    return text


def notes(study: Study, tasks: Sequence[Task], timed: str, rounds: int) -> str:
    """What the numbers are, for below the tables."""
    recipes = "; ".join(
        f"{t.name} {t.epochs} epochs of batches of {t.batch_size}, {t.max_length} tokens of a cell while training and "
        f"{t.read_length} otherwise, at most {t.n_cells} cells"
        for t in tasks
    )
    codes = {record["code"] for record in study.ledger.done.values()}
    mixed = (
        " **Some fits in the file were made by another version of the code.**" if codes != {study.ledger.code} else ""
    )
    left_out = "".join(f" {label} was left out: {why}" for label, why in study.ledger.unavailable.items())
    return (
        f"Mean ± standard deviation over {len(study.seeds)} splits of the cells (70 % train, 10 % choose the epoch, 20 % "
        f"held out); differences to {REFERENCE} are paired by split, ± their standard error; better and worse: a 95 % t "
        f"interval excludes zero, without correction for the number of comparisons. Weights: {study.weights}. Recipe, the "
        f"same for all entries: {recipes}. The learning rate of each entry and task has the lowest validation loss of a "
        f"grid of {len(GRID)} rates, a factor of about {SPACING:.1f} apart, on a split of its own; an asterisk: the best "
        f"was at the edge, so the grid was extended by up to {MOST_EXTENSIONS} rates. Masked error: squared error of hidden "
        "bins (1 to 50), loss: with that from the cell embedding added. scgpt-mini was pre-trained on cells of kang, held-out "
        "ones among them, without labels: compare entries there, do not read the numbers as those of new data. It was "
        "pre-trained on those of cite-seq as well and has little left to learn from them, hence the random weights; "
        f"LoRA, which keeps the weights that it starts from, has no place there. Step: CPU time of `step()` alone, median (mean) of {rounds} on the network of {timed}, entries "
        "taking turns, one thread; Sophia's additional backward pass and LTE's merge are not in it. Training step: CPU "
        f"time of all of training over its steps, validation included.{left_out}{mixed}"
    )


def write(out: Path, text: str, content: Json, study: Study) -> None:
    """Write a file of JSON and one of Markdown, which differ in their suffix alone."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text(text, encoding="utf-8")
    about = {"date": date.today().isoformat(), "versions": versions(), "code": study.ledger.code}
    settings = {"weights": study.weights, "accelerator": study.accelerator, "workers": study.ledger.workers}
    fits = list(study.ledger.done.values())
    everything = _plain({"about": about | settings, **content, "fits": fits})
    out.with_suffix(".json").write_text(json.dumps(everything, indent=1, allow_nan=False), encoding="utf-8")
    print(f"Written to {out}.json and .md")


def _plain(value: Any) -> Any:
    """Same content with ``None`` for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


if __name__ == "__main__":
    main()
