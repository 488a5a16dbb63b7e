"""Training on a perturbation screen: prior, cells, objective and memory."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scgalore import _logging as logg
from scgalore._words import few
from scgalore.data.match import tokens_of_each
from scgalore.data.sampler import BatchRequest
from scgalore.data.split import Split
from scgalore.errors import DataError
from scgalore.nn.device import pick_device
from scgalore.objectives import Perturbation as PerturbationObjective
from scgalore.perturb.baselines.choice import CHOSEN, Choice, choose_prior
from scgalore.perturb.baselines.effects import READ_VECTORS, RULE_SETS, fit_rule, prior_of
from scgalore.perturb.labels.parsing import at_dose, subject_of
from scgalore.perturb.labels.unknown import check_genes
from scgalore.perturb.predictions.controls import ControlMeans
from scgalore.tasks.base import Prepared
from scgalore.tasks.perturbation.agents import place_compounds, token_name
from scgalore.tasks.perturbation.memory import PerturbationMemory, memory_of
from scgalore.tasks.perturbation.networks import (
    RowsOfCells,
    extend_vocabulary,
    flag_tokenizer,
    gene_vectors,
    genes_seen,
    training_cells,
)

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from scgalore.data.perturbations import PerturbationCells
    from scgalore.nn import CellNetwork
    from scgalore.perturb.baselines.effects import Effects
    from scgalore.perturb.labels.profiles import Profiles
    from scgalore.perturb.labels.screen import Screen
    from scgalore.tasks.base import Task, TaskModel
    from scgalore.train.config import TrainConfig
    from scgalore.train.result import TrainResult

__all__ = ["NO_PRIOR", "Fitting", "prepare_screen", "remember_screen"]

NO_PRIOR = "none"

FEWEST_TO_SHARE = 4
"""Minimum number of training perturbations for holding out some for validation."""

PROBED = 4
"""Number of cells in the step that is timed to estimate the duration of an epoch."""


@dataclass(frozen=True)
class Fitting:
    """State of a run that is determined before training and needed after it.

    Attributes
    ----------
    screen
        The cells.
    rows
        Its training and validation perturbations.
    genes
        Genes in the initial vocabulary, and their fraction of the expression.
    prior
        Prior that the network corrects, fitted to all but test cells, or ``None``.
    choice
        Scores by which the prior was chosen; ``None`` if it was named.
    params
        Parameters of the network.
    scores
        Pearson delta of the baselines on the validation perturbations.
    start
        Score of the prior alone; infinity if the network does not start from it.
    started
        Start time of the run.
    controls
        Means of the control cells.
    vectors
        Vectors of the compounds, or ``None``.
    """

    screen: Screen
    rows: RowsOfCells
    genes: dict[str, Any]
    prior: Effects | None
    choice: Choice | None
    params: dict[str, Any]
    scores: dict[str, float]
    start: float
    started: float
    controls: ControlMeans
    vectors: pd.DataFrame | None = None


def prepare_screen(
    task: Task,
    model: TaskModel,
    screen: Screen,
    config: TrainConfig,
    *,
    prior: str = CHOSEN,
    genes_per_step: int | None = None,
    ranks: NDArray[np.floating] | None = None,
    monitor: str | None = None,
    held_out: bool = True,
    hold_out: bool = True,
    flag_unmeasured: bool = True,
) -> Prepared:
    """Create a network with perturbation flags, its training data, and the prior that it corrects.

    Parameters
    ----------
    task
        The task.
    model
        Initial model; not modified.
    screen
        Screen with a split.
    config
        Training configuration.
    prior
        Prior that the network corrects, from :data:`scgalore.perturb.PRIORS`; ``"chosen"`` on the training
        perturbations, or ``"none"``.
    genes_per_step
        Number of genes per training step; ``None`` uses all.
    ranks
        Rank of each gene for a curriculum, 0 is the best, NaN for unranked genes, shape ``(n_vars,)``.
    monitor
        Metric for selecting the epoch; by default the effects on validation perturbations.
    held_out
        Whether the network also sees cross-validated predictions of the prior.
    hold_out
        Whether to hold out some training perturbations for selecting the epoch if there are no validation
        perturbations. The prior is fitted to them as well.
    flag_unmeasured
        Whether unmeasured perturbed genes are tokens. This and the previous three parameters are for ablations.
    """
    started = time.perf_counter()
    seen = _with_validation(screen) if hold_out and prior != NO_PRIOR else screen
    rows = RowsOfCells.of(seen)
    agents = sorted({agent for agents in screen.conditions.genes for agent in agents})
    refuse_without_vectors(screen)
    species = screen.reading.species
    check_genes(screen.conditions, lambda gene: tokens_of_each([gene], model.vocab, species=species)[0] >= 0)
    genes = genes_seen(screen, model.vocab)
    names = list(dict.fromkeys(map(token_name, agents)))
    vocab, added = extend_vocabulary(model.vocab, screen.genes, names, species=species)
    network = model.network.perturbation_variant(len(vocab), len(model.vocab), seed=config.seed)
    vectors = of_compounds = None
    if screen.vectors is not None:
        vectors = of_compounds = screen.vectors.loc[list(dict.fromkeys(map(subject_of, agents)))]
        new = [name for name in of_compounds.index if token_name(at_dose(name, 1)) not in model.vocab]
        place_compounds(network, vocab, new, of_compounds, of_compounds)
    elif screen.conditions.kind == "gene" and prior in ("linear", CHOSEN):
        vectors = gene_vectors(network, vocab, [*screen.genes, *agents], species=species)
    choice = choose_prior(screen.profiles("train"), embeddings=vectors) if prior == CHOSEN else None
    recipe = None if prior == NO_PRIOR else prior_of(prior) if choice is None else choice.recipe
    expected = None if recipe is None else rows.prior(recipe, vectors)
    before = memory_of(model)
    corrects = before is not None and before.prior is not None
    if expected is not None and not corrects:  # the output of another decoder is not a correction
        network.start_at_zero()
    tokenizer = flag_tokenizer(network, vocab, screen.genes, species=species, flag_unmeasured=flag_unmeasured)
    cells = training_cells(
        screen,
        rows,
        vocab,
        tokenizer,
        prior=expected,
        held_out=rows.held_out_prior(recipe, vectors) if held_out and recipe is not None else None,
        n_genes=genes_per_step,
        seed=config.seed,
    )
    if ranks is not None:
        cells = cells.with_ranks(ranks)
    if len(rows.validation) == 0:
        config = replace(config, patience=None)  # without validation
    scores = _validation_scores(rows, tokenizer.columns, of_compounds)
    start = math.inf
    if expected is not None and len(rows.validation):
        of_prior = _mean_pearson(expected[len(rows.train) :], rows.validation, tokenizer.columns)
        scores[f"prior ({prior})"] = of_prior
        if network.starts_at_zero:
            # Metrics are logged in single precision; rounding must not make the prior better than itself.
            start = float(np.float32(1 - of_prior))
    _report(rows, added, scores, choice)
    known = screen.profiles("train", "validation")
    fitted = None if recipe is None else recipe.fit(known, embeddings=vectors)
    params = {
        **screen.params,
        "prior": prior,
        "genes_per_step": genes_per_step,
        "flag_unmeasured": flag_unmeasured,
        "added_genes": added,
        "own_gene": None if fitted is None else asdict(fitted.pooled.own),
        "lowest_dose": None if rows.doses is None else rows.doses[0],
        "highest_dose": None if rows.doses is None else rows.doses[1],
    }
    controls = ControlMeans.of(known)
    fitting = Fitting(screen, rows, genes, fitted, choice, params, scores, start, started, controls, of_compounds)
    objective, split = _objective(start, monitor), _split(seen)
    seconds = _expected_seconds(network, cells, split, pick_device(config.accelerator))
    logg.info(f"    expected time: {seconds:,.0f} s per epoch, at most {config.max_epochs} epochs{_end(config)}")
    return Prepared(task, cells, split, objective, config, network=network, vocab=vocab, state=fitting)


def refuse_without_vectors(screen: Screen) -> None:
    """Raise :class:`~scgalore.errors.DataError` if held-out compounds cannot be distinguished.

    Parameters
    ----------
    screen
        Screen with a split.
    """
    if screen.conditions.kind == "gene" or screen.vectors is not None:
        return
    assert screen.parts is not None
    codes, parts = screen.conditions.codes, screen.parts
    trained, held = (
        {subject_of(screen.conditions.names[code]) for code in np.unique(codes[(codes > 0) & np.isin(parts, part)])}
        for part in (["train"], ["validation", "test"])
    )
    if held - trained:
        msg = (
            f"The split holds out {len(held - trained)} compounds that are not trained on ({few(sorted(held - trained))}), but "
            "without vectors only training compounds can be predicted. Pass vectors_key= with a vector for each "
            "compound, or hold out doses: sg.pp.split_perturbations(adata, 'dose', pert_kind='compound', ...)."
        )
        raise DataError(msg)


def _with_validation(screen: Screen) -> Screen:
    """Move a quarter of the training perturbations to the validation split, if it is empty.

    Otherwise the network could not be compared with its prior, and its last epoch would be used.
    """
    assert screen.parts is not None
    codes, parts = screen.conditions.codes, screen.parts
    names = np.unique(codes[(parts == "train") & (codes > 0)])
    if ((parts == "validation") & (codes > 0)).any() or len(names) < FEWEST_TO_SHARE:
        return screen
    chosen = np.random.default_rng(0).permutation(names)[: max(2, len(names) // 4)]
    logg.info(
        f"    no validation perturbations: {len(chosen)} of {len(names)} training perturbations are used to select the epoch; the prior is fitted to all"
    )
    moved = np.where((parts == "train") & np.isin(codes, chosen), "validation", parts)
    return replace(screen, parts=moved)


def remember_screen(prepared: Prepared, result: TrainResult) -> PerturbationMemory:
    """Create the memory of a fitted model.

    Parameters
    ----------
    prepared
        Result of :func:`prepare_screen`.
    result
        Result of training.
    """
    fitting: Fitting = prepared.state
    return PerturbationMemory(
        genes=fitting.screen.genes,
        prior=fitting.prior,
        choice=None if fitting.choice is None else fitting.choice.table,
        perturbations=_by_part(fitting.screen),
        params=fitting.params,
        stats=_stats(fitting, prepared.config, result),
        controls=fitting.controls,
        vectors=fitting.vectors,
    )


def _expected_seconds(network: CellNetwork, cells: PerturbationCells, split: Split, device: torch.device) -> float:
    """Estimate the duration of an epoch from one step of a few cells."""
    train, validation = (rows[cells.rows[rows] >= 0] for rows in (split.train, split.validation))
    few = train[np.linspace(0, len(train) - 1, min(PROBED, len(train))).astype(int)]
    batch = cells.batch(BatchRequest(few)).to(device)
    network.eval().to(device)
    try:
        for _ in range(2):  # the first step is a warm-up
            started = time.perf_counter()
            encoded = network.encode(
                batch.genes, batch.values, batch.padding_if_any, cell_only=False, **batch.conditions
            )
            network.expression(encoded, batch.values)[0].square().mean().backward()
            network.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - started
    finally:
        network.cpu()
    n_validated = len(np.unique(cells.rows[validation])) * cells.n_controls
    return seconds / len(few) * (len(train) + n_validated / 3)  # a step without gradients takes a third


def _end(config: TrainConfig) -> str:
    return "" if config.patience is None else f", {config.patience} if none is better than the prior"


def _objective(start: float, monitor: str | None) -> PerturbationObjective:
    if monitor is None:
        return PerturbationObjective(start)
    # The initial score is not comparable with other metrics.
    return PerturbationObjective(start if monitor == "validation_score" else math.inf, monitor=monitor)


def _split(screen: Screen) -> Split:
    """Split for a run; excluded cells are only not trained on."""
    assert screen.parts is not None
    train, validation = (np.flatnonzero(screen.parts == part) for part in ("train", "validation"))
    rest = np.flatnonzero(~np.isin(screen.parts, ("train", "validation")))
    return Split(train, validation, rest)


def _validation_scores(rows: RowsOfCells, columns: NDArray[np.int64], vectors: pd.DataFrame | None) -> dict[str, float]:
    """Pearson delta of the baselines on the validation perturbations, fitted to the training ones."""
    if len(rows.validation) == 0:
        return {}
    rules = {
        name: fit_rule(name, rows.train, embeddings=vectors if name in READ_VECTORS else None)
        for name in RULE_SETS[rows.train.kind].baselines
    }
    return {
        name: _mean_pearson(rule.predict_rows(rows.validation), rows.validation, columns)
        for name, rule in rules.items()
    }


def _mean_pearson(effects: NDArray[np.float64], rows: Profiles, columns: NDArray[np.int64]) -> float:
    predicted, true = effects[:, columns], rows.effects[:, columns]
    both = [part - part.mean(axis=1, keepdims=True) for part in (predicted, true)]
    length = np.prod([np.linalg.norm(part, axis=1) for part in both], axis=0)
    product = (both[0] * both[1]).sum(axis=1)
    return float(np.divide(product, length, out=np.zeros_like(product), where=length > 1e-12).mean())


def _report(rows: RowsOfCells, added: list[str], scores: dict[str, float], choice: Choice | None) -> None:
    logg.result(f"    {len(rows.train)} training perturbations, {len(rows.validation)} validation perturbations")
    if added:
        logg.info(f"    {len(added):,} genes are added to the vocabulary with random embeddings")
    if choice is not None and choice.table["chosen"].any():
        of_question = choice.table[choice.table["chosen"]].set_index("question")["weights"]
        told = [f"{weights or 'own gene'} for {question} genes" for question, weights in of_question.items()]
        logg.info(f"    prior, chosen by cross-validation on training perturbations: {'; '.join(told)}")
    if scores:
        best = max(scores, key=lambda name: scores[name])
        logg.info(f"    best baseline on validation perturbations: Pearson delta {scores[best]:.3f} ({best})")


def _by_part(screen: Screen) -> dict[str, list[str]]:
    assert screen.parts is not None
    codes = screen.conditions.codes
    names = {part: np.unique(codes[(screen.parts == part) & (codes > 0)]) for part in ("train", "validation", "test")}
    return {part: [screen.conditions.names[i] for i in found] for part, found in names.items()}


def _stats(fitting: Fitting, config: TrainConfig, result: TrainResult) -> dict[str, Any]:
    rows, best, epochs = fitting.rows, result.best_epoch, len(result.history)
    assert result.split is not None
    assert best is not None
    n_train = int((rows.of_cell[result.split.train] >= 0).sum())
    reached = None
    if len(rows.validation):
        reached = 1 - (fitting.start if best < 0 else float(result.history["validation_delta_error"].loc[best]))
    hopeless = epochs < (config.patience or 0)
    patience = "clearly worse than the prior" if hopeless else f"no better epoch in {config.patience}"
    return {
        "wall_clock_seconds": round(time.perf_counter() - fitting.started, 1),
        "stopped_because": "max_epochs reached" if epochs == config.max_epochs else patience,
        "epochs": epochs,
        "best_epoch": best,
        "cells_seen": epochs * n_train,
        "training_cells": n_train,
        "training_perturbations": len(rows.train),
        "validation_perturbations": len(rows.validation),
        "gradient_steps": result.steps,
        "optimizer_bytes": result.optimizer_bytes,
        "validation_pearson_delta": {} if reached is None else {"model": reached, **fitting.scores},
    }
