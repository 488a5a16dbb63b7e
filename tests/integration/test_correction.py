import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scgalore.integration.correction import Correction
from scgalore.integration.harmony import harmony

SHIFTS = np.array([[0.0, 0.0, 0.0], [3.0, 1.0, 0.0], [-1.0, 2.0, 4.0]])
CENTRES = np.array([[8.0, 0.0, 0.0], [0.0, 8.0, 0.0], [0.0, 0.0, 8.0]])


def cells_of(batches, n, rng):
    """Cells of three types, each batch shifted as a whole."""
    codes, types = np.repeat(batches, n), rng.integers(0, 3, n * len(batches))
    return CENTRES[types] + SHIFTS[codes] + rng.normal(0, 0.5, (len(codes), 3)), codes, types


@pytest.fixture(scope="module")
def known():
    return cells_of([0, 1], 120, np.random.default_rng(0))


def distance_of_batches(x, codes, types):
    """Mean distance between the batches' means of a type."""
    means = np.array(
        [[x[(codes == batch) & (types == kind)].mean(axis=0) for kind in range(3)] for batch in set(codes)]
    )
    return np.linalg.norm(means - means[0], axis=2)[1:].mean()


def test_single_cells_are_corrected_as_harmony_corrects_all(known):
    x, codes, _ = known
    correction = Correction.fit(x, codes, seed=0)
    np.testing.assert_allclose(correction.apply(x, codes), harmony(x, codes, seed=0), atol=0.15)


def test_what_labels_tell_apart_is_not_taken_out():
    x, codes, types = cells_of([0, 1], 200, np.random.default_rng(2))
    batches = np.random.default_rng(3).integers(0, 2, len(x))
    x = x - SHIFTS[codes] + SHIFTS[batches]
    effect = np.where(codes[:, None] == 1, [0.0, 0.0, 2.0], 0.0)  # of a treatment, half of each batch
    x = x + effect
    nested = Correction.fit(x, codes, 2 * types + codes, seed=0).apply(
        x, codes
    )  # the labels are those of the treatment
    np.testing.assert_allclose(nested, x, atol=0.1)
    plain = Correction.fit(x, codes, seed=0).apply(x, codes)
    crossed = Correction.fit(x, batches, 2 * types + codes, seed=0).apply(x, batches)
    means = [distance_of_batches(found, codes, types) for found in (x, plain, crossed)]
    assert means[1] < 0.7 < means[2]
    assert distance_of_batches(crossed, batches, 2 * types + codes) < distance_of_batches(x, batches, types) / 2


def test_a_cell_does_not_depend_on_the_others(known):
    x, codes, _ = known
    correction = Correction.fit(x, codes, seed=0)
    together = correction.apply(x, codes)
    for row in (0, 150):
        np.testing.assert_allclose(correction.apply(x[row : row + 1], codes[row : row + 1])[0], together[row])


def test_a_further_batch_is_mapped_and_the_others_stay(known):
    x, codes, types = known
    new, _, of_new = cells_of([2], 120, np.random.default_rng(1))
    correction = Correction.fit(x, codes, seed=0)
    extended = correction.with_batch(new)
    assert extended.n_batches == 3
    both, all_codes, all_types = np.vstack([x, new]), np.append(codes, np.full(120, 2)), np.append(types, of_new)
    corrected = extended.apply(both, all_codes)
    assert distance_of_batches(both, all_codes, all_types) > 3
    assert distance_of_batches(corrected, all_codes, all_types) < 0.6
    np.testing.assert_array_equal(corrected[: len(x)], correction.apply(x, codes))


@settings(max_examples=15)
@given(st.integers(1, 4), st.integers(0, 2**16))
def test_few_cells_of_a_batch_give_finite_numbers(n, seed):
    rng = np.random.default_rng(seed)
    x, codes = rng.normal(size=(2 * n, 3)), np.repeat([0, 1], n)
    correction = Correction.fit(x, codes, seed=0).with_batch(rng.normal(size=(1, 3)))
    assert np.isfinite(correction.apply(np.zeros((3, 3)), np.arange(3))).all()


def test_round_trip_and_damage(known):
    x, codes, _ = known
    correction = Correction.fit(x, codes, seed=0)
    arrays = correction.arrays()
    again = Correction.from_arrays(arrays, n_batches=2, n_dims=3)
    np.testing.assert_array_equal(again.apply(x, codes), correction.apply(x, codes))
    with pytest.raises(ValueError, match="inconsistent or not finite"):
        Correction.from_arrays(arrays, n_batches=3, n_dims=3)
    with pytest.raises(ValueError, match="finite"):
        Correction.from_arrays({**arrays, "sums": arrays["sums"] * np.nan}, n_batches=2, n_dims=3)
