from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st

from scgalore.perturb.scores.metrics import METRICS, Means

CELL_EVAL = (
    "pearson_delta",
    "mse",
    "mae",
    "mse_delta",
    "mae_delta",
    "discrimination_score_l1",
    "discrimination_score_l2",
    "discrimination_score_cosine",
)


def scores(name: str, means: Means) -> np.ndarray:
    compute = METRICS[name].compute
    assert compute is not None
    return compute(means)


def random_means(seed: int = 0, n: int = 8, n_genes: int = 30) -> Means:
    """Rows named after the first genes, predicted with some error."""
    rng = np.random.default_rng(seed)
    control = rng.gamma(1.0, 1.0, n_genes)
    real = control + rng.normal(0, 0.3, (n, n_genes))
    predicted = real + rng.normal(0, 0.3, (n, n_genes))
    names = tuple(f"G{i}" for i in range(n))
    weights = rng.random((n, n_genes))
    return Means(
        genes=tuple(f"G{i}" for i in range(n_genes)),
        perturbations=names,
        perturbed=tuple((name,) for name in names),
        contexts=np.zeros(n, dtype=np.int64),
        predicted=predicted,
        real=real,
        predicted_control=np.broadcast_to(control + 0.01, real.shape),
        real_control=np.broadcast_to(control, real.shape),
        centroid=np.broadcast_to(real.mean(axis=0), real.shape),
        pooled=np.broadcast_to(real.mean(axis=0), real.shape),
        weights=weights,
    )


def means_of(real: AnnData, predicted: AnnData, label: str, control: str) -> Means:
    names = sorted(set(real.obs[label].astype(str)) - {control})

    def of(adata: AnnData, name: str) -> np.ndarray:
        return np.asarray(adata.X[(adata.obs[label].astype(str) == name).to_numpy()].mean(axis=0)).ravel()

    sides = {k: np.array([of(side, name) for name in names]) for k, side in (("real", real), ("predicted", predicted))}
    return Means(
        genes=tuple(real.var_names),
        perturbations=tuple(names),
        perturbed=tuple(tuple(name.split("+")) for name in names),
        contexts=np.zeros(len(names), dtype=np.int64),
        real_control=np.tile(of(real, control), (len(names), 1)),
        predicted_control=np.tile(of(predicted, control), (len(names), 1)),
        **sides,
    )


def cell_eval_scores(real: AnnData, predicted: AnnData, label: str, control: str, folder: Path) -> pd.DataFrame:
    cell_eval = pytest.importorskip("cell_eval", reason="needs the extra eval")
    evaluator = cell_eval.MetricsEvaluator(
        predicted.copy(), real.copy(), control_pert=control, pert_col=label, outdir=str(folder), skip_de=True
    )
    table, _ = evaluator.compute(
        profile="anndata", skip_metrics=["pearson_edistance", "clustering_agreement"], write_csv=False
    )
    columns = {name: table[name].to_list() for name in CELL_EVAL}
    return pd.DataFrame(columns, index=table["perturbation"].to_list()).sort_index()


def assert_equal_to_cell_eval(real: AnnData, predicted: AnnData, label: str, folder: Path) -> None:
    expected = cell_eval_scores(real, predicted, label, "control", folder)
    means = means_of(real, predicted, label, "control")
    assert list(expected.index) == list(means.perturbations)
    for name in CELL_EVAL:
        np.testing.assert_allclose(scores(name, means), expected[name], rtol=0, atol=1e-6, err_msg=name)


def test_equal_to_cell_eval_on_random_cells(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(["control", *(f"G{i}" for i in range(25)), "G1+G2"], 6)
    sides = []
    for shift in (0.0, 0.3):
        x = rng.gamma(1.0, 1.0, (len(labels), 40)) + shift * rng.random(40)
        obs = pd.DataFrame({"target": labels}, index=[str(i) for i in range(len(labels))])
        sides.append(AnnData(x, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(40)])))
    assert_equal_to_cell_eval(sides[0], sides[1], "target", tmp_path)


