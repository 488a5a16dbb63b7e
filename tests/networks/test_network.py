import numpy as np
import pytest
from scipy.stats import rankdata

from scgalore.networks.network import GeneNetwork, combine, cosines


def network(weights, *, signed=False, n_cells=None):
    weights = np.asarray(weights, dtype=np.float32)
    n_cells = np.full(weights.shape, 10) if n_cells is None else np.asarray(n_cells)
    groups = tuple("ab"[: len(weights)])
    return GeneNetwork(("A", "B"), ("A", "C", "D"), groups, weights.copy(), n_cells, signed)


ONE = [[[9, 0.1, -0.7], [0.3, 0.3, np.nan]]]


def rows(table):
    return [tuple(row) for row in table[["source", "target", "rank"]].itertuples(index=False)]


def test_edges_come_by_strength_and_equal_ones_in_their_order():
    assert rows(network(ONE).edges()) == [("B", "A", 1), ("B", "C", 2), ("A", "C", 3), ("A", "D", 4)]
    assert rows(network(ONE, signed=True).edges()) == [("A", "D", 1), ("B", "A", 2), ("B", "C", 3), ("A", "C", 4)]
    assert network(ONE).edges()["weight"].tolist() == pytest.approx([0.3, 0.3, 0.1, -0.7])


def test_a_gene_has_no_edge_to_itself():
    assert np.isnan(network(ONE).weights[0, 0, 0])
    assert network(ONE).n_pairs.tolist() == [4]


def test_an_edge_of_one_group_comes_with_its_weight_in_each():
    two = network([ONE[0], [[0, 0.9, 0.2], [0.1, 0.0, 0.4]]])
    table = two.edges(1)
    assert [(row.group, row.source, row.target, row.rank) for row in table.itertuples()] == [
        ("a", "B", "A", 1),
        ("a", "A", "C", 3),
        ("b", "A", "C", 1),
        ("b", "B", "A", 4),
    ]


def test_pairs_of_few_cells_are_left_out():
    found = network(ONE, n_cells=[[[9, 3, 9], [9, 2, 9]]]).without(3)
    assert rows(found.edges()) == [("B", "A", 1), ("A", "C", 2), ("A", "D", 3)]
    assert found.edges()["n_cells"].tolist() == [9, 3, 9]


def test_combined_is_the_mean_rank_of_what_all_have():
    rng = np.random.default_rng(0)
    many = [network(rng.normal(size=(2, 2, 3)), signed=signed) for signed in (True, False)]
    many[0].weights[1, 1, 2] = np.nan
    found = combine(many)
    assert np.isnan(found.weights[1, 1, 2])
    known = np.isfinite(found.weights[1])
    wanted = (rankdata(np.abs(many[0].weights[1][known])) + rankdata(many[1].weights[1][known])) / 2 / known.sum()
    np.testing.assert_allclose(found.weights[1][known], wanted, rtol=1e-6)


def test_cosines():
    x = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
    x[1, 2] = np.nan
    found = cosines(x, np.array([3, 2]), np.array([0, 1]))
    assert found.shape == (2, 2, 2)
    wanted = x[0, 3] @ x[0, 1] / np.linalg.norm(x[0, 3]) / np.linalg.norm(x[0, 1])
    assert found[0, 0, 1] == pytest.approx(wanted, rel=1e-5)
    assert np.isnan(found[1, 1]).all()
    assert np.isfinite(found[1, 0]).all()
