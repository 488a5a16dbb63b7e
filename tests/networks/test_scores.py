import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from scgalore.networks.scores import METRICS, Truth, score_pairs, shuffled, summary


def truth_of(edges, *, itself=True):
    """Factors A0, A1, ...; the first targets are factors themselves where ``itself``."""
    edges = np.asarray(edges, dtype=bool)
    sources = tuple(f"A{i}" for i in range(edges.shape[0]))
    targets = tuple(f"A{i}" if itself and i < len(sources) else f"T{i}" for i in range(edges.shape[1]))
    return Truth(sources, targets, edges)


def score(strength, truth, *, n=0, top=0.1, min_targets=1):
    nulls = shuffled(truth, n, seed=0)
    return score_pairs(np.asarray(strength, dtype=float), truth, nulls, top=top, min_targets=min_targets)


@given(st.integers(0, 10_000), st.sampled_from([2, 5, 1000]))
@settings(max_examples=40)
def test_area_under_the_curve_is_sklearns(seed, levels):
    rng = np.random.default_rng(seed)
    truth = truth_of(rng.random((4, 15)) < 0.3)
    strength = rng.integers(0, levels, (4, 15)).astype(float)  # with equal ones
    found, counts = score(strength, truth), truth.counts
    y, x = truth.edges[counts], strength[counts]
    assert found.overall["auprc_ratio"] == pytest.approx(average_precision_score(y, x) / y.mean())
    for row in range(4):
        y, x = truth.edges[row][counts[row]], strength[row][counts[row]]
        if 0 < y.sum() < len(y):
            assert found.by_source[row, 0] == pytest.approx(average_precision_score(y, x) / y.mean())
        else:
            assert np.isnan(found.by_source[row]).all()


@given(st.integers(0, 10_000))
@settings(max_examples=20)
def test_equal_strengths_count_as_their_mean_over_orders(seed):
    rng = np.random.default_rng(seed)
    truth = truth_of(rng.random((1, 40)) < 0.3, itself=False)
    strength = rng.integers(0, 3, (1, 40)).astype(float)
    if not 0 < truth.edges.sum() < 40:
        return
    found = score(strength, truth, top=0.25).overall
    early, odds = [], []
    n = int(truth.edges.sum())
    for _ in range(4000):
        order = np.argsort(-strength[0] + rng.random(40) * 1e-3)
        hits = truth.edges[0][order]
        early.append(hits[:n].mean() / truth.edges.mean())
        odds.append(hits[:10].sum())
    assert found["early_precision_ratio"] == pytest.approx(np.mean(early), abs=0.1)
    hits = np.mean(odds)
    table = (hits + 0.5) * (40 - 10 - (n - hits) + 0.5) / ((10 - hits + 0.5) * (n - hits + 0.5))
    assert found["odds_ratio"] == pytest.approx(table, rel=0.1)


def test_perfect_random_and_worst_order():
    rng = np.random.default_rng(0)
    truth = truth_of(rng.random((5, 400)) < 0.1)
    perfect = score(truth.edges, truth).overall
    assert perfect["auprc_ratio"] == pytest.approx(1 / truth.edges[truth.counts].mean())
    assert perfect["early_precision_ratio"] == pytest.approx(perfect["auprc_ratio"])
    chance = score(rng.random(truth.edges.shape), truth, n=50)
    assert (
        abs(chance.overall["auprc_ratio"] - chance.overall["auprc_ratio_null"])
        < 4 * chance.overall["auprc_ratio_null_sd"]
    )
    assert score(np.zeros(truth.edges.shape), truth).overall["auprc_ratio"] == pytest.approx(1)
    worst = rng.random(truth.edges.shape) - 2.0 * truth.edges
    assert score(worst, truth).overall["auprc_ratio"] < 1


def test_what_a_network_lacks_ranks_last():
    truth = truth_of([[1, 1, 0, 0, 0, 0]], itself=False)
    strength = np.array([[np.nan, 0.2, 0.1, np.nan, np.nan, np.nan]])
    filled = np.array([[-9, 0.2, 0.1, -9, -9, -9]])
    assert score(strength, truth).overall == score(filled, truth).overall


def test_a_gene_is_not_its_own_target():
    truth = truth_of([[1, 0, 1, 0], [0, 1, 0, 1]])
    strength = np.array([[0.0, 0.1, 0.9, 0.2], [0.3, 0.0, 0.1, 0.8]])
    with_itself = strength.copy()
    with_itself[[0, 1], [0, 1]] = 99
    assert score(strength, truth).overall == score(with_itself, truth).overall
    assert score(strength, truth).overall["auprc_ratio"] == pytest.approx(3)


def test_shuffles_keep_degrees_and_mix_edges():
    rng = np.random.default_rng(0)
    truth = truth_of(rng.random((6, 50)) < np.linspace(0.05, 0.6, 6)[:, None])
    truth.edges[~truth.counts] = False
    nulls = shuffled(truth, 30, seed=1)
    for edges in nulls:
        np.testing.assert_array_equal(edges.sum(axis=0), truth.edges.sum(axis=0))
        np.testing.assert_array_equal(edges.sum(axis=1), truth.edges.sum(axis=1))
        assert not edges[~truth.counts].any()
        assert (edges != truth.edges).any()
    assert all(np.array_equal(a, b) for a, b in zip(nulls, shuffled(truth, 30, seed=1), strict=True))
    # Pairs of equal degrees are edges equally often, as far as 300 shuffles show.
    even = truth_of(np.tile([1, 0, 0, 1, 0, 1], (4, 5)).astype(bool) ^ (np.arange(4)[:, None] % 2 == 1), itself=False)
    often = np.mean(shuffled(even, 300, seed=0), axis=0)
    assert np.abs(often - 0.5).max() < 0.15


def test_hubs_score_no_better_than_their_shuffles():
    rng = np.random.default_rng(0)
    edges = rng.random((8, 200)) < rng.beta(0.5, 3, 200)
    truth = truth_of(edges, itself=False)
    found = score(np.broadcast_to(edges.sum(axis=0), edges.shape), truth, n=20).overall
    assert found["auprc_ratio"] > 1.5
    assert found["auprc_ratio_p"] == 1
    informed = score(edges + rng.normal(size=edges.shape), truth, n=20).overall
    assert informed["auprc_ratio_p"] == pytest.approx(1 / 21)


def test_factors_with_few_targets_are_not_scored_apart():
    truth = truth_of([[1] * 3 + [0] * 20, [1] * 8 + [0] * 15, [1] * 21 + [0] * 2], itself=False)
    found = score(np.random.default_rng(0).random((3, 23)), truth, min_targets=5)
    assert np.isnan(found.by_source[[0, 2]]).all()
    assert np.isfinite(found.by_source[1]).all()
    assert found.mean["auprc_ratio"] == found.by_source[1, 0]
    none = score(np.random.default_rng(0).random((3, 23)), truth, n=3, min_targets=9)
    assert all(np.isnan(none.mean[name]) for name in METRICS)
    assert np.isnan(summary(none)["mean_auprc_ratio_p"])
    assert np.isfinite(summary(none)["auprc_ratio_null"])
