"""Input of perturbations to a network: an agent (gene or compound) is a token with a flag.

A gene is its own token. A compound is an additional token of the vocabulary, whose value is the logarithm of the dose
instead of expression. If compounds have vectors, the embedding of such a token is initialised with a fixed projection
of its vector, so that similar compounds start similar and compounds absent from training can be predicted.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from scgalore._words import few
from scgalore.data.match import tokens_of_each
from scgalore.data.perturbations import Targets
from scgalore.data.vocab import GeneVocab
from scgalore.errors import DataError
from scgalore.perturb.baselines.dose import log_dose
from scgalore.perturb.labels.parsing import Agent, subject_of
from scgalore.tasks.perturbation.memory import memory_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    import pandas as pd

    from scgalore.nn import CellNetwork
    from scgalore.tasks.base import TaskModel

__all__ = [
    "agent_tokens",
    "place_compounds",
    "refuse_unknown",
    "targets_of",
    "token_name",
    "with_compounds",
]

AnyModel = TypeVar("AnyModel", bound="TaskModel")

COMPOUND = "compound:"
"""Prefix of compound tokens, since some compounds are named like genes: IL6 and its gene are different."""


def token_name(agent: str) -> str:
    """Name of an agent's token: the gene, or the compound without its dose."""
    subject, dose = Agent.of(agent)
    return agent if dose is None else COMPOUND + subject


def agent_tokens(agents: Iterable[str], vocab: GeneVocab, *, species: str = "human") -> list[int]:
    """Token of each agent, -1 for agents that are not in the vocabulary."""
    return tokens_of_each(map(token_name, agents), vocab, species=species)


def targets_of(
    agents: Sequence[str],
    vocab: GeneVocab,
    known: Collection[str],
    *,
    species: str = "human",
    doses: tuple[float, float] | None = None,
) -> Targets:
    """Tokens of the perturbation of a cell.

    Parameters
    ----------
    agents
        Genes, or a compound at a dose.
    vocab
        Vocabulary with all agents.
    known
        Genes or compounds known to the prior.
    species
        Species of the genes.
    doses
        Lowest and highest dose of the training data, for :func:`~scgalore.perturb.baselines.dose.log_dose`; ``None`` for genes.
    """
    tokens = np.array(agent_tokens(agents, vocab, species=species), dtype=np.int64)
    values = None
    if doses is not None:
        values = np.array([log_dose(Agent.of(agent).dose or 0.0, *doses) for agent in agents], dtype=np.float32)
    return Targets(tokens, np.array([subject_of(agent) in known for agent in agents], dtype=bool), values)


def refuse_unknown(agents: Iterable[str], vocab: GeneVocab, *, species: str = "human") -> None:
    """Raise :class:`~scgalore.errors.DataError` for genes and compounds that a model has no token for."""
    agents = sorted(set(agents))
    unknown = [
        agent for agent, token in zip(agents, agent_tokens(agents, vocab, species=species), strict=True) if token < 0
    ]
    if not unknown:
        return
    compounds = list(dict.fromkeys(subject_of(agent) for agent in unknown if Agent.of(agent).dose is not None))
    if compounds:
        msg = (
            f"The model was not trained on the compound {few(compounds)} and has no vector for it. For a model fine-tuned with "
            "vectors_key=, add its vector to that table in adata.uns. A model without vectors can only predict "
            "the compounds it was trained on."
        )
        raise DataError(msg)
    msg = (
        f"The model has no token for the gene {few(unknown)} and cannot predict its perturbation. Use a current symbol or an "
        "Ensembl id, or fine-tune on data in which the gene is measured or perturbed."
    )
    raise DataError(msg)


def place_compounds(
    network: CellNetwork, vocab: GeneVocab, new: Iterable[str], vectors: pd.DataFrame, reference: pd.DataFrame
) -> None:
    """Initialise the embeddings of compound tokens with projections of their vectors, in place.

    Parameters
    ----------
    network
        Network with embeddings for the compounds.
    vocab
        Vocabulary with tokens for the compounds.
    new
        Compounds.
    vectors
        One row per compound.
    reference
        Vectors of the training compounds, used for centring and scaling.
    """
    new = list(new)
    if not new:
        return
    table = network.gene_table.weight
    centre = reference.to_numpy(np.float64).mean(axis=0)
    size = float(np.sqrt(((reference.to_numpy(np.float64) - centre) ** 2).sum(axis=1).mean())) or 1.0
    axes = np.random.default_rng(0).standard_normal((len(centre), table.shape[1]))
    places = (vectors.loc[new].to_numpy(np.float64) - centre) / size @ axes
    with torch.no_grad():
        genes = table[[token for name, token in vocab.to_dict().items() if not name.startswith(COMPOUND)]]
        rows = genes.mean(dim=0) + genes.std(dim=0) * torch.from_numpy(places).to(table)
        table[[vocab.to_dict()[COMPOUND + name] for name in new]] = rows


def with_compounds(model: AnyModel, agents: Iterable[str], vectors: pd.DataFrame | None) -> AnyModel:
    """Return the model, or a copy with additional compounds, represented by their vectors.

    Parameters
    ----------
    model
        Fine-tuned model.
    agents
        Agents to predict.
    vectors
        Vectors of compounds that came with the cells, or ``None``.

    Raises
    ------
    DataError
        If vectors have another length than those of the training data, or training compounds have other vectors.
    """
    memory = memory_of(model)
    if memory is None or memory.vectors is None or vectors is None:
        return model
    if vectors.shape[1] != memory.vectors.shape[1]:
        msg = (
            f"Vectors of compounds have {vectors.shape[1]:,} numbers, but those of the training data have "
            f"{memory.vectors.shape[1]:,}. Pass vectors computed in the same way."
        )
        raise DataError(msg)
    shared = memory.vectors.index.intersection(vectors.index)
    if not np.allclose(vectors.loc[shared], memory.vectors.loc[shared], rtol=1e-5, atol=1e-8):
        msg = (
            "Vectors of training compounds differ from those in training, so vectors of new compounds may not be comparable. Pass the "
            "vectors of the training data, with columns in the same order, and add rows for the new compounds."
        )
        raise DataError(msg)
    asked = dict.fromkeys(subject_of(agent) for agent in agents)
    new = [name for name in asked if COMPOUND + name not in model.vocab and name in vectors.index]
    if not new:
        return model
    vocab = GeneVocab.from_dict(
        model.vocab.to_dict() | {COMPOUND + name: len(model.vocab) + i for i, name in enumerate(new)}, specials=()
    )
    network = model.network.perturbation_variant(len(vocab), len(model.vocab), seed=0)
    place_compounds(network, vocab, new, vectors, memory.vectors)
    assert memory.prior is None or model.result is not None
    known = replace(memory, prior=None if memory.prior is None else memory.prior.knowing(vectors.loc[new]))
    larger = copy.copy(model)
    larger.network, larger.vocab = network, vocab
    larger.result = replace(model.result, memory=known)  # type: ignore[misc, type-var]
    return larger
