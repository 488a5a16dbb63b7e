import numpy as np
import pytest
from tests.integration.reference import REFERENCE

from scgalore.integration.harmony import harmony
from scgalore.integration.scores import batch_variance

X, BATCHES = REFERENCE.embeddings["before"], REFERENCE.batches


@pytest.mark.parametrize("seed", [0, 1])
def test_corrections_are_near_those_of_harmonypy(seed: int) -> None:
    shifts = REFERENCE.harmony - X
    found = harmony(X, BATCHES, seed=seed) - X
    for shift in shifts:
        assert np.linalg.norm(found - shift) < 0.25 * np.linalg.norm(shift)
        assert np.corrcoef(found.ravel(), shift.ravel())[0, 1] > 0.97


def test_batches_are_mixed_and_the_input_is_left_alone() -> None:
    x = X.copy()
    corrected = harmony(x, BATCHES)
    np.testing.assert_array_equal(x, X)
    assert batch_variance(corrected, BATCHES) < 0.3 * batch_variance(X, BATCHES)


def test_the_same_seed_gives_the_same_numbers() -> None:
    np.testing.assert_array_equal(harmony(X, BATCHES, seed=3), harmony(X, BATCHES, seed=3))


def test_nothing_to_correct_is_hardly_corrected() -> None:
    x = np.random.default_rng(0).normal(size=(600, 5))
    batches = np.random.default_rng(1).integers(2, size=600)
    assert np.linalg.norm(harmony(x, batches) - x) < 0.15 * np.linalg.norm(x)


def test_a_batch_of_one_cell_and_equal_cells_give_finite_values() -> None:
    batches = np.r_[np.zeros(39, dtype=int), 1]
    assert np.isfinite(harmony(np.random.default_rng(0).normal(size=(40, 3)), batches)).all()
    assert np.isfinite(harmony(np.zeros((40, 3)), batches)).all()
