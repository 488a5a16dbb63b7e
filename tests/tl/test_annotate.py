from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData
from tests.trained_screens import counts, trained

import scgalore as sg
from scgalore.data.reading import AS_IT_IS
from scgalore.errors import DataError, OptionError
from scgalore.model import SCGPT

RUN: dict[str, Any] = {"labels_key": "bulk_labels", "max_epochs": 2, "batch_size": 32, "lr": 2e-3}
KEYS = {
    "obs": {"scgpt_label", "scgpt_label_score"},
    "obsm": {"X_scGPT", "scgpt_probabilities"},
    "uns": {"annotate"},
}


def keys(adata: AnnData) -> dict[str, set[str]]:
    return {slot: set(getattr(adata, slot)) for slot in ("obs", "var", "obsm", "varm", "obsp", "layers", "uns")}


def added(adata: AnnData, before: dict[str, set[str]]) -> dict[str, set[str]]:
    return {slot: names - before[slot] for slot, names in keys(adata).items() if names != before[slot]}


@pytest.fixture
def fitted(few: AnnData, model: SCGPT) -> SCGPT:
    model.train(few, **RUN)
    return model


@pytest.fixture
def query(few: AnnData) -> AnnData:
    """The same cells in another order with other genes, unlabelled."""
    rng = np.random.default_rng(0)
    extra = AnnData(sp.random(90, 20, density=0.3, format="csr", random_state=0), obs=few.obs[[]])
    extra.var_names = [f"unheard-of-{i}" for i in range(20)]
    wider = anndata.concat([few[:, rng.permutation(few.n_vars)[:120]], extra], axis=1)
    return wider[rng.permutation(90), rng.permutation(140)].copy()


def test_keys_and_agreement(query: AnnData, fitted: SCGPT) -> None:
    before = keys(query)
    assert sg.tl.annotate(query, fitted) is None
    assert added(query, before) == KEYS
    expected = fitted.predict(query)
    np.testing.assert_array_equal(query.obsm["scgpt_probabilities"], expected)
    assert query.obs["scgpt_label"].tolist() == expected.idxmax(axis=1).tolist()
    assert query.obs["scgpt_label_score"].tolist() == expected.max(axis=1).tolist()
    assert query.obs["scgpt_label"].cat.categories.tolist() == query.uns["annotate"]["classes"] == list(fitted.classes)
    assert query.uns["annotate"]["genes"]["matched"] == 120


