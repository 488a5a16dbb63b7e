from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData
from tests.tiny_plugin import tiny_model
from tests.trained_screens import GENES, PARTS, TRAINING, counts, log_normalised, untrained

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.model import CellModel
from scgalore.perturb.predictions import retrieval

KEY = "rank_perturbations"
TRAINED = (*PARTS["train"], *PARTS["validation"])
SINGLES = sorted({gene for name in TRAINED for gene in name.split("+")})


@pytest.fixture(scope="module")
def trained_once() -> tuple[AnnData, CellModel]:
    adata = log_normalised(counts())
    return adata, sg.tl.finetune(adata, untrained(), task="perturbation", split_key="split", **TRAINING)


@pytest.fixture
def adata(trained_once: tuple[AnnData, CellModel]) -> AnnData:
    return trained_once[0].copy()


@pytest.fixture
def model(trained_once: tuple[AnnData, CellModel]) -> CellModel:
    return trained_once[1]


def ranked(adata: AnnData, target: Any, model: CellModel, **options: Any) -> dict[str, Any]:
    sg.tl.rank_perturbations(adata, target, **{"model": model, "n_controls": 8, "accelerator": "cpu", **options})
    return adata.uns[options.get("key_added") or KEY]


def ranking(adata: AnnData, target: Any, model: CellModel, **options: Any) -> pd.DataFrame:
    return ranked(adata, target, model, recovery=False, **options)["ranking"]


def measured_effect(adata: AnnData, cells: np.ndarray) -> np.ndarray:
    control = (adata.obs["perturbation"] == "control").to_numpy()
    return adata.X[cells].toarray().mean(axis=0) - adata.X[control].toarray().mean(axis=0)


class TestRanking:
    def test_candidates_are_the_genes_of_training_and_those_given(self, adata: AnnData, model: CellModel) -> None:
        assert sorted(ranking(adata, "G05", model)["perturbation"]) == SINGLES
        more = ranking(adata, "G05", model, candidates=["X2", "G04+G01", "G00", "control"])["perturbation"]
        assert sorted(more) == sorted([*SINGLES, "X2", "G01+G04"])

    def test_scores_are_likeness_of_predicted_and_wanted_effects(self, adata: AnnData, model: CellModel) -> None:
        table = ranking(adata, "G05", model, metric="pearson").set_index("perturbation")
        sg.tl.predict_perturbation(adata, SINGLES, model=model, n_controls=8, accelerator="cpu")
        wanted = measured_effect(adata, (adata.obs["perturbation"] == "G05").to_numpy())
        others = np.array(GENES) != "G05"
        for name, effect in adata.uns["predict_perturbation"]["effects"].items():
            expected = np.corrcoef(effect[others], wanted[others])[0, 1]
            assert table.loc[str(name), "score"] == pytest.approx(expected, abs=1e-5)

    @pytest.mark.parametrize("metric", retrieval.METRICS)
    def test_best_stand_first(self, adata: AnnData, model: CellModel, metric: str) -> None:
        score = ranking(adata, "G05", model, metric=metric)["score"]
        assert score.is_monotonic_increasing if metric == "mse" else score.is_monotonic_decreasing
        assert score.nunique() > 3

    def test_each_says_what_training_knew_of_it(self, adata: AnnData, model: CellModel) -> None:
        given = ["X2", "X2+G05", "X2+G01", "G00+G01", "G00+G02", "G05"]
        table = ranking(adata, "G05", model, candidates=given).set_index("perturbation")
        assert table["evidence"].drop(SINGLES, errors="ignore").to_dict() == {
            "G05": "unseen", "X2": "unseen", "G05+X2": "unseen", "G01+X2": "parts measured",
            "G00+G01": "measured", "G00+G02": "parts measured",
        }  # fmt: skip
        assert table.index[table["is_target"]].tolist() == ["G05"]

    def test_measured_effects_score_beside_predicted_ones(self, adata: AnnData, model: CellModel) -> None:
        wanted = dict(zip(GENES, measured_effect(adata, (adata.obs["perturbation"] == "G02").to_numpy()), strict=True))
        table = ranking(adata, wanted, model, candidates=["G05", "X2"]).set_index("perturbation")
        assert table.loc["G02", "score_measured"] == pytest.approx(1)
        assert table["score_measured"].drop("G02").max() < 1
        # These are of the test part: what was measured of them is not told.
        assert table.loc[["G05", "X2"], "score_measured"].isna().all()
        assert table["score_prior"].notna().all()

    def test_pairs_are_of_the_best_genes(self, adata: AnnData, model: CellModel) -> None:
        alone = ranking(adata, "G01+G04", model)
        table = ranking(adata, "G01+G04", model, pairs=True, max_pairs=3)
        assert table["n_genes_perturbed"].value_counts().to_dict() == {1: len(SINGLES), 2: 3}
        best = set(alone["perturbation"][:3])
        for name in table.loc[table["n_genes_perturbed"] == 2, "perturbation"]:
            assert set(name.split("+")) <= best

    def test_other_columns_can_name_the_wanted_state(self, adata: AnnData, model: CellModel) -> None:
        adata.obs["state"] = np.where(adata.obs["perturbation"].isin(["G05", "X2"]), "late", "early")
        content = ranked(adata, "late", model, target_key="state", recovery=False)
        wanted = measured_effect(adata, (adata.obs["state"] == "late").to_numpy())
        same = ranking(adata, pd.Series(wanted, list(GENES)), model)
        pd.testing.assert_frame_equal(content["ranking"], same)
        assert not content["params"]["target_trained_on"]
        assert ranked(adata, "early", model, target_key="state", recovery=False)["params"]["target_trained_on"]

    def test_only_genes_of_a_given_effect_are_compared(self, adata: AnnData, model: CellModel) -> None:
        content = ranked(adata, {"G03": 1.0, "G07": -2.0, "elsewhere": 5.0}, model, metric="mse", recovery=False)
        assert content["params"]["n_genes_compared"] == 2
        sg.tl.predict_perturbation(adata, SINGLES, model=model, n_controls=8, accelerator="cpu")
        effects = adata.uns["predict_perturbation"]["effects"]
        expected = ((effects.loc["G03"] - 1) ** 2 + (effects.loc["G07"] + 2) ** 2) / 2
        table = content["ranking"].set_index("perturbation")
        np.testing.assert_allclose(table["score"], expected[table.index], rtol=1e-4)


