"""Scores of predicted perturbations with baselines, in the form written to an AnnData."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgalore import __version__
from scgalore.data.records import read_prediction_record
from scgalore.data.results import Results
from scgalore.perturb.baselines.effects import RULE_SETS
from scgalore.perturb.labels.reading import label_options
from scgalore.perturb.labels.screen import Screen
from scgalore.perturb.predictions.controls import refuse_other_scale
from scgalore.perturb.predictions.prediction import Prediction
from scgalore.perturb.scores.evaluation import evaluate
from scgalore.tasks.perturbation.reading import READ

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from scgalore._keys import PerturbationKeys

__all__ = ["read_prediction", "score_prediction"]


def score_prediction(
    adata: AnnData,
    prediction: Prediction,
    origin: Mapping[str, Any],
    keys: PerturbationKeys,
    *,
    key: str,
    metrics: Sequence[str],
    seed: int,
    **options: Any,
) -> Results:
    """Score a prediction, and return the results documented in :func:`scgalore.tl.evaluate_perturbation`.

    Parameters
    ----------
    adata
        Cells that the prediction is compared with.
    prediction, origin
        Result of :func:`read_prediction`.
    keys
        Names of the slots.
    key
        Key of the prediction in ``uns``.
    metrics
        Names of metrics.
    seed
        Seed for all random draws.
    **options
        ``baselines``, ``n_bootstrap`` and ``max_cells`` of :func:`scgalore.perturb.scores.evaluation.evaluate`.
    """
    screen = _screen(adata, origin)
    if options.get("baselines") is None:
        options["baselines"] = list(RULE_SETS[screen.conditions.kind].baselines)
    refuse_other_scale(adata, key, screen)
    found = evaluate(screen, prediction, metrics=list(metrics), seed=seed, **options)
    params = {"key": key, "metrics": list(metrics), **options, "rng": seed}
    # Genes in rows, as in the prediction: HDF5 does not support tables with thousands of columns.
    observed = found.observed.T.set_axis(adata.uns[key]["effects"].index, axis=0)
    result = {"params": params, "scores": found.scores, "summary": found.summary, "observed": observed}
    result |= {"version": __version__} | ({} if found.n_de is None else {"n_de": found.n_de})
    return Results(uns={keys.evaluation: (result, "scores of predicted perturbations")})


def read_prediction(adata: AnnData, key: str) -> tuple[Prediction, Mapping[str, Any]]:
    """Read a prediction, with gene names as in the data, and the parameters of its call."""
    result = read_prediction_record(adata, key)
    params, means, effects = result["params"], result["means"], result["effects"]
    prediction = Prediction(
        genes=tuple(map(str, means.index)),
        rows=result["rows"].astype(dict.fromkeys(("perturbation", "context", "group"), str)),
        means=means.to_numpy(np.float64).T,
        effects=effects.to_numpy(np.float64).T,
        vectors=result.get("gene_vectors"),
        prior=prior.to_numpy(np.float64).T if isinstance(prior := result.get("prior"), pd.DataFrame) else None,
    )
    return prediction, params


def _screen(adata: AnnData, params: Mapping[str, Any]) -> Screen:
    """Read the cells with the parameters of the prediction."""
    read: dict[str, Any] = {name: params.get(name) for name in (*READ, "split_key", "log_base")}
    # Vectors used for the prediction are in its record.
    return Screen.from_adata(adata, **read | label_options(params) | {"vectors_key": None})
