"""Report of integration: scores of the embedding, principal components and Harmony on the same cells."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from scgalore.data.split import split_from_labels
from scgalore.integration.harmony import harmony
from scgalore.integration.lisi import lisi, neighbor_weights
from scgalore.integration.neighbors import nearest
from scgalore.integration.scores import LISI_NEIGHBORS, SCORES, batch_variance, score_embedding
from scgalore.tasks.baselines import expression_of
from scgalore.tasks.batch_columns import read_batches, read_labels
from scgalore.tasks.figures import bars, umap
from scgalore.tasks.findings import Findings, markdown_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore._keys import CellKeys
    from scgalore.tasks.call import TrainingCall
    from scgalore.tasks.findings import Draw

__all__ = ["integration_findings"]

PCA, HARMONY = "PCA", "Harmony"
N_COMPONENTS = 50
FEWEST = 50
"""Minimum number of labelled test cells for scores with labels."""
MOST = 20_000
"""Maximum number of cells to compare with each other."""


def integration_findings(adata: AnnData, keys: CellKeys, call: TrainingCall, *, name: str) -> Findings:
    """Score the embedding written by fine-tuning.

    Scores with labels use only test cells, since the model was trained on the labels of others; without labels, only
    batch scores are computed, on all cells.

    Parameters
    ----------
    adata
        Object with the results of fine-tuning.
    keys
        Names of the slots of the results.
    call
        Call of the run.
    name
        Name of the model.
    """
    batch_key, labels_key = (call.arguments[key] for key in ("batch_key", "labels_key"))
    _, batches = read_batches(adata, batch_key)
    cells, labels = np.arange(adata.n_obs), None
    if labels_key is not None:
        _, found = read_labels(adata, labels_key)
        test = split_from_labels(adata.obs[keys.split]).test
        held_out = test[found[test] >= 0]
        if len(held_out) >= FEWEST and min(len(np.unique(x[held_out])) for x in (found, batches)) > 1:
            cells, labels = held_out, np.unique(found[held_out], return_inverse=True)[1]
    if len(cells) > MOST:
        drawn = np.sort(np.random.default_rng(call.seed).choice(len(cells), MOST, replace=False))
        cells, labels = cells[drawn], None if labels is None else labels[drawn]
    before = _components(expression_of(adata, call.reading))
    embeddings = {
        name: np.asarray(adata.obsm[keys.embedding], dtype=np.float64),
        PCA: before,
        HARMONY: harmony(before, batches, seed=call.seed),
    }
    codes = np.unique(batches[cells], return_inverse=True)[1]
    variance = batch_variance(before[cells], codes)
    scores = {method: _scores(x[cells], codes, labels, variance, seed=call.seed) for method, x in embeddings.items()}
    mine = scores[name]
    means = ("bio", "batch") if labels is not None else ("ilisi", "pcr_comparison")
    titles = {score.name: score.title for score in SCORES}
    headline = [f"{titles[key]} {_text(mine[key])} (Harmony {_text(scores[HARMONY][key])})" for key in means]
    what = "test cells" if labels is not None else "cells"
    shown = [batch_key, *([labels_key] if labels_key is not None else [])]
    return Findings(
        {
            "n_batches": int(batches.max()) + 1,
            "test": {"n": len(cells), "labels": labels is not None, **_plain(mine)},
            "baselines": {method: _plain(scores[method]) for method in (PCA, HARMONY)},
        },
        f"{', '.join(headline)} on {len(cells):,} {what}",
        [_section(scores, titles, len(cells), with_labels=labels is not None)],
        {
            "integration_scores.png": ("Batch mixing; 1 is the best.", _bars(scores, means[1], titles)),
            **umap(shown, shown, adata.n_obs, use_rep=keys.embedding),
        },
    )


def _bars(scores: Mapping[str, Mapping[str, float]], key: str, titles: Mapping[str, str]) -> Draw:
    values = [0.0 if math.isnan(row[key]) else row[key] for row in scores.values()]
    return bars(list(scores), values, [0.0] * len(values), label=titles[key])


def _components(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Principal components without integration."""
    x = x.astype(np.float64)
    x -= x.mean(axis=0)
    _, axes = np.linalg.eigh(x.T @ x)
    return x @ axes[:, ::-1][:, :N_COMPONENTS]


def _scores(
    x: NDArray[np.float64], batches: NDArray[np.int64], labels: NDArray[np.int64] | None, variance: float, *, seed: int
) -> dict[str, float]:
    if labels is not None:
        return score_embedding(x, batches, labels, unintegrated_variance=variance, seed=seed)
    neighbors = nearest(x, min(LISI_NEIGHBORS, len(x)))
    mixed = float(np.median(lisi(neighbor_weights(neighbors), neighbors, batches)))
    after = batch_variance(x, batches)
    return {
        "ilisi": (mixed - 1) / int(batches.max()),
        "pcr_comparison": max(0.0, (variance - after) / variance) if variance else math.nan,
    }


def _plain(scores: Mapping[str, float]) -> dict[str, Any]:
    """Scores for JSON, without NaN."""
    return {key: None if math.isnan(value) else value for key, value in scores.items()}


def _text(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.3f}"


def _section(scores: Mapping[str, Mapping[str, float]], titles: Mapping[str, str], n: int, *, with_labels: bool) -> str:
    columns = list(next(iter(scores.values())))
    rows = [(method, *(_text(row[key]) for key in columns)) for method, row in scores.items()]
    of = (
        f"On {n:,} test cells, whose labels were not used in training. Bio and batch are the means of the scores for labels and for batches."
        if with_labels
        else f"On {n:,} cells, only batch mixing: without labels of test cells, mixing of cell types cannot be "
        "detected. Random noise would have the best of these scores."
    )
    return "\n\n".join(
        [
            "## Batches",
            markdown_table(("embedding", *(titles[key] for key in columns)), rows),
            f"{of} 1 is the best of each score. PCA is 50 principal components of the selected genes without integration, and Harmony "
            "the same, corrected. `sg.tl.evaluate_integration` scores other embeddings.",
        ]
    )
