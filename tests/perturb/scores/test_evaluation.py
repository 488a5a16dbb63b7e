import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from tests.screens import TEST, prediction_of, profiles_of, screen, screen_of

from scgalore.errors import DataError, OptionError
from scgalore.perturb.baselines.effects import BASELINES
from scgalore.perturb.predictions.prediction import Prediction
from scgalore.perturb.scores import differential
from scgalore.perturb.scores.differential import METRICS as DE_METRICS
from scgalore.perturb.scores.evaluation import Evaluation, choose_metrics, evaluate
from scgalore.perturb.scores.metrics import METRICS


def scored(adata: AnnData, made: Prediction | None = None, *, contexts: bool = False, **options: Any) -> Evaluation:
    made = prediction_of(adata, contexts=contexts) if made is None else made
    options = {"de": False, "n_bootstrap": 20, **options}
    return evaluate(screen_of(adata, contexts=contexts), made, **options)


def values(found: Evaluation) -> pd.Series:
    return found.scores.set_index(["method", "context", "perturbation", "metric"])["value"].sort_index()


def mean_of(found: Evaluation, method: str, metric: str) -> Any:
    table = found.summary[found.summary["group"] == "all"].set_index(["method", "metric"])
    return table.loc[(method, metric)]


class TestMethods:
    def test_model_baselines_and_ceiling_stand_side_by_side(self) -> None:
        found = scored(screen())
        assert list(dict.fromkeys(found.scores["method"])) == ["model", *BASELINES, "ceiling"]
        assert set(found.scores["metric"]) == set(METRICS)
        assert set(found.scores["perturbation"]) == set(TEST)

    def test_a_rule_scores_as_the_baseline_of_its_name(self) -> None:
        adata = screen()
        for rule in BASELINES:
            table = values(scored(adata, prediction_of(adata, rule)))
            pd.testing.assert_series_equal(table["model"], table[rule], check_exact=False, rtol=1e-9, atol=1e-9)

    def test_the_truth_is_perfect(self) -> None:
        adata = screen()
        real = profiles_of(adata, "test")
        made = prediction_of(adata)
        table = values(scored(adata, replace(made, means=real.means, effects=real.effects)))["model"]
        for metric, known in METRICS.items():
            np.testing.assert_allclose(table.xs(metric, level="metric"), float(known.best or 0), atol=1e-9)

    def test_no_change_counts_as_zero_and_says_how_often(self) -> None:
        row = mean_of(scored(screen()), "control mean", "pearson_delta")
        assert (row["mean"], row["n_nan"], row["n"]) == (0, len(TEST), len(TEST))

    def test_observed_effects_are_those_of_the_held_out_cells(self) -> None:
        adata = screen()
        real = profiles_of(adata, "test")
        found = scored(adata).observed.loc[real.labels]
        np.testing.assert_allclose(found, real.effects, atol=1e-6)
        assert list(found.columns) == list(adata.var_names)

    def test_effects_are_taken_from_the_controls_that_the_model_started_from(self) -> None:
        adata = screen()
        made = prediction_of(adata)
        kept, moved = (values(scored(adata, replace(made, means=made.means + by)))["model"] for by in (0, 1))
        of_effects = ["pearson_delta", "mse_delta", "mae_delta", "pds_cosine", "discrimination_score_l1"]
        same = kept.index.get_level_values("metric").isin(of_effects)
        np.testing.assert_allclose(moved[same], kept[same], atol=1e-9)
        assert (moved - kept).xs("mse", level="metric").min() > 0.5


