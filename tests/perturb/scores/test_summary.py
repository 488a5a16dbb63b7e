from typing import Any

import numpy as np
import pandas as pd
import pytest

from scgalore.perturb.scores.differential import METRICS as DE_METRICS
from scgalore.perturb.scores.metrics import METRICS
from scgalore.perturb.scores.summary import full_depth, summarise

KNOWN = {**METRICS, **DE_METRICS}
BASELINES = ["control mean", "ridge"]


def tidy(values: dict[tuple[str, str], list[float]], *, names: str = "ABCDEFGH", group: str = "") -> pd.DataFrame:
    """Scores by method and metric, one for each of some perturbations."""
    return pd.DataFrame(
        [
            {"method": method, "perturbation": name, "context": "", "group": group, "metric": metric, "value": value}
            for (method, metric), row in values.items()
            for name, value in zip(names, row, strict=False)
        ]
    )


def summary(scores: pd.DataFrame, **options: int) -> Any:
    options = {"n_bootstrap": 200, "seed": 0, **options}
    return summarise(scores, KNOWN, baselines=BASELINES, **options).set_index(["group", "method", "metric"])


class TestUndefined:
    def test_counts_as_chance_in_correlations_and_is_counted(self) -> None:
        row = summary(tidy({("model", "pearson_delta"): [0.8, np.nan, 0.4, np.nan]})).loc[
            "all", "model", "pearson_delta"
        ]
        assert row["mean"] == pytest.approx(0.3)
        assert (row["n"], row["n_nan"]) == (4, 2)

    def test_is_left_out_where_the_real_data_are_the_cause(self) -> None:
        row = summary(tidy({("model", "roc_auc"): [0.8, np.nan, 0.4, np.nan]})).loc["all", "model", "roc_auc"]
        assert row["mean"] == pytest.approx(0.6)
        assert (row["n"], row["n_nan"]) == (4, 2)

    def test_counts_as_one_half_in_a_rank(self) -> None:
        row = summary(tidy({("model", "pds_cosine"): [np.nan]})).loc["all", "model", "pds_cosine"]
        assert row["mean"] == 0.5

    def test_everywhere_is_undefined(self) -> None:
        row = summary(tidy({("model", "wmse"): [np.nan, np.nan]})).loc["all", "model", "wmse"]
        assert row[["mean", "low", "high", "gap_closed"]].isna().all()


class TestInterval:
    def test_is_that_of_a_bootstrap_of_the_mean(self) -> None:
        values = np.random.default_rng(0).random(200)
        names = [f"P{i}" for i in range(200)]
        scores = tidy({("model", "mse"): list(values)}, names=names)  # type: ignore[arg-type]
        row = summary(scores, n_bootstrap=2000).loc["all", "model", "mse"]
        error = values.std() / np.sqrt(200)
        assert row["mean"] == pytest.approx(values.mean())
        assert row["low"] == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
        assert row["high"] == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)

    def test_of_one_perturbation_says_nothing(self) -> None:
        row = summary(tidy({("model", "mse"): [0.1]})).loc["all", "model", "mse"]
        assert row["mean"] == 0.1
        assert row[["low", "high"]].isna().all()

    def test_rows_of_a_perturbation_stay_together(self) -> None:
        one = tidy({("model", "mse"): [0.1, 0.5, 0.9, 0.2]})
        two = pd.concat([one.assign(context="K562"), one.assign(context="RPE1")])
        pd.testing.assert_frame_equal(summary(one).drop(columns="n"), summary(two).drop(columns="n"))

    def test_does_not_hang_on_the_order_of_rows(self) -> None:
        scores = tidy({("model", "mse"): [0.1, 0.5, 0.9, 0.2], ("ridge", "mse"): [0.3, 0.3, 0.1, 0.2]})
        pd.testing.assert_frame_equal(summary(scores), summary(scores.iloc[::-1]).loc[summary(scores).index])

    def test_methods_are_compared_on_the_same_samples(self) -> None:
        values = [0.1, 0.5, 0.9, 0.2]
        table = summary(tidy({("model", "mse"): values, ("ridge", "mse"): [v + 1 for v in values]}))
        model, ridge = (table.loc["all", name, "mse"][["mean", "low", "high"]] for name in ("model", "ridge"))
        np.testing.assert_allclose(ridge - model, 1)


