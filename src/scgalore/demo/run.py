"""Fine-tune on real cells, beside logistic regression on the same genes and cells."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd
from scipy import sparse

from scgalore import __version__
from scgalore._folders import whole_folder
from scgalore._uns import to_uns
from scgalore.data.labels import encode_labels
from scgalore.data.split import split_from_labels
from scgalore.demo.figures import save_figures
from scgalore.demo.folder import DEMO, FILES
from scgalore.demo.report import METRICS, RANDOM, Report, score_table, strongest
from scgalore.errors import OptionError
from scgalore.model import SCGPT
from scgalore.pipeline.measure import Stopwatch, peak_memory, versions
from scgalore.tasks.baselines import BASELINES, LOGISTIC
from scgalore.tl import finetune
from scgalore.tl._labels import label_metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore._typing import PathLike

__all__ = ["Recipe", "run_demo"]

LABELS = "bulk_labels"
TEST_SIZE = 0.2


@dataclass(frozen=True)
class Recipe:
    """Options of :func:`scgalore.tl.finetune` that the demonstration trains with; ``None`` is its default."""

    max_epochs: int = 20
    batch_size: int = 16
    lr: float | None = 2e-3
    max_length: int | None = 128
    optimizer_options: dict[str, int] = field(default_factory=dict)

    @classmethod
    def chosen(cls, optimizer: str) -> Self:
        """What the demonstration uses: chosen by trials on other splits of the same cells."""
        return cls(optimizer_options={"rank": 32} if optimizer == "galore" else {})


def run_demo(
    out: PathLike = "scgalore_demo",
    *,
    model: PathLike = "scgpt-mini",
    optimizer: str = "galore",
    n_seeds: int = 3,
    random_weights: bool = False,
    recipe: Recipe | None = None,
    force: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Fine-tune a model on scanpy's pbmc68k and report honestly how good it is.

    For each seed, 20 % of the cells are held out within the classes, the model is fine-tuned on the others, and logistic
    regression is fitted to the same genes of the same cells. Works offline.

    Parameters
    ----------
    out
        Folder to make. It gets ``report.md``, ``results.h5ad``, ``umap.png``, ``confusion_matrix.png`` and ``history.png``
        when all is done; a run that fails leaves nothing.
    model
        Name of registered weights, or folder of a checkpoint.
    optimizer
        Entry of :data:`scgalore.optim.OPTIMIZERS`.
    n_seeds
        Number of repetitions, each with its own split and its own randomness of training.
    random_weights
        Whether to train the same architecture from random weights as well, which shows what pretraining buys and doubles
        the time.
    recipe
        How to train; :meth:`Recipe.chosen` when left out.
    force
        Whether to replace an earlier demonstration in ``out``.
    say
        What is called with each line of progress.

    Returns
    -------
    The folder.

    Raises
    ------
    OptionError
        If the folder is taken, or an option is out of range.
    """
    if n_seeds < 1:
        msg = f"n_seeds={n_seeds}: at least 1 is needed."
        raise OptionError(msg)
    with whole_folder(Path(out), DEMO, overwrite=force) as draft:
        demo = _Demo(model, optimizer, recipe or Recipe.chosen(optimizer), say)
        adata = demo.repeat(n_seeds, random_weights=random_weights)
        say("Neighbours and UMAP of the embeddings, with scanpy")
        with demo.watch.time("neighbours and UMAP"):
            _umap(adata)
        with demo.watch.time("pictures and results.h5ad"):
            save_figures(adata, draft, labels_key=LABELS)
            adata.uns["demo"] = to_uns({"scores": demo.scores, "recipe": demo.recipe, "version": __version__})
            adata.write_h5ad(draft / "results.h5ad")
        (draft / "report.md").write_text(demo.report(adata).text(), encoding="utf-8")
    say(f"\nOn held-out cells:\n\n{score_table(demo.scores)}\n\nYour files:")
    for name in FILES:
        say(f"  {Path(out) / name}")
    return Path(out)


