"""Evaluate predicted perturbations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from scgalore import _logging as logg
from scgalore._docs import shared_parameters
from scgalore._keys import PerturbationKeys
from scgalore._rng import seed_from
from scgalore.data.reading import Reading
from scgalore.data.resolve import copied, writable_adata
from scgalore.data.results import refuse_overwrite
from scgalore.perturb.scores.evaluation import choose_metrics
from scgalore.tasks.perturbation.evaluation import read_prediction, score_prediction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgalore._typing import Data, Rng


@shared_parameters
def evaluate_perturbation(
    data: Data,
    *,
    key: str = PerturbationKeys().prediction,
    baselines: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    de: bool | Literal["auto"] = "auto",
    n_bootstrap: int = 1000,
    max_cells: int | None = None,
    mod: str = "rna",
    rng: Rng = 0,
    key_added: str | None = None,
    copy: bool = False,
) -> Data | None:
    """Score predicted perturbations and compare with simple baselines and a noise ceiling.

    Predicted means are compared with held-out cells. Each score is reported with those of baselines, fitted to the
    remaining cells, and with the ceiling: the agreement of two halves of the real cells, corrected to the full number
    of cells.
    :doc:`/concepts/perturbation-scores` explains what each metric rewards.

    Parameters
    ----------
    {data}
    {key}
    baselines
        Baselines to compare with, at least one. For genes: ``"control mean"``, ``"training mean"``, ``"training mean +
        own gene"``, ``"additive"``, ``"matching mean"``, ``"ridge"``, ``"linear"`` and ``"mixed"``. For compounds:
        ``"control mean"``, ``"training mean"``, ``"dose mean"``, ``"matching mean"``, ``"dose interpolation"``,
        ``"vector ridge"`` and ``"dose response"``. ``None`` uses all but the last of either list. See
        :func:`scgalore.perturb.fit_rule`. The baseline that the network corrects is scored as well, as method
        ``"prior"``.
    metrics
        Names of metrics; ``None`` computes all.
    de
        Whether to make cells from predicted means and test them for differential expression. ``"auto"`` does so if the
        packages of the extra ``eval`` are installed; ``True`` raises an error if they are not.
    n_bootstrap
        Number of bootstrap samples of perturbations for 95 % confidence intervals.
    max_cells
        Maximum number of cells per perturbation, and of control cells, that are tested for differential expression;
        ``None`` uses all.
    {mod}
    {rng}
    {key_added}
    {copy}

    Returns
    -------
    ``None``, or with ``copy=True`` the container it was given, with this key set:

    `adata.uns['evaluate_perturbation' | key_added]` : :class:`dict`
        ``scores`` (a table with one row per method, perturbation and metric; the method ``"ceiling"`` compares half of
        the cells with the other half), ``summary`` (means over perturbations with intervals, ``n_nan`` and
        ``gap_closed``, the fraction of the gap between the best baseline and the ceiling), ``observed`` (measured
        effects, genes by perturbations), ``n_de`` (numbers of differentially expressed genes, if tested), ``params``
        and ``version``.

    Raises
    ------
    MissingKeyError
        If there is no prediction under ``key``, or a column it was made from no longer exists.
    DataError
        If no predicted perturbation was both measured and held out, or the prediction was made for other genes or on
        another scale, such as another target sum.
    OptionError
        If an option is not one of its choices, or ``de=True`` and the extra ``eval`` is not installed.

    See Also
    --------
    scgalore.tl.predict_perturbation : Predict expression after perturbations.
    scgalore.get.perturbation_scores : Read scores of predicted perturbations as a table.
    scgalore.pl.perturbation_scores : Draw scores with baselines and ceiling.
    scgalore.pl.perturbation_effect : Draw predicted against observed effects by gene.

    Examples
    --------
    Here ``adata`` contains predictions of held-out perturbations by :func:`scgalore.tl.predict_perturbation`.

    >>> import scgalore as sg
    >>> sg.tl.evaluate_perturbation(adata, de=False)
    >>> summary = sg.get.perturbation_scores(adata, summary=True)
    """
    keys, seed = PerturbationKeys.from_key_added(key_added), seed_from(rng)
    chosen = choose_metrics(metrics, de=de)
    prediction, origin = read_prediction(writable_adata(data, mod=mod), key)
    reads = [("uns", "key=", key), ("uns", "the split", origin.get("split_key")), *Reading.of(origin).reads()]
    refuse_overwrite({"uns": (keys.evaluation,)}, reads)
    data = copied(data, mod=mod) if copy else data
    adata = writable_adata(data, mod=mod)
    with logg.step(f"scoring {len(prediction.rows):,} predicted perturbations") as step:
        results = score_prediction(
            adata,
            prediction,
            origin,
            keys,
            key=key,
            metrics=list(chosen),
            seed=seed,
            baselines=baselines,
            n_bootstrap=n_bootstrap,
            max_cells=max_cells,
        )
        results.write(data, adata, mod=mod, step=step)
    return data if copy else None
