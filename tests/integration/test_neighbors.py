import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.integration.reference import EMBEDDINGS, REFERENCE

from scgalore.integration.neighbors import bisected, nearest


@given(st.integers(0, 50), st.integers(2, 40), st.data())
def test_neighbors_are_the_nearest(seed: int, n_obs: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n_obs))
    x = np.random.default_rng(seed).normal(size=(n_obs, 3))
    found = nearest(x, k)
    distances = np.linalg.norm(x[:, None] - x, axis=2)
    np.testing.assert_allclose(found.distances, np.sort(distances, axis=1)[:, :k], atol=1e-7)
    np.testing.assert_array_equal(found.indices[:, 0], np.arange(n_obs))


def test_a_cell_is_its_first_neighbor_whatever_duplicates_it_has() -> None:
    found = nearest(np.ones((30, 2)), 10)
    assert found.indices[:, 0].tolist() == list(range(30))
    assert all(len(set(row)) == 10 for row in found.indices.tolist())
    assert found.first(4).indices.shape == found.first(4).distances.shape == (30, 4)


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_connectivities_are_those_of_umap(name: str) -> None:
    graph = nearest(REFERENCE.embeddings[name], 50).connectivities()
    expected = REFERENCE.scores[name]["connectivity_sums"]
    np.testing.assert_allclose(np.asarray(graph.sum(axis=1)).ravel(), expected, atol=1e-3)  # UMAP's are float32


@pytest.mark.parametrize("x", [np.ones((40, 2)), np.repeat(np.eye(10), 4, axis=0)], ids=["all equal", "groups"])
def test_connectivities_of_duplicates_are_1_and_no_cell_is_joined_to_itself(x: np.ndarray) -> None:
    found = nearest(x, 8)
    graph = found.connectivities()
    assert (graph != graph.T).nnz == 0
    assert graph.diagonal().sum() == 0
    pairs = np.broadcast_to(np.arange(40)[:, None], found.indices.shape)
    twins = (found.distances == 0) & (found.indices != pairs)
    np.testing.assert_allclose(np.asarray(graph[pairs[twins], found.indices[twins]]).ravel(), 1)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20))
def test_bisection_finds_each_root(roots: list[float]) -> None:
    wanted = np.array(roots)
    found = bisected(lambda value, cells: wanted[cells] - value, len(wanted), most_steps=60)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
