"""Proteins and what predicts them: what a model keeps, their tokens, the layer that corrects ridge regressions, and scores."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from scgalore import _logging as logg
from scgalore._words import few
from scgalore.data.match import tokens_of_each
from scgalore.data.proteins import centred_log_ratio
from scgalore.data.vocab import GeneVocab
from scgalore.errors import DataError
from scgalore.objectives.multiomic import HEAD
from scgalore.tasks.correction import last_inputs
from scgalore.tasks.linear import PRIOR_FILE, LinearModel
from scgalore.tasks.ridge import held_out_ridge, ridges

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from scgalore.data.cells import TokenCells
    from scgalore.data.proteins import Proteins
    from scgalore.data.split import Split
    from scgalore.nn.base import CellOutput
    from scgalore.tasks.base import LastLayer, TaskModel
    from scgalore.tasks.call import TrainingCall
    from scgalore.tasks.ridge import RidgeFit

__all__ = [
    "PREFIX",
    "MultiomicMemory",
    "helped",
    "pearson",
    "pearson_of_shared",
    "score_proteins",
    "start_layer",
    "with_measured",
    "with_proteins",
]

PREFIX = "p_"
"""In front of the names of proteins among the tokens, as in upstream's multi-omic tutorial."""
CORRECTION_PENALTIES = np.logspace(0, 4, 9)
"""Strengths of the penalty on the last layer of the head, whose inputs are brought to unit mean square."""


