"""Fine-tuning on a perturbation screen, and what a model remembers of it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scgalore import _logging as logg
from scgalore._progress import progress
from scgalore.data.match import match_genes
from scgalore.data.split import Split
from scgalore.errors import OptionError
from scgalore.model.perturbation import (
    RowsOfCells,
    flag_tokenizer,
    gene_vectors,
    know_genes,
    predict_outputs,
    predicted_effects,
    refuse_unknown,
    target_tokens,
    targets_of,
    training_cells,
)
from scgalore.objectives import Perturbation
from scgalore.perturb.baselines.effects import BASELINES, PRIORS, Effects, fit_effects

if TYPE_CHECKING:
    from collections.abc import Collection

    import torch
    from numpy.typing import NDArray

    from scgalore._typing import PathLike
    from scgalore.data.perturbations import FlagTokenizer
    from scgalore.model.scgpt import SCGPT
    from scgalore.perturb.labels.profiles import Profiles
    from scgalore.perturb.labels.screen import Screen
    from scgalore.train.config import TrainConfig

__all__ = ["ScreenMemory", "check_prior", "fit_screen", "perturbed_embeddings", "predict_effects", "prior_effects"]

NO_PRIOR = "none"
CELL_TOKENS = 1 << 14
"""Tokens that a batch of a prediction holds at most, unless a single cell has more."""


@dataclass(frozen=True)
class ScreenMemory:
    """What a model knows of the screen it was fine-tuned on, beside its weights.

    Attributes
    ----------
    genes
        Names of the measured genes.
    prior
        Rule that the network's output is added to, fitted to everything but test cells; ``None`` without one.
    perturbations
        Canonical names by part of the split.
    params
        How the screen was read and the model was made.
    stats
        What the training run took and why it ended.
    """

    genes: tuple[str, ...] = field(repr=False)
    prior: Effects | None
    perturbations: dict[str, list[str]] = field(repr=False)
    params: dict[str, Any]
    stats: dict[str, Any]


def check_prior(prior: str) -> None:
    """Raise :class:`~scgalore.errors.OptionError` for a prior that does not exist."""
    if prior not in (*PRIORS, NO_PRIOR):
        msg = f"prior={prior!r}: choose one of {', '.join(map(repr, (*PRIORS, NO_PRIOR)))}."
        raise OptionError(msg)


def fit_screen(
    model: SCGPT,
    screen: Screen,
    config: TrainConfig,
    *,
    prior: str = "mixed",
    n_genes: int | None = None,
    ranks: NDArray[np.floating] | None = None,
    checkpoint_dir: PathLike | None = None,
    resume: bool = False,
    monitor: str | None = None,
    held_out: bool = True,
    flag_unmeasured: bool = True,
) -> None:
    """Teach a model a screen: train its network on the training part, and keep what the prior needs.

    Parameters
    ----------
    model
        Changed in place when all has gone well, and only then.
    screen
        With a split.
    config
        How to train.
    prior
        Rule that the network corrects, of :data:`scgalore.perturb.baselines.effects.PRIORS`, or ``"none"``.
    n_genes
        Genes of a training step; ``None`` takes all.
    ranks
        Rank of each gene for a curriculum, 0 the best, NaN for genes without, shape ``(n_vars,)``.
    checkpoint_dir, resume
        As for :meth:`scgalore.model.SCGPT.fit`.
    monitor
        What chooses the epoch; the effects on validation perturbations when left out.
    held_out
        Whether the network also sees what the prior says of perturbations it was not fitted to.
    flag_unmeasured
        Whether perturbed genes that are not measured are tokens.

        These three are there to be measured against.
    """
    started = time.perf_counter()
    rows = RowsOfCells.of(screen)
    perturbed = sorted({gene for genes in screen.conditions.genes for gene in genes})
    vocab, added = know_genes(model.vocab, screen.genes, perturbed)
    network = model.network.perturbation_variant(len(vocab), len(model.vocab), seed=config.seed)
    vectors = gene_vectors(network, vocab, [*screen.genes, *perturbed]) if prior == "linear" else None
    expected = None if prior == NO_PRIOR else rows.prior(prior, vectors)
    corrects = model.screen is not None and model.screen.prior is not None
    if expected is not None and not corrects:  # what another decoder says is no correction
        network.start_at_zero()
    tokenizer = flag_tokenizer(network, vocab, screen.genes, flag_unmeasured=flag_unmeasured)
    cells = training_cells(
        screen,
        rows,
        vocab,
        tokenizer,
        prior=expected,
        held_out=rows.held_out_prior(prior, vectors) if held_out and expected is not None else None,
        n_genes=n_genes,
        seed=config.seed,
    )
    if ranks is not None:
        cells = cells.with_ranks(ranks)
    if len(rows.validation) == 0:
        config = replace(config, patience=None)  # nothing to be patient about
    scores = _validation_scores(rows, tokenizer.columns)
    start = math.inf
    if expected is not None and len(rows.validation):
        of_prior = _mean_pearson(expected[len(rows.train) :], rows.validation, tokenizer.columns)
        scores[f"prior ({prior})"] = of_prior
        if network.starts_at_zero:
            # Metrics are logged in single precision, in which the prior must not look better than itself.
            start = float(np.float32(1 - of_prior))
    _report(rows, added, scores)
    known = screen.profiles("train", "validation")
    learnt = None if prior == NO_PRIOR else fit_effects(prior, known, embeddings=vectors)
    before = model.network, model.vocab
    try:
        model.network, model.vocab = network, vocab
        model.fit(
            cells,
            _split(screen),
            config,
            objective=_objective(start, monitor),
            checkpoint_dir=checkpoint_dir,
            resume=resume,
        )
    except BaseException:
        model.network, model.vocab = before
        raise
    model.screen = ScreenMemory(
        genes=screen.genes,
        prior=learnt,
        perturbations=_by_part(screen),
        params={
            **screen.params,
            "prior": prior,
            "n_genes": n_genes,
            "flag_unmeasured": flag_unmeasured,
            "added_genes": added,
        },
        stats=_stats(model, config, rows, scores, start, seconds=time.perf_counter() - started),
    )


def _objective(start: float, monitor: str | None) -> Perturbation:
    if monitor is None:
        return Perturbation(start)
    # The score of the start is no value of other metrics.
    return Perturbation(start if monitor == "validation_score" else math.inf, monitor=monitor)


def _split(screen: Screen) -> Split:
    """Cells that are left out are not trained on either, which is all that a run asks."""
    assert screen.parts is not None
    train, validation = (np.flatnonzero(screen.parts == part) for part in ("train", "validation"))
    rest = np.flatnonzero(~np.isin(screen.parts, ("train", "validation")))
    return Split(train, validation, rest)


def _validation_scores(rows: RowsOfCells, columns: NDArray[np.int64]) -> dict[str, float]:
    """Pearson delta of the baselines on the validation perturbations, fitted to the training ones."""
    if len(rows.validation) == 0:
        return {}
    rules = {name: fit_effects(name, rows.train) for name in BASELINES}
    return {
        name: _mean_pearson(predicted_effects(rule, rows.validation), rows.validation, columns)
        for name, rule in rules.items()
    }


def _mean_pearson(effects: NDArray[np.float64], rows: Profiles, columns: NDArray[np.int64]) -> float:
    predicted, true = effects[:, columns], rows.effects[:, columns]
    both = [part - part.mean(axis=1, keepdims=True) for part in (predicted, true)]
    length = np.prod([np.linalg.norm(part, axis=1) for part in both], axis=0)
    product = (both[0] * both[1]).sum(axis=1)
    return float(np.divide(product, length, out=np.zeros_like(product), where=length > 1e-12).mean())


def _report(rows: RowsOfCells, added: list[str], scores: dict[str, float]) -> None:
    logg.info(f"    {len(rows.train)} perturbations to train on, {len(rows.validation)} to validate on")
    if added:
        logg.info(f"    {len(added):,} genes are new to the vocabulary and start from random embeddings")
    if scores:
        best = max(scores, key=lambda name: scores[name])
        logg.info(f"    Pearson delta on validation perturbations to beat: {scores[best]:.3f} ({best})")


def _by_part(screen: Screen) -> dict[str, list[str]]:
    assert screen.parts is not None
    codes = screen.conditions.codes
    names = {part: np.unique(codes[(screen.parts == part) & (codes > 0)]) for part in ("train", "validation", "test")}
    return {part: [screen.conditions.names[i] for i in found] for part, found in names.items()}


def _stats(
    model: SCGPT,
    config: TrainConfig,
    rows: RowsOfCells,
    scores: dict[str, float],
    start: float,
    *,
    seconds: float,
) -> dict[str, Any]:
    history, best = model.history, model.training["best_epoch"]
    assert model.split is not None
    trained = model.split.train[rows.of_cell[model.split.train] >= 0]
    epochs, n_train = len(history), len(trained)
    reached = None
    if len(rows.validation):
        reached = 1 - (start if best < 0 else float(history["validation_delta_error"].loc[best]))
    patience = f"no better epoch in {config.patience}"
    return {
        "wall_clock_seconds": round(seconds, 1),
        "stopped_because": "max_epochs reached" if epochs == config.max_epochs else patience,
        "epochs": epochs,
        "best_epoch": best,
        "cells_seen": epochs * n_train,
        "training_cells": n_train,
        "training_perturbations": len(rows.train),
        "validation_perturbations": len(rows.validation),
        "gradient_steps": model.training["steps"],
        "optimizer_bytes": model.training["optimizer_bytes"],
        "validation_pearson_delta": {} if reached is None else {"model": reached, **scores},
    }


def predict_effects(
    model: SCGPT,
    screen: Screen,
    wanted: list[tuple[int, tuple[str, ...]]],
    controls: Profiles,
    *,
    device: torch.device,
    n_controls: int = 100,
    batch_tokens: int | None = None,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Effects of perturbations on the mean of log-normalised expression.

    Parameters
    ----------
    model
        Fine-tuned on a screen, or with an upstream checkpoint of this kind.
    screen
        Has control cells of every context.
    wanted
        Number of the context and perturbed genes of each row.
    controls
        Knows the control means of the contexts.
    device
        Where to compute.
    n_controls
        Control cells that a prediction is averaged over; all where a context has fewer.
    batch_tokens
        Most tokens in a batch.
    seed
        Seed of the choice of control cells.

    Returns
    -------
    float64 ``(len(wanted), n_genes)``; means are never negative.
    """
    refuse_unknown([gene for _, genes in wanted for gene in genes], model.vocab)
    names = _own_names(model, {gene for _, genes in wanted for gene in genes})
    wanted = [(context, tuple(names[gene] for gene in genes)) for context, genes in wanted]
    tokenizer = _tokenizer(model, screen)
    pools = screen.pools().of_context
    effects = np.zeros((len(wanted), len(screen.genes)))
    base = prior_effects(model, screen, wanted, controls)
    if not (base is not None and model.network.starts_at_zero):
        picked = [_pick(pools[context], n_controls, [seed, context]) for context in range(len(pools))]
        outputs = _mean_outputs(model, screen, tokenizer, wanted, picked, device=device, batch_tokens=batch_tokens)
        if base is None:
            outputs -= controls.control_means[[context for context, _ in wanted]][:, tokenizer.columns]
        effects[:, tokenizer.columns] = outputs
    if base is not None:
        effects += base
    means = controls.control_means[[context for context, _ in wanted]]
    return np.maximum(means + effects, 0) - means


