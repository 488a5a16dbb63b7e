"""Predictions of a fitted model: mean effects of perturbations, and embeddings of perturbed cells."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from scgalore._progress import progress
from scgalore.data.match import match_genes, tokens_of_each
from scgalore.data.reading import Reading
from scgalore.errors import DataError
from scgalore.perturb.labels.parsing import Agent, agents_of
from scgalore.perturb.predictions.controls import ControlMeans
from scgalore.tasks.perturbation.agents import refuse_unknown, targets_of
from scgalore.tasks.perturbation.memory import memory_of
from scgalore.tasks.perturbation.networks import flag_tokenizer, predict_outputs

if TYPE_CHECKING:
    from collections.abc import Collection

    import torch
    from numpy.typing import NDArray

    from scgalore.data.perturbations import FlagTokenizer, Targets
    from scgalore.perturb.labels.profiles import Profiles
    from scgalore.perturb.labels.screen import Screen
    from scgalore.tasks.base import TaskModel
    from scgalore.tasks.perturbation.memory import PerturbationMemory

__all__ = ["perturbed_embeddings", "predict_effects", "prior_effects", "refuse_other_scale"]

CELL_TOKENS = 1 << 14
"""Default maximum number of tokens per batch of a prediction, unless a single cell has more."""


def predict_effects(
    model: TaskModel,
    screen: Screen,
    wanted: list[tuple[int, tuple[str, ...]]],
    controls: Profiles,
    *,
    device: torch.device,
    n_controls: int = 100,
    batch_tokens: int | None = None,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Effects of perturbations on mean log-normalised expression.

    Parameters
    ----------
    model
        Model fine-tuned on a screen, or with a perturbation checkpoint of the original scGPT.
    screen
        Screen with control cells of every context.
    wanted
        Index of the context, and perturbed genes or compound at a dose, of each row.
    controls
        Profiles with the control means of the contexts.
    device
        Torch device.
    n_controls
        Number of control cells to average a prediction over; all if a context has fewer.
    batch_tokens
        Maximum number of tokens per batch.
    seed
        Seed for sampling control cells.

    Returns
    -------
    float64 ``(len(wanted), n_genes)``; means are never negative.
    """
    species = screen.reading.species
    refuse_unknown([gene for _, genes in wanted for gene in genes], model.vocab, species=species)
    names = _own_names(model, {gene for _, genes in wanted for gene in genes}, species)
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
    model: TaskModel,
    screen: Screen,
    wanted: list[tuple[str, ...]],
    *,
    device: torch.device,
    batch_tokens: int | None = None,
) -> NDArray[np.float32]:
    """Embedding of every cell with its own perturbed genes flagged, unit norm, float32 ``(n_obs, d)``.

    Parameters
    ----------
    model, screen, device, batch_tokens
        As for :func:`predict_effects`.
    wanted
        Genes to perturb in each cell; ``()`` for none.
    """
    species = screen.reading.species
    refuse_unknown([gene for genes in wanted for gene in genes], model.vocab, species=species)
    names = _own_names(model, {gene for genes in wanted for gene in genes}, species)
    wanted = [tuple(names[gene] for gene in genes) for genes in wanted]
    tokenizer = _tokenizer(model, screen)
    contexts = [""] * len(wanted) if screen.contexts is None else screen.contexts.tolist()
    pairs = list(zip(contexts, wanted, strict=True))
    targets_by = {(c, genes): _targets(model, genes, c) for c, genes in set(pairs)}
    batch_cells = _batch_cells(tokenizer, batch_tokens)
    embeddings = np.empty((screen.expression.n_obs, model.network.config.d_model), dtype=np.float32)
    chunks = screen.expression.chunks(batch_cells)
    for start, rows in progress(chunks, label="cells", total=len(wanted), size=lambda chunk: chunk[1].shape[0]):
        x = rows[:, tokenizer.columns].toarray()
        cells = slice(start, start + len(x))
        targets = [targets_by[pair] for pair in pairs[cells]]
        embeddings[cells] = predict_outputs(
            model.network, tokenizer, x, targets, batch_cells=batch_cells, device=device
        )[1]
    return embeddings


def _tokenizer(model: TaskModel, screen: Screen) -> FlagTokenizer:
    memory = memory_of(model)
    flag_unmeasured = memory is None or memory.params["flag_unmeasured"]
    return flag_tokenizer(
        model.network, model.vocab, screen.genes, species=screen.reading.species, flag_unmeasured=flag_unmeasured
    )


def _targets(model: TaskModel, genes: tuple[str, ...], context: str) -> Targets:
    """Tokens of the perturbation, named as in the model's training data."""
    memory = memory_of(model)
    params = {} if memory is None else memory.params
    lowest, highest = params.get("lowest_dose"), params.get("highest_dose")
    # Version 0.12.0 kept no highest dose.
    doses = None if lowest is None else (lowest, math.inf if highest is None else highest)
    known = _known(model, context)
    return targets_of(genes, model.vocab, known, species=_own_species(model), doses=doses)