class TestNothingLeaks:
    """Baselines are the same whatever the held-out cells hold."""

    def changed(self, adata: AnnData, cells: np.ndarray, kind: str) -> AnnData:
        rng = np.random.default_rng(5)
        other = adata.copy()
        rows = np.flatnonzero(cells)
        if kind == "labels":
            labels = other.obs["perturbation"].to_numpy(object).copy()
            labels[rows] = rng.permutation(labels[rows])
            other.obs["perturbation"] = pd.Categorical(labels)
        else:
            x = other.X.toarray()
            x[rows] = rng.permuted(x[rows], axis=0)
            other.X = sp.csr_matrix(x)
        return other

    @pytest.mark.parametrize("kind", ["labels", "values"])
    def test_from_test_cells_to_baselines(self, kind: str) -> None:
        adata = screen()
        made = prediction_of(adata)
        other = self.changed(adata, (adata.obs["split"] == "test").to_numpy(), kind)
        before, after = scored(adata, made), scored(other, made)
        assert (before.observed != after.observed).any(axis=None)
        for name in BASELINES:
            np.testing.assert_array_equal(before.predicted[name], after.predicted[name])

    @pytest.mark.parametrize("kind", ["labels", "values"])
    def test_the_same_change_of_training_cells_is_seen(self, kind: str) -> None:
        adata = screen()
        made = prediction_of(adata)
        train = (adata.obs["split"] == "train").to_numpy() & (adata.obs["perturbation"] != "control").to_numpy()
        before, after = scored(adata, made), scored(self.changed(adata, train, kind), made)
        pd.testing.assert_frame_equal(before.observed, after.observed)
        assert (before.predicted["additive"] != after.predicted["additive"]).any()

    def test_cells_that_the_split_drops_are_not_seen(self) -> None:
        adata = screen()
        made = prediction_of(adata)
        gone = (adata.obs["perturbation"] == "G02").to_numpy()
        without = values(scored(adata[~gone].copy(), made))
        adata.obs["split"] = adata.obs["split"].astype(object).where(~gone, None)
        pd.testing.assert_series_equal(values(scored(adata, made)), without)

    def test_held_out_control_cells_are_not_seen_while_there_are_others(self) -> None:
        adata = screen()
        control = np.flatnonzero(adata.obs["perturbation"] == "control")
        made = prediction_of(adata)
        rest = np.setdiff1d(np.arange(adata.n_obs), control[:10])
        without = values(scored(adata[rest].copy(), made))
        adata.obs.iloc[control[:10], adata.obs.columns.get_loc("split")] = "test"
        pd.testing.assert_series_equal(values(scored(adata, made)), without)


class TestInvariance:
    def test_the_order_of_cells_changes_nothing(self) -> None:
        adata = screen()
        made = prediction_of(adata)
        order = np.random.default_rng(0).permutation(adata.n_obs)
        first, second = values(scored(adata, made)), values(scored(adata[order].copy(), made))
        pd.testing.assert_series_equal(first, second, check_exact=False, rtol=1e-9, atol=1e-9)

    def test_the_order_of_predicted_genes_changes_nothing(self) -> None:
        adata = screen()
        made = prediction_of(adata)
        order = np.random.default_rng(0).permutation(len(made.genes))
        moved = replace(
            made, genes=tuple(made.genes[i] for i in order), means=made.means[:, order], effects=made.effects[:, order]
        )
        chosen = [name for name in METRICS if name != "discrimination_score_l1"]
        first, second = (values(scored(adata, one, metrics=chosen)) for one in (made, moved))
        pd.testing.assert_series_equal(first, second, check_exact=False, rtol=1e-7, atol=1e-9)

    def test_genes_that_were_not_predicted_do_not_count(self) -> None:
        adata = screen()
        made = prediction_of(adata)
        some = replace(made, genes=made.genes[:20], means=made.means[:, :20], effects=made.effects[:, :20])
        alone = values(scored(adata[:, :20].copy(), some))
        together = values(scored(adata, some))
        # The halves are drawn by the whole cell.
        methods = ["model", *BASELINES]
        pd.testing.assert_series_equal(together[methods], alone[methods])

    def test_contexts_are_scored_each_by_itself(self) -> None:
        adata = screen(contexts=("K562", "RPE1"))
        together = values(scored(adata, contexts=True))
        for line in ("K562", "RPE1"):
            alone = values(scored(adata[adata.obs["cell_line"] == line].copy(), contexts=True))
            one = together.xs(line, level="context", drop_level=False)
            # The linear rule makes the vectors of its genes from all contexts.
            methods = ["model", *(name for name in BASELINES if name != "linear")]
            pd.testing.assert_series_equal(one[methods], alone[methods], check_exact=False, rtol=1e-6, atol=1e-9)

    def test_the_seed_decides_on_the_halves_alone(self) -> None:
        adata = screen()
        first, second = (values(scored(adata, seed=seed)) for seed in (0, 1))
        methods = ["model", *BASELINES]
        pd.testing.assert_series_equal(first[methods], second[methods])
        assert (first["ceiling"] != second["ceiling"]).any()


