"""Fine-tuning on perturbations: the part of :func:`scgalore.tl.finetune` that is not shared with other tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from scgalore import __version__
from scgalore import _logging as logg
from scgalore.errors import OptionError
from scgalore.tasks.perturbation.fitting import check_prior, fit_screen
from scgalore.perturb.labels.screen import Screen
from scgalore.perturb.splits.split import split_conditions
from scgalore.selection.curriculum import curriculum_ranks
from scgalore.tl._fitted import record_model
from scgalore.tl._shared import Results, as_model
from scgalore.train.processes import training_processes

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore._typing import Data, PathLike
    from scgalore.model import SCGPT
    from scgalore.train.config import TrainConfig

__all__ = ["SCREEN_DEFAULTS", "check_task", "finetune_screen"]

TASKS = ("classes", "expression", "perturbation")

SCREEN_DEFAULTS: dict[str, Any] = {"dropout": 0.0, "patience": 3, "batch_size": 64, "lr": 1e-3}
"""Of training on perturbations, as measured on the page "Perturbation models"; any can be passed."""

SPLIT_SEED = 42
SPLIT = "split"


def check_task(task: str | None, labels_key: str | None, screened: Mapping[str, Any]) -> str:
    """Say what a call is for, and refuse options that belong to another task.

    Parameters
    ----------
    task, labels_key
        As passed.
    screened
        Options of perturbations.

    Raises
    ------
    OptionError
        If they do not go together.
    """
    chosen = task or ("expression" if labels_key is None else "classes")
    if chosen not in TASKS:
        msg = f"task={task!r}: choose one of {', '.join(map(repr, TASKS))}, or None."
        raise OptionError(msg)
    if (chosen == "classes") != (labels_key is not None):
        msg = f"task={task!r} with labels_key={labels_key!r}: classes, and they alone, need labels_key."
        raise OptionError(msg)
    given = [name for name, value in screened.items() if value is not None]
    if given and chosen != "perturbation":
        msg = f"{given[0]}={screened[given[0]]!r} belongs to task='perturbation'. Pass that, or leave {given[0]} out."
        raise OptionError(msg)
    return chosen


def finetune_screen(
    data: Data,
    adata: AnnData,
    model: PathLike | SCGPT,
    config: TrainConfig,
    *,
    read: dict[str, Any],
    options: dict[str, Any],
    genes_key: str | None,
    checkpoint_dir: PathLike | None,
    resume: bool,
    save_dir: str | None,
    key: str,
    mod: str,
) -> SCGPT:
    """Train on a screen and write what came of it.

    Parameters
    ----------
    data, adata
        The container and the AnnData in it.
    model
        What to start from.
    config
        How to train.
    read
        How to read the AnnData, and ``prior`` and ``n_genes``.
    options
        Of training, as passed, for ``uns``.
    genes_key, checkpoint_dir, resume
        As for :func:`scgalore.tl.finetune`.
    save_dir
        Free folder to save the model to.
    key
        Key in ``uns``.
    mod
        Modality.
    """
    prior, n_genes = read.pop("prior") or "mixed", read.pop("n_genes")
    check_prior(prior)
    if n_genes is not None and (isinstance(n_genes, bool) or not isinstance(n_genes, int) or n_genes < 1):
        msg = f"n_genes={n_genes!r}: it must be a whole number, at least 1, or None for all genes."
        raise OptionError(msg)
    n_processes = training_processes(config).size
    if n_processes > 1:
        msg = f"{n_processes} processes were asked for, and perturbations are trained by one. Leave out devices=, num_nodes= and the launcher."
        raise OptionError(msg)
    read["pert_key"] = read["pert_key"] or "perturbation"
    if read["split_key"] is None and SPLIT in adata.obs:
        read["split_key"] = SPLIT
    screen = Screen.from_adata(adata, **read)
    results = Results()
    if screen.parts is None:
        screen = _with_split(screen, results)
    ranks = _ranks(adata, screen, config, genes_key)
    fitted = as_model(model)
    start = dict(fitted.provenance)
    with logg.step(f"fine-tuning {start['name']} on {len(screen.conditions.perturbations):,} perturbations") as step:
        fit_screen(
            fitted,
            screen,
            config,
            prior=prior,
            n_genes=n_genes,
            ranks=ranks,
            checkpoint_dir=checkpoint_dir,
            resume=resume,
        )
        assert fitted.screen is not None
        _say(fitted)
        if save_dir is not None:
            fitted.save(save_dir)
        content = {
            "params": {"task": "perturbation", **fitted.screen.params, "rng": config.seed, **options},
            "history": fitted.history,
            "stats": fitted.screen.stats,
            "perturbations": fitted.screen.perturbations,
            "training": fitted.training,
            "weights": start,
            "model": record_model(fitted, save_dir),
            "version": __version__,
        }
        results.uns[key] = (content, "parameters, history, statistics, provenance")
        results.write(data, adata, mod=mod, step=step)
    return fitted


def _ranks(adata: AnnData, screen: Screen, config: TrainConfig, genes_key: str | None) -> NDArray[np.float64] | None:
    assert screen.parts is not None
    read = {
        key: screen.params[key] for key in ("layer", "gene_symbols", "pert_key", "control", "separator", "context_key")
    }
    seen = (screen.parts == "train") | (screen.conditions.codes == 0)
    return curriculum_ranks(adata, config, genes_key, strategy="perturbation", train=seen, **read)


def _with_split(screen: Screen, results: Results) -> Screen:
    """Make the split that :func:`scgalore.pp.split_perturbations` makes by default."""
    split = split_conditions(screen.conditions, "simulation", seed=SPLIT_SEED)
    labels = split.cell_labels(screen.conditions)
    results.obs[SPLIT] = (pd.Categorical(labels, categories=["train", "validation", "test"]), "part of each cell")
    return screen.with_parts(labels, SPLIT)


def _say(model: SCGPT) -> None:
    assert model.screen is not None
    scores = model.screen.stats["validation_pearson_delta"]
    if not scores:
        return
    best = max((name for name in scores if name != "model"), key=lambda name: scores[name])
    logg.info(
        f"    Pearson delta on {model.screen.stats['validation_perturbations']} validation perturbations: "
        f"{scores['model']:.3f}, best baseline {scores[best]:.3f} ({best})"
    )
    if model.training["best_epoch"] < 0:
        logg.info("    no epoch did better than the prior alone: predictions are the prior's")