def test_same_cells_get_the_labels_of_fine_tuning(few: AnnData, model: SCGPT) -> None:
    query = few[::-1].copy()
    sg.tl.finetune(few, model, **RUN)
    sg.tl.annotate(query, model)
    pd.testing.assert_series_equal(query.obs["scgpt_label"][::-1], few.obs["scgpt_label"])
    np.testing.assert_allclose(query.obsm["X_scGPT"][::-1], few.obsm["X_scGPT"], atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batch_size_changes_nothing(query: AnnData, fitted: SCGPT, batch_size: int) -> None:
    sg.tl.annotate(query, fitted, max_length=20)
    expected = query.obsm["scgpt_probabilities"]
    sg.tl.annotate(query, fitted, max_length=20, batch_size=batch_size)
    np.testing.assert_allclose(query.obsm["scgpt_probabilities"], expected, atol=1e-6)


def test_saved_model_labels_alike(query: AnnData, fitted: SCGPT, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    mine = sg.tl.annotate(query, fitted, copy=True)
    assert mine is not None
    sg.tl.annotate(query, tmp_path / "model")
    np.testing.assert_array_equal(query.obsm["scgpt_probabilities"], mine.obsm["scgpt_probabilities"])
    assert query.uns["annotate"]["weights"]["name"] == str(tmp_path / "model")


def test_copy_leaves_the_query(query: AnnData, fitted: SCGPT) -> None:
    before = keys(query)
    copied = sg.tl.annotate(query, fitted, copy=True)
    assert isinstance(copied, AnnData)
    assert added(copied, before) == KEYS
    assert added(query, before) == {}


def test_key_added_is_taken_verbatim(query: AnnData, fitted: SCGPT) -> None:
    before = keys(query)
    sg.tl.annotate(query, fitted, key_added="B")
    assert added(query, before) == {
        "obs": {"B_label", "B_label_score"},
        "obsm": {"B", "B_probabilities"},
        "uns": {"B"},
    }


def test_view_becomes_an_object_of_its_own(query: AnnData, fitted: SCGPT) -> None:
    view, before = query[:30], keys(query)
    sg.tl.annotate(view, fitted)
    assert not view.is_view
    assert view.obsm["scgpt_probabilities"].shape == (30, 3)
    assert added(query, before) == {}


def test_one_cell_is_enough(query: AnnData, fitted: SCGPT) -> None:
    one = query[[5]].copy()
    sg.tl.annotate(one, fitted)
    np.testing.assert_allclose(one.obsm["scgpt_probabilities"][0], fitted.predict(query).iloc[5], atol=1e-6)


def test_mudata(query: AnnData, fitted: SCGPT) -> None:
    mdata = MuData({"rna": query})
    copied = sg.tl.annotate(mdata, fitted, copy=True)
    assert isinstance(copied, MuData)
    assert "rna:scgpt_label" in copied.obs
    assert "rna:scgpt_label" not in mdata.obs
    assert "scgpt_label" not in mdata["rna"].obs


def test_every_key_survives_h5ad(few: AnnData, query: AnnData, model: SCGPT, tmp_path: Path) -> None:
    few.obs["bulk_labels"] = few.obs["bulk_labels"].cat.rename_categories(lambda name: f"CD8+/{name}")
    model.train(few, **RUN)
    sg.tl.annotate(query, model)
    query.write_h5ad(tmp_path / "query.h5ad")
    read = anndata.read_h5ad(tmp_path / "query.h5ad")
    assert keys(read) == keys(query)
    pd.testing.assert_frame_equal(read.obs, query.obs)
    assert list(read.uns["annotate"]["classes"]) == query.uns["annotate"]["classes"]


def test_model_without_classes_is_refused(few: AnnData, make_model: Callable[..., SCGPT]) -> None:
    before = keys(few)
    with pytest.raises(OptionError, match="was not trained to predict labels or values of cells"):
        sg.tl.annotate(few, make_model(few.var_names))
    assert added(few, before) == {}


def test_model_of_a_screen_has_nothing_to_annotate_with() -> None:
    adata = counts()
    model = trained(adata)
    before = keys(adata)
    for call in (lambda: sg.tl.annotate(adata, model), lambda: model.predict(adata)):
        with pytest.raises(OptionError, match=r"task='perturbation'.*Use sg\.tl\.embed"):
            call()
    assert added(adata, before) == {}


def test_copy_of_a_backed_file_is_refused(few: AnnData, fitted: SCGPT, tmp_path: Path) -> None:
    few.write_h5ad(tmp_path / "few.h5ad")
    backed = anndata.read_h5ad(tmp_path / "few.h5ad", backed="r")
    with pytest.raises(DataError, match=r"copy=True cannot copy an AnnData in backed mode.*to_memory"):
        sg.tl.annotate(backed, fitted, copy=True)
    sg.tl.annotate(backed, fitted)
    assert backed.obsm["scgpt_probabilities"].shape == (90, 3)


UNKNOWN_RUN: dict[str, Any] = {"labels_key": "bulk_labels", "max_epochs": 1, "batch_size": 32, "lr": 2e-3}


@pytest.fixture
def many(pbmc: AnnData) -> AnnData:
    """All cells of the four most frequent labels x 150 genes."""
    frequent = pbmc.obs["bulk_labels"].value_counts().index[:4]
    some = pbmc[pbmc.obs["bulk_labels"].isin(frequent), :150].copy()
    some.obs["bulk_labels"] = some.obs["bulk_labels"].astype(str)
    return some


@pytest.fixture
def careful(many: AnnData, make_model: Callable[..., SCGPT]) -> SCGPT:
    model = make_model(many.var_names)
    # A linear model would be fitted to the validation cells in the end, and label them better than the promise says.
    model.train(many, validation_size=0.4, prior="none", **UNKNOWN_RUN)
    return model


class TestUnknown:
    def test_labels_below_the_thresholds_are_unknown_and_nothing_else_changes(
        self, many: AnnData, careful: SCGPT
    ) -> None:
        plain, before = many.copy(), keys(many)
        sg.tl.annotate(plain, careful)
        with_rule = many.copy()
        sg.tl.annotate(with_rule, careful, unknown=0.7)
        assert added(with_rule, before) == {**KEYS, "obs": {*KEYS["obs"], "scgpt_novelty"}}
        for slot, key in (("obs", "scgpt_label_score"), ("obsm", "scgpt_probabilities"), ("obsm", "X_scGPT")):
            np.testing.assert_array_equal(getattr(with_rule, slot)[key], getattr(plain, slot)[key])
        rule = with_rule.uns["annotate"]["unknown"]
        uncertain = with_rule.obs["scgpt_label_score"] < rule["threshold"]
        novel = with_rule.obs["scgpt_novelty"] > rule["novelty_threshold"]
        unknown = with_rule.obs["scgpt_label"] == "unknown"
        assert unknown.tolist() == (uncertain | novel).tolist()
        assert 0 < unknown.sum() < len(unknown)
        assert with_rule.obs["scgpt_label"][~unknown].tolist() == plain.obs["scgpt_label"][~unknown].tolist()
        assert with_rule.obs["scgpt_label"].cat.categories.tolist() == [*careful.classes, "unknown"]
        counts = {"n_unknown": unknown.sum(), "n_uncertain": uncertain.sum(), "n_novel": novel.sum()}
        assert {name: rule[name] for name in counts} == counts
        assert with_rule.uns["annotate"]["params"]["unknown"] == 0.7

    @pytest.mark.parametrize("rate", [0.55, 0.7, 0.9])
    def test_validation_cells_keep_the_promise(self, many: AnnData, careful: SCGPT, rate: float) -> None:
        sg.tl.annotate(many, careful, unknown=rate)
        promise = many.uns["annotate"]["unknown"]["validation"]
        validation = many[careful.split.validation].obs
        labelled = validation["scgpt_label"] != "unknown"
        wrong = labelled & (validation["scgpt_label"].astype(str) != validation["bulk_labels"])
        assert promise["n"] == len(validation)
        assert abs(labelled.sum() - promise["labelled"]) <= 1  # batches round probabilities otherwise
        assert abs(wrong.sum() - promise["wrong"]) <= 1
        assert promise["promised"] == (promise["error_bound"] <= rate)

    def test_cells_of_a_type_without_training_cells_are_found(self, pbmc: AnnData, make_model: Any) -> None:
        is_new = (pbmc.obs["bulk_labels"] == "CD19+ B").to_numpy()
        rng = np.random.default_rng(0)
        held = rng.random(pbmc.n_obs) < 0.3
        model = make_model(pbmc.var_names)
        model.train(pbmc[~is_new & ~held].copy(), validation_size=0.2, **UNKNOWN_RUN)
        query = pbmc[is_new | held].copy()
        sg.tl.annotate(query, model, unknown=0.9)
        new = is_new[is_new | held]
        unknown = (query.obs["scgpt_label"] == "unknown").to_numpy()
        assert unknown[new].mean() > 0.5
        assert unknown[~new].mean() < 0.25
        assert "CD19+ B" not in model.classes

    def test_a_saved_model_does_the_same(self, many: AnnData, careful: SCGPT, tmp_path: Path) -> None:
        careful.save(tmp_path / "model")
        mine = sg.tl.annotate(many, careful, unknown=0.7, copy=True)
        theirs = sg.tl.annotate(many, tmp_path / "model", unknown=0.7, copy=True)
        pd.testing.assert_frame_equal(mine.obs, theirs.obs)
        assert mine.uns["annotate"]["unknown"] == theirs.uns["annotate"]["unknown"]
        assert mine.uns["annotate"]["calibration"] == theirs.uns["annotate"]["calibration"]

    def test_an_adapter_alone_does_the_same(self, pbmc: AnnData, tmp_path: Path) -> None:
        some = pbmc[:200, :150].copy()
        model = sg.tl.finetune(some, "scgpt-mini", adapter="lora", validation_size=0.3, test_size=0, **UNKNOWN_RUN)
        model.save_adapter(tmp_path / "adapter")
        mine = sg.tl.annotate(some, model, unknown=0.9, copy=True)
        theirs = sg.tl.annotate(some, tmp_path / "adapter", unknown=0.9, copy=True)
        np.testing.assert_allclose(mine.obs["scgpt_novelty"], theirs.obs["scgpt_novelty"])
        assert mine.obs["scgpt_label"].tolist() == theirs.obs["scgpt_label"].tolist()

    def test_results_survive_h5ad(self, many: AnnData, careful: SCGPT, tmp_path: Path) -> None:
        sg.tl.annotate(many, careful, unknown=0.7)
        many.write_h5ad(tmp_path / "many.h5ad")
        read = anndata.read_h5ad(tmp_path / "many.h5ad")
        assert read.uns["annotate"]["unknown"]["n_unknown"] == many.uns["annotate"]["unknown"]["n_unknown"]
        assert read.obs["scgpt_label"].tolist() == many.obs["scgpt_label"].tolist()

    @pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, float("nan"), True, "0.05", [0.05]])
    def test_what_is_no_rate_is_refused(self, many: AnnData, careful: SCGPT, rate: Any) -> None:
        before = keys(many)
        with pytest.raises(OptionError, match=r"unknown=.*between 0 and 1"):
            sg.tl.annotate(many, careful, unknown=rate)
        assert added(many, before) == {}

    def test_few_validation_cells_promise_less_and_say_so(
        self, few: AnnData, fitted: SCGPT, caplog: pytest.LogCaptureFixture
    ) -> None:
        sg.tl.annotate(few, fitted, unknown=0.05)
        assert "9 validation cells are too few, at least 59 are needed" in caplog.text
        assert few.uns["annotate"]["unknown"]["validation"]["promised"] is False
        assert few.uns["annotate"]["calibration"]["temperature"] == 1
        assert "scgpt_novelty" not in few.obs  # no novelty threshold from so few cells

    def test_model_of_version_0_5_0_has_no_threshold(self, few: AnnData) -> None:
        before = keys(few)
        folder = Path(__file__).parents[1] / "data" / "v0.5.0" / "classes"
        with pytest.raises(OptionError, match=r"unknown=0\.05: the model has no calibration on validation cells"):
            sg.tl.annotate(few, folder, unknown=0.05)
        assert added(few, before) == {}

    def test_model_without_validation_cells_has_no_threshold(self, few: AnnData, model: SCGPT) -> None:
        model.train(few, validation_size=0, **RUN)
        with pytest.raises(OptionError, match="has no calibration on validation cells"):
            sg.tl.annotate(few, model, unknown=0.5)

    def test_model_of_a_number_has_no_labels(self, few: AnnData, model: SCGPT) -> None:
        few.obs["depth"] = np.asarray(few.X.sum(axis=1)).ravel()
        model.train(few, values_key="depth", max_epochs=1, batch_size=32)
        with pytest.raises(OptionError, match=r"task='regression' predicts no labels"):
            sg.tl.annotate(few, model, unknown=0.5)

    def test_a_class_named_unknown_is_refused(self, few: AnnData, model: SCGPT) -> None:
        few.obs["bulk_labels"] = few.obs["bulk_labels"].cat.rename_categories(["a", "b", "unknown"])
        model.train(few, **RUN)
        with pytest.raises(OptionError, match="has a class named 'unknown'"):
            sg.tl.annotate(few, model, unknown=0.5)

    def test_further_training_for_something_else_forgets_the_calibration(self, many: AnnData, careful: SCGPT) -> None:
        careful.train(many, task="expression", max_epochs=1, batch_size=32)
        assert careful.classes
        assert careful.memory.calibration is None
        with pytest.raises(OptionError, match="for another task afterwards"):
            sg.tl.annotate(many, careful, unknown=0.5)

    def test_query_with_few_of_the_genes_is_not_judged_by_novelty(
        self, many: AnnData, careful: SCGPT, caplog: pytest.LogCaptureFixture
    ) -> None:
        share = np.asarray(many.X.expm1().sum(axis=0)).ravel()
        fewer = many[:, np.sort(np.argsort(share)[:110])].copy()
        fewer = fewer[np.asarray(fewer.X.sum(axis=1)).ravel() > 0].copy()
        sg.tl.annotate(fewer, careful, unknown=0.7)
        assert "Cells dissimilar to the training cells cannot be detected" in caplog.text
        assert fewer.uns["annotate"]["unknown"]["n_novel"] == 0
        assert "scgpt_novelty" not in fewer.obs