@dataclass(frozen=True)
class MultiomicMemory:
    """What a model keeps of the proteins that it was trained with.

    Attributes
    ----------
    proteins
        Names of the antibodies in the training data, without isotype controls.
    tokens
        Their tokens in the vocabulary.
    genes
        Gene of each; ``""`` where the name does not tell.
    mean, std
        Of the centred log-ratios of the training cells: outputs are ``(value - mean) / std``.
    corrects
        Whether the network corrects the ridge regression of the protein: only where that predicts validation cells better.
    prior
        Ridge regression of each protein on all genes.
    """

    proteins: tuple[str, ...]
    tokens: tuple[str, ...]
    genes: tuple[str, ...]
    mean: tuple[float, ...] = field(repr=False)
    std: tuple[float, ...] = field(repr=False)
    corrects: tuple[bool, ...] = field(default=(), repr=False)
    task: str = "multiomic"
    outlives_training: bool = False
    prior: LinearModel | None = field(default=None, repr=False)

    def to_config(self) -> dict[str, Any]:
        """Everything but the ridge regressions, as lists."""
        content = asdict(replace(self, prior=None))
        return {name: list(value) for name, value in content.items() if isinstance(value, tuple)}

    def files(self, provenance: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> dict[str, str | bytes]:
        """The ridge regressions."""
        return {} if self.prior is None else {PRIOR_FILE: self.prior.to_bytes()}

    def values(self, standardised: NDArray[np.floating]) -> NDArray[np.float32]:
        """Centred log-ratios of standardised values, float32 ``(n_obs, n_proteins)``."""
        return (standardised * np.asarray(self.std) + np.asarray(self.mean)).astype(np.float32)

    def measured_in(self, proteins: Proteins) -> NDArray[np.float32]:
        """Measured centred log-ratios of these proteins, NaN for those that are not there, float32 ``(n_obs, n_proteins)``.

        They are relative to the mean over the proteins that both have.

        Raises
        ------
        DataError
            If fewer than two of the proteins are there.
        """
        place = {PREFIX + name: i for i, name in enumerate(proteins.cleaned)}
        found = np.array([place.get(token, -1) for token in self.tokens])
        if (found >= 0).sum() < 2:
            msg = f"The data have proteins such as {few(proteins.names)}, and the model was trained on others, such as {few(self.proteins)}."
            raise DataError(msg)
        abundance = np.full((proteins.counts.shape[0], len(found)), np.nan, dtype=np.float32)
        abundance[:, found >= 0] = centred_log_ratio(proteins.counts[:, found[found >= 0]].toarray())
        return abundance

    def table(self, output: CellOutput) -> dict[str, NDArray[np.float32]]:
        """Predicted centred log-ratios, by protein."""
        return dict(zip(self.proteins, self.values(output.heads[HEAD]).T, strict=True))


def with_proteins(model: TaskModel, memory: MultiomicMemory, seed: int) -> tuple[GeneVocab, Tensor]:
    """The vocabulary of a model with tokens of proteins, and its table: each new token starts from its gene, or as genes are drawn.

    Parameters
    ----------
    model
        To start from.
    memory
        Tokens and genes of the proteins.
    seed
        Seed of tokens without a gene.
    """
    new = [(token, gene) for token, gene in zip(memory.tokens, memory.genes, strict=True) if token not in model.vocab]
    n_known = len(model.vocab)
    vocab = GeneVocab.from_dict(
        model.vocab.to_dict() | {token: n_known + i for i, (token, _) in enumerate(new)}, specials=()
    )
    known = model.network.gene_table.weight.detach()[:n_known]
    drawn = torch.randn(len(new), known.shape[1], generator=torch.Generator().manual_seed(seed))
    rows = known.mean(dim=0) + known.std(dim=0) * drawn
    for i, token in enumerate(tokens_of_each([gene for _, gene in new], model.vocab)):
        if token >= 0:
            rows[i] = known[token]
    return vocab, torch.cat([known, rows])


def with_measured(cells: TokenCells, measured: Proteins, vocab: GeneVocab) -> TokenCells:
    """The cells with those of the measured proteins as tokens that a vocabulary has.

    Parameters
    ----------
    cells
        RNA alone.
    measured
        Proteins of the same cells.
    vocab
        Of a model that was fine-tuned with proteins.

    Raises
    ------
    DataError
        If the vocabulary has none of them.
    """
    ids = vocab.ids(PREFIX + name for name in measured.cleaned)
    if not (ids >= 0).any():
        msg = (
            f"The model has no tokens of proteins such as {few(measured.names)}. Fine-tune it on cells with these proteins: "
            "sg.tl.finetune(data, model, task='multiomic')."
        )
        raise DataError(msg)
    if (ids < 0).any():
        lacking = [name for name, token in zip(measured.names, ids, strict=True) if token < 0]
        logg.warning(
            f"{len(lacking)} of {len(ids)} proteins are no tokens of the model and are left out: {few(lacking)}."
        )
    return cells.with_proteins(measured.counts[:, ids >= 0], ids[ids >= 0])


def start_layer(
    model: TaskModel,
    rna: TokenCells,
    values: NDArray[np.float32],
    fit: RidgeFit,
    validation: NDArray[np.int64],
    call: TrainingCall,
) -> tuple[NDArray[np.float32], LastLayer]:
    """What each cell's proteins are predicted from without the network, and the last layer that training starts from.

    As :meth:`scgalore.tasks.cells.CellTask.prepare` has it for one number, for each protein by itself: the layer is fitted to what
    the ridge regression leaves of cells that it has not seen, and is 0 for proteins that it does not help.

    Parameters
    ----------
    model
        To start from.
    rna
        The cells as tokens of RNA.
    values
        Standardised proteins, ``(n_obs, n_proteins)``.
    fit
        The ridge regressions.
    validation
        Rows of the validation cells.
    call
        How to train.
    """
    rows = np.union1d(fit.cells, validation)
    features = last_inputs(model, rna, rows, HEAD, values.shape[1], call.config)
    mean = features.mean(axis=0)
    scale = float(np.sqrt(np.square(features - mean).mean())) or 1.0
    x, fitted = (features - mean) / scale, np.isin(rows, fit.cells)
    left = (values - fit.predicted)[fit.cells].astype(np.float64)
    held_out = held_out_ridge(x[fitted], left, fit.folds, CORRECTION_PENALTIES)
    helps = helped(left, left - held_out)
    coef, _, _ = ridges(x[fitted], left, CORRECTION_PENALTIES)
    weight = coef.T * helps[:, None] / scale  # (n_proteins, n_features)
    bias = -weight @ mean
    prior = fit.predicted.copy()
    prior[fit.cells] += held_out * helps
    prior[rows[fitted]] -= features[fitted] @ weight.T + bias
    gain = _gains(left, left - held_out)
    error = gain.mean(axis=1).std(ddof=1) / np.sqrt(len(gain))
    logg.info(
        f"    the embedding explains {gain.mean():.3f} ± {error:.3f} more of the variance of the proteins of cells that it was not fitted to than ridge "
        f"regression on their genes, so the network starts from its correction of {helps.sum()} of {len(helps)} proteins"
    )
    return prior.astype(np.float32), (weight.astype(np.float32), bias.astype(np.float32))


def helped(
    of_ridge: NDArray[np.floating], of_both: NDArray[np.floating], *, expected: bool = False
) -> NDArray[np.bool_]:
    """Which outputs a correction is used for: all but those that it harms, if it helps them taken together.

    Some dozens of cells say little of one protein: to use a correction only where it is seen to help by itself loses most of what it
    gains. So the mean gain over all outputs decides, by two standard errors. An output is left out if its gain, shrunken towards that mean as
    far as chance explains the differences (empirical Bayes; Efron and Morris, JASA 1973), is negative by more than one.

    Parameters
    ----------
    of_ridge, of_both
        Residuals without and with the correction, of cells that nothing was fitted to, ``(n, n_outputs)``.
    expected
        Whether other cells have said already that it helps; these must then not say that it harms.
    """
    gain = _gains(of_ridge, of_both)
    own, error = gain.mean(axis=0), gain.var(axis=0, ddof=1) / len(gain)
    of_all, error_of_all = own.mean(), gain.mean(axis=1).var(ddof=1) / len(gain)
    between = max(float(np.square(own - of_all).mean() - error.mean()), 0.0)
    weight = between / np.maximum(between + error, np.finfo(float).tiny)
    estimate = of_all + weight * (own - of_all)
    uncertainty = weight * error + np.square(1 - weight) * error_of_all
    least = -1 if expected else 2
    return (of_all > least * np.sqrt(error_of_all)) & (estimate > -np.sqrt(uncertainty))


def _gains(of_ridge: NDArray[np.floating], of_both: NDArray[np.floating]) -> NDArray[np.float64]:
    """How much smaller the squares of the second residuals are."""
    return np.square(of_ridge, dtype=np.float64) - np.square(of_both, dtype=np.float64)


def pearson(predicted: NDArray[np.floating], truth: NDArray[np.floating]) -> NDArray[np.float64]:
    """Correlation of each column over the rows, float64 ``(n_columns,)``; NaN for a column that does not vary.

    Parameters
    ----------
    predicted, truth
        ``(n, n_columns)``.
    """
    a, b = (x.astype(np.float64) - x.mean(axis=0, dtype=np.float64) for x in (predicted, truth))
    length = np.sqrt(np.square(a).sum(axis=0) * np.square(b).sum(axis=0))
    return np.divide((a * b).sum(axis=0), length, out=np.full(a.shape[1], np.nan), where=length > 0)


def pearson_of_shared(predicted: NDArray[np.floating], truth: NDArray[np.floating]) -> NDArray[np.float64]:
    """:func:`pearson` of centred log-ratios where some proteins were not measured: their columns of ``truth`` are NaN.

    Parameters
    ----------
    predicted, truth
        ``(n, n_columns)``.
    """
    shared = np.isfinite(truth).all(axis=0)
    if not shared.all():  # as what was measured is
        predicted = predicted - predicted[:, shared].mean(axis=1, keepdims=True)
    return np.where(shared, pearson(predicted, np.where(shared, truth, 0)), np.nan)


def score_proteins(
    memory: MultiomicMemory,
    both: NDArray[np.floating],
    ridge: NDArray[np.floating],
    truth: NDArray[np.floating],
    split: Split,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean Pearson correlation of each part of the split, and what is found of each protein.

    Parameters
    ----------
    memory
        Of the proteins.
    both, ridge, truth
        Predicted by the ridge regressions with all corrections of the network and by themselves, and measured, standardised,
        ``(n_obs, n_proteins)``.
    split
        Parts of the cells.

    Returns
    -------
    One row for each part: ``n``, ``pearson``, ``pearson_ridge``. And one for each protein: ``gene``, ``token``, ``gain`` of the
    network's correction (share of the variance, in validation cells) and its standard error ``gain_error``, ``corrected``, and
    ``pearson`` and ``pearson_ridge`` in test cells.
    """
    found = np.where(memory.corrects, both, ridge)
    parts = {part: getattr(split, part) for part, n in split.sizes().items() if n > 1}
    of_part = {
        part: (pearson(found[cells], truth[cells]), pearson(ridge[cells], truth[cells]))
        for part, cells in parts.items()
    }
    rows = {
        part: {"n": len(parts[part]), "pearson": np.nanmean(mine), "pearson_ridge": np.nanmean(theirs)}
        for part, (mine, theirs) in of_part.items()
    }
    nothing = np.full(truth.shape[1], np.nan)
    mine, theirs = of_part.get("test", (nothing, nothing))
    gain, error = nothing, nothing
    if (cells := parts.get("validation")) is not None:
        gains = _gains((truth - ridge)[cells], (truth - both)[cells])
        gain, error = gains.mean(axis=0), gains.std(axis=0, ddof=1) / np.sqrt(len(gains))
    proteins = pd.DataFrame(
        {
            **{"gene": list(memory.genes), "token": list(memory.tokens), "gain": gain, "gain_error": error},
            **{"corrected": list(memory.corrects), "pearson": mine, "pearson_ridge": theirs},
        },
        index=pd.Index(memory.proteins, name="protein"),
    )
    return pd.DataFrame.from_dict(rows, orient="index"), proteins