class TestGap:
    def test_is_the_share_of_the_way_from_the_best_baseline_to_the_ceiling(self) -> None:
        table = summary(
            tidy(
                {
                    ("model", "pearson_delta"): [0.7, 0.7],
                    ("control mean", "pearson_delta"): [0.0, 0.0],
                    ("ridge", "pearson_delta"): [0.4, 0.6],
                    ("ceiling", "pearson_delta"): [0.8, 0.8],
                }
            )
        )["gap_closed"].loc["all"]
        ceiling = 2 * 0.8 / 1.8
        assert table["model", "pearson_delta"] == pytest.approx((0.7 - 0.5) / (ceiling - 0.5))
        assert table["ridge", "pearson_delta"] == 0
        assert np.isnan(table["ceiling", "pearson_delta"])

    def test_of_errors_goes_down(self) -> None:
        scores = tidy(
            {
                ("model", "mse"): [2.0],
                ("control mean", "mse"): [9.0],
                ("ridge", "mse"): [3.0],
                ("ceiling", "mse"): [2.0],
            }
        )
        assert summary(scores)["gap_closed"].loc["all", "model", "mse"] == pytest.approx((2 - 3) / (1 - 3))

    def test_is_undefined_where_a_baseline_is_at_the_ceiling(self) -> None:
        scores = tidy({("model", "mse"): [2.0], ("ridge", "mse"): [1.0], ("ceiling", "mse"): [2.0]})
        assert np.isnan(summary(scores)["gap_closed"].loc["all", "model", "mse"])

    def test_is_undefined_for_counts(self) -> None:
        scores = tidy({(name, "de_nsig_counts_pred"): [3.0] for name in ("model", "ridge", "ceiling")})
        assert np.isnan(summary(scores)["gap_closed"].loc["all", "model", "de_nsig_counts_pred"])


def test_groups_have_rows_of_their_own() -> None:
    parts = [
        tidy({("model", "mse"): [1.0, 2.0]}, names="AB", group="seen"),
        tidy({("model", "mse"): [6.0]}, names="C", group="new"),
    ]
    table = summary(pd.concat(parts))["mean"]
    assert table.to_dict() == {
        ("all", "model", "mse"): 3.0,
        ("seen", "model", "mse"): 1.5,
        ("new", "model", "mse"): 6.0,
    }


class TestFullDepth:
    """Two halves of an experiment are brought to what two experiments of full size would show."""

    @pytest.mark.parametrize("halves", ["square", "absolute", "residual"])
    def test_errors(self, halves: str) -> None:
        rng = np.random.default_rng(0)
        truth = rng.normal(0, 1, 20_000)
        small = truth + rng.normal(0, np.sqrt(2 * 0.1), (2, len(truth)))
        large = truth + rng.normal(0, np.sqrt(0.1), (2, len(truth)))

        def value(pair: Any) -> float:
            if halves == "square":
                return float(((pair[0] - pair[1]) ** 2).mean())
            if halves == "absolute":
                return float(np.abs(pair[0] - pair[1]).mean())
            return float(1 - ((pair[0] - pair[1]) ** 2).mean() / truth.var())

        assert full_depth(np.array(value(small)), halves) == pytest.approx(value(large), rel=0.02)

    def test_reliability(self) -> None:
        rng = np.random.default_rng(0)
        truth = rng.normal(0, 1, 20_000)
        small, large = (truth + rng.normal(0, np.sqrt(noise), (2, len(truth))) for noise in (1.0, 0.5))
        r, expected = (np.corrcoef(*pair)[0, 1] for pair in (small, large))
        assert full_depth(r, "reliability") == pytest.approx(expected, rel=0.02)

    @pytest.mark.parametrize("r", [-0.9, 0.0])
    def test_halves_that_do_not_agree_have_no_ceiling(self, r: float) -> None:
        assert np.isnan(full_depth(np.array(r), "reliability"))

    def test_counts_have_none(self) -> None:
        assert np.isnan(full_depth(np.array(3.0), None))