def test_equal_to_cell_eval_on_real_cells(shared_data: Path, tmp_path: Path) -> None:
    adata = ad.read_h5ad(shared_data / "perturbench_devel.h5ad")
    adata = adata[adata.obs["cell_type"].astype(str) == "k562"].copy()
    half = np.arange(adata.n_obs) % 2 == 0
    assert_equal_to_cell_eval(adata[half].copy(), adata[~half].copy(), "condition", tmp_path)


def test_perfect_prediction_has_the_best_value() -> None:
    means = random_means()
    perfect = replace(means, predicted=means.real, predicted_control=means.real_control)
    for name, metric in METRICS.items():
        assert metric.best is not None
        np.testing.assert_allclose(scores(name, perfect), metric.best, atol=1e-12, err_msg=name)


@given(st.permutations(range(8)))
def test_order_of_rows_changes_nothing(order: list[int]) -> None:
    means = random_means()
    per_row: dict[str, Any] = {
        name: value[order] if isinstance(value, np.ndarray) else tuple(value[i] for i in order)
        for name, value in vars(means).items()
        if name != "genes"
    }
    for name in METRICS:
        np.testing.assert_allclose(scores(name, replace(means, **per_row)), scores(name, means)[order], err_msg=name)


@pytest.mark.parametrize("name", METRICS)
def test_rows_of_other_contexts_do_not_count(name: str) -> None:
    first, second = random_means(1, n=5), random_means(2, n=4)
    both: dict[str, Any] = {
        field: np.concatenate([value, vars(second)[field]])
        if isinstance(value, np.ndarray)
        else value + vars(second)[field]
        for field, value in vars(first).items()
        if field != "genes"
    }
    both["contexts"] = np.repeat([0, 1], [5, 4])
    together = scores(name, replace(first, **both))
    np.testing.assert_allclose(together, np.concatenate([scores(name, first), scores(name, second)]))


class TestNoEffect:
    """A prediction of no change, kept as float32, as predictions are."""

    @pytest.fixture
    def nothing(self) -> Means:
        means = random_means()
        rounded = means.real_control.astype(np.float32).astype(np.float64)
        return replace(means, predicted=rounded, predicted_control=means.real_control)

    def test_its_correlation_is_undefined_and_not_that_of_rounding(self, nothing: Means) -> None:
        assert (nothing.predicted_effect != 0).any()
        assert np.isnan(scores("pearson_delta", nothing)).all()

    def test_it_discriminates_by_chance(self, nothing: Means) -> None:
        np.testing.assert_array_equal(scores("pds_cosine", nothing), 0.5)

    def test_the_mean_of_training_perturbations_is_no_effect_from_there(self) -> None:
        means = random_means()
        assert means.centroid is not None
        rounded = means.centroid.astype(np.float32).astype(np.float64)
        assert np.isnan(scores("pearson_centroid", replace(means, predicted=rounded))).all()

    def test_small_effects_are_effects(self, nothing: Means) -> None:
        tiny = replace(nothing, predicted=nothing.real_control + 1e-4 * nothing.real_effect)
        np.testing.assert_allclose(scores("pearson_delta", tiny), 1, atol=1e-6)
        np.testing.assert_allclose(scores("pds_cosine", tiny), 1)

    @pytest.mark.parametrize("away", [1e-5, 4e-4])
    def test_nor_is_what_equals_it_to_three_decimals(self, away: float) -> None:
        """What little is left has a direction, which may be any: minus the centroid's, for one that is shrunken a little."""
        means = random_means()
        assert means.centroid is not None
        shift = np.random.default_rng(0).uniform(-away, away, means.real.shape)
        near = replace(means, predicted=means.centroid + shift)
        assert np.isnan(scores("pearson_centroid", near)).all()
        far = replace(means, predicted=means.centroid + 1e-2 * (means.real - means.centroid))
        np.testing.assert_allclose(scores("pearson_centroid", far), 1, atol=1e-9)

    def test_no_effect_has_a_direction_from_the_centroid(self) -> None:
        """Which is why the control mean does not score 0 there."""
        means = random_means()
        assert means.centroid is not None
        nothing = replace(means, predicted=means.real_control)
        expected = [
            np.corrcoef(c - m, r - m)[0, 1]
            for c, m, r in zip(means.real_control, means.centroid, means.real, strict=True)
        ]
        np.testing.assert_allclose(scores("pearson_centroid", nothing), expected)


