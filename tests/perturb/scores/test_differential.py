"""Starting pdex compiles for ten seconds and more, so what needs it shares one evaluation."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from tests.screens import TEST, prediction_of, screen, screen_of

from scgalore.errors import DataError, OptionError
from scgalore.perturb.scores import differential
from scgalore.perturb.scores.differential import METRICS, de_scores, differential_expression
from scgalore.perturb.scores.evaluation import Evaluation, evaluate

needs_extra = pytest.mark.skipif(not differential.is_installed(), reason="needs the extra eval")


def table(fdr: dict[str, list[float]], fold_change: dict[str, list[float]]) -> Any:
    """A table of differential expression of genes g0, g1, ..."""
    import polars

    rows = [
        {"target": name, "feature": f"g{i}", "log2_fold_change": lfc, "p_value": q, "fdr": q}
        for name in fdr
        for i, (q, lfc) in enumerate(zip(fdr[name], fold_change[name], strict=True))
    ]
    return polars.DataFrame(rows)


@needs_extra
class TestScores:
    real = {"A": [0.01, 0.02, 0.03, 0.5], "B": [0.9, 0.9, 0.9, 0.9]}
    change = {"A": [3.0, -2.0, 1.0, 0.1], "B": [0.1, 0.1, -0.1, 0.1]}

    def test_of_a_prediction_by_hand(self) -> None:
        predicted = table(
            {"A": [0.01, 0.9, 0.9, 0.02], "B": [0.01, 0.9, 0.9, 0.9]}, {**self.change, "A": [4.0, 2.0, 1.0, 5.0]}
        )
        row = de_scores(table(self.real, self.change), predicted).loc["A"]
        assert row["overlap_at_N"] == pytest.approx(1 / 3)  # the right one is second among two predicted
        assert row["precision_at_N"] == pytest.approx(1 / 2)
        assert row["de_direction_match"] == pytest.approx(2 / 3)
        assert row["de_sig_genes_recall"] == pytest.approx(1 / 3)
        assert row["de_spearman_lfc_sig"] == pytest.approx(0.5)
        assert (row["de_nsig_counts_real"], row["de_nsig_counts_pred"]) == (3, 2)

    def test_without_real_genes_there_is_nothing_to_recover(self) -> None:
        row = de_scores(table(self.real, self.change), table(self.real, self.change)).loc["B"]
        undefined = ["de_direction_match", "de_spearman_lfc_sig", "de_sig_genes_recall", "pr_auc", "roc_auc"]
        assert row[undefined].isna().all()
        assert row["overlap_at_N"] == 0

    def test_of_the_truth_are_perfect(self) -> None:
        row = de_scores(table(self.real, self.change), table(self.real, self.change)).loc["A"]
        best = [name for name, metric in METRICS.items() if metric.best is not None]
        np.testing.assert_allclose(row[best].to_numpy(float), 1)


@needs_extra
def test_control_cells_must_be_there() -> None:
    with pytest.raises(DataError, match="Expected control cells labelled 'control'"):
        differential_expression(sp.csr_matrix(np.ones((2, 3))), ["A", "B"], ["a", "b", "c"], control="control")


def test_without_the_extra_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differential, "find_spec", lambda name: None if name == "pdex" else object())
    assert not differential.is_installed()
    for call in (
        lambda: differential_expression(sp.csr_matrix((2, 3)), ["A", "control"], ["a", "b", "c"], control="control"),
        lambda: de_scores(None, None),  # type: ignore[arg-type]
    ):
        with pytest.raises(
            OptionError, match=r'need pdex, which is not installed. Call pip install "scgalore\[eval\]"'
        ):
            call()


@pytest.fixture(scope="module")
def cells() -> AnnData:
    return screen(n_cells=30, n_control=60, n_genes=30)


@pytest.fixture(scope="module")
def found(cells: AnnData) -> Evaluation:
    return evaluate(
        screen_of(cells),
        prediction_of(cells, "additive"),
        de=True,
        n_bootstrap=20,
        baselines=["control mean", "additive"],
    )


@needs_extra
class TestCells:
    @pytest.mark.slow
    def test_equal_to_cell_eval(self, cells: AnnData, tmp_path: Path) -> None:
        import cell_eval

        half = np.arange(cells.n_obs) % 2 == 0
        sides = []
        for part in (cells[half], cells[~half]):
            side = AnnData(part.X.astype(np.float32), var=pd.DataFrame(index=part.var_names))
            side.obs["label"] = part.obs["perturbation"].to_numpy(str)
            sides.append(side)
        evaluator = cell_eval.MetricsEvaluator(
            sides[1].copy(),
            sides[0].copy(),
            control_pert="control",
            pert_col="label",
            outdir=str(tmp_path),
            num_threads=1,
        )
        theirs = evaluator.compute(profile="de", write_csv=False)[0]
        expected = pd.DataFrame(
            {name: theirs[name].to_list() for name in METRICS}, index=theirs["perturbation"].to_list()
        )
        ours = de_scores(
            *(
                differential_expression(side.X, list(side.obs["label"]), list(side.var_names), control="control")
                for side in sides
            )
        )
        assert (ours["de_nsig_counts_real"] > 0).any()
        np.testing.assert_allclose(ours.loc[expected.index].to_numpy(float), expected.to_numpy(float), atol=1e-6)

    def test_predicted_and_halved_cells_are_tested_alike(self, found: Evaluation) -> None:
        of_cells = found.scores[found.scores["metric"].isin(METRICS)]
        assert set(of_cells["method"]) == {"model", "control mean", "additive", "ceiling"}
        assert set(of_cells["perturbation"]) == set(TEST)
        table = of_cells.set_index(["method", "metric", "perturbation"])["value"].sort_index()
        # The prediction is the additive rule, and both draw the same cells.
        pd.testing.assert_series_equal(table["model"], table["additive"])

    def test_no_change_has_no_significant_gene(self, found: Evaluation) -> None:
        assert found.n_de is not None
        assert (found.n_de["control mean"] == 0).all()
        assert (found.n_de["real"] > 0).all()
        assert set(found.n_de.columns) == {"real", "model", "control mean", "additive"}

    def test_the_order_of_cells_changes_nothing(self, cells: AnnData, found: Evaluation) -> None:
        order = np.random.default_rng(0).permutation(cells.n_obs)
        again = evaluate(
            screen_of(cells[order].copy()), prediction_of(cells, "additive"), de=True, n_bootstrap=20, baselines=["control mean", "additive"]
        )  # fmt: skip
        columns = ["method", "metric", "perturbation"]
        first, second = (one.scores.set_index(columns)["value"].sort_index() for one in (found, again))
        pd.testing.assert_series_equal(first, second, check_exact=False, rtol=1e-6, atol=1e-6)

    def test_fewer_cells_find_fewer_genes(self, cells: AnnData, found: Evaluation) -> None:
        few = evaluate(
            screen_of(cells), prediction_of(cells, "additive"), metrics=["de_nsig_counts_real"], n_bootstrap=20, max_cells=8
        )  # fmt: skip
        assert few.n_de is not None
        assert found.n_de is not None
        assert (few.n_de["real"] < found.n_de["real"]).all()