class TestHonesty:
    def test_target_of_training_is_called_that(
        self, adata: AnnData, model: CellModel, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert ranked(adata, "G02", model, recovery=False)["params"]["target_trained_on"]
        assert "'G02' was in the training data" in caplog.text
        caplog.clear()
        assert not ranked(adata, "G05", model, recovery=False)["params"]["target_trained_on"]
        assert "in the training data" not in caplog.text

    def test_other_cells_of_a_trained_perturbation_count_as_trained(self, adata: AnnData, model: CellModel) -> None:
        adata.obs["split"] = "test"
        assert ranked(adata, "G02", model, recovery=False, split_key="split")["params"]["target_trained_on"]

    def test_recovery_ranks_each_held_out_perturbation(self, adata: AnnData, model: CellModel) -> None:
        content = ranked(adata, "G05", model)
        table = content["recovery"]
        assert set(table["perturbation"]) == set(PARTS["test"])
        assert set(table["method"]) == {"model", "prior", "training mean"}
        assert len(table) == 9
        candidates = {*SINGLES, *TRAINED, *PARTS["test"]}
        assert set(table["n_candidates"]) == {len(candidates)}
        assert table["rank"].between(1, len(candidates)).all()

    def test_ranks_are_those_of_predicted_effects(self, adata: AnnData, model: CellModel) -> None:
        table = ranked(adata, "G05", model)["recovery"]
        pool = sorted({*SINGLES, *TRAINED, *PARTS["test"]})
        sg.tl.predict_perturbation(adata, pool, model=model, n_controls=8, accelerator="cpu")
        effects = adata.uns["predict_perturbation"]["effects"]
        for name in PARTS["test"]:
            wanted = measured_effect(adata, (adata.obs["perturbation"] == name).to_numpy())
            kept = ~np.isin(GENES, name.split("+"))
            likeness = [effects[other][kept] @ wanted[kept] / np.linalg.norm(effects[other][kept]) for other in pool]
            own = likeness[pool.index(name)]
            ties = sum(abs(value - own) <= 1e-6 for value in likeness) - 1
            expected = 1 + sum(value > own + 1e-6 for value in likeness) + ties / 2
            found = table.loc[(table["perturbation"] == name) & (table["method"] == "model"), "rank"]
            assert found.tolist() == [expected]

    def test_a_rule_that_cannot_tell_is_at_chance(self, adata: AnnData, model: CellModel) -> None:
        table = ranked(adata, "G05", model)["recovery_summary"].set_index("method")
        assert table.loc["training mean", "median_rank"] == table.loc["training mean", "chance"]
        assert (table["n"] == len(PARTS["test"])).all()

    def test_without_held_out_cells_nothing_is_recovered(self, adata: AnnData, model: CellModel) -> None:
        adata.obs["split"] = "train"
        content = ranked(adata, "G05", model, split_key="split")
        assert content["recovery"].empty
        assert content["recovery_summary"].empty

    def test_held_out_cells_change_neither_scores_nor_measurements(self, adata: AnnData, model: CellModel) -> None:
        wanted = {gene: float(i % 5 - 2) for i, gene in enumerate(GENES)}
        before = ranking(adata, wanted, model)
        test = (adata.obs["split"] == "test").to_numpy()
        adata.X[test] = adata.X[test] * 1.5
        pd.testing.assert_frame_equal(ranking(adata, wanted, model), before)


@pytest.fixture(scope="module")
def lines() -> tuple[AnnData, CellModel]:
    adata = log_normalised(counts(contexts=("K562", "RPE1")))
    options: dict[str, Any] = {**TRAINING, "max_epochs": 1, "context_key": "cell_line"}
    return adata, sg.tl.finetune(adata, untrained(), task="perturbation", split_key="split", **options)


class TestContexts:
    def test_one_of_several_must_be_named(self, lines: tuple[AnnData, CellModel]) -> None:
        adata, model = lines
        with pytest.raises(OptionError, match=r"pass one of 'K562', 'RPE1' as context="):
            ranked(adata, "G05", model)
        with pytest.raises(OptionError, match="context='A549': .*pass one of"):
            ranked(adata, "G05", model, context="A549")

    def test_target_and_control_are_of_that_context(self, lines: tuple[AnnData, CellModel]) -> None:
        adata, model = lines
        alone = adata[adata.obs["cell_line"] == "RPE1"].copy()
        whole = ranking(adata, "G05", model, context="RPE1", metric="mse", n_controls=99)
        only = ranking(alone, "G05", model, context="RPE1", metric="mse", n_controls=99)
        pd.testing.assert_frame_equal(whole, only, rtol=1e-4)
        other = ranking(adata, "G05", model, context="K562", metric="mse", n_controls=99)
        assert not np.allclose(whole["score"], other["score"])
        gone = adata[~((adata.obs["cell_line"] == "K562") & (adata.obs["perturbation"] == "G05"))].copy()
        with pytest.raises(DataError, match="No cell of the target 'G05' is in context 'K562'"):
            ranking(gone, "G05", model, context="K562")


class TestObject:
    def test_result_survives_a_file(self, adata: AnnData, model: CellModel, tmp_path: Path) -> None:
        content = ranked(adata, "G05", model, key_added="mine")
        adata.write_h5ad(tmp_path / "a.h5ad")
        again = anndata.read_h5ad(tmp_path / "a.h5ad").uns["mine"]
        for name in ("ranking", "recovery", "recovery_summary"):
            assert again[name]["perturbation" if name != "recovery_summary" else "method"].tolist() == (
                content[name]["perturbation" if name != "recovery_summary" else "method"].tolist()
            )
        assert again["params"]["target"] == "G05"
        assert again["weights"]["name"] == model.provenance["name"]

    def test_copy_leaves_the_object_alone(self, adata: AnnData, model: CellModel) -> None:
        data = MuData({"rna": adata})
        made = sg.tl.rank_perturbations(data, "G05", model=model, recovery=False, copy=True, n_controls=4)
        assert isinstance(made, MuData)
        assert KEY in made["rna"].uns
        assert KEY not in data["rna"].uns

    @pytest.mark.parametrize(
        ("target", "options", "error", "message"),
        [
            ("G17", {}, MissingKeyError, "No perturbation 'G17'"),
            ("control", {}, OptionError, "is control, where the search starts"),
            ("late", {"target_key": "state"}, MissingKeyError, "target_key='state' is not a column"),
            ("late", {"target_key": "batch"}, MissingKeyError, "No cell is labelled 'late'"),
            ({"elsewhere": 1.0}, {}, DataError, "target has 1 genes, 0 of which are measured"),
            ({"G00": float("nan")}, {}, DataError, "expected finite effects"),
            ({"G00": 1.0}, {"target_key": "batch"}, OptionError, "is for a label"),
            ("G05", {"metric": "l3"}, OptionError, "metric='l3'"),
            ("G05", {"max_pairs": 0}, OptionError, "max_pairs=0"),
            ("G05", {"n_controls": 0}, OptionError, "n_controls=0"),
            ("G05", {"candidates": ["NOSUCHGENE"]}, DataError, "no token for the gene 'NOSUCHGENE'"),
            ("G05", {"candidates": ["G00+"]}, DataError, "has an empty part"),
            ("G05", {"key_added": "a/b"}, OptionError, "key_added='a/b'"),
        ],
    )
    def test_bad_input_changes_nothing(
        self,
        adata: AnnData,
        model: CellModel,
        target: Any,
        options: dict[str, Any],
        error: type[Exception],
        message: str,
    ) -> None:
        before = set(adata.uns)
        with pytest.raises(error, match=message):
            ranked(adata, target, model, **options)
        assert set(adata.uns) == before

    def test_model_without_memory_needs_candidates(self, adata: AnnData) -> None:
        upstream = tiny_model(GENES, perturbation=True)
        with pytest.raises(OptionError, match="Pass candidates="):
            ranked(adata, "G05", upstream, pert_key="perturbation")
        content = ranked(adata, "G05", upstream, candidates=["G00", "G05"], split_key="split")
        assert set(content["ranking"]["evidence"]) == {"unknown"}
        assert content["ranking"]["score_prior"].isna().all()
        assert set(content["recovery"]["method"]) == {"model", "training mean"}
