from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgalore.mapping import lists as module
from scgalore.mapping.lists import Lists

Array = Any


def directions(n: int, d: int = 8, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(20, d))[rng.integers(0, 20, n)] + 0.3 * rng.normal(size=(n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)


def filled(x: Array, *, n_first: int | None = None) -> Lists:
    """Lists of these cells, all at once or in two steps."""
    n_first = len(x) if n_first is None else n_first
    norms = np.arange(len(x), dtype=np.float32)
    found = Lists.around(lambda rows: x[rows], len(x), 0)
    found = found.extended(n_first, lambda rows: (x[rows], norms[rows]), np.empty)
    return found.extended(len(x) - n_first, lambda rows: (x[n_first:][rows], norms[n_first:][rows]), np.empty)


def nearest(x: Array, queries: Array, k: int) -> Array:
    return np.argsort(-(queries @ x.T), axis=1, kind="stable")[:, :k]


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> Array:
    """Cells in several lists."""
    monkeypatch.setattr(module, "EXACT", 100)
    return directions(900)


def test_one_list_is_exact() -> None:
    x, queries = directions(300), directions(40, seed=1)
    lists = filled(x)
    assert lists.n_lists == 1
    found = lists.cells[lists.search(queries, 7)]
    np.testing.assert_array_equal(np.sort(found), np.sort(nearest(x, queries, 7)))
    cosines = np.take_along_axis(queries @ x.T, found, axis=1)
    assert (np.diff(cosines, axis=1) <= 1e-6).all(), "nearest first"


def test_all_lists_together_are_exact(many: Array) -> None:
    queries = directions(40, seed=1)
    lists = filled(many)
    assert lists.n_lists == 30
    found = lists.cells[lists.search(queries, 7, n_probe=30)]
    np.testing.assert_array_equal(np.sort(found), np.sort(nearest(many, queries, 7)))


def test_each_cell_is_in_the_list_of_its_nearest_centre(many: Array) -> None:
    lists = filled(many)
    assert sorted(lists.cells.tolist()) == list(range(900))
    np.testing.assert_array_equal(lists.directions, many[lists.cells])
    np.testing.assert_array_equal(lists.norms, lists.cells)
    of_list = np.repeat(np.arange(30), np.diff(lists.offsets))
    np.testing.assert_array_equal((many[lists.cells] @ lists.centers.T).argmax(axis=1), of_list)


@given(st.integers(1, 899))
def test_in_steps_or_at_once(n_first: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "EXACT", 100)
        x = directions(900)
        once, steps = filled(x), filled(x, n_first=n_first)
    for name in ("offsets", "directions", "norms", "cells"):
        np.testing.assert_array_equal(getattr(once, name), getattr(steps, name))


def test_tuning_keeps_its_promise(many: Array) -> None:
    lists = filled(many).tuned(7, 0)
    assert module.RECALL <= lists.recall <= 1
    assert lists.n_probe < lists.n_lists
    true = nearest(many, many[:400], 7)
    assert recall(lists, many, true) > module.RECALL - 0.03
    assert recall(lists, many, true, n_probe=1) < module.RECALL


def recall(lists: Lists, x: Array, true: Array, **how: Any) -> float:
    found = lists.cells[lists.search(x[: len(true)], true.shape[1], **how)]
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), true.tolist(), strict=True)]))


def test_queries_do_not_depend_on_each_other(many: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    lists, queries = filled(many).tuned(7, 0), directions(60, seed=1)
    expected = lists.search(queries, 7)
    monkeypatch.setattr(module, "N_QUERIES", 9)
    monkeypatch.setattr(module, "MOST_PRODUCTS", 64)
    np.testing.assert_array_equal(lists.search(queries, 7), expected)


def test_own_group_is_left_out(many: Array) -> None:
    lists = filled(many)
    groups = np.arange(900) % 3
    found = lists.search(lists.directions.astype(np.float32), 7, apart=(groups, groups), n_probe=30)
    assert (groups[found] != groups[:, None]).all()
    alone = lists.search(lists.directions.astype(np.float32), 7, apart=(np.arange(900), np.arange(900)), n_probe=30)
    assert (alone != np.arange(900)[:, None]).all()


def test_fewer_cells_than_neighbours() -> None:
    x = directions(5)
    found = filled(x).search(x, 5, apart=(np.arange(5), np.arange(5)))
    assert (found[:, -1] == -1).all()
    assert [sorted(row[:4]) for row in found.tolist()] == [[j for j in range(5) if j != i] for i in range(5)]
