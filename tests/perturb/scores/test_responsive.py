"""Responsiveness, on data whose true means are known."""

import anndata as ad
import numpy as np
import pytest

from scgalore.data.matrix import CellMatrix
from scgalore.perturb.scores.responsive import Responses


def simulated(
    seed: int, *, shift: float, n_groups: int = 20, n_genes: int = 400
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells of groups of unlike sizes; the first half of the genes has means that differ between groups."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(n_groups), rng.integers(5, 30, n_groups))
    true = 3 + shift * rng.normal(size=(n_groups, n_genes)) * (np.arange(n_genes) < n_genes // 2)
    x = true[group] + rng.normal(size=(len(group), n_genes)) * rng.uniform(0.2, 1.5, n_genes)
    return x.astype(np.float32), group, true


def responses(x: np.ndarray, group: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    return Responses.of(CellMatrix.from_adata(ad.AnnData(x)), group, contexts).responsiveness()


def by_hand(x: np.ndarray, group: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    per_context = []
    for context in np.unique(contexts):
        cells = [x[group == number].astype(np.float64) for number in np.flatnonzero(contexts == context)]
        cells = [rows for rows in cells if len(rows) > 1]
        if len(cells) < 2:
            continue
        between = np.var([rows.mean(axis=0) for rows in cells], axis=0, ddof=1)
        per_context.append(between - np.mean([rows.var(axis=0, ddof=1) / len(rows) for rows in cells], axis=0))
    return np.mean(per_context, axis=0)


def test_is_the_variance_of_means_minus_its_noise() -> None:
    x, group, _ = simulated(0, shift=0.5)
    contexts = np.arange(20) % 3
    np.testing.assert_allclose(responses(x, group, contexts), by_hand(x, group, contexts), atol=1e-10)


def test_groups_of_one_cell_and_contexts_of_one_group_are_left_out() -> None:
    x, group, _ = simulated(1, shift=0.5, n_groups=8)
    contexts = np.array([0, 0, 0, 1, 1, 1, 2, 0])
    kept = np.ones(len(group), dtype=bool)
    kept[np.flatnonzero(group == 7)[1:]] = False
    np.testing.assert_allclose(
        responses(x[kept], group[kept], contexts), by_hand(x[kept], group[kept], contexts), atol=1e-10
    )


def test_genes_that_nothing_changes_average_to_zero_and_others_to_their_variance() -> None:
    scores, variances = [], []
    for seed in range(15):
        x, group, means = simulated(seed, shift=0.3)
        scores.append(responses(x, group, np.zeros(20, dtype=np.int64)))
        variances.append(means.var(axis=0, ddof=1))
    found, true = np.array(scores), np.array(variances)
    null = found[:, 200:].mean(axis=1)
    # Within five standard errors over the simulations, which is far below the response of the others.
    assert abs(null.mean()) < 5 * null.std() / np.sqrt(len(null))
    assert null.std() < 0.1 * true[:, :200].mean()
    difference = (found - true)[:, :200].mean(axis=1)
    assert abs(difference.mean()) < 5 * difference.std() / np.sqrt(len(difference))


def test_permuted_labels_leave_nothing() -> None:
    rng = np.random.default_rng(0)
    x, group, _ = simulated(0, shift=1.0)
    real = responses(x, group, np.zeros(20, dtype=np.int64))[:200].mean()
    permuted = [responses(x, rng.permutation(group), np.zeros(20, dtype=np.int64))[:200].mean() for _ in range(20)]
    assert abs(np.mean(permuted)) < 0.02 * real


def test_cells_that_do_not_count_change_nothing() -> None:
    x, group, _ = simulated(2, shift=0.5)
    contexts = np.zeros(20, dtype=np.int64)
    more = np.concatenate((x, 100 + x[:50]))
    np.testing.assert_allclose(
        responses(more, np.concatenate((group, np.full(50, -1))), contexts),
        responses(x, group, contexts),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize("group", [np.zeros(10, dtype=np.int64), np.arange(10)])
def test_without_two_groups_of_two_cells_there_is_no_answer(group: np.ndarray) -> None:
    x = np.random.default_rng(0).random((10, 3), dtype=np.float32)
    assert np.isnan(responses(x, group, np.zeros(group.max() + 1, dtype=np.int64))).all()
