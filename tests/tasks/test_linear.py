"""The linear model that a network corrects: as good as scikit-learn's, blind to what is held out, and the same after a file."""

import numpy as np
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from scgalore.data.reading import AS_IT_IS, Reading
from scgalore.data.split import Split
from scgalore.tasks import linear
from scgalore.tasks.linear import fit_classes, fit_values


def labelled(pbmc: AnnData, n: int = 300) -> tuple[AnnData, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Cells, the codes of their classes, and training and other cells."""
    adata = pbmc[:n].copy()
    codes = np.unique(adata.obs["bulk_labels"].astype(str), return_inverse=True)[1]
    order = np.random.default_rng(0).permutation(n)
    return adata, codes, np.sort(order[: n * 2 // 3]), np.sort(order[n * 2 // 3 :])


def parts(train: NDArray[np.int64], validation: NDArray[np.int64] | None = None) -> Split:
    none = np.empty(0, np.int64)
    return Split(train, none if validation is None else validation, none)


def test_classes_are_those_of_scikit_learn_at_the_chosen_penalty(pbmc: AnnData) -> None:
    adata, codes, train, _ = labelled(pbmc)
    fit = fit_classes(adata, AS_IT_IS, codes, parts(train), n_classes=codes.max() + 1)
    chosen = fit.table[fit.table["chosen"]].iloc[0]
    x = adata.X.toarray()
    if chosen["scaled"]:
        x = StandardScaler().fit(x[train]).transform(x)
    theirs = LogisticRegression(C=chosen["penalty"], max_iter=5000, tol=1e-6).fit(x[train], codes[train])
    mine = fit.model.predict(adata, AS_IT_IS)[:, theirs.classes_]
    expected = theirs.predict_log_proba(x)
    mine = mine - np.log(np.exp(mine).sum(axis=1, keepdims=True))
    assert np.abs(np.exp(mine) - np.exp(expected)).max() < 0.02
    assert fit.table["loss"].idxmin() == fit.table.index[fit.table["chosen"]][0]


def test_values_are_those_of_scikit_learn_at_the_chosen_penalty(pbmc: AnnData) -> None:
    adata, _, train, _ = labelled(pbmc)
    values = np.asarray(adata.obs["n_genes"], dtype=np.float64)
    values = (values - values[train].mean()) / values[train].std()
    fit = fit_values(adata, AS_IT_IS, values, parts(train))
    chosen = fit.table[fit.table["chosen"]].iloc[0]
    x = adata.X.toarray().astype(np.float64)
    if chosen["scaled"]:
        x = StandardScaler().fit(x[train]).transform(x)
    expected = Ridge(alpha=1 / chosen["penalty"]).fit(x[train], values[train]).predict(x)
    np.testing.assert_allclose(fit.model.predict(adata, AS_IT_IS)[:, 0], expected, atol=0.01 * np.ptp(expected))


def test_what_is_held_out_decides_nothing(pbmc: AnnData) -> None:
    adata, codes, train, others = labelled(pbmc)
    first = fit_classes(adata, AS_IT_IS, codes, parts(train), n_classes=codes.max() + 1)
    x = adata.X.toarray()
    x[others] = np.random.default_rng(1).permutation(x[others].ravel()).reshape(len(others), -1)
    adata.X, spoilt = x, codes.copy()
    spoilt[others] = 0
    again = fit_classes(adata, AS_IT_IS, spoilt, parts(train), n_classes=codes.max() + 1)
    assert again.model == first.model
    np.testing.assert_array_equal(again.predicted[train], first.predicted[train])
    assert not np.array_equal(again.predicted[others], first.predicted[others])


def test_training_cells_are_predicted_by_models_that_have_not_seen_them(pbmc: AnnData) -> None:
    adata, codes, train, others = labelled(pbmc)
    rng = np.random.default_rng(0)
    codes[train] = rng.permutation(codes[train])  # there is nothing to learn but by heart
    fit = fit_classes(adata, AS_IT_IS, codes, parts(train), n_classes=codes.max() + 1)
    chance = np.bincount(codes[train]).max() / len(train)
    assert (fit.predicted[train].argmax(axis=1) == codes[train]).mean() < chance + 0.1
    np.testing.assert_array_equal(fit.predicted[others], fit.model.predict(adata, AS_IT_IS)[others])


def test_validation_cells_are_predicted_without_them_and_then_fitted_to(pbmc: AnnData) -> None:
    adata, codes, known, others = labelled(pbmc)
    train, validation = np.sort(known[::2]), np.sort(known[1::2])
    fit = fit_classes(adata, AS_IT_IS, codes, parts(train, validation), n_classes=codes.max() + 1)
    spoilt = codes.copy()
    spoilt[validation] = np.random.default_rng(0).permutation(codes[validation])
    again = fit_classes(adata, AS_IT_IS, spoilt, parts(train, validation), n_classes=codes.max() + 1)
    np.testing.assert_array_equal(again.predicted[known], fit.predicted[known])
    assert again.table.equals(fit.table)
    accuracy = [(one.predicted[others].argmax(axis=1) == codes[others]).mean() for one in (again, fit)]
    assert accuracy[0] < accuracy[1] - 0.1
    np.testing.assert_array_equal(fit.predicted[others], fit.model.predict(adata, AS_IT_IS)[others])


def test_a_class_without_training_cells_is_the_least_likely(pbmc: AnnData) -> None:
    adata, codes, train, _ = labelled(pbmc)
    fit = fit_classes(adata, AS_IT_IS, codes, parts(train), n_classes=codes.max() + 2)
    assert (fit.predicted.argmin(axis=1) == codes.max() + 1).mean() > 0.5
    assert np.isfinite(fit.predicted).all()


@settings(max_examples=20)
@given(st.integers(2, 9), st.integers(1, 4), st.integers(0, 3))
def test_few_cells_and_classes(n: int, n_classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    adata = AnnData(rng.poisson(2, (n, 5)).astype(np.float32))
    adata.X[:, 0] += 1
    codes = rng.integers(0, n_classes, n)
    fit = fit_classes(adata, Reading(data_type="counts"), codes, parts(np.arange(n)), n_classes=n_classes, seed=seed)
    assert fit.predicted.shape == (n, n_classes)
    assert np.isfinite(fit.predicted).all()


def test_weights_of_the_classes_move_the_border(pbmc: AnnData) -> None:
    adata, codes, train, others = labelled(pbmc)
    codes = (codes == np.bincount(codes).argmax()).astype(np.int64)
    shares = []
    for weights in (None, (1.0, 0.05)):
        fit = fit_classes(adata, AS_IT_IS, codes, parts(train), n_classes=2, weights=weights)
        shares.append((fit.predicted[others].argmax(axis=1) == 1).mean())
    assert shares[1] < shares[0]


def test_many_cells_are_fitted_on_a_sample(pbmc: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    adata, codes, train, others = labelled(pbmc, 600)
    whole = fit_classes(adata, AS_IT_IS, codes, parts(train), n_classes=codes.max() + 1)
    for name, n in {"MAX_SPAN": 150, "MAX_CELLS": 300, "MAX_CHOICE": 120}.items():
        monkeypatch.setattr(linear, name, n)
    some = fit_classes(adata, AS_IT_IS, codes, parts(train), n_classes=codes.max() + 1)
    accuracy = [(fit.predicted[others].argmax(axis=1) == codes[others]).mean() for fit in (whole, some)]
    assert accuracy[1] > accuracy[0] - 0.1
    assert np.isfinite(some.predicted).all()
