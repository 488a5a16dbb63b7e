"""Perturbation variants of networks, their training data, and their outputs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from scgalore.data.match import advice_for, match_genes, tokens_of_each
from scgalore.data.perturbations import FlagTokenizer, HeldOutPrior, PerturbationCells, Targets
from scgalore.data.seen import Seen, sums_of
from scgalore.data.vocab import GeneVocab
from scgalore.errors import DataError
from scgalore.nn.finite import refuse_not_finite_outputs
from scgalore.perturb.baselines.effects import RULE_SETS, held_out_effects
from scgalore.perturb.labels.parsing import Agent, subject_of
from scgalore.perturb.splits.split import default_kind
from scgalore.tasks.perturbation.agents import targets_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from scgalore.nn import CellNetwork
    from scgalore.perturb.baselines.effects import Recipe
    from scgalore.perturb.labels.profiles import Profiles
    from scgalore.perturb.labels.screen import Screen

__all__ = [
    "RowsOfCells",
    "flag_tokenizer",
    "gene_vectors",
    "genes_seen",
    "extend_vocabulary",
    "predict_outputs",
    "training_cells",
]


def genes_seen(screen: Screen, vocab: GeneVocab) -> dict[str, Any]:
    """Report on the measured genes in a vocabulary and their fraction of the expression, for ``uns``.

    Parameters
    ----------
    screen
        The cells.
    vocab
        Of the weights, before genes are added to it.

    Raises
    ------
    DataError
        If no measured gene is in the vocabulary, or the fraction is smaller than ``min_matched``.
    """
    reading, matrix = screen.reading, screen.expression.matrix
    match = match_genes(screen.genes, vocab, species=reading.species, columns=screen.columns)
    seen = Seen.of(*matrix.count(partial(sums_of, token_ids=match.token_ids)).T)
    advice = partial(advice_for, screen.genes, vocab, species=reading.species, columns=screen.columns)
    seen.check(match, reading.min_matched, advice)
    return {**match.report(), **seen.report()}


def extend_vocabulary(
    vocab: GeneVocab, measured: Sequence[str], perturbed: Iterable[str], *, species: str = "human"
) -> tuple[GeneVocab, list[str]]:
    """Extend a vocabulary, so that each measured gene and each perturbation has its own token.

    Parameters
    ----------
    vocab
        Vocabulary of the initial weights.
    measured, perturbed
        Names of genes, and of tokens of perturbations.
    species
        Species of the genes.

    Returns
    -------
    The vocabulary, and the names that were added at its end.

    Raises
    ------
    DataError
        If no measured gene is in the vocabulary.
    """
    lacking = list(dict.fromkeys(match_genes(measured, vocab, species=species).dropped))
    larger = GeneVocab.from_dict(_appended(vocab, lacking), specials=())
    tokens = tokens_of_each(perturbed, larger, species=species)
    unknown = [gene for gene, token in zip(perturbed, tokens, strict=True) if token < 0]
    return GeneVocab.from_dict(_appended(larger, unknown), specials=()), lacking + unknown


def _appended(vocab: GeneVocab, names: Sequence[str]) -> dict[str, int]:
    return vocab.to_dict() | {name: len(vocab) + i for i, name in enumerate(names)}


def gene_vectors(
    network: CellNetwork, vocab: GeneVocab, genes: Iterable[str], *, species: str = "human"
) -> pd.DataFrame:
    """Embeddings of genes, one row per gene in the vocabulary, float32."""
    genes = list(dict.fromkeys(genes))
    tokens = np.array(tokens_of_each(genes, vocab, species=species))
    known = np.flatnonzero(tokens >= 0)
    with torch.inference_mode():
        vectors = network.gene_embeddings(torch.from_numpy(tokens[known]))
    return pd.DataFrame(vectors.numpy(), index=[genes[i] for i in known])


@dataclass(frozen=True)
class RowsOfCells:
    """Training and validation perturbations as rows, and the row of each cell.

    Attributes
    ----------
    train, validation
        Measured profiles.
    of_cell
        Row of each cell among training rows followed by validation rows, int64 ``(n_obs,)``; -1 for other cells.
    species
        Species of the measured and perturbed genes.
    """

    train: Profiles
    validation: Profiles
    of_cell: NDArray[np.int64]
    species: str = "human"

    @property
    def doses(self) -> tuple[float, float] | None:
        """Lowest dose of the training rows, and highest of training and validation; ``None`` for gene perturbations."""
        train, validation = (
            [dose for agents in part.perturbed for agent in agents if (dose := Agent.of(agent).dose) is not None]
            for part in (self.train, self.validation)
        )
        return (min(train), max(train + validation)) if train else None

    @classmethod
    def of(cls, screen: Screen) -> RowsOfCells:
        """Average the cells of both splits; test cells are not used.

        Raises
        ------
        DataError
            If there are no training perturbations.
        """
        assert screen.parts is not None
        train, validation = screen.profiles("train"), screen.profiles("validation")
        if len(train) == 0:
            kind = default_kind(screen.conditions)
            msg = (
                "No perturbed cell is in 'train', as in all splits of kind 'no_split', which are for models that are already "
                f"trained. Choose another kind: sg.pp.split_perturbations(adata, {kind!r}, ...)."
            )
            raise DataError(msg)
        contexts = screen.contexts if screen.contexts is not None else np.full(len(screen.conditions.codes), "")
        of_cell = np.full(len(contexts), -1)
        for start, part, profiles in ((0, "train", train), (len(train), "validation", validation)):
            place = {
                (profiles.context_names[context], name): start + i
                for i, (context, name) in enumerate(zip(profiles.contexts, profiles.perturbations, strict=True))
            }
            for cell in np.flatnonzero((screen.parts == part) & (screen.conditions.codes > 0)):
                of_cell[cell] = place[str(contexts[cell]), screen.conditions.names[screen.conditions.codes[cell]]]
        return cls(train, validation, of_cell, screen.reading.species)

    def prior(self, recipe: Recipe, embeddings: pd.DataFrame | None) -> NDArray[np.float64]:
        """Predictions for every row of a recipe fitted to the training rows."""
        fitted = recipe.fit(self.train, embeddings=embeddings)
        return np.concatenate([fitted.predict_rows(part) for part in (self.train, self.validation)])

    def held_out_prior(self, recipe: Recipe, embeddings: pd.DataFrame | None) -> NDArray[np.float64]:
        """Predictions for every row, cross-validated for training rows."""
        of_train = held_out_effects(recipe, self.train, embeddings=embeddings)
        fitted = recipe.fit(self.train, embeddings=embeddings)
        return np.concatenate([of_train, fitted.predict_rows(self.validation)])

    def targets(self, vocab: GeneVocab, *, known: bool, held_out: bool = False) -> tuple[Targets, ...]:
        """Perturbation of every row, with a mark for agents known from the training rows of its context.

        Contexts without training rows use the fit to all rows, as do all contexts if the rules are fitted to
        all contexts.

        Parameters
        ----------
        vocab
            Vocabulary with every perturbed gene.
        known
            Whether there is a prior.
        held_out
            Whether to ignore the training row itself.
        """
        train, validation = self.train, self.validation
        counts = Counter(
            (c, subject_of(agent))
            for agents, c in zip(train.perturbed, train.contexts, strict=True)
            for agent in agents
        )
        names = Counter(zip(train.contexts, train.perturbations, strict=True))
        fitted = set(train.contexts.tolist())
        contexts = np.concatenate([train.contexts, validation.contexts]).tolist()
        joint, doses = RULE_SETS[train.kind].joint, self.doses
        out = []
        for row, agents in enumerate((*train.perturbed, *validation.perturbed)):
            where = fitted if joint else {contexts[row]} & fitted or fitted
            own = sum(names[c, train.perturbations[row]] for c in where) if held_out and row < len(train) else 0
            subjects = [subject_of(agent) for agent in agents]
            seen = {subject for subject in subjects if sum(counts[c, subject] for c in where) > own}
            out.append(targets_of(agents, vocab, seen if known else (), species=self.species, doses=doses))
        return tuple(out)


def training_cells(
    screen: Screen,
    rows: RowsOfCells,
    vocab: GeneVocab,
    tokenizer: FlagTokenizer,
    *,
    prior: NDArray[np.float64] | None,
    held_out: NDArray[np.float64] | None = None,
    n_genes: int | None,
    seed: int,
) -> PerturbationCells:
    """Create the training data from a screen.

    Parameters
    ----------
    screen
        The cells.
    rows
        Rows of the cells.
    vocab
        Vocabulary with every perturbed gene.
    tokenizer
        Tokenizer of the measured genes.
    prior
        Prior effect of each row, ``(n_rows, n_genes)``.
    held_out
        Cross-validated prior effects; ``None`` does not use them.
    n_genes
        Number of genes per training step.
    seed
        Seed for pairing and sampling.
    """
    parts = (rows.train, rows.validation)
    contexts = np.concatenate([part.contexts for part in parts])
    pools = screen.pools()
    return PerturbationCells(
        expression=screen.expression,
        tokenizer=tokenizer,
        targets=rows.targets(vocab, known=prior is not None),
        rows=rows.of_cell,
        pools=pools.of_cell,
        pool_cells=pools.cells,
        row_pools=tuple(pools.of_context[context] for context in contexts),
        means=np.concatenate([part.means for part in parts]).astype(np.float32),
        controls=np.concatenate([part.controls for part in parts]).astype(np.float32),
        prior=None if prior is None else prior.astype(np.float32),
        held_out=None
        if held_out is None
        else HeldOutPrior(held_out.astype(np.float32), rows.targets(vocab, known=True, held_out=True)),
        n_genes=n_genes,
        seed=seed,
    )


def flag_tokenizer(
    network: CellNetwork, vocab: GeneVocab, genes: Sequence[str], *, species: str = "human", **options: Any
) -> FlagTokenizer:
    """Tokenizer for these measured genes and this network."""
    config = network.config
    return FlagTokenizer(
        match_genes(genes, vocab, species=species).token_ids,
        cls_id=vocab.cls_id,
        pad_id=vocab.pad_id,
        cls_value=config.pad_value,
        pad_value=config.pad_value,
        unmeasured_value=config.mask_value,
        **options,
    )


def predict_outputs(
    network: CellNetwork,
    tokenizer: FlagTokenizer,
    expression: NDArray[np.float32],
    targets: Sequence[Targets],
    *,
    batch_cells: int,
    device: torch.device,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Run a perturbation network on cells with flags.

    Parameters
    ----------
    network
        The network.
    tokenizer
        Tokenizer of the network.
    expression
        Expression in the tokenizer's columns, float32 ``(b, n_columns)``.
    targets
        Genes to flag in each cell.
    batch_cells
        Number of cells per batch.
    device
        Torch device.

    Returns
    -------
    The network's output for each column, float32 ``(b, n_columns)``, and cell embeddings with unit norm, ``(b, d)``.

    Raises
    ------
    DataError
        If the outputs contain NaN or infinite values.
    """
    network.eval().to(device)
    columns = tokenizer.columns
    outputs = np.empty((len(expression), len(columns)), dtype=np.float32)
    cells = np.empty((len(expression), network.config.d_model), dtype=np.float32)
    try:
        for start in range(0, len(expression), batch_cells):
            rows = slice(start, min(start + batch_cells, len(expression)))
            batch = tokenizer.batch(
                expression[rows], targets[rows], columns=columns, cells=np.arange(rows.start, rows.stop)
            ).to(device)
            with torch.inference_mode():
                encoded = network.encode(
                    batch.genes, batch.values, batch.padding_if_any, cell_only=False, **batch.conditions
                )
                output: Tensor = network.expression(encoded, batch.values)[0]
                outputs[rows] = output[:, 1 : 1 + len(columns)].float().cpu().numpy()
                cells[rows] = torch.nn.functional.normalize(encoded.cell.float(), dim=1).cpu().numpy()
            found = {"the expression": outputs[rows], "the embedding": cells[rows]}
            refuse_not_finite_outputs(found, np.arange(rows.start, rows.stop))
    finally:
        network.cpu()
    return outputs, cells