class _Demo:
    """What the demonstration works with, and what it has found so far."""

    def __init__(self, model: PathLike, optimizer: str, recipe: Recipe, say: Callable[[str], None]) -> None:
        self.model, self.optimizer, self.recipe, self.say = model, optimizer, recipe, say
        self.watch = Stopwatch()
        with self.watch.time("loading cells and weights"):
            self.cells = _load_cells()
            self.loaded = SCGPT.from_pretrained(model)
        self.name = Path(self.loaded.provenance["name"]).name
        self.method = f"{self.name} + {optimizer}"
        self.scores = pd.DataFrame()
        self.optimizer_bytes = 0

    def repeat(self, n_seeds: int, *, random_weights: bool) -> AnnData:
        """Score every method with every seed; the AnnData of the first comes back with its results."""
        self.say(
            f"Fine-tuning {self.name} with {self.optimizer} on {self.cells.n_obs} blood cells (pbmc68k), "
            f"{n_seeds} seed{'s' if n_seeds > 1 else ''}; in brackets logistic regression on the same genes and cells"
        )
        first, *_ = [self._once(seed, random_weights=random_weights) for seed in range(n_seeds)]
        return first

    def _once(self, seed: int, *, random_weights: bool) -> AnnData:
        started = time.perf_counter()
        adata = self.cells.copy()
        with self.watch.time("fine-tuning"):
            fitted = self._finetune(adata, self.model, seed)
        self.optimizer_bytes = fitted.training["optimizer_bytes"]
        self._note(seed, self.method, adata.uns["finetune"]["metrics"])
        if random_weights:
            control, config = self.cells.copy(), replace(self.loaded.network.config, heads={})
            with self.watch.time("fine-tuning random weights"):
                self._finetune(control, SCGPT.from_config(config, self.loaded.vocab, rng=seed), seed)
            self._note(seed, RANDOM, control.uns["finetune"]["metrics"])
        with self.watch.time("baselines"):
            self._baselines(adata, seed)
        self._say_seed(seed, time.perf_counter() - started)
        return adata

    def _finetune(self, adata: AnnData, model: PathLike | SCGPT, seed: int) -> SCGPT:
        return finetune(
            adata,
            model,
            labels_key=LABELS,
            optimizer=self.optimizer,
            test_size=TEST_SIZE,
            validation_size=0.0,
            rng=seed,
            **asdict(self.recipe),
        )

    def _baselines(self, adata: AnnData, seed: int) -> None:
        codes, _ = encode_labels(adata, LABELS)
        split = split_from_labels(adata.obs["scgpt_split"].tolist())
        x = _seen_genes(adata)
        for method, classify in BASELINES.items():
            self._note(seed, method, label_metrics(classify(x, codes, split), codes, split))

    def _note(self, seed: int, method: str, metrics: pd.DataFrame) -> None:
        row = metrics.loc[["test"], [*METRICS, "n"]].astype({"n": int})
        row.insert(0, "seed", seed)
        row.insert(1, "method", method)
        self.scores = pd.concat([self.scores, row], ignore_index=True)

    def _say_seed(self, seed: int, seconds: float) -> None:
        rows = self.scores[self.scores["seed"] == seed]
        rival = strongest(rows, LOGISTIC)
        mine, theirs = (rows[rows["method"] == name] for name in (self.method, rival))
        scores = [f"{title} {mine[name].item():.3f} ({theirs[name].item():.3f})" for name, title in METRICS.items()]
        self.say(f"  seed {seed}, {seconds:.0f} s: held-out {', '.join(scores)}")

    def _adamw_bytes(self) -> int:
        """Optimizer state of AdamW on the same network, measured on a few steps."""
        if self.optimizer == "adamw":
            return self.optimizer_bytes
        fitted = SCGPT.from_pretrained(self.model)
        fitted.train(
            self.cells,
            labels_key=LABELS,
            optimizer="adamw",
            max_epochs=1,
            validation_size=0.0,
            test_size=0.9,
            max_length=64,
        )
        return fitted.training["optimizer_bytes"]

    def _table_rows(self) -> tuple[int, int]:
        return len(self.loaded.cells(self.cells).tokens()), self.loaded.network.config.n_tokens

    def report(self, adata: AnnData) -> Report:
        """Collect everything found."""
        with self.watch.time("measuring AdamW's state"):
            adamw_bytes = self._adamw_bytes()
        result = adata.uns["finetune"]
        sizes = {
            "cells": adata.n_obs,
            "held out": int(result["split"]["test"]),
            "genes": int(result["genes"]["matched"]),
            "classes": len(result["classes"]),
        }
        return Report(
            method=self.method,
            optimizer=self.optimizer,
            scores=self.scores,
            sizes=sizes,
            settings=asdict(self.recipe),
            weights={"name": self.name, "sha256": result["weights"]["sha256"]},
            optimizer_bytes=self.optimizer_bytes,
            table_rows=self._table_rows(),
            adamw_bytes=adamw_bytes,
            seconds=self.watch.seconds,
            peak=peak_memory(),
            versions=versions(),
        )


def _load_cells() -> AnnData:
    import scanpy as sc

    # Its X is scaled; raw holds the log-normalised values.
    adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    # Left from the analysis of others; what the demo writes is its own.
    del adata.obsm, adata.obsp
    adata.uns = {}
    return adata


def _seen_genes(adata: AnnData) -> NDArray[np.float32]:
    """Expression of the genes that the model has tokens for."""
    dropped = set(adata.uns["finetune"]["genes"]["dropped"])
    x = adata[:, [gene not in dropped for gene in adata.var_names]].X
    return np.asarray(x.toarray() if sparse.issparse(x) else x, dtype=np.float32)


def _umap(adata: AnnData) -> None:
    import scanpy as sc

    sc.pp.neighbors(adata, use_rep="X_scGPT")
    sc.tl.umap(adata)