class TestWithoutTarget:
    NAMES = ("pearson_delta", "pearson_centroid", "mse")

    def test_perturbed_genes_of_the_row_do_not_count_and_others_do(self) -> None:
        means = random_means()
        for name in self.NAMES:
            before = scores(f"{name}_without_target", means)
            predicted = means.predicted.copy()
            predicted[np.arange(8), np.arange(8)] += 5  # row i perturbs gene i
            target = replace(means, predicted=predicted)
            np.testing.assert_allclose(scores(f"{name}_without_target", target), before)
            assert (scores(name, target) != scores(name, means)).all()
            other = predicted.copy()
            other[:, 20] += 5
            assert (scores(f"{name}_without_target", replace(means, predicted=other)) != before).all()

    def test_equal_to_the_score_where_no_target_is_measured(self) -> None:
        means = replace(random_means(), perturbed=tuple(((f"X{i}",)) for i in range(8)))
        for name in self.NAMES:
            np.testing.assert_allclose(scores(f"{name}_without_target", means), scores(name, means), rtol=1e-12)


class TestDiscrimination:
    def test_same_prediction_for_all_scores_one_half_on_average(self) -> None:
        means = random_means(n=9)
        same = replace(means, predicted=np.tile(means.predicted[:1], (9, 1)))
        assert scores("pds_cosine", same).mean() == pytest.approx(0.5)

    def test_equal_perturbations_share_their_rank(self) -> None:
        means = random_means(n=4)
        real = means.real.copy()
        real[1] = real[0]
        # The right one and its copy are equally near: the copy counts half, of three others.
        perfect = replace(means, real=real, predicted=real, predicted_control=means.real_control)
        np.testing.assert_allclose(scores("pds_cosine", perfect), [1 - 0.5 / 3, 1 - 0.5 / 3, 1, 1])

    def test_perturbed_genes_of_any_row_do_not_count(self) -> None:
        means = random_means(n=4)
        predicted = means.predicted.copy()
        predicted[:, :4] = 100 * np.eye(4)
        np.testing.assert_allclose(
            scores("pds_cosine", replace(means, predicted=predicted)), scores("pds_cosine", means)
        )
        predicted[:, 5] = np.arange(4) * 100
        assert (scores("pds_cosine", replace(means, predicted=predicted)) != scores("pds_cosine", means)).any()

    def test_one_perturbation_has_no_rank(self) -> None:
        means = random_means(n=1)
        assert np.isnan(scores("pds_cosine", means)).all()
        assert METRICS["pds_cosine"].undefined == 0.5

    def test_rank_counts_those_that_are_nearer(self) -> None:
        means = random_means(3)
        expected = []
        kept = slice(8, None)
        for i in range(8):
            p = means.predicted_effect[i, kept]
            r = means.real_effect[:, kept]
            similarity = r @ p / (np.linalg.norm(r, axis=1) * np.linalg.norm(p))
            expected.append(1 - (similarity > similarity[i]).sum() / 7)
        np.testing.assert_allclose(scores("pds_cosine", means), expected)


class TestWeighted:
    def test_error_is_the_weighted_mean_of_squares(self) -> None:
        means = random_means()
        expected = [
            np.average((p - r) ** 2, weights=w)
            for p, r, w in zip(means.predicted, means.real, means.weights, strict=True)  # type: ignore[arg-type]
        ]
        np.testing.assert_allclose(scores("wmse", means), expected)

    def test_r2_is_that_of_a_weighted_regression_target(self) -> None:
        sklearn = pytest.importorskip("sklearn.metrics")
        means = random_means()
        assert means.pooled is not None
        assert means.weights is not None
        rows = zip(means.real - means.pooled, means.predicted - means.pooled, means.weights, strict=True)
        expected = [sklearn.r2_score(real, predicted, sample_weight=w) for real, predicted, w in rows]
        np.testing.assert_allclose(scores("r2w_delta", means), expected)

    @pytest.mark.parametrize("name", ["wmse", "r2w_delta"])
    def test_undefined_without_weights(self, name: str) -> None:
        means = random_means()
        assert np.isnan(scores(name, replace(means, weights=np.zeros_like(means.real)))).all()
        assert np.isnan(scores(name, replace(means, weights=None))).all()
