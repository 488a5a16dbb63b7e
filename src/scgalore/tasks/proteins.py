"""Proteins of multi-omic models: memory, tokens, correction of ridge regressions, and scores."""

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
from scgalore.tasks.linear_model import PRIOR_FILE, LinearModel
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
"""Prefix of protein tokens, as in scGPT's multi-omic tutorial."""
CORRECTION_PENALTIES = np.logspace(0, 4, 9)
"""Candidate penalties on the last layer of the head, whose inputs are scaled to unit mean square."""


@dataclass(frozen=True)
class MultiomicMemory:
    """Proteins that a model was trained with.

    Attributes
    ----------
    proteins
        Names of the antibodies in the training data, without isotype controls.
    tokens
        Tokens in the vocabulary.
    genes
        Gene of each protein; ``""`` if unknown.
    mean, std
        Mean and standard deviation of the centred log-ratios in training cells: outputs are ``(value - mean) / std``.
    corrects
        Whether the network corrects the ridge regression of each protein, which it does only if that improves
        predictions on validation cells.
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
        """Everything except the ridge regressions, as lists."""
        content = asdict(replace(self, prior=None))
        return {name: list(value) for name, value in content.items() if isinstance(value, tuple)}

    def files(self, provenance: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> dict[str, str | bytes]:
        """The ridge regressions."""
        return {} if self.prior is None else {PRIOR_FILE: self.prior.to_bytes()}

    def values(self, standardised: NDArray[np.floating]) -> NDArray[np.float32]:
        """Centred log-ratios of standardised values, float32 ``(n_obs, n_proteins)``."""
        return (standardised * np.asarray(self.std) + np.asarray(self.mean)).astype(np.float32)

    def measured_in(self, proteins: Proteins) -> NDArray[np.float32]:
        """Measured centred log-ratios of these proteins, NaN for missing proteins, float32 ``(n_obs, n_proteins)``.

        They are relative to the mean over the shared proteins.

        Raises
        ------
        DataError
            If fewer than two of the proteins are measured.
        """
        place = {PREFIX + name: i for i, name in enumerate(proteins.cleaned)}
        found = np.array([place.get(token, -1) for token in self.tokens])
        if (found >= 0).sum() < 2:
            msg = f"The data have proteins such as {few(proteins.names)}, but the model was trained on others, such as {few(self.proteins)}."
            raise DataError(msg)
        abundance = np.full((proteins.counts.shape[0], len(found)), np.nan, dtype=np.float32)
        abundance[:, found >= 0] = centred_log_ratio(proteins.counts[:, found[found >= 0]].toarray())
        return abundance

    def table(self, output: CellOutput) -> dict[str, NDArray[np.float32]]:
        """Predicted centred log-ratios, by protein."""
        return dict(zip(self.proteins, self.values(output.heads[HEAD]).T, strict=True))


def with_proteins(model: TaskModel, memory: MultiomicMemory, seed: int) -> tuple[GeneVocab, Tensor]:
    """Add protein tokens to the vocabulary and embeddings of a model, initialised from their genes or at random.

    Parameters
    ----------
    model
        Initial model.
    memory
        Tokens and genes of the proteins.
    seed
        Seed for tokens without a gene.
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
    """Add the measured proteins that are in a vocabulary to the tokens of cells.

    Parameters
    ----------
    cells
        Cells with RNA only.
    measured
        Proteins of the same cells.
    vocab
        Vocabulary of a model fine-tuned with proteins.

    Raises
    ------
    DataError
        If the vocabulary has none of the proteins.
    """
    ids = vocab.ids(PREFIX + name for name in measured.cleaned)
    if not (ids >= 0).any():
        msg = (
            f"The model has no tokens for proteins such as {few(measured.names)}. Fine-tune it on cells with these proteins: "
            "sg.tl.finetune(data, model, task='multiomic')."
        )
        raise DataError(msg)
    if (ids < 0).any():
        lacking = [name for name, token in zip(measured.names, ids, strict=True) if token < 0]
        logg.warning(
            f"{len(lacking)} of {len(ids)} proteins have no token in the model and are ignored: {few(lacking)}."
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
    """Prior predictions of each cell's proteins, and the initial last layer of the head.

    As in :meth:`scgalore.tasks.cells.CellTask.prepare`, separately for each protein: the layer is fitted to
    cross-validated residuals of the ridge regression, and is 0 for proteins that it does not improve.

    Parameters
    ----------
    model
        Initial model.
    rna
        The cells as RNA tokens.
    values
        Standardised proteins, ``(n_obs, n_proteins)``.
    fit
        The ridge regressions.
    validation
        Rows of the validation cells.
    call
        Training call.
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
        f"    on left-out cells, the embedding explains {gain.mean():.3f} ± {error:.3f} more of the variance of proteins than ridge "
        f"regression on genes alone, so the network starts with a correction of {helps.sum()} of {len(helps)} proteins"
    )
    return prior.astype(np.float32), (weight.astype(np.float32), bias.astype(np.float32))


def helped(
    of_ridge: NDArray[np.floating], of_both: NDArray[np.floating], *, expected: bool = False
) -> NDArray[np.bool_]:
    """Outputs for which a correction is used: all except those that get worse, if the mean improves.

    With some dozens of cells, the gain of a single protein is uncertain, and selecting by single gains would lose most
    of the total gain. Therefore the mean gain over all outputs must exceed two standard errors. An output is excluded
    if its gain, shrunken towards the mean (empirical Bayes; Efron and Morris, JASA 1973), is negative by more than one
    standard error.

    Parameters
    ----------
    of_ridge, of_both
        Residuals without and with the correction on held-out cells, ``(n, n_outputs)``.
    expected
        Whether the correction already improved other cells; then it only must not make these worse.
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
    """Decrease of squared residuals."""
    return np.square(of_ridge, dtype=np.float64) - np.square(of_both, dtype=np.float64)


def pearson(predicted: NDArray[np.floating], truth: NDArray[np.floating]) -> NDArray[np.float64]:
    """Correlation of each column across rows, float64 ``(n_columns,)``; NaN for a constant column.

    Parameters
    ----------
    predicted, truth
        ``(n, n_columns)``.
    """
    a, b = (x.astype(np.float64) - x.mean(axis=0, dtype=np.float64) for x in (predicted, truth))
    length = np.sqrt(np.square(a).sum(axis=0) * np.square(b).sum(axis=0))
    return np.divide((a * b).sum(axis=0), length, out=np.full(a.shape[1], np.nan), where=length > 0)


def pearson_of_shared(predicted: NDArray[np.floating], truth: NDArray[np.floating]) -> NDArray[np.float64]:
    """:func:`pearson` of centred log-ratios if some proteins were not measured: their columns of ``truth`` are NaN.

    Parameters
    ----------
    predicted, truth
        ``(n, n_columns)``.
    """
    shared = np.isfinite(truth).all(axis=0)
    if not shared.all():  # relative to the shared proteins, as in truth
        predicted = predicted - predicted[:, shared].mean(axis=1, keepdims=True)
    return np.where(shared, pearson(predicted, np.where(shared, truth, 0)), np.nan)


def score_proteins(
    memory: MultiomicMemory,
    both: NDArray[np.floating],
    ridge: NDArray[np.floating],
    truth: NDArray[np.floating],
    split: Split,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean Pearson correlation of each split, and scores of each protein.

    Parameters
    ----------
    memory
        Memory with the proteins.
    both, ridge, truth
        Standardised predictions of the ridge regressions with and without corrections by the network, and measurements,
        ``(n_obs, n_proteins)``.
    split
        Training, validation and test cells.

    Returns
    -------
    One row per split: ``n``, ``pearson``, ``pearson_ridge``. And one row per protein: ``gene``, ``token``, ``gain`` of
    the network's correction (fraction of the variance, in validation cells) and its standard error ``gain_error``,
    ``corrected``, and ``pearson`` and ``pearson_ridge`` in test cells.
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
