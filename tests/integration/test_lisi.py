import numpy as np
import pytest
from tests.integration.reference import EMBEDDINGS, REFERENCE

from scgalore.integration.lisi import lisi, neighbor_weights
from scgalore.integration.neighbors import Neighbors, nearest


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_each_cell_has_the_number_of_scib_metrics(name: str) -> None:
    neighbors = nearest(REFERENCE.embeddings[name], 90)
    found = lisi(neighbor_weights(neighbors), neighbors, REFERENCE.batches)
    expected = REFERENCE.scores[name]["lisi_of_batches"]
    np.testing.assert_allclose(found[: len(expected)], expected, atol=1e-6)


def test_weights_have_one_perplexity() -> None:
    neighbors = nearest(REFERENCE.embeddings["before"], 90)
    weights = neighbor_weights(neighbors)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert (weights[:, 0] == 0).all()
    entropy = -(weights[:, 1:] * np.log(weights[:, 1:])).sum(axis=1)
    np.testing.assert_allclose(np.exp(entropy), 30, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_weights_do_not_depend_on_the_unit_of_length(scale: float) -> None:
    x = REFERENCE.embeddings["before"]
    found, expected = neighbor_weights(nearest(x * scale, 90)), neighbor_weights(nearest(x, 90))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_effective_numbers_of_groups() -> None:
    neighbors = Neighbors(np.tile(np.arange(5), (5, 1)), np.ones((5, 5)))
    weights = np.tile([0, 0.25, 0.25, 0.25, 0.25], (5, 1))
    codes = {1: [0, 1, 1, 1, 1], 2: [0, 0, 0, 1, 1], 4: [0, 0, 1, 2, 3]}
    for n_groups, groups in codes.items():
        assert lisi(weights, neighbors, np.array(groups)) == pytest.approx(n_groups)
