"""Predictions, scores and drawn cells are refused on another scale than that of what they were made from."""

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from tests.tiny_plugin import tiny_model
from tests.trained_screens import counts, log_normalised, trained

import scgalore as sg
from scgalore.errors import DataError
from scgalore.model import SCGPT, load

Change = Callable[[sp.csr_matrix], sp.csr_matrix]

CHANGES: dict[str, Change] = {
    "another target sum": lambda x: (x.expm1() / 100).log1p(),
    "a larger target sum": lambda x: (x.expm1() * 10).log1p(),
    "a second logarithm": lambda x: x.log1p(),
    "scaled": lambda x: x / 3,
}


def changed(adata: AnnData, change: Change) -> AnnData:
    other = adata.copy()
    other.X = sp.csr_matrix(change(adata.X.astype(np.float64)).astype(np.float32))
    return other


@pytest.fixture(scope="module")
def logged() -> AnnData:
    return log_normalised(counts(contexts=("A", "B")))


@pytest.fixture(scope="module")
def model(logged: AnnData) -> SCGPT:
    return trained(logged, read={"context_key": "cell_line"}, max_epochs=1)


@pytest.fixture(scope="module")
def predicted(logged: AnnData, model: SCGPT) -> AnnData:
    adata = logged.copy()
    sg.tl.predict_perturbation(adata, model=model)
    return adata


@pytest.mark.parametrize("name", CHANGES)
def test_scores_and_drawn_cells(predicted: AnnData, name: str) -> None:
    other = changed(predicted, CHANGES[name])
    with pytest.raises(
        DataError, match=r"on another scale: .* is [0-9.]+ times that of the cells the prediction in adata\.uns"
    ):
        sg.tl.evaluate_perturbation(other, de=False)
    with pytest.raises(DataError, match=r"on another scale: .* is [0-9.]+ times"):
        sg.get.perturbed_cells(other)
    assert "evaluate_perturbation" not in other.uns


@pytest.mark.parametrize("name", CHANGES)
def test_predictions_and_rankings(logged: AnnData, model: SCGPT, name: str) -> None:
    other = changed(logged, CHANGES[name])
    with pytest.raises(DataError, match=r"on another scale: .* times that of the training data"):
        sg.tl.predict_perturbation(other, model=model)
    with pytest.raises(DataError, match=r"on another scale"):
        sg.tl.rank_perturbations(other, "G05", model=model, context="A")
    assert not other.uns


def test_the_factor_is_said(predicted: AnnData) -> None:
    with pytest.raises(DataError, match=r"is 0\.333 times"):
        sg.tl.evaluate_perturbation(changed(predicted, CHANGES["scaled"]), de=False)


def test_the_same_scale_in_other_forms_is_none(logged: AnnData, model: SCGPT, predicted: AnnData) -> None:
    """Counts, other cells, fewer contexts and another base are brought to the scale, or are on it."""
    raw = counts(contexts=("A", "B"))
    sg.tl.predict_perturbation(raw, model=model)
    other_cells = log_normalised(counts(contexts=("A", "B"), n_control=8, n_cells=3)[::2].copy())
    sg.tl.predict_perturbation(other_cells, ["G00"], model=model)
    sg.tl.predict_perturbation(logged[logged.obs["cell_line"] == "A"].copy(), ["G00"], model=model)
    new = logged.copy()
    new.obs["cell_line"] = new.obs["cell_line"].cat.rename_categories({"A": "other", "B": "names"})
    sg.tl.predict_perturbation(new, ["G00"], model=model)
    base_2 = changed(predicted, lambda x: x / np.log(2))
    base_2.uns["log1p"] = {"base": 2}
    sg.tl.evaluate_perturbation(base_2, de=False, n_bootstrap=5)
    few = predicted[np.r_[0 : predicted.n_obs : 2]].copy()
    sg.tl.evaluate_perturbation(few, de=False, n_bootstrap=5)
    sg.get.perturbed_cells(few, n_cells=2)


def test_a_saved_model_knows_it_and_one_of_an_earlier_version_says_nothing(
    logged: AnnData, model: SCGPT, tmp_path: Path
) -> None:
    model.save(tmp_path / "model")
    other = changed(logged, CHANGES["another target sum"])
    again = load(tmp_path / "model")
    assert again.memory is not None
    np.testing.assert_allclose(again.memory.controls.means, model.memory.controls.means, rtol=1e-6)
    assert again.memory.controls.contexts == ("A", "B")
    assert again.memory.controls.n_cells.tolist() == [30, 30]
    with pytest.raises(DataError, match="on another scale"):
        sg.tl.predict_perturbation(other, model=tmp_path / "model")
    screen = tmp_path / "model" / "screen.json"
    text = screen.read_text(encoding="utf-8")
    start = text.index(' "controls"')
    screen.write_text(text[:start] + text[text.index("},", start) + 2 :].lstrip("\n"), encoding="utf-8")
    assert load(tmp_path / "model").memory.controls is None
    sg.tl.predict_perturbation(other, ["G00"], model=tmp_path / "model")


@pytest.mark.parametrize("gone", ["control_means", "control_cells"])
def test_predictions_of_earlier_versions_are_scored(predicted: AnnData, gone: str, tmp_path: Path) -> None:
    predicted = predicted.copy()
    del predicted.uns["predict_perturbation"][gone]
    predicted.write_h5ad(tmp_path / "a.h5ad")
    adata = ad.read_h5ad(tmp_path / "a.h5ad")
    sg.tl.evaluate_perturbation(adata, de=False, n_bootstrap=5)
    if gone == "control_cells":
        with pytest.raises(DataError, match="on another scale"):
            sg.tl.evaluate_perturbation(changed(adata, CHANGES["scaled"]), de=False)


def test_real_lines_predict_each_other(shared_data: Path) -> None:
    """Control cells of a cell line, a half of them, and of other lines are on the scale of a model."""
    screen = ad.read_h5ad(shared_data / "perturbench_devel.h5ad")
    screen.obs["perturbation"] = screen.obs["condition"].astype(str)
    glioma = screen[(screen.obs["dataset"] == "mcfaline23").to_numpy()][::2].copy()
    a172 = glioma[(glioma.obs["cell_type"] == "A172").to_numpy()].copy()
    model = sg.tl.finetune(a172, tiny_model(a172.var_names), task="perturbation", max_epochs=1)
    for line in ("A172", "T98G", "U87MG"):
        sg.tl.predict_perturbation(glioma[(glioma.obs["cell_type"] == line).to_numpy()].copy(), model=model)
    k562 = screen[((screen.obs["dataset"] == "norman19") & (screen.obs["perturbation"] == "control")).to_numpy()].copy()
    name = model.memory.perturbations["train"][0]
    sg.tl.predict_perturbation(k562, [name], model=model)
    with pytest.raises(DataError, match="on another scale"):
        sg.tl.predict_perturbation(changed(a172, CHANGES["another target sum"]), model=model)
