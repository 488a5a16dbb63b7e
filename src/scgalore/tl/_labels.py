"""Predicted labels as columns, and how good they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgalore.model.inference import class_probabilities
from scgalore.tl._shared import Results

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgalore._keys import LabelKeys
    from scgalore.data.split import Split
    from scgalore.nn import CellOutput

__all__ = ["label_metrics", "label_results"]


def label_results(output: CellOutput, classes: tuple[str, ...], keys: LabelKeys) -> Results:
    """Turn a network's output into what is written to an AnnData; no labels if there are no ``classes``."""
    results = Results(obsm={keys.embedding: (output.embedding, "cell embeddings")})
    probabilities = class_probabilities(output)
    if probabilities is None or not classes:
        return results
    best: NDArray[np.int64] = probabilities.argmax(axis=1)
    results.obs[keys.label] = (pd.Categorical.from_codes(best, categories=pd.Index(classes)), "predicted labels")
    results.obs[keys.score] = (probabilities.max(axis=1), "their probabilities")
    results.obsm[keys.probabilities] = (probabilities, "probabilities of all classes")
    return results


def label_metrics(predicted: NDArray[np.int64], truth: NDArray[np.int64], split: Split) -> pd.DataFrame:
    """Score predictions in each part of a split.

    Parameters
    ----------
    predicted, truth
        Class codes, shape ``(n_obs,)``.
    split
        Parts of the cells.

    Returns
    -------
    One row a non-empty part: number of cells ``n``, ``accuracy`` with its binomial standard error ``accuracy_se``,
    ``macro_f1`` over the classes that occur, and ``majority_accuracy``, that of always naming the most frequent class
    of the training cells.
    """
    from sklearn.metrics import accuracy_score, f1_score

    majority = np.bincount(truth[split.train]).argmax()
    rows = {}
    for part, n in split.sizes().items():
        if n == 0:
            continue
        cells = getattr(split, part)
        accuracy = float(accuracy_score(truth[cells], predicted[cells]))
        rows[part] = {
            "n": n,
            "accuracy": accuracy,
            "accuracy_se": float(np.sqrt(accuracy * (1 - accuracy) / n)),
            "macro_f1": float(
                f1_score(
                    truth[cells], predicted[cells], labels=np.unique(truth[cells]), average="macro", zero_division=0
                )
            ),
            "majority_accuracy": float((truth[cells] == majority).mean()),
        }
    return pd.DataFrame.from_dict(rows, orient="index")
