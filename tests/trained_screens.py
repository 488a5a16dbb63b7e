"""Screens small enough to be learnt in a second, as counts, with a part for each perturbation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from tests.tiny_plugin import tiny_model

from scgalore.model import SCGPT
from scgalore.perturb.labels.screen import Screen
from scgalore.tasks import TASKS
from scgalore.tasks.perturbation.fitting import prepare_screen
from scgalore.train.config import TrainConfig

GENES = tuple(f"G{i:02d}" for i in range(30))
PARTS = {
    "train": ("G00", "G01", "G02", "G03", "G00+G01", "X1"),
    "validation": ("G04", "G02+G03"),
    "test": ("G05", "G01+G04", "X2"),
}
"""Perturbations by part; ``X1`` and ``X2`` are measured nowhere."""

TRAINING: dict[str, Any] = {"max_epochs": 2, "batch_size": 32, "lr": 3e-3, "dropout": 0.0, "accelerator": "cpu"}


def counts(*, n_cells: int = 12, n_control: int = 30, contexts: Sequence[str] = ("",), seed: int = 0) -> AnnData:
    """Counts of cells whose perturbations multiply some genes; a context shifts all of its own."""
    rng = np.random.default_rng(seed)
    names = [name for part in PARTS.values() for name in part]
    single = sorted({gene for name in names for gene in name.split("+")})
    base = rng.gamma(1.0, 3.0, len(GENES)) + 0.2
    effects = {gene: rng.normal(0, 0.9, len(GENES)) * (rng.random(len(GENES)) < 0.4) for gene in single}
    part_of = {name: part for part, members in PARTS.items() for name in members} | {"control": "train"}
    obs, rows = [], []
    for context in contexts:
        own = rng.normal(0, 0.3, len(GENES))
        for name in ["control", *names]:
            effect = sum((effects[gene] for gene in name.split("+") if gene in effects), own)
            n = n_control if name == "control" else n_cells
            rows.append(rng.poisson(base * np.exp(effect), (n, len(GENES))))
            obs += [(name, context, f"batch{i % 2}", part_of[name]) for i in range(n)]
    table = pd.DataFrame(obs, columns=["perturbation", "cell_line", "batch", "split"]).astype("category")
    table.index = [f"cell{i}" for i in range(len(table))]
    return AnnData(sp.csr_matrix(np.concatenate(rows).astype(np.float32)), table, pd.DataFrame(index=list(GENES)))


def log_normalised(adata: AnnData) -> AnnData:
    """The same cells as the logarithm of counts scaled to 10,000."""
    x = adata.X.toarray().astype(np.float64)
    logged = adata.copy()
    logged.X = sp.csr_matrix(np.log1p(x * (1e4 / x.sum(axis=1, keepdims=True))).astype(np.float32))
    return logged


def screen_of(adata: AnnData, **read: Any) -> Screen:
    """Read it with its column ``split``, unless told otherwise."""
    return Screen.from_adata(adata, **{"pert_key": "perturbation", "split_key": "split", **read})


def untrained(*, rng: int = 0, **config: Any) -> SCGPT:
    """Give random weights for the measured genes, but not for ``X1`` and ``X2``."""
    return tiny_model(GENES, rng=rng, **config)


def fit_screen(
    model: SCGPT, screen: Screen, config: TrainConfig, *, checkpoint_dir: Any = None, resume: bool = False, **fit: Any
) -> None:
    """Train a model on a screen; ``fit`` is for ``prepare_screen``."""
    prepared = prepare_screen(TASKS["perturbation"], model, screen, config, **fit)
    model.fit(prepared, checkpoint_dir=checkpoint_dir, resume=resume)


def trained(
    adata: AnnData,
    *,
    read: dict[str, Any] | None = None,
    rng: int = 0,
    fit: dict[str, Any] | None = None,
    **training: Any,
) -> SCGPT:
    """Train random weights on a screen: ``read`` says how it is read, ``fit`` is for ``fit_screen``, the rest of training."""
    model = untrained(rng=rng)
    fit_screen(
        model, screen_of(adata, **(read or {})), TrainConfig(**{**TRAINING, "seed": rng, **training}), **(fit or {})
    )
    return model


def without_validation(adata: AnnData) -> AnnData:
    """The same screen with its validation part in the training part, so that the last epoch is kept whatever it does."""
    merged = adata.copy()
    merged.obs["split"] = merged.obs["split"].astype(str).replace("validation", "train").astype("category")
    return merged
