"""A number for each cell: learned, written on its own scale, saved, refused where there is none, and compared with ridge."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from numpy.typing import NDArray

import scgalore as sg
from scgalore.data.split import random_split
from scgalore.errors import DataError, MissingKeyError
from scgalore.model import SCGPT
from scgalore.tasks.baselines import ridge
from scgalore.tasks.value_scores import score_values

TRAINING: dict[str, Any] = {"max_epochs": 15, "batch_size": 16, "lr": 5e-3, "dropout": 0.0, "optimizer": "adamw"}


@pytest.fixture
def scored(few: AnnData) -> AnnData:
    """The cells with a sum of five genes, on a scale of hundreds."""
    x = few.X.toarray()
    genes = np.argsort(x.var(axis=0))[-5:]
    few.obs["score"] = 300 + 40 * x[:, genes].sum(axis=1).astype(np.float64)
    return few


def weights_of(model: SCGPT) -> dict[str, NDArray[np.float32]]:
    return {name: tensor.numpy().copy() for name, tensor in model.network.state_dict().items()}


def test_learns_better_than_the_mean_and_writes_values_on_their_scale(scored: AnnData, model: SCGPT) -> None:
    sg.tl.finetune(scored, model, values_key="score", **TRAINING)
    content = scored.uns["finetune"]
    assert content["params"]["task"] == "regression"
    truth, found = scored.obs["score"], scored.obs["scgpt_value"]
    is_train = scored.obs["scgpt_split"] == "train"
    mean = truth[is_train].mean()
    for part in ("train", "test"):
        cells = scored.obs["scgpt_split"] == part
        assert (found[cells] - truth[cells]).abs().mean() < 0.8 * (mean - truth[cells]).abs().mean()
    assert found.dtype == np.float32
    assert content["scale"] == {
        "column": "score",
        "mean": pytest.approx(mean),
        "std": pytest.approx(truth[is_train].std(ddof=0)),
    }
    of_test = content["metrics"].loc["test"]
    cells = scored.obs["scgpt_split"] == "test"
    assert of_test.to_dict() == {"n": cells.sum(), **score_values(found[cells], truth[cells])}


def test_scale_is_that_of_the_training_cells(scored: AnnData, model: SCGPT) -> None:
    scored.obs["part"] = np.where(np.arange(scored.n_obs) < 60, "train", "test")
    scored.obs.loc[scored.obs["part"] == "test", "score"] = 1e6
    sg.tl.finetune(scored, model, values_key="score", split_key="part", **{**TRAINING, "max_epochs": 1})
    assert model.memory.mean == scored.obs["score"].iloc[:60].mean()
    assert model.memory.column == "score"


def test_saved_and_loaded_it_gives_the_same_values(scored: AnnData, model: SCGPT, tmp_path: Path) -> None:
    sg.tl.finetune(scored, model, values_key="score", save_dir=tmp_path / "model", **{**TRAINING, "max_epochs": 1})
    loaded = sg.model.load(tmp_path / "model")
    assert loaded.memory == model.memory
    written = scored.obs["scgpt_value"].copy()
    np.testing.assert_array_equal(loaded.predict(scored)["score"], written)
    other = scored.copy()
    del other.obs["scgpt_value"], other.obs["score"]
    sg.tl.annotate(other, loaded)
    np.testing.assert_array_equal(other.obs["scgpt_value"], written)
    assert "scgpt_label" not in other.obs


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (lambda x: x.where(np.arange(len(x)) > 2), DataError, "3 of 90 cells have no finite value.*sg.tl.annotate"),
        (lambda x: x.where(np.arange(len(x)) > 0, np.inf), DataError, "1 of 90 cells"),
        (lambda x: x * 0 + 7, DataError, "is 7 in all training cells"),
        (lambda x: x.astype(str), DataError, "not numbers. For classes, pass the column as labels_key="),
        (lambda x: x > x.mean(), DataError, "contains bool, not numbers"),
        (lambda x: None, MissingKeyError, "No column 'values'"),
    ],
    ids=["missing", "infinite", "constant", "text", "switch", "no column"],
)
def test_other_columns_are_refused_before_anything_changes(
    scored: AnnData, model: SCGPT, values: Any, error: type[Exception], message: str
) -> None:
    column = values(scored.obs["score"])
    if column is not None:
        scored.obs["values"] = column
    before, columns = weights_of(model), list(scored.obs)
    with pytest.raises(error, match=message):
        sg.tl.finetune(scored, model, values_key="values", **TRAINING)
    assert (model.is_trained, dict(model.network.config.heads)) == (False, {})
    assert all(np.array_equal(before[name], tensor) for name, tensor in weights_of(model).items())
    assert (list(scored.obs), "finetune" in scored.uns) == (columns, False)


def test_scores_are_those_of_sklearn_and_scipy() -> None:
    from scipy.stats import spearmanr
    from sklearn.metrics import mean_absolute_error, r2_score

    rng = np.random.default_rng(0)
    truth = rng.normal(size=50).round(1)  # with ties
    predicted = (truth + rng.normal(size=50)).round(1)
    found = score_values(predicted, truth)
    assert found["r2"] == pytest.approx(r2_score(truth, predicted), abs=1e-12)
    assert found["spearman"] == pytest.approx(spearmanr(predicted, truth).statistic, abs=1e-12)
    assert found["mae"] == pytest.approx(mean_absolute_error(truth, predicted), abs=1e-12)


def test_scores_that_do_not_exist_are_nan() -> None:
    same = score_values(np.array([1.0, 2.0]), np.array([3.0, 3.0]))
    assert np.isnan([same["r2"], same["spearman"]]).all()
    assert same["mae"] == 1.5
    assert np.isnan(score_values(np.array([1.0, 1.0]), np.array([3.0, 4.0]))["spearman"])


def test_ridge_knows_no_test_cells() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 5)).astype(np.float32)
    values = x @ np.arange(5.0) + 100
    split = random_split(80, seed=0)
    found = ridge(x, values, split)
    assert score_values(found[split.test], values[split.test])["r2"] > 0.99
    other = values.copy()
    other[split.test] = -1e6
    np.testing.assert_array_equal(ridge(x, other, split), found)
