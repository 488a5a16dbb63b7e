"""Scores of predicted perturbations, compared with simple baselines and the noise ceiling."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from scgalore import _logging as logg
from scgalore.errors import DataError, OptionError
from scgalore.perturb.baselines.effects import NO_EFFECT, READ_VECTORS, RULE_SETS, fit_rule
from scgalore.perturb.labels.parsing import Agent
from scgalore.perturb.predictions.prediction import columns_of, held_out, matched_rows, profiles_of
from scgalore.perturb.scores import differential
from scgalore.perturb.scores.halves import cell_draws, disjoint_halves
from scgalore.perturb.scores.metrics import METRICS, Means
from scgalore.perturb.scores.recovery import RowCells, half_scores, recovery_scores
from scgalore.perturb.scores.reference import centroids, gene_weights, pooled_means
from scgalore.perturb.scores.summary import CEILING, MODEL, summarise

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from scgalore.perturb.labels.profiles import Profiles
    from scgalore.perturb.labels.screen import Screen
    from scgalore.perturb.predictions.prediction import Prediction
    from scgalore.perturb.scores.metrics import Metric

    Values = NDArray[np.float64]

__all__ = ["Evaluation", "choose_metrics", "evaluate"]

PRIOR = "prior"
"""Method name of the prior, before correction by the network."""


@dataclass(frozen=True)
class Evaluation:
    """Result of :func:`evaluate`.

    Attributes
    ----------
    scores
        Tidy: ``method``, ``perturbation``, ``context``, ``group``, ``metric``, ``value``, and ``compound`` and ``dose``
        for compounds. Rows of method ``"ceiling"`` compare one half of the real cells with the other, at half the
        number of cells.
    summary
        Means, intervals and ``gap_closed``; see :func:`scgalore.perturb.scores.summary.summarise`.
    observed
        Real effects, rows by genes, float32.
    n_de
        Numbers of differentially expressed genes, rows by ``"real"`` and the methods; ``None`` without tests.
    predicted
        Mean expression predicted by each method, ``(n, n_genes)``, in the order of ``observed``.
    """

    scores: pd.DataFrame
    summary: pd.DataFrame
    observed: pd.DataFrame
    n_de: pd.DataFrame | None
    predicted: dict[str, Values] = field(repr=False)


def choose_metrics(metrics: Sequence[str] | None, *, de: bool | Literal["auto"]) -> dict[str, Metric]:
    """Metrics to compute, by name.

    Parameters
    ----------
    metrics
        Names; ``None`` uses all.
    de
        Whether to test for differential expression. ``"auto"`` does so if the extra ``eval`` is installed, and logs
        a message otherwise.

    Raises
    ------
    OptionError
        If a name is unknown or contradicts ``de``, or ``de=True`` and the extra is missing.
    """
    if de is not True and de is not False and de != "auto":
        msg = f"de={de!r}: expected True, False or 'auto'."
        raise OptionError(msg)
    every = {**METRICS, **differential.METRICS}
    if isinstance(metrics, str):
        metrics = [metrics]
    names = list(every) if metrics is None else list(dict.fromkeys(metrics))
    unknown = [name for name in names if name not in every]
    if unknown or not names:
        msg = f"metrics={metrics!r}: choose from {', '.join(every)}."
        raise OptionError(msg)
    of_cells = [name for name in names if every[name].needs == "cells"]
    if of_cells and de is False and metrics is not None:
        msg = f"{', '.join(of_cells)} needs tests of differential expression, but de=False. Pass de='auto', or other metrics."
        raise OptionError(msg)
    if of_cells and de is True:
        differential.require_extra()
    if of_cells and (de is False or not differential.is_installed()):
        if de == "auto":
            logg.warning(
                f"{', '.join(of_cells)} are skipped: they need packages that are not installed. Call "
                'pip install "scgalore[eval]" to compute them.'
            )
        names = [name for name in names if name not in of_cells]
    if not names:
        msg = 'No metric can be computed. Call pip install "scgalore[eval]", or choose other metrics.'
        raise OptionError(msg)
    return {name: every[name] for name in names}


def evaluate(
    screen: Screen,
    prediction: Prediction,
    *,
    baselines: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    de: bool | Literal["auto"] = "auto",
    n_bootstrap: int = 1000,
    max_cells: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """Score a prediction, the baselines and the noise ceiling on held-out rows.

    Baselines are fitted only to cells that are not held out. Real and predicted effects are differences from
    control cells, which are not held out either. For the ceiling, the real cells of each row, and the control cells,
    are split into disjoint halves. For tests of differential expression, cells are sampled from predicted means, in the
    same way for all methods (:func:`scgalore.perturb.predictions.synthesis.synthesise`), as many as in the real row.

    Parameters
    ----------
    screen
        Measured cells.
    prediction
        Prediction to score.
    baselines
        Names of rules, see :data:`scgalore.perturb.baselines.effects.RULE_SETS`; ``None`` uses the defaults for genes
        or compounds.
    metrics, de
        See :func:`choose_metrics`.
    n_bootstrap
        Number of bootstrap samples of perturbations for the intervals.
    max_cells
        Maximum number of cells per row, and of control cells per context, that are tested; ``None`` uses all.
    seed
        Seed for halves, sampled cells and bootstrap. Results do not depend on the order of cells.

    Raises
    ------
    OptionError
        If an option is not one of its choices.
    DataError
        If the prediction does not match the data, or none of its rows was both measured and held out.
    """
    chosen = choose_metrics(metrics, de=de)
    kind = screen.conditions.kind
    baselines = RULE_SETS[kind].baselines if baselines is None else baselines
    _check_options(baselines, RULE_SETS[kind].rules, n_bootstrap, max_cells)
    columns = columns_of(screen.genes, prediction)
    cells = held_out(screen, prediction)
    measured, train = (profiles_of(screen, part, columns) for part in (cells.test, cells.train))
    taken, rows = matched_rows(measured, prediction)
    real = measured.take(rows)
    rest = measured.take(np.setdiff1d(np.arange(len(measured)), rows))
    predicted = {MODEL: prediction.means[taken]}
    controls = {MODEL: prediction.means[taken] - prediction.effects[taken]}
    of_rules = _baseline_effects(baselines, train, real, prediction.vectors)
    if prediction.prior is not None:
        of_rules[PRIOR] = prediction.prior[taken]
    for name, effects in of_rules.items():
        predicted[name] = real.controls + effects
        controls[name] = real.controls
    judge = _Judge.of(real, train, rest, chosen)
    values = {name: judge.scores(predicted[name], controls[name]) for name in predicted}
    draws = cell_draws(screen.expression, seed)
    halves = disjoint_halves(cells.group, draws, n_names=len(screen.conditions.names))
    values[CEILING] = judge.agreement(*(profiles_of(screen, half, columns) for half in halves))
    n_de = None
    if of_cells := [name for name, metric in chosen.items() if metric.needs == "cells"]:
        own = _row_cells(screen, real, columns, cells.group, draws, max_cells)
        tested = recovery_scores(own, real, predicted, seed=seed)
        n_de = _numbers(tested)
        for name, table in {**tested, CEILING: half_scores(own, real, halves)}.items():
            values[name] = values[name].join(table[of_cells])
    scores = _tidy(values, real, prediction.rows["group"].to_numpy(str)[taken])
    return Evaluation(
        scores=scores,
        summary=summarise(scores, chosen, baselines=baselines, n_bootstrap=n_bootstrap, seed=seed),
        observed=pd.DataFrame(real.effects.astype(np.float32), index=real.labels, columns=list(real.genes)),
        n_de=n_de,
        predicted=predicted,
    )


def _check_options(baselines: Sequence[str], rules: Sequence[str], n_bootstrap: int, max_cells: int | None) -> None:
    unknown = [name for name in baselines if name not in rules]
    if unknown or isinstance(baselines, str) or len(set(baselines)) < len(baselines) or not baselines:
        msg = f"baselines={baselines!r}: expected a list with at least one of {', '.join(map(repr, rules))}."
        raise OptionError(msg)
    for name, value in (("n_bootstrap", n_bootstrap), ("max_cells", max_cells)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            msg = f"{name}={value!r}: expected a whole number, at least 1."
            raise OptionError(msg)


def _baseline_effects(
    baselines: Sequence[str], train: Profiles, real: Profiles, vectors: pd.DataFrame | None
) -> dict[str, Values]:
    """Predictions of each rule, fitted to training rows, for the scored rows."""
    effects: dict[str, Values] = {}
    for name in baselines:
        if name == NO_EFFECT:
            effects[name] = np.zeros_like(real.means)
        elif len(train):
            rule = fit_rule(name, train, embeddings=vectors if name in READ_VECTORS else None)
            effects[name] = rule.predict_rows(real)
    if len(effects) < len(baselines):
        left_out = ", ".join(name for name in baselines if name not in effects)
        logg.warning(f"No perturbations to fit baselines to: {left_out} are skipped.")
    if not effects:
        msg = f"No baseline can be fitted, but at least one is needed. Pass baselines=[{NO_EFFECT!r}, ...]."
        raise DataError(msg)
    return effects


@dataclass(frozen=True)
class _Judge:
    """Scores of means, with all quantities that depend only on the real data."""

    real: Profiles
    metrics: dict[str, Metric]
    centroid: Values | None
    pooled: Values
    weights: Values

    @classmethod
    def of(cls, real: Profiles, train: Profiles, rest: Profiles, metrics: Mapping[str, Metric]) -> _Judge:
        of_means = {name: metric for name, metric in metrics.items() if metric.compute is not None}
        centroid = centroids(train)
        if centroid is None and (of_centroid := [name for name in of_means if name.startswith("pearson_centroid")]):
            of_means = {name: metric for name, metric in of_means.items() if name not in of_centroid}
            logg.warning(
                f"{', '.join(of_centroid)} {'is' if len(of_centroid) == 1 else 'are'} skipped: there are no training "
                "perturbations to average."
            )
        return cls(real, of_means, centroid, pooled_means(real, rest, train), gene_weights(real, rest, train))

    def scores(self, predicted: Values, predicted_control: Values) -> pd.DataFrame:
        """Table of scores, rows by metrics."""
        return self._table(self.real, predicted, predicted_control, np.arange(len(self.real)))

    def agreement(self, first: Profiles, second: Profiles) -> pd.DataFrame:
        """Table of scores with one half of the cells as real and the other as predicted, for rows with both."""
        place = [{label: i for i, label in enumerate(half.labels)} for half in (first, second)]
        rows = [i for i, label in enumerate(self.real.labels) if label in place[0] and label in place[1]]
        first, second = (
            half.take([place[k][self.real.labels[i]] for i in rows]) for k, half in enumerate((first, second))
        )
        return self._table(first, second.means, second.controls, np.array(rows, dtype=np.int64))

    def _table(self, real: Profiles, predicted: Values, control: Values, rows: NDArray[np.int64]) -> pd.DataFrame:
        means = Means(
            genes=real.genes,
            perturbations=real.perturbations,
            perturbed=real.perturbed,
            contexts=real.contexts,
            predicted=predicted,
            real=real.means,
            predicted_control=control,
            real_control=real.controls,
            centroid=None if self.centroid is None else self.centroid[real.contexts],
            pooled=self.pooled[real.contexts],
            weights=self.weights[rows],
        )
        values = {name: metric.compute(means) for name, metric in self.metrics.items() if metric.compute is not None}
        return pd.DataFrame(values, index=real.labels, columns=list(self.metrics), dtype=np.float64)


def _row_cells(
    screen: Screen,
    real: Profiles,
    columns: NDArray[np.int64],
    group: NDArray[np.int64],
    draws: NDArray[np.float64],
    max_cells: int | None,
) -> RowCells:
    n_names = len(screen.conditions.names)
    code = {name: i for i, name in enumerate(screen.conditions.names)}
    return RowCells(
        expression=screen.expression,
        columns=columns,
        group=group,
        rows=real.contexts * n_names + np.array([code[name] for name in real.perturbations]),
        controls=np.arange(len(real.context_names)) * n_names,
        draws=draws,
        most=max_cells,
    )


def _numbers(tested: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Numbers of differentially expressed genes, real and by method."""
    real = tested[MODEL]["de_nsig_counts_real"].rename("real")
    return pd.concat([real, *(table["de_nsig_counts_pred"].rename(name) for name, table in tested.items())], axis=1)


def _tidy(values: Mapping[str, pd.DataFrame], real: Profiles, groups: NDArray[np.str_]) -> pd.DataFrame:
    about = pd.DataFrame(
        {
            "perturbation": real.perturbations,
            "context": [real.context_names[c] for c in real.contexts],
            "group": groups,
        },
        index=real.labels,
    )
    if real.kind == "compound":
        found = [Agent.of(name) for name in real.perturbations]
        about = about.assign(
            compound=[compound for compound, _ in found], dose=np.array([dose for _, dose in found], float)
        )
    tables = []
    for method, table in values.items():
        long = about.loc[table.index].assign(method=method).join(table)
        tables.append(long.melt(id_vars=["method", *about.columns], var_name="metric"))
    return pd.concat([table for table in tables if len(table)], ignore_index=True)
