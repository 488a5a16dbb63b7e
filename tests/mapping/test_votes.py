from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgalore.mapping.lists import Lists
from scgalore.mapping.votes import Neighbors, logits_of, votes_of, weights_of


def test_nearer_votes_weigh_more_and_add_up() -> None:
    weights = weights_of(np.array([[0.1, 0.2, 0.4], [0.0, 0.0, 0.0], [0.1, np.inf, np.inf]], dtype=np.float32))
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    assert weights[0, 0] > weights[0, 1] > weights[0, 2] > 0
    np.testing.assert_allclose(weights[0, 2] / weights[0, 0], np.exp(-2 * (1 - 0.25**2)), rtol=1e-5)
    np.testing.assert_allclose(weights[1], 1 / 3)
    assert weights[2].tolist() == [1, 0, 0]


def test_no_neighbours_no_weights() -> None:
    assert weights_of(np.full((1, 3), np.inf, dtype=np.float32)).tolist() == [[0, 0, 0]]


@given(st.integers(1, 6), st.integers(2, 5), st.integers(0, 99))
def test_votes_are_sums_of_weights(k: int, n_classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    distances = np.sort(rng.random((4, k)), axis=1).astype(np.float32)
    rows = np.where(rng.random((4, k)) < 0.8, 1, -1)
    distances[rows < 0] = np.inf
    found = Neighbors(rows, distances, np.zeros(4, dtype=np.float32))
    codes = rng.integers(0, n_classes, (4, k))
    expected = np.zeros((4, n_classes))
    for cell in range(4):
        for place in range(k):
            expected[cell, codes[cell, place]] += found.weights[cell, place]
    votes = votes_of(found, codes, n_classes)
    np.testing.assert_allclose(votes, expected, atol=1e-6)
    logits = logits_of(votes, k)
    assert np.isfinite(logits).all()
    there = (rows >= 0).any(axis=1)
    np.testing.assert_allclose(np.exp(logits[there]).sum(axis=1), 1, rtol=1e-5)
    assert (votes[there, logits[there].argmax(axis=1)] == votes[there].max(axis=1)).all()


@pytest.fixture
def square() -> Lists:
    """Four cells at the ends of two axes, at the distances 1 to 4."""
    directions: Any = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], dtype=np.float32)
    norms = np.array([1, 2, 3, 4], dtype=np.float32)
    empty = Lists.around(lambda rows: directions[rows], 4, 0)
    return empty.extended(4, lambda rows: (directions[rows], norms[rows]), np.empty)


def test_distances_and_gap(square: Lists) -> None:
    query = np.array([[1, 0]], dtype=np.float32)
    found = Neighbors.find(square, query, np.array([5], dtype=np.float32), 1)
    assert square.cells[found.rows].tolist() == [[0]]
    assert found.distances.tolist() == [[0]]
    assert found.gap.tolist() == [4]
    found = Neighbors.find(square, query, np.array([5], dtype=np.float32), 3)
    np.testing.assert_allclose(found.distances, [[0, 2**0.5, 2**0.5]], rtol=1e-6)
    others = found.weights[0] @ (square.directions[found.rows[0]] * square.norms[found.rows[0]][:, None])
    np.testing.assert_allclose(found.gap[0], np.linalg.norm(np.array([5, 0]) - others), rtol=1e-6)


def test_cells_without_neighbours(square: Lists) -> None:
    found = Neighbors.find(
        square, np.eye(2, dtype=np.float32)[:1], np.ones(1, np.float32), 2, (np.zeros(1, int), np.zeros(4, int))
    )
    assert found.rows.tolist() == [[-1, -1]]
    assert found.gap.tolist() == [np.inf]
