"""Mean scores over perturbations with intervals, relative to the best baseline and the ceiling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgalore.data.hashing import fold_seed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from scgalore.perturb.scores.metrics import Metric

    Values = NDArray[np.float64]

__all__ = ["ALL", "CEILING", "MODEL", "full_depth", "summarise"]

ALL = "all"
"""Group of all rows."""

MODEL, CEILING = "model", "ceiling"
"""Methods that are not baselines."""

COLUMNS = (
    *("method", "metric", "group", "mean", "low", "high", "n", "n_nan"),
    *("gap_closed", "gap_low", "gap_high", "best"),
)
"""Columns of the summary."""

INTERVAL = (2.5, 97.5)
"""Percentiles of the bootstrap means."""


def full_depth(value: Values, halves: str | None) -> Values:
    """Agreement of two full experiments, estimated from that of two halves of one.

    Parameters
    ----------
    value
        Score of one half against the other.
    halves
        ``"reliability"``: Spearman-Brown, 2r / (1 + r), and NaN for r <= 0, as cell-eval does. ``"square"``: the
        expected squared difference of two means is halved if both have twice the cells. ``"absolute"``: the absolute
        difference shrinks by the square root of 2. ``"residual"``: 1 minus a squared difference divided by a variance.
        ``None``: NaN.

    Returns
    -------
    Array of the same shape.
    """
    value = np.asarray(value, dtype=np.float64)
    if halves == "reliability":
        positive = np.where(value > 0, value, np.nan)
        return 2 * positive / (1 + positive)
    if halves == "square":
        return value / 2
    if halves == "absolute":
        return value / np.sqrt(2)
    if halves == "residual":
        return 1 - (1 - value) / 2
    return np.full_like(value, np.nan)


def summarise(
    scores: pd.DataFrame,
    metrics: Mapping[str, Metric],
    *,
    baselines: Sequence[str],
    n_bootstrap: int,
    seed: int,
) -> pd.DataFrame:
    """Average scores over perturbations.

    NaN is replaced by :attr:`scgalore.perturb.scores.metrics.Metric.undefined`. Intervals are percentiles over
    bootstrap samples of perturbations, the same for all methods; rows of a perturbation in several contexts stay
    together.

    Parameters
    ----------
    scores
        Tidy scores: columns ``method``, ``perturbation``, ``context``, ``group``, ``metric``, ``value``. Scores of
        method ``"ceiling"`` compare one half of the cells with the other.
    metrics
        Description of each metric.
    baselines
        Methods the model is compared with.
    n_bootstrap
        Number of samples.
    seed
        Seed for the bootstrap.

    Returns
    -------
    One row per group, method and metric, with columns ``method, metric, group, mean, low, high, n, n_nan, gap_closed,
    gap_low, gap_high, best``. The mean of the ceiling is corrected to the full number of cells. ``gap_closed`` is (u -
    b) / (r - b), with u the mean of the method, b that of the best baseline and r the ceiling; NaN if the ceiling is
    not better than that baseline.
    """
    groups = {ALL: scores}
    groups |= {str(name): part for name, part in scores.groupby("group", sort=False) if name}
    tables = [
        _group(part, metrics, baselines=baselines, n_bootstrap=n_bootstrap, seed=fold_seed(seed, "bootstrap", name))
        for name, part in groups.items()
    ]
    result = pd.concat(tables, keys=list(groups), names=["group"]).reset_index("group")
    return result[list(COLUMNS)].reset_index(drop=True)


def _group(
    scores: pd.DataFrame, metrics: Mapping[str, Metric], *, baselines: Sequence[str], n_bootstrap: int, seed: int
) -> pd.DataFrame:
    names, name = np.unique(scores["perturbation"].to_numpy(str), return_inverse=True)
    value = scores["value"].to_numpy(np.float64)
    times = np.random.default_rng(seed % 2**32).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=n_bootstrap
    )
    # The first sample is the original data, so that the mean and its interval are computed in the same way.
    times = np.concatenate([np.ones((1, len(names)), dtype=times.dtype), times])
    methods, of = scores["method"].to_numpy(str), scores["metric"].to_numpy(str)
    rows = []
    for metric in dict.fromkeys(of.tolist()):
        known = metrics[metric]
        present = dict.fromkeys(methods[of == metric].tolist())
        parts = {method: np.flatnonzero((of == metric) & (methods == method)) for method in present}
        means = {
            method: _means(value[part], known, times[:, name[part]], ceiling=method == CEILING)
            for method, part in parts.items()
        }
        gaps = _gaps(means, known.best, baselines)
        for method, part in parts.items():
            gap = gaps.get(method, np.full(len(times), np.nan))
            row = [method, metric, means[method][0], *_interval(means[method], len(names)), len(part)]
            row += [int(np.isnan(value[part]).sum()), gap[0], *_interval(gap, len(names))]
            rows.append([*row, np.nan if known.best is None else known.best])
    return pd.DataFrame(rows, columns=[name for name in COLUMNS if name != "group"])


def _means(value: Values, metric: Metric, times: NDArray[np.int64], *, ceiling: bool) -> Values:
    """Mean in each bootstrap sample, given the counts of every value, ``(n_samples, n)``."""
    if metric.undefined is not None:
        value = np.where(np.isnan(value), metric.undefined, value)
    counted = ~np.isnan(value)
    weight = times * counted
    n = weight.sum(axis=1)
    mean = np.full(len(times), np.nan)
    np.divide(weight @ np.where(counted, value, 0), n, out=mean, where=n > 0)
    return full_depth(mean, metric.halves) if ceiling else mean


def _gaps(means: Mapping[str, Values], best: float | None, baselines: Sequence[str]) -> dict[str, Values]:
    """Fraction of the gap between best baseline and ceiling, by sample, for every method except the ceiling."""
    others = {name: means[name] for name in baselines if name in means and not np.isnan(means[name][0])}
    if best is None or CEILING not in means or not others:
        return {}
    sign = 1 if best == 1 else -1
    baseline = max(others.values(), key=lambda value: sign * value[0])
    room = means[CEILING] - baseline
    room = np.where(sign * room > 1e-12, room, np.nan)
    return {name: (value - baseline) / room for name, value in means.items() if name != CEILING}


def _interval(samples: Values, n: int) -> tuple[float, float]:
    """Percentiles over samples; NaN if the value is NaN or there is only one perturbation."""
    drawn = samples[1:][~np.isnan(samples[1:])]
    if n < 2 or np.isnan(samples[0]) or len(drawn) == 0:
        return np.nan, np.nan
    low, high = np.percentile(drawn, INTERVAL)
    return float(low), float(high)
