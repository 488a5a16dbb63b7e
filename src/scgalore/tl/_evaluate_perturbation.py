"""Scores of predicted perturbations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scgalore import __version__
from scgalore import _logging as logg
from scgalore._docs import shared_parameters
from scgalore._keys import PerturbationKeys
from scgalore._rng import seed_from
from scgalore.errors import MissingKeyError
from scgalore.perturb.baselines.effects import BASELINES
from scgalore.perturb.labels.screen import Screen
from scgalore.perturb.predictions.prediction import Prediction
from scgalore.perturb.scores.evaluation import choose_metrics, evaluate
from scgalore.tasks.perturbation.reading import READ
from scgalore.tl._shared import Results, copied, writable_adata

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from scgalore._typing import Data, Rng


@shared_parameters
def evaluate_perturbation(
    data: Data,
    *,
    key: str = PerturbationKeys().prediction,
    baselines: Sequence[str] = BASELINES,
    metrics: Sequence[str] | None = None,
    de: bool | Literal["auto"] = "auto",
    n_bootstrap: int = 1000,
    max_cells: int | None = None,
    mod: str = "rna",
    rng: Rng = 0,
    key_added: str | None = None,
    copy: bool = False,
) -> Data | None:
    """Score predicted perturbations beside simple rules and a repetition of the experiment.

    Predicted means are compared with the cells that were held out. Each score stands beside those of baselines, fitted to
    cells that were not held out, and beside the ceiling: how well two halves of the real cells agree, brought to full size.
    :doc:`/concepts/perturbation-scores` says what each metric rewards.

    Parameters
    ----------
    {data}
    {key}
    baselines
        Rules to compare with: ``"control mean"``, ``"training mean"``, ``"additive"``, ``"matching mean"``, ``"ridge"``,
        ``"linear"`` and ``"mixed"``, which is the default prior alone; at least one. See
        :func:`scgalore.perturb.fit_effects`.
    metrics
        Names of metrics; ``None`` takes all.
    de
        Whether predicted means become cells that are tested for differential expression. ``"auto"`` does so where the
        packages of the extra ``eval`` are installed; ``True`` fails where they are not.
    n_bootstrap
        Samples of perturbations that the 95 % intervals are made from.
    max_cells
        Most cells of a perturbation, and most control cells, that are tested for differential expression; ``None`` takes all.
    {mod}
    {rng}
    {key_added}
    {copy}

    Returns
    -------
    ``None``, or with ``copy=True`` the container it was given, with this key set:

    `adata.uns['evaluate_perturbation' | key_added]` : :class:`dict`
        ``scores`` (a table, one row for each method, perturbation and metric; the method ``"ceiling"`` compares half of the
        cells with the other half), ``summary`` (means over perturbations with intervals, ``n_nan`` and ``gap_closed``, the
        share of the way from the best baseline to the ceiling), ``observed`` (real effects, genes by perturbations), ``n_de``
        (numbers of differentially expressed genes, if they were tested), ``params`` and ``version``.

    Raises
    ------
    MissingKeyError
        If there is no prediction under ``key``, or a column it was made from is no longer there.
    DataError
        If none of the predicted perturbations was measured and held out, or the prediction does not fit the data.
    OptionError
        If an option is outside its choices, or ``de=True`` and the extra ``eval`` is not installed.

    Examples
    --------
    >>> import scgalore as sg
    >>> sg.tl.predict_perturbation(adata)  # doctest: +SKIP
    >>> sg.tl.evaluate_perturbation(adata, de=False)  # doctest: +SKIP
    >>> sg.get.perturbation_scores(adata)  # doctest: +SKIP
    """
    keys, seed = PerturbationKeys.from_key_added(key_added), seed_from(rng)
    chosen = choose_metrics(metrics, de=de)
    prediction, origin = _prediction(writable_adata(data, mod=mod), key)
    data = copied(data, mod=mod) if copy else data
    adata = writable_adata(data, mod=mod)
    with logg.step(f"scoring {len(prediction.rows):,} predicted perturbations") as step:
        options: dict[str, Any] = {"baselines": list(baselines), "n_bootstrap": n_bootstrap, "max_cells": max_cells}
        found = evaluate(_screen(adata, origin), prediction, metrics=list(chosen), seed=seed, **options)
        params = {"key": key, "metrics": list(chosen), **options, "rng": seed}
        # Genes in rows, as in the prediction: HDF5 refuses tables with thousands of columns.
        observed = found.observed.T.set_axis(adata.uns[key]["effects"].index, axis=0)
        result = {"params": params, "scores": found.scores, "summary": found.summary, "observed": observed}
        result |= {"version": __version__} | ({} if found.n_de is None else {"n_de": found.n_de})
        Results(uns={keys.evaluation: (result, "scores of predicted perturbations")}).write(
            data, adata, mod=mod, step=step
        )
    return data if copy else None


def _prediction(adata: AnnData, key: str) -> tuple[Prediction, Mapping[str, Any]]:
    """What was predicted, with genes by the names they have in the data, and the parameters of that call."""
    result = adata.uns.get(key)
    if not isinstance(result, dict) or not {"params", "means", "effects", "rows"} <= set(result):
        msg = f"There is no prediction in adata.uns[{key!r}]. Call sg.tl.predict_perturbation(adata) first, or pass its key_added as key=."
        raise MissingKeyError(msg)
    params, means, effects = result["params"], result["means"], result["effects"]
    prediction = Prediction(
        genes=tuple(map(str, means.index)),
        rows=result["rows"].astype(dict.fromkeys(("perturbation", "context", "group"), str)),
        means=means.to_numpy(np.float64).T,
        effects=effects.to_numpy(np.float64).T,
        vectors=result.get("gene_vectors"),
    )
    return prediction, params


def _screen(adata: AnnData, params: Mapping[str, Any]) -> Screen:
    """The cells the prediction is compared with, read as they were for it."""
    read: dict[str, Any] = {name: params.get(name) for name in (*READ, "split_key")}
    return Screen.from_adata(adata, **read)
