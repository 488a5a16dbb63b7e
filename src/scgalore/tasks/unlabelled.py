"""Self-training: a logistic regression pseudo-labels confident unlabelled cells and is fitted to them as well.

In cross-validation, each model pseudo-labels with its own labelled cells only: labels of left-out
cells and of validation cells never reach the model that predicts them (Yarowsky, ACL 1995; Amini et al.,
"Self-training: a survey", Neurocomputing 2025).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.special import softmax

from scgalore import _logging as logg
from scgalore._options import Option
from scgalore.data.cells import gene_names
from scgalore.data.expression import LogExpression
from scgalore.data.hashing import digest
from scgalore.data.resolve import CELLS
from scgalore.errors import DataError, MissingKeyError
from scgalore.genes.identifiers import standardise
from scgalore.tasks.calibration import fit_temperature
from scgalore.tasks.folds import VALIDATION, left_out, sample
from scgalore.tasks.linear import EXACT, MAX_SPAN, Logistic, basis_of, gene_scale

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore.data.reading import Reading
    from scgalore.tasks.linear import LinearFit

    Array = NDArray[Any]

__all__ = ["UNLABELLED", "check_unlabelled", "fit_unlabelled"]

THRESHOLD = 0.8
"""Calibrated probability above which a pseudo-label is used."""
MAX_UNLABELLED = 10_000
"""Maximum number of unlabelled cells; of more, a sample is used."""
MAX_COMPARED = 1_000
"""Maximum number of pairs of cells with the same name to compare."""


UNLABELLED = Option(
    "unlabelled",
    CELLS,
    "Additional cells without labels for the linear model: those that it labels with a calibrated probability above "
    f"{THRESHOLD:g} are used for fitting as well, unless that makes it worse on labelled cells. An AnnData, or the path of an .h5ad "
    "file, read like the labelled cells; obs is not used. It helps most with few labels: :doc:`/concepts/prior`.",
)


def check_unlabelled(others: AnnData, adata: AnnData, reading: Reading) -> None:
    """Raise an error for unlabelled cells that cannot be used, before anything is fitted.

    Parameters
    ----------
    others
        Cells without labels.
    adata
        Labelled cells.
    reading
        How to read both.

    Raises
    ------
    DataError, MissingKeyError
        If there are no cells, they cannot be read, share no gene with ``adata``, or some are also in ``adata``.
    """
    try:
        if others.n_obs == 0:
            msg = "it has no cells. Omit it, or pass an AnnData with cells"
            raise DataError(msg)
        theirs, names = LogExpression.from_adata(others, reading, log_base=math.e), _genes(others, reading)
    except (DataError, MissingKeyError) as error:
        msg = f"unlabelled: {str(error).removesuffix('.')}. It is read like adata, with the same layer, gene_symbols, data_type and depth_key."
        raise type(error)(msg) from error
    own = _genes(adata, reading)
    shared, mine, in_others = np.intersect1d(own, names, return_indices=True)
    if len(shared) == 0:
        msg = (
            f"unlabelled has none of the {len(set(own)):,} genes of adata: its genes are {names[:3]}..., those of adata "
            f"{own[:3]}.... Use the same names in both, for example with gene_symbols=, a column of both var."
        )
        raise DataError(msg)
    if 2 * len(shared) < len(set(own)):
        logg.warning(
            f"unlabelled has {len(shared):,} of the {len(set(own)):,} genes of adata; the others are set to their mean."
        )
    _, of_adata, of_others = np.intersect1d(adata.obs_names, others.obs_names, return_indices=True)
    if len(of_adata) == 0:
        return
    some = np.unique(np.linspace(0, len(of_adata) - 1, MAX_COMPARED).astype(np.int64))
    a = LogExpression.from_adata(adata, reading, log_base=math.e).rows(of_adata[some])[:, mine]
    b = theirs.rows(of_others[some])[:, in_others]
    same = (abs(a - b).max(axis=1).toarray().ravel() < 1e-3) & (np.diff(a.indptr) > 0)
    if same.any():
        name = str(adata.obs_names[of_adata[some][same.argmax()]])
        msg = (
            f"Some cells of unlabelled are also in adata, such as {name!r} (of {len(some):,} with the same name, {int(same.sum()):,} "
            "have the same expression), so scores on held-out cells would be invalid. Exclude them: "
            "unlabelled[~unlabelled.obs_names.isin(adata.obs_names)]."
        )
        raise DataError(msg)


def fit_unlabelled(
    fit: LinearFit,
    adata: AnnData,
    others: AnnData,
    reading: Reading,
    codes: NDArray[np.integer],
    *,
    classes: tuple[str, ...],
    weights: tuple[float, ...] | None = None,
    seed: int = 0,
) -> LinearFit:
    """Refit a logistic regression with confidently pseudo-labelled cells.

    Scaling and penalty are unchanged. A pseudo-label has the weight of a labelled cell, but all pseudo-labels of a
    class at most that of its labelled cells. If the accuracy on left-out labelled cells decreases by more than two
    standard errors, the first fit is kept. Their loss is less informative: it mostly increases, since the model becomes
    overconfident, which calibration corrects.

    Parameters
    ----------
    fit
        Result of :func:`~scgalore.tasks.linear.fit_classes`.
    adata, others, reading
        Labelled cells, the others, and how to read them. Genes missing in the others are set to their mean.
    codes
        Class of each cell of ``adata``; only those of the cells of ``fit`` are used.
    classes
        Names of the classes.
    weights
        Weight of each class in the loss; ``None`` for equal weights of cells.
    seed
        Seed for sampling from many unlabelled cells.
    """
    rng, n_classes = np.random.default_rng(seed), len(classes)
    of_class = np.ones(n_classes) if weights is None else np.array(weights)
    y, train = codes[fit.cells].astype(np.int64), fit.folds != VALIDATION
    expression = LogExpression.from_adata(adata, reading, log_base=math.e)
    theirs = LogExpression.from_adata(others, reading, log_base=math.e)
    drawn = sample(np.arange(others.n_obs), np.zeros(others.n_obs, np.int64), MAX_UNLABELLED, rng)
    genes, model = _genes(adata, reading), fit.model
    x, present, q = _stacked(fit, expression, genes, theirs, _genes(others, reading), drawn)
    mean = np.asarray(x.mean(axis=0), dtype=np.float64).ravel()
    scale = gene_scale(x, mean, scaled=fit.scaled)
    span = [
        sample(np.arange(rows.shape[0]), strata, most, rng)
        for rows, strata, most in ((x, y, MAX_SPAN), (q, np.zeros(q.shape[0], np.int64), MAX_SPAN // 2))
    ]
    centred = np.concatenate([x[span[0]].toarray() - mean, (q[span[1]].toarray() - mean) * present])
    basis = basis_of(centred / scale, scale)
    features = x @ basis - (mean @ basis).astype(np.float32)
    of_others = q @ basis - ((mean * present) @ basis).astype(np.float32)
    temperature = fit_temperature(fit.predicted[fit.cells[train]], y[train])

    def guess(labelled: Array, first: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        """Pseudo-labelled rows, their classes and weights."""
        p = softmax((of_others @ first[0] + first[1]) / temperature, axis=1)
        rows = np.flatnonzero(p.max(axis=1) > THRESHOLD)
        found = p[rows].argmax(axis=1)
        known, guessed = (np.bincount(some, minlength=n_classes) for some in (y[labelled], found))
        return rows, found, np.minimum(1.0, known / np.maximum(guessed, 1))[found]

    def learn(labelled: Array) -> tuple[Array, Array, Array]:
        """Coefficients, intercepts and pseudo-labels of a model of these labelled cells."""
        first = Logistic(of_class, EXACT)(features[labelled], y[labelled], fit.penalty)
        rows, found, counts = guess(labelled, first)
        if len(rows) == 0:
            return *first, found
        x_both = np.concatenate([features[labelled], of_others[rows]])
        y_both, weight = np.concatenate([y[labelled], found]), np.concatenate([np.ones(int(labelled.sum())), counts])
        solved = Logistic(of_class, EXACT)(x_both, y_both, fit.penalty, weight)
        return *solved, found

    def predict(_: int, labelled: Array, inside: Array) -> Array:
        solved = learn(labelled)
        return features[inside] @ solved[0] + solved[1]

    held_out = left_out(fit.folds, predict)
    before, after = ((logits.argmax(axis=1) == y) * of_class[y] for logits in (fit.predicted[fit.cells], held_out))
    gain, error = float((after - before).mean()), float((after - before).std(ddof=1)) / math.sqrt(len(y))
    coef, intercept, guessed = learn(np.ones(len(y), dtype=bool))
    used = len(guessed) > 0 and gain >= -2 * error
    counts = {"labelled": np.bincount(y, minlength=n_classes), "guessed": np.bincount(guessed, minlength=n_classes)}
    report = {"n": others.n_obs, "n_read": len(drawn), "n_used": len(guessed) if used else 0, "threshold": THRESHOLD}
    names = np.frombuffer("\n".join(map(str, others.obs_names)).encode(), dtype=np.uint8)
    report |= {"cells": digest([names])}
    report |= {"temperature": temperature, "gain": gain, "gain_se": error, "used": used}
    report["classes"] = pd.DataFrame(counts, index=list(classes))
    logg.info(
        f"    {len(guessed):,} of {len(drawn):,} unlabelled cells were labelled with a probability above {THRESHOLD:g}. With them, "
        f"the accuracy of the linear model on left-out labelled cells changes by {gain:+.3f} ± {error:.3f}, so they "
        f"are {'used' if used else 'not used'}"
    )
    if not used:
        return replace(fit, unlabelled=report)
    weights_of = (basis @ coef).astype(np.float64)
    learned = replace(
        model,
        coef=weights_of.astype(np.float32),
        intercept=(intercept - mean @ weights_of).astype(np.float32),
    )
    predicted = learned.of_expression(expression, genes)
    predicted[fit.cells] = held_out
    return replace(fit, model=learned, predicted=predicted, unlabelled=report)


def _stacked(
    fit: LinearFit,
    expression: LogExpression,
    genes: list[str],
    theirs: LogExpression,
    their_genes: list[str],
    drawn: NDArray[np.int64],
) -> tuple[sp.csr_matrix, NDArray[np.bool_], sp.csr_matrix]:
    """Labelled cells and sampled others with the genes of the model, and a mask of the genes that the others have."""
    x = expression.rows(fit.cells)[:, fit.model.matched(expression, genes).columns]
    matched = fit.model.matched(theirs, their_genes)
    q = matched.of(theirs.rows(drawn))
    place = np.flatnonzero(matched.present)
    wide = sp.csr_matrix((q.data, place[q.indices], q.indptr), shape=(len(drawn), len(fit.model.genes)))
    return x, matched.present, wide


def _genes(adata: AnnData, reading: Reading) -> list[str]:
    return standardise(gene_names(adata, reading.gene_symbols), reading.species)
