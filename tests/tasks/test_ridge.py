"""Ridge regressions with a strength of their own for each output."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn.linear_model import RidgeCV

from scgalore.data.reading import Reading
from scgalore.data.split import random_split
from scgalore.tasks.folds import VALIDATION, make_folds
from scgalore.tasks.ridge import GENE_PENALTIES, fit_ridge, held_out_ridge, ridges

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 12))
Y = np.column_stack([X @ RNG.normal(size=12), RNG.normal(size=40)])  # one that can be predicted, and noise
PENALTIES = np.array([0.1, 10.0, 1e5])


@pytest.mark.parametrize("n", [40, 8])
def test_each_output_has_the_strength_and_the_coefficients_of_scikit_learn(n: int) -> None:
    coef, intercept, strength = ridges(X[:n], Y[:n], PENALTIES)
    for output in range(2):
        expected = RidgeCV(alphas=PENALTIES).fit(X[:n], Y[:n, output])  # by leave-one-out
        assert strength[output] == expected.alpha_
        np.testing.assert_allclose(coef[:, output], expected.coef_, atol=1e-8)
        np.testing.assert_allclose(intercept[output], expected.intercept_, atol=1e-8)


def test_one_that_can_be_predicted_is_shrunken_less_than_noise() -> None:
    assert ridges(X, Y, PENALTIES)[2].tolist() == [0.1, 1e5]


def test_cells_are_predicted_without_them_and_by_strengths_that_they_did_not_choose() -> None:
    folds = make_folds(np.arange(40) < 30, np.zeros(40, dtype=int), np.random.default_rng(0))
    found = held_out_ridge(X, Y, folds, PENALTIES)
    for fold in (0, VALIDATION):
        others, inside = (folds != fold) & (folds != VALIDATION), folds == fold
        for output in range(2):
            expected = RidgeCV(alphas=PENALTIES).fit(X[others], Y[others, output]).predict(X[inside])
            np.testing.assert_allclose(found[inside, output], expected, atol=1e-5)
        other = Y.copy()
        other[inside] *= 100
        np.testing.assert_array_equal(held_out_ridge(X, other, folds, PENALTIES)[inside], found[inside])


def test_from_cells_to_predictions_of_other_cells() -> None:
    counts = RNG.poisson(RNG.gamma(2, 3, size=(1, 30)) * np.exp(RNG.normal(size=(60, 30)) * 0.5)) + 1
    adata = AnnData(counts.astype(np.float32), var=pd.DataFrame(index=[f"G{i}" for i in range(30)]))
    logged = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    values = np.column_stack([logged[:, 3] - logged[:, 5], logged[:, 7] * 10])
    values = (values - values.mean(axis=0)) / values.std(axis=0)
    split = random_split(60, seed=0, validation_size=0.1, test_size=0.2)
    fit = fit_ridge(adata, Reading(), values, split)
    assert fit.model.coef.shape == (30, 2)
    assert np.isin(fit.penalty, GENE_PENALTIES).all()
    np.testing.assert_allclose(fit.predicted[split.test], fit.model.predict(adata, Reading())[split.test])
    assert np.square(fit.predicted[split.test] - values[split.test]).mean() < 0.2
    altered = values.copy()
    altered[split.test] = 1e3
    np.testing.assert_array_equal(fit_ridge(adata, Reading(), altered, split).predicted, fit.predicted)
