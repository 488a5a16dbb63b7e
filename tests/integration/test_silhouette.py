import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import silhouette_samples
from sklearn.metrics.pairwise import cosine_distances
from tests.integration.reference import REFERENCE

from scgalore.integration.silhouette import BLOCK, batch_mixing, cosine_silhouettes, silhouettes


def cells(seed: int, n_groups: int, n_obs: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    codes = np.concatenate([np.arange(n_groups), rng.integers(n_groups, size=n_obs - n_groups)])
    return rng.normal(size=(n_obs, 4)) + codes[:, None] * rng.normal(size=4) + 50, codes


@given(st.integers(0, 100), st.integers(2, 5), st.integers(8, 60))
def test_silhouettes_are_those_of_scikit_learn(seed: int, n_groups: int, n_obs: int) -> None:
    x, codes = cells(seed, n_groups, n_obs)
    np.testing.assert_allclose(silhouettes(x, codes), silhouette_samples(x, codes), atol=1e-9)


def test_blocks_join() -> None:
    x, codes = cells(0, 3, 3_000)
    assert len(x) ** 2 > BLOCK
    np.testing.assert_allclose(silhouettes(x, codes), silhouette_samples(x, codes), atol=1e-9)


@given(st.integers(0, 100), st.integers(2, 5), st.integers(8, 60))
def test_cosine_silhouettes_are_those_of_all_pairs(seed: int, n_groups: int, n_obs: int) -> None:
    x, codes = cells(seed, n_groups, n_obs)
    x -= 50
    distances = cosine_distances(x)
    expected = np.zeros(n_obs)
    for cell, code in enumerate(codes):
        own = codes == code
        if own.sum() > 1:
            within, beyond = distances[cell, own].sum() / (own.sum() - 1), distances[cell, ~own].mean()
            expected[cell] = (beyond - within) / max(beyond, within)
    np.testing.assert_allclose(cosine_silhouettes(x, codes), expected, atol=1e-9)


def test_a_vector_of_zeros_and_equal_cells_give_finite_values() -> None:
    codes = np.array([0, 0, 1, 1])
    x = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert np.isfinite(cosine_silhouettes(x, codes)).all()
    assert silhouettes(np.ones((4, 2)), codes).tolist() == [0, 0, 0, 0]


def test_mixing_is_1_for_batches_that_are_copies_and_near_0_for_batches_apart() -> None:
    rng = np.random.default_rng(0)
    half = rng.normal(size=(200, 5))
    batches, labels = np.repeat([0, 1], 200), np.tile([0, 1], 200)
    far = np.vstack([half, half + 100])
    assert batch_mixing(np.vstack([half, half]), batches, labels) > 0.97
    assert batch_mixing(np.vstack([half, half]), batches, labels, "cosine") > 0.97
    assert batch_mixing(far, batches, labels) < 0.05
    assert batch_mixing(far - far.mean(axis=0), batches, labels, "cosine") < 0.05


def test_labels_of_one_batch_do_not_count() -> None:
    x, batches, labels = REFERENCE.embeddings["before"], REFERENCE.batches, REFERENCE.labels
    within = np.isin(labels, [0, 1])
    alone = batch_mixing(x[within], batches[within], labels[within])
    others = np.where(within, labels, 2 + batches)
    assert batch_mixing(x, batches, others) == pytest.approx(alone)