def test_probabilities_are_those_of_the_calibrated_logits(many: AnnData, make_model: Callable[..., SCGPT]) -> None:
    from scipy.special import softmax

    model = make_model(many.var_names)
    model.train(many, validation_size=0.4, **UNKNOWN_RUN)
    sg.tl.annotate(many, model)
    logits = model.run(model.cells(many)).heads["classes"] + model.memory.prior.predict(many, AS_IT_IS)
    temperature = many.uns["annotate"]["calibration"]["temperature"]
    assert temperature != 1
    np.testing.assert_allclose(many.obsm["scgpt_probabilities"], softmax(logits / temperature, axis=1), atol=1e-5)
    assert many.obs["scgpt_label"].cat.codes.tolist() == logits.argmax(axis=1).tolist()


def test_finetune_says_how_well_probabilities_are_calibrated(many: AnnData, make_model: Callable[..., SCGPT]) -> None:
    model = make_model(many.var_names)
    sg.tl.finetune(many, model, validation_size=0.3, test_size=0.3, prior="none", **UNKNOWN_RUN)
    found = many.uns["finetune"]["calibration"]
    assert found["temperature"] == model.memory.calibration.temperature
    assert list(found["parts"].index) == ["train", "validation", "test"]
    for part in ("validation", "test"):
        cells = getattr(model.split, part)
        assert found["parts"].loc[part, "n"] == len(cells)
        assert found["parts"].loc[part, "confidence"] == pytest.approx(many.obs["scgpt_label_score"].iloc[cells].mean())
    assert found["parts"].loc["validation", "ece"] == pytest.approx(found["ece"], abs=1e-6)
