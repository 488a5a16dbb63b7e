import numpy as np
import pytest
import scipy.sparse as sp
from tests.integration.reference import EMBEDDINGS, REFERENCE

from scgalore.integration.kbet import acceptance, diffusion_neighbors, kbet_by_label
from scgalore.integration.neighbors import nearest


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_each_label_has_the_number_of_scib_metrics(name: str) -> None:
    graph = nearest(REFERENCE.embeddings[name], 50).connectivities()
    found = kbet_by_label(graph, REFERENCE.batches, REFERENCE.labels, seed=0)
    expected = [np.nan if value is None else value for value in REFERENCE.scores[name]["kbet_by_label"]]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.isnan(found).tolist() == [False, False, True, True, False, True]  # one batch, few cells, one cell


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_without_labels_it_is_that_of_scib_metrics(name: str) -> None:
    found = acceptance(nearest(REFERENCE.embeddings[name], 50).indices, REFERENCE.batches)
    assert found == pytest.approx(REFERENCE.scores[name]["kbet_without_labels"], abs=1e-6)


def test_a_fair_draw_is_accepted_about_as_often_as_the_test_promises() -> None:
    rng = np.random.default_rng(0)
    batches = rng.integers(3, size=2_000)
    drawn = rng.integers(2_000, size=(2_000, 60))
    assert 0.92 < acceptance(drawn, batches) < 0.98
    own_batch = np.stack([rng.choice(np.flatnonzero(batches == batch), 60) for batch in batches])
    assert acceptance(own_batch, batches) == 0


@pytest.mark.parametrize("n_obs", [300, 700])  # all eigenvectors, and some
def test_diffusion_neighbors_of_a_ring_are_the_adjacent_cells(n_obs: int) -> None:
    places = np.arange(n_obs)
    ring = sum(sp.eye_array(n_obs, k=k) for k in (1, -1, n_obs - 1, 1 - n_obs))
    found = diffusion_neighbors(sp.csr_matrix(ring), 5)
    steps = np.abs(found - places[:, None])
    assert np.minimum(steps, n_obs - steps).max() <= 2


def test_the_start_of_the_search_does_not_matter() -> None:
    x = np.random.default_rng(0).normal(size=(700, 4))
    graph = nearest(x, 30).connectivities()
    batches = (x[:, 0] + np.random.default_rng(1).normal(size=700) > 0).astype(int)
    found = [kbet_by_label(graph, batches, np.zeros(700, dtype=int), seed=seed)[0] for seed in range(3)]
    assert np.ptp(found) < 0.01


def test_pieces_too_small_for_a_neighborhood_are_rejected_and_large_ones_are_tested() -> None:
    rng = np.random.default_rng(0)
    batches, labels = rng.integers(2, size=400), np.zeros(400, dtype=int)

    def score(n_pieces: int) -> float:
        x = rng.normal(size=(400, 3)) + 1e4 * (np.arange(400) % n_pieces)[:, None]
        graph = nearest(x, 8).connectivities()
        return float(kbet_by_label(graph, batches, labels, seed=0)[0])

    assert score(40) == 0
    assert score(1) > 0.8
    assert score(2) > 0.7  # 200 cells each, and neighbourhoods of 50