def test_prior_is_scored_where_the_prediction_has_one() -> None:
    adata = screen()
    made = prediction_of(adata)
    without = scored(adata, made)
    assert "prior" not in set(without.scores["method"])
    prior = prediction_of(adata, "additive").effects
    found = scored(adata, replace(made, prior=prior))
    of = values(found)
    same, additive = (of[name].reset_index(drop=True) for name in ("prior", "additive"))
    pd.testing.assert_series_equal(same, additive, check_exact=False, rtol=1e-6)
    # It is no baseline: the gap is that to rules which need no model.
    gaps = [table.summary.set_index(["method", "metric"])["gap_closed"]["model"] for table in (without, found)]
    pd.testing.assert_series_equal(gaps[0], gaps[1])


class TestFewCells:
    def test_a_perturbation_with_one_cell_has_scores_and_no_ceiling(self) -> None:
        adata = screen()
        rows = np.flatnonzero(adata.obs["perturbation"] == "G05")
        adata = adata[np.setdiff1d(np.arange(adata.n_obs), rows[1:])].copy()
        found = scored(adata)
        table = found.scores[found.scores["metric"] == "mse"]
        assert table["value"].notna().all()
        assert set(table.loc[table["method"] == "model", "perturbation"]) == set(TEST)
        assert set(table.loc[table["method"] == "ceiling", "perturbation"]) == set(TEST) - {"G05"}

    def test_one_perturbation_has_scores_without_intervals(self) -> None:
        adata = screen()
        adata = adata[(adata.obs["split"] == "train") | (adata.obs["perturbation"] == "G05")].copy()
        found = scored(adata)
        row = mean_of(found, "model", "mse")
        assert row["mean"] > 0
        assert np.isnan(row["low"])
        assert mean_of(found, "model", "pds_cosine")["mean"] == 0.5
        assert mean_of(found, "model", "pds_cosine")["n_nan"] == 1

    def test_one_control_cell_leaves_no_ceiling(self) -> None:
        adata = screen()
        rows = np.flatnonzero(adata.obs["perturbation"] == "control")
        found = scored(adata[np.setdiff1d(np.arange(adata.n_obs), rows[1:])].copy())
        assert "ceiling" not in set(found.scores["method"])
        assert np.isnan(mean_of(found, "model", "mse")["gap_closed"])


