"""The correction that a network starts from: a known regression, blind to the cells that judge it."""

from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression, Ridge
from tests.tiny_plugin import tiny_model

import scgalore as sg
from scgalore.tasks.correction import Correction, fit_correction, last_inputs, ridge_after, softmax_after
from scgalore.tasks.folds import VALIDATION, make_folds
from scgalore.tasks.registry import resolve_call

Array = NDArray[Any]
N, N_CLASSES = 240, 3


def loss(outputs: Array, y: Array) -> Array:
    return -log_softmax(outputs, axis=1)[np.arange(len(y)), y]


def of_classes(features: Array, predicted: Array, y: Array, folds: Array) -> Correction:
    return fit_correction(features, predicted, y, folds, lambda: softmax_after(np.ones(N_CLASSES)), loss)


@pytest.fixture
def cells() -> tuple[Array, Array, Array, Array]:
    """Features that tell the classes apart, which the linear model does not; classes; and folds with some validation cells."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, N_CLASSES, N)
    features = (rng.normal(2, 1, (N, 6)) + 1.5 * np.eye(N_CLASSES, 6)[y]).astype(np.float32)
    return features, np.zeros((N, N_CLASSES), np.float32), y, make_folds(rng.random(N) > 0.2, y, rng)


class TestClasses:
    def test_alone_it_is_the_regression_of_scikit_learn(self, cells: tuple[Array, Array, Array, Array]) -> None:
        features, predicted, y, folds = cells
        found = of_classes(features, predicted, y, folds)
        x = features - features.mean(axis=0)
        x /= np.sqrt(np.square(x).mean())
        theirs = LogisticRegression(C=found.penalty, fit_intercept=False, tol=1e-8, max_iter=2000).fit(x, y)
        mine = features @ found.weight.T + found.bias
        np.testing.assert_allclose(log_softmax(mine, axis=1), theirs.predict_log_proba(x), atol=0.01)
        assert found.helps

    def test_what_a_linear_model_says_is_not_learned_again(self, cells: tuple[Array, Array, Array, Array]) -> None:
        features, predicted, y, folds = cells
        knows = np.where(np.eye(N_CLASSES)[y] > 0, 8, 0).astype(np.float32)
        sizes = [np.abs(of_classes(features, offset, y, folds).weight).max() for offset in (knows, predicted)]
        assert sizes[0] < 0.2 * sizes[1]

    def test_no_cell_is_judged_by_what_knows_it(self, cells: tuple[Array, Array, Array, Array]) -> None:
        features, predicted, y, folds = cells
        found = of_classes(features, predicted, y, folds)
        for fold in (0, VALIDATION):
            spoilt = np.where(folds == fold, (y + 1) % N_CLASSES, y)
            again = of_classes(features, predicted, spoilt, folds)
            if again.penalty == found.penalty:
                np.testing.assert_allclose(again.held_out[folds == fold], found.held_out[folds == fold], atol=1e-3)
            assert np.abs(again.weight - found.weight).max() > 0.05

    def test_chance_does_not_help(self, cells: tuple[Array, Array, Array, Array]) -> None:
        features, predicted, y, folds = cells
        found = of_classes(np.random.default_rng(1).permutation(features), predicted, y, folds)
        assert found.gain < 0.01
        assert not np.isnan(found.gain_error)

    def test_one_cell_of_training_and_features_that_do_not_vary(self) -> None:
        same = np.ones((2, 4), np.float32)
        found = of_classes(same, np.zeros((2, N_CLASSES), np.float32), np.array([0, 1]), np.array([0, VALIDATION]))
        assert np.isfinite(found.weight).all()
        assert np.isfinite(found.held_out).all()


def test_values_are_corrected_as_by_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(80, 5)).astype(np.float32)
    predicted = rng.normal(size=(80, 1)).astype(np.float32)
    y = predicted[:, 0] + features @ np.arange(5.0) / 5
    folds = make_folds(np.ones(80, bool), np.zeros(80, np.int64), rng)
    found = fit_correction(
        features, predicted, y, folds, lambda: ridge_after, lambda outputs, y: (outputs[:, 0] - y) ** 2
    )
    x = features - features.mean(axis=0)
    theirs = Ridge(1 / found.penalty, fit_intercept=False).fit(x / np.sqrt(np.square(x).mean()), y - predicted[:, 0])
    expected = theirs.coef_ / np.sqrt(np.square(x).mean())
    np.testing.assert_allclose(found.weight[0], expected, rtol=1e-4)
    assert found.helps


KEYS: dict[str, dict[str, Any]] = {"classes": {"labels_key": "bulk_labels"}, "regression": {"values_key": "n_genes"}}


@pytest.fixture(params=list(KEYS))
def key(request: pytest.FixtureRequest) -> dict[str, Any]:
    return KEYS[request.param]


class TestRun:
    def test_it_starts_from_what_is_known_of_a_cell_without_it(
        self, few: AnnData, key: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """These weights are random, and do not help: the correction is used nevertheless, to see what becomes of it."""
        monkeypatch.setattr(Correction, "helps", True)
        model = tiny_model(few.var_names, max_length=200)
        run: dict[str, Any] = {"max_epochs": 1, "lr": 1e-12, "batch_size": 32, "validation_size": 0.3, "test_size": 0.2}
        sizes = {name: run[name] for name in ("validation_size", "test_size")}
        call = {name: value for name, value in run.items() if name not in sizes}
        task, resolved = resolve_call({**key, **call}, task=None, seed=0, function=sg.tl.finetune, **sizes)
        prepared: Any = task.prepare(task.read(few, resolved), model, resolved)
        assert not model.network.cell_heads, "the network was changed"
        model.fit(prepared)
        targets, split = prepared.source.targets, prepared.split
        outputs = next(iter(model.run(prepared.source).heads.values()))
        assert np.abs(outputs).max() > 1e-4
        known = split.known
        np.testing.assert_allclose(targets["prior"][known] + outputs[known], targets["start"][known], atol=1e-4)
        np.testing.assert_array_equal(targets["prior"][split.test], prepared.state["prior"][0].predicted[split.test])
        history = model.history.iloc[0]
        assert history["validation_gain"] == pytest.approx(0, abs=1e-4)
        assert history["validation_loss"] == pytest.approx(prepared.objective.start_score, rel=0.05)

    def test_inputs_of_the_last_layer_are_those_that_training_sees(self, few: AnnData) -> None:
        model = tiny_model(few.var_names, max_length=200)
        _, call = resolve_call({**KEYS["classes"]}, task=None, seed=3, function=sg.tl.finetune)
        cells = model.cells(few)
        rows = np.arange(0, few.n_obs, 2)
        features = last_inputs(model, cells, rows, "classes", 4, call.config)
        head = model.network.fresh_heads({"classes": 4}, seed=3)["classes"]
        *_, weight, bias = (parameter.detach().numpy() for parameter in head.parameters())
        model.network.put_heads({"classes": head})
        outputs = model.run(cells, rows=rows).heads["classes"]
        np.testing.assert_allclose(features @ weight.T + bias, outputs, rtol=1e-4, atol=1e-5)
