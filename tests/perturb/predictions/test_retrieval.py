import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from tests.screens import profiles_of, screen

from scgalore.data.expression import LogExpression
from scgalore.errors import OptionError
from scgalore.perturb.baselines.effects import fit_rule
from scgalore.perturb.predictions import retrieval


def test_metrics_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    effects, wanted = rng.normal(size=(5, 30)), rng.normal(size=30)
    expected = {
        "cosine": [1 - scipy.spatial.distance.cosine(row, wanted) for row in effects],
        "pearson": [scipy.stats.pearsonr(row, wanted)[0] for row in effects],
        "mse": [np.mean((row - wanted) ** 2) for row in effects],
    }
    assert set(expected) == set(retrieval.METRICS)
    for metric, values in expected.items():
        np.testing.assert_allclose(retrieval.scores(effects, wanted, metric), values)


def test_effects_that_point_nowhere_score_zero() -> None:
    wanted = np.array([1.0, 2.0, 4.0])
    assert retrieval.scores(np.zeros((1, 3)), wanted, "cosine")[0] == 0
    assert retrieval.scores(np.full((1, 3), 7.0), wanted, "pearson")[0] == 0
    assert retrieval.scores(np.zeros((1, 3)), np.zeros(3), "mse")[0] == 0


def test_unknown_metric_is_refused() -> None:
    with pytest.raises(OptionError, match="metric='l3': choose one of 'cosine', 'pearson', 'mse'"):
        retrieval.scores(np.zeros((1, 3)), np.zeros(3), "l3")


@given(values=st.lists(st.integers(-3, 3), min_size=1, max_size=20), metric=st.sampled_from(retrieval.METRICS))
def test_ranks_are_those_of_scipy_with_ties_averaged(values: list[int], metric: str) -> None:
    x = np.array(values, dtype=float)
    expected = scipy.stats.rankdata(x if metric == "mse" else -x, method="average")
    assert [retrieval.rank_of(x, i, metric) for i in range(len(x))] == expected.tolist()


def test_rounding_makes_no_difference_between_equal_scores() -> None:
    assert retrieval.rank_of(np.array([0.3, 0.1 + 0.2, 0.3, 0.2]), 0, "cosine") == 2


def test_equal_effects_share_the_rank_of_a_guess() -> None:
    rng = np.random.default_rng(1)
    effects = np.tile(rng.normal(size=40), (9, 1))
    for metric in retrieval.METRICS:
        assert retrieval.rank_of(retrieval.scores(effects, rng.normal(size=40), metric), 4, metric) == 5


@pytest.mark.parametrize(("most", "n"), [(1, 1), (2, 1), (3, 3), (5, 3), (6, 6), (300, 10)])
def test_pairs_are_all_of_the_best_genes(most: int, n: int) -> None:
    pairs = retrieval.best_pairs(["d", "a", "c", "b", "e"], np.array([0.4, 0.1, 0.3, 0.2, 0.0]), "cosine", most)
    assert len(pairs) == n
    assert all(a < b for a, b in pairs)
    assert ("c", "d") in pairs
    assert ("a", "e") in retrieval.best_pairs(list("dacbe"), np.array([0.4, 0.1, 0.3, 0.2, 0.0]), "mse", 1)


def test_evidence_says_what_training_knew() -> None:
    known = {"A", "B+C"}
    asked = [("A",), ("B", "C"), ("A", "B"), ("B",), ("A", "X"), ("X",), ("X", "Y")]
    parts = "parts measured"
    expected = ["measured", "measured", parts, parts, parts, "unseen", "unseen"]
    assert [retrieval.evidence(genes, known) for genes in asked] == expected


def test_mean_of_cells_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    adata = screen()
    cells = np.arange(3, 90, 2)
    expression = LogExpression.from_adata(adata)
    expected = adata.X[cells].toarray().mean(axis=0)
    np.testing.assert_allclose(retrieval.mean_of(expression, cells), expected, rtol=1e-6)
    monkeypatch.setattr(retrieval, "_CHUNK", 7)
    np.testing.assert_allclose(retrieval.mean_of(expression, cells), expected, rtol=1e-6)


def test_rules_are_read_by_the_names_of_genes() -> None:
    rule = fit_rule("additive", profiles_of(screen(), "train"))
    genes = [rule.genes[5], "elsewhere", rule.genes[0]]
    found = retrieval.rule_effects(rule, [("G00",), ("G00", "G01")], "", genes)
    whole = np.array([rule.predict(("G00",)), rule.predict(("G00", "G01"))])
    np.testing.assert_array_equal(found, np.column_stack([whole[:, 5], [0, 0], whole[:, 0]]))


def test_a_perfect_prediction_is_found_first_and_a_constant_one_at_chance() -> None:
    rng = np.random.default_rng(2)
    genes, candidates = [f"G{i}" for i in range(30)], [("A",), ("B",), ("A", "B"), ("C",)]
    effects = rng.normal(size=(4, 30))
    found = retrieval.recovery(
        effects[[2, 3]], [candidates[2], candidates[3]], candidates,
        {"perfect": effects, "constant": np.ones((4, 30))}, genes, "cosine",
    )  # fmt: skip
    assert found["perturbation"].tolist() == ["A+B", "A+B", "C", "C"]
    table = retrieval.summary(found).set_index("method")
    assert table["median_rank"].to_dict() == {"perfect": 1, "constant": 2.5}
    assert table["first"].to_dict() == {"perfect": 1, "constant": 0}
    assert (table["chance"] == 2.5).all()
    assert (table["n"] == 2).all()


def test_a_perturbed_gene_does_not_give_itself_away() -> None:
    genes, candidates = ["A", "B", "X", "Y"], [("A",), ("B",)]
    observed = np.array([[-9.0, 0, 1, 2]])
    effects = {"own gene only": np.array([[-9.0, 0, -1, -2], [0, -9.0, 1, 2]])}
    found = retrieval.recovery(observed, [("A",)], candidates, effects, genes, "cosine")
    assert found["rank"].tolist() == [2]


def test_without_held_out_perturbations_the_tables_are_empty() -> None:
    found = retrieval.recovery(np.empty((0, 3)), [], [], {}, list("abc"), "cosine")
    assert found.empty
    assert list(found.columns) == ["perturbation", "method", "rank", "n_candidates"]
    table = retrieval.summary(found)
    assert isinstance(table, pd.DataFrame)
    assert table.empty