class TestRows:
    def test_without_a_split_the_predicted_rows_are_held_out(self) -> None:
        adata = screen()
        made = prediction_of(adata)
        found = evaluate(screen_of(adata, split=False), made, de=False, n_bootstrap=20)
        pd.testing.assert_series_equal(values(found), values(scored(adata, made)))

    def test_without_other_perturbations_no_change_is_the_only_baseline(self, caplog: pytest.LogCaptureFixture) -> None:
        adata = screen()
        made = prediction_of(adata)
        adata = adata[(adata.obs["split"] == "test") | (adata.obs["perturbation"] == "control")].copy()
        with caplog.at_level(logging.WARNING, logger="scgalore"):
            found = scored(adata, made)
        assert set(found.scores["method"]) == {"model", "control mean", "ceiling"}
        assert "pearson_centroid" not in set(found.scores["metric"])
        assert "training mean, training mean + own gene, additive" in caplog.text
        assert "pearson_centroid, pearson_centroid_without_target are skipped" in caplog.text
        with pytest.raises(DataError, match="No baseline can be fitted"):
            scored(adata, made, baselines=["ridge"])

    def test_predictions_without_cells_are_not_scored(self) -> None:
        adata = screen()
        made = prediction_of(adata)
        rows = made.rows.copy()
        rows.loc[rows.index[0], "perturbation"] = "G30"
        found = scored(adata, replace(made, rows=rows))
        assert set(found.scores["perturbation"]) == set(TEST) - {str(made.rows.index[0])}

    def test_held_out_perturbations_that_were_not_predicted_are_named(self, caplog: pytest.LogCaptureFixture) -> None:
        adata = screen()
        made = prediction_of(adata)
        part = replace(made, rows=made.rows.iloc[1:], means=made.means[1:], effects=made.effects[1:])
        with caplog.at_level(logging.WARNING, logger="scgalore"):
            found = scored(adata, part)
        assert (
            f"1 of 4 held-out perturbations were not predicted and are not scored ({made.rows.index[0]})" in caplog.text
        )
        assert len(found.observed) == 3

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"perturbation": ["G05"] * 4}, "'G05' was predicted more than once"),
            ({"perturbation": ["G30", "G31", "G32", "G33"]}, "None of the 4 predicted perturbations"),
            ({"context": ["RPE1"] * 4}, "None of the 4 predicted perturbations"),
        ],
    )
    def test_rows_that_do_not_fit_are_refused(self, change: dict[str, list[str]], message: str) -> None:
        adata = screen()
        made = prediction_of(adata)
        with pytest.raises(DataError, match=message):
            scored(adata, replace(made, rows=made.rows.assign(**change)))

    def test_unknown_genes_and_gaps_are_refused(self) -> None:
        adata = screen()
        made = prediction_of(adata)
        with pytest.raises(DataError, match="1 of 40 predicted genes are not in the data .FOXP3."):
            scored(adata, replace(made, genes=("FOXP3", *made.genes[1:])))
        with pytest.raises(DataError, match="NaN or infinite"):
            scored(adata, replace(made, means=np.full_like(made.means, np.nan)))


class TestOptions:
    def test_some_metrics_in_the_order_asked_for(self) -> None:
        assert list(choose_metrics(["mse", "pearson_delta", "mse"], de="auto")) == ["mse", "pearson_delta"]
        assert list(choose_metrics(None, de=False)) == list(METRICS)

    @pytest.mark.parametrize("metrics", [["r2"], [], ["mse", "r2"]])
    def test_unknown_metrics_are_refused(self, metrics: list[str]) -> None:
        with pytest.raises(OptionError, match="choose from pearson_delta"):
            choose_metrics(metrics, de="auto")

    def test_contradictions_are_refused(self) -> None:
        with pytest.raises(OptionError, match="roc_auc needs tests of differential expression, but de=False"):
            choose_metrics(["mse", "roc_auc"], de=False)
        with pytest.raises(OptionError, match="expected True, False or 'auto'"):
            choose_metrics(None, de="yes")  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "options", [{"baselines": []}, {"baselines": ["mean"]}, {"n_bootstrap": 0}, {"max_cells": 0}]
    )
    def test_values_outside_their_range_are_refused(self, options: dict[str, Any]) -> None:
        adata = screen()
        with pytest.raises(OptionError, match=next(iter(options))):
            scored(adata, **options)


class TestWithoutTheExtra:
    @pytest.fixture(autouse=True)
    def _missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(differential, "find_spec", lambda name: None)

    def test_auto_leaves_the_metrics_out_and_says_so(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING, logger="scgalore"):
            found = scored(screen(), de="auto")
        assert set(found.scores["metric"]) == set(METRICS)
        assert found.n_de is None
        assert 'pip install "scgalore[eval]"' in caplog.text

    def test_true_raises(self) -> None:
        with pytest.raises(OptionError, match=r'pip install "scgalore\[eval\]"'):
            scored(screen(), de=True)

    def test_nothing_left_raises(self) -> None:
        with pytest.raises(OptionError, match="No metric can be computed"):
            choose_metrics(list(DE_METRICS), de="auto")