def perturbed_embeddings(
    model: SCGPT,
    screen: Screen,
    wanted: list[tuple[str, ...]],
    *,
    device: torch.device,
    batch_tokens: int | None = None,
) -> NDArray[np.float32]:
    """Embedding of every cell with genes of its own flagged, unit norm, float32 ``(n_obs, d)``.

    Parameters
    ----------
    model, screen, device, batch_tokens
        As for :func:`predict_effects`.
    wanted
        Genes to perturb in each cell; ``()`` leaves it as it is.
    """
    refuse_unknown([gene for genes in wanted for gene in genes], model.vocab)
    names = _own_names(model, {gene for genes in wanted for gene in genes})
    wanted = [tuple(names[gene] for gene in genes) for genes in wanted]
    tokenizer = _tokenizer(model, screen)
    contexts = [""] * len(wanted) if screen.contexts is None else screen.contexts.tolist()
    pairs = list(zip(contexts, wanted, strict=True))
    targets_by = {(c, genes): targets_of(genes, model.vocab, _known(model, c)) for c, genes in set(pairs)}
    batch_cells = _batch_cells(tokenizer, batch_tokens)
    embeddings = np.empty((screen.expression.n_obs, model.network.config.d_model), dtype=np.float32)
    for start, rows in progress(
        screen.expression.chunks(batch_cells), label="cells", total=-(-len(wanted) // batch_cells)
    ):
        x = rows[:, tokenizer.columns].toarray()
        cells = slice(start, start + len(x))
        targets = [targets_by[pair] for pair in pairs[cells]]
        embeddings[cells] = predict_outputs(
            model.network, tokenizer, x, targets, batch_cells=batch_cells, device=device
        )[1]
    return embeddings


def _tokenizer(model: SCGPT, screen: Screen) -> FlagTokenizer:
    flag_unmeasured = model.screen is None or model.screen.params["flag_unmeasured"]
    return flag_tokenizer(model.network, model.vocab, screen.genes, flag_unmeasured=flag_unmeasured)


def _known(model: SCGPT, context: str) -> frozenset[str]:
    """Genes that the model's prior has learnt from, for cells of this context."""
    memory = model.screen
    return frozenset() if memory is None or memory.prior is None else memory.prior.known(context)


def _own_names(model: SCGPT, genes: Collection[str]) -> dict[str, str]:
    """What the model's screen calls each of these genes, which may be asked for by an alias or an Ensembl id."""
    if model.screen is None:
        return {gene: gene for gene in genes}
    perturbed = {gene for names in model.screen.perturbations.values() for name in names for gene in name.split("+")}
    own = dict.fromkeys([*sorted(perturbed), *model.screen.genes])
    name = dict(zip(reversed(target_tokens(own, model.vocab)), reversed(own), strict=True))
    tokens = target_tokens(genes, model.vocab)
    return {
        gene: gene if gene in perturbed else name.get(token, gene) for gene, token in zip(genes, tokens, strict=True)
    }


def _batch_cells(tokenizer: FlagTokenizer, batch_tokens: int | None) -> int:
    return max((batch_tokens or CELL_TOKENS) // (len(tokenizer.columns) + 3), 1)


def prior_effects(
    model: SCGPT, screen: Screen, wanted: list[tuple[int, tuple[str, ...]]], controls: Profiles
) -> NDArray[np.float64] | None:
    """What the model's prior says on its own, for the genes of this screen; genes that it does not know have none.

    Parameters
    ----------
    model, screen, wanted, controls
        As for :func:`predict_effects`.

    Returns
    -------
    float64 ``(len(wanted), n_genes)``; ``None`` without a prior.
    """
    memory = model.screen
    if memory is None or memory.prior is None:
        return None
    names = _own_names(model, {gene for _, genes in wanted for gene in genes})
    place = {gene: i for i, gene in enumerate(memory.genes)}
    # Other data may name a gene otherwise.
    by_token = {token: i for i, token in enumerate(match_genes(memory.genes, model.vocab).token_ids.tolist())}
    by_token[-1] = -1
    tokens = match_genes(screen.genes, model.vocab).token_ids.tolist()
    here = np.array(
        [place.get(gene, by_token.get(token, -1)) for gene, token in zip(screen.genes, tokens, strict=True)]
    )
    out = np.zeros((len(wanted), len(here)))
    for i, (context, genes) in enumerate(wanted):
        effect = memory.prior.predict(tuple(names[gene] for gene in genes), controls.context_names[context])
        out[i, here >= 0] = effect[here[here >= 0]]
    return out


def _pick(pool: NDArray[np.int64], n: int, seed: list[int]) -> NDArray[np.int64]:
    if len(pool) <= n:
        return pool
    return np.sort(np.random.default_rng(seed).choice(pool, n, replace=False))


def _mean_outputs(
    model: SCGPT,
    screen: Screen,
    tokenizer: FlagTokenizer,
    wanted: list[tuple[int, tuple[str, ...]]],
    picked: list[NDArray[np.int64]],
    *,
    device: torch.device,
    batch_tokens: int | None,
) -> NDArray[np.float64]:
    columns = tokenizer.columns
    batch_cells = _batch_cells(tokenizer, batch_tokens)
    names = [""] if screen.contexts is None else np.unique(screen.contexts).tolist()
    out = np.empty((len(wanted), len(columns)))
    cells_of = {context: screen.expression.rows(cells)[:, columns].toarray() for context, cells in enumerate(picked)}
    for i, (context, genes) in enumerate(progress(wanted, label="perturbations", total=len(wanted))):
        x = cells_of[context]
        targets = [targets_of(genes, model.vocab, _known(model, names[context]))] * len(x)
        output, _ = predict_outputs(model.network, tokenizer, x, targets, batch_cells=batch_cells, device=device)
        out[i] = output.mean(axis=0)
    return out