def _own_species(model: TaskModel) -> str:
    """Species of the training data."""
    memory = memory_of(model)
    return Reading.of({} if memory is None else memory.params).species


def _known(model: TaskModel, context: str) -> frozenset[str]:
    """Genes in the fit of the model's prior for this context."""
    memory = memory_of(model)
    return frozenset() if memory is None or memory.prior is None else memory.prior.known(context)


def _own_names(model: TaskModel, genes: Collection[str], species: str) -> dict[str, str]:
    """Names in the training data of genes given by an alias or an Ensembl id.

    Compounds have a single name.
    """
    memory = memory_of(model)
    if memory is None:
        return {gene: gene for gene in genes}
    perturbed = {agent for names in memory.perturbations.values() for name in names for agent in agents_of(name)}
    perturbed |= {agent for agent in genes if Agent.of(agent).dose is not None}
    own = dict.fromkeys([*sorted(perturbed), *memory.genes])
    own_tokens = tokens_of_each(own, model.vocab, species=_own_species(model))
    name = dict(zip(reversed(own_tokens), reversed(own), strict=True))
    tokens = tokens_of_each(genes, model.vocab, species=species)
    return {
        gene: gene if gene in perturbed else name.get(token, gene) for gene, token in zip(genes, tokens, strict=True)
    }


def _batch_cells(tokenizer: FlagTokenizer, batch_tokens: int | None) -> int:
    return max((batch_tokens or CELL_TOKENS) // (len(tokenizer.columns) + 3), 1)


def prior_effects(
    model: TaskModel, screen: Screen, wanted: list[tuple[int, tuple[str, ...]]], controls: Profiles
) -> NDArray[np.float64] | None:
    """Effects predicted by the model's prior alone, for the genes of this screen; 0 for genes unknown to it.

    Parameters
    ----------
    model, screen, wanted, controls
        As for :func:`predict_effects`.

    Returns
    -------
    float64 ``(len(wanted), n_genes)``; ``None`` without a prior.

    Raises
    ------
    DataError
        If the prior is not finite.
    """
    memory = memory_of(model)
    if memory is None or memory.prior is None:
        return None
    names = _own_names(model, {gene for _, genes in wanted for gene in genes}, screen.reading.species)
    here = _own_columns(model, memory, screen)
    out = np.zeros((len(wanted), len(here)))
    for i, (context, genes) in enumerate(wanted):
        name = controls.context_names[context]
        control = memory.prior.of(name).control
        if control is not None:
            control = control.copy()
            control[here[here >= 0]] = controls.control_means[context, here >= 0]
        effect = memory.prior.predict(tuple(names[gene] for gene in genes), name, control=control)
        out[i, here >= 0] = effect[here[here >= 0]]
    if not np.isfinite(out).all():
        bad = wanted[int(np.flatnonzero(~np.isfinite(out).all(axis=1))[0])][1]
        msg = f"The prior of the model predicts NaN or infinite values for {'+'.join(bad) or 'control'}. Fine-tune the model again."
        raise DataError(msg)
    return out


def refuse_other_scale(model: TaskModel, screen: Screen, controls: Profiles) -> None:
    """Raise :class:`~scgalore.errors.DataError` if the screen is on another scale than the model's training data.

    Parameters
    ----------
    model, screen, controls
        As for :func:`predict_effects`.
    """
    memory = memory_of(model)
    if memory is not None and memory.controls is not None:
        memory.controls.refuse_other_scale(
            ControlMeans.of(controls),
            columns=_own_columns(model, memory, screen),
            what="that of the training data",
            advice="Normalise them in the same way, or pass counts; see layer=, data_type= and depth_key=.",
        )


def _own_columns(model: TaskModel, memory: PerturbationMemory, screen: Screen) -> NDArray[np.int64]:
    """Position of each gene of the screen among the genes of the training data, -1 if it is not among them."""
    place = {gene: i for i, gene in enumerate(memory.genes)}
    # Other data may use other names of genes.
    own = match_genes(memory.genes, model.vocab, species=_own_species(model)).token_ids.tolist()
    by_token = {token: i for i, token in enumerate(own)}
    by_token[-1] = -1
    tokens = match_genes(screen.genes, model.vocab, species=screen.reading.species).token_ids.tolist()
    return np.array(
        [place.get(gene, by_token.get(token, -1)) for gene, token in zip(screen.genes, tokens, strict=True)],
        dtype=np.int64,
    )


def _pick(pool: NDArray[np.int64], n: int, seed: list[int]) -> NDArray[np.int64]:
    if len(pool) <= n:
        return pool
    return np.sort(np.random.default_rng(seed).choice(pool, n, replace=False))


def _mean_outputs(
    model: TaskModel,
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
        targets = [_targets(model, genes, names[context])] * len(x)
        output, _ = predict_outputs(model.network, tokenizer, x, targets, batch_cells=batch_cells, device=device)
        out[i] = output.mean(axis=0)
    return out
