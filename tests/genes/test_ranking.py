"""How sources take turns."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgalore.errors import OptionError
from scgalore.genes.ranking import STRATEGIES, best_first, get_strategy, merge
from scgalore.genes.sets import list_gene_sets


def merged(first, lists, weights):
    as_arrays = {name: np.array(values, dtype=np.int64) for name, values in lists.items()}
    starts = {name: np.array(values, dtype=np.int64) for name, values in first.items()}
    found = merge(starts, as_arrays, weights)
    return found.columns.tolist(), found.sources.tolist()


def test_strategies_name_sources_that_exist() -> None:
    known = {"variable", "responsive", "expressed", *list_gene_sets()}
    for strategy in STRATEGIES.values():
        assert set(strategy.weights) <= known
        assert sum(strategy.weights.values()) == pytest.approx(1)
        assert min(strategy.weights.values()) > 0
        assert {"variable", "expressed"} & set(strategy.weights), "all genes must be ranked"


def test_unknown_strategy_names_a_near_one() -> None:
    with pytest.raises(OptionError, match="did you mean 'perturbation'"):
        get_strategy("perturbations")


def test_turns_follow_the_weights() -> None:
    columns, sources = merged({}, {"a": range(20), "b": range(20, 40)}, {"a": 0.75, "b": 0.25})
    assert sources[:16].count("a") == 12
    assert sources[:8].count("a") == 6
    assert [c for c, s in zip(columns, sources, strict=True) if s == "b"] == list(range(20, 40))


def test_a_gene_of_two_lists_is_counted_for_the_one_that_placed_it() -> None:
    columns, sources = merged({}, {"a": [0, 1, 2], "b": [0, 1, 3]}, {"a": 0.5, "b": 0.5})
    assert columns == [0, 1, 2, 3]
    assert sources == ["a", "b", "a", "b"]


def test_what_must_come_first_comes_first() -> None:
    columns, sources = merged({"x": [7, 3], "y": [3, 5]}, {"a": [3, 1]}, {"a": 1.0})
    assert columns == [7, 3, 5, 1]
    assert sources == ["x", "x", "y", "a"]


def test_a_source_without_genes_passes_its_share_on() -> None:
    _, sources = merged({}, {"a": [], "b": range(10), "c": range(10, 20)}, {"a": 0.8, "b": 0.1, "c": 0.1})
    assert sources[:20].count("b") == sources[:20].count("c") == 10


COLUMNS = st.lists(st.integers(0, 39), unique=True)


@given(COLUMNS, st.dictionaries(st.sampled_from("abc"), COLUMNS), st.lists(st.floats(0.01, 1), min_size=3, max_size=3))
def test_every_column_once_in_the_order_of_its_source(first, lists, numbers) -> None:
    weights = dict(zip("abc", numbers, strict=True))
    columns, sources = merged({"first": first}, lists, weights)
    assert sorted(columns) == sorted(set(first).union(*lists.values()))
    for name, members in lists.items():
        mine = [c for c, s in zip(columns, sources, strict=True) if s == name]
        assert mine == [c for c in members if c in mine]
    assert columns[: len(first)] == first


@given(
    st.lists(st.sampled_from("abcd"), min_size=40, max_size=120), st.lists(st.floats(0.05, 1), min_size=4, max_size=4)
)
def test_shares_stay_within_a_turn_of_the_weights(letters, numbers) -> None:
    lists = {letter: [i for i, other in enumerate(letters) if other == letter] for letter in "abcd"}
    weights = dict(zip("abcd", numbers, strict=True))
    _, sources = merged({}, lists, weights)
    full = next((n for n in range(1, len(sources)) if any(sources[:n].count(x) == len(lists[x]) for x in "abcd")), 0)
    shares = {x: sources[:full].count(x) / weights[x] for x in "abcd"}
    assert max(shares.values(), default=0) - min(shares.values(), default=0) <= 2 / min(weights.values())


def test_best_first_breaks_ties_by_name_and_puts_nan_last() -> None:
    scores = np.array([1.0, np.nan, 2.0, 1.0 + 1e-12])
    assert best_first(scores, np.array([3, 0, 1, 2])).tolist() == [2, 3, 0, 1]
    assert best_first(scores, np.array([3, 0, 1, 2]), np.array([0, 1])).tolist() == [0, 1]
