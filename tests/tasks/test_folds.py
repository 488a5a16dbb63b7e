"""Folds: every training cell is left out once, validation cells are in no fit, and samples keep rare classes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scgalore.tasks.folds import N_FOLDS, VALIDATION, left_out, make_folds, sample


@settings(max_examples=50)
@given(st.integers(1, 60), st.integers(0, 10), st.integers(1, 4), st.integers(0, 5))
def test_every_cell_is_predicted_by_a_fit_without_it(n: int, n_validation: int, n_strata: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    train = rng.permutation(np.arange(n + n_validation)) < n
    strata = rng.integers(0, n_strata, len(train))
    folds = make_folds(train, strata, rng)
    np.testing.assert_array_equal(folds == VALIDATION, ~train)
    for stratum in range(n_strata):
        sizes = np.bincount(folds[train & (strata == stratum)], minlength=N_FOLDS)
        assert np.ptp(sizes) <= 1

    def predict(fold: int, others: np.ndarray, inside: np.ndarray) -> np.ndarray:
        assert not others[inside].any()
        assert not others[~train].any()
        assert others[train].sum() + (0 if fold == VALIDATION else len(inside)) == n
        return inside[:, None]

    np.testing.assert_array_equal(left_out(folds, predict)[:, 0], np.arange(len(train)))


@pytest.mark.parametrize("n", [5, 40, 400])
def test_a_sample_has_two_cells_of_every_class(n: int) -> None:
    strata = np.repeat([0, 1, 2], [300, 90, 10])
    rows = sample(np.arange(0, 400), strata, n, np.random.default_rng(0))
    assert (np.diff(rows) > 0).all()
    assert (np.bincount(strata[rows]) >= 2).all()
    assert len(rows) <= n + 2 * 3
