"""Which proteins a network corrects, and their correlations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgalore.data.split import Split
from scgalore.tasks.proteins import MultiomicMemory, helped, pearson, pearson_of_shared, score_proteins


@given(st.integers(0, 2**32 - 1))
def test_all_are_corrected_if_all_together_gain_but_those_that_are_harmed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ridge = rng.normal(size=(100, 20))
    assert helped(ridge, 0.9 * ridge).all()
    assert not helped(0.9 * ridge, ridge).any()
    assert not helped(ridge, ridge).any()
    harmed = 0.8 * ridge
    harmed[:, 3] = 1.3 * ridge[:, 3]
    assert np.flatnonzero(~helped(ridge, harmed)).tolist() == [3]


def test_what_is_not_clear_counts_only_where_other_cells_have_said_that_it_helps() -> None:
    rng = np.random.default_rng(0)
    ridge = rng.normal(size=(20, 10))
    unclear = np.where(np.arange(20)[:, None] % 2, 0.9, 1.09) * ridge  # half of the cells gain, the others lose
    assert not helped(ridge, unclear).any()
    assert helped(ridge, unclear, expected=True).all()
    assert not helped(0.9 * ridge, ridge, expected=True).any()


@pytest.mark.parametrize("n", [20, 400])
def test_noise_is_rarely_taken_for_help(n: int) -> None:
    rng = np.random.default_rng(0)
    taken = [helped(r := rng.normal(size=(n, 20)), r + 0.3 * rng.normal(size=(n, 20))).any() for _ in range(100)]
    assert sum(taken) < 5


def test_correlation_is_numpys_and_undefined_where_nothing_varies() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 20, 3))
    y[:, 2] = 1
    found = pearson(x, y)
    np.testing.assert_allclose(found[:2], [np.corrcoef(x[:, i], y[:, i])[0, 1] for i in range(2)])
    assert np.isnan(found[2])
    np.testing.assert_array_equal(pearson_of_shared(x, y), found)


def test_scores_of_the_parts_and_of_each_protein() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(30, 3))
    ridge, both = truth + rng.normal(size=(30, 3)), truth + 0.1 * rng.normal(size=(30, 3))
    memory = MultiomicMemory(
        ("A", "B", "C"), ("p_A", "p_B", "p_C"), ("a", "", "c"), (), (), corrects=(True, False, True)
    )
    split = Split(np.arange(20), np.arange(20, 29), np.array([29]))  # one test cell tells nothing
    parts, table = score_proteins(memory, both, ridge, truth, split)
    found = np.column_stack([both[:, 0], ridge[:, 1], both[:, 2]])
    assert parts.index.tolist() == ["train", "validation"]
    assert parts.loc["train", "pearson"] == np.mean(pearson(found[:20], truth[:20]))
    assert parts.loc["validation", "pearson_ridge"] == np.mean(pearson(ridge[20:29], truth[20:29]))
    gain = (ridge - truth)[20:29] ** 2 - (both - truth)[20:29] ** 2
    np.testing.assert_allclose(table["gain"], gain.mean(axis=0))
    np.testing.assert_allclose(table["gain_error"], gain.std(axis=0, ddof=1) / 3)
    assert table["pearson"].isna().all()
    none = score_proteins(memory, both, ridge, truth, Split(np.arange(20), np.arange(0), np.arange(20, 30)))[1]
    assert none["gain"].isna().all()
    np.testing.assert_allclose(none["pearson"], pearson(found[20:], truth[20:]))
