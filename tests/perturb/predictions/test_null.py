import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from scgalore.perturb.predictions.null import FEWEST, adjusted, against_random, random_genes

N = 200


def made(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Doses over four orders of magnitude, and scores in proportion to them, with noise."""
    rng = np.random.default_rng(seed)
    doses = np.exp(rng.uniform(-6, 3, N))
    return doses * rng.gamma(2.0, 1.0, N), doses


class TestAgainstRandom:
    @pytest.mark.parametrize("signed", [False, True])
    def test_genes_like_the_random_ones_have_uniform_p_values(self, signed: bool) -> None:
        null, found = np.arange(N) < 150, []
        for seed in range(40):
            scores, doses = made(seed)
            moved = scores - 2 * doses if signed else scores
            found.append(against_random(moved, doses, null, 100, signed=signed).p_values[~null])
        p = np.concatenate(found)
        assert p.mean() == pytest.approx(0.5, abs=0.04)
        assert (p <= 0.1).mean() == pytest.approx(0.1, abs=0.03)

    @given(seed=st.integers(0, 1000), factor=st.floats(0.01, 100))
    def test_the_unit_of_the_score_does_not_matter(self, seed: int, factor: float) -> None:
        scores, doses = made(seed)
        null = np.ones(N, dtype=bool)
        plain = against_random(scores, doses, null, 50, signed=False)
        scaled = against_random(scores * factor, doses, null, 50, signed=False)
        assert scaled.expected == pytest.approx(plain.expected * factor)
        assert (scaled.p_values == plain.p_values).mean() > 0.98  # ties by rounding

    def test_what_is_far_above_has_the_smallest_p_value_and_what_is_far_below_only_if_signed(self) -> None:
        scores, doses = made(1)
        scores[0], scores[1] = doses[0] * 1e3, -doses[1] * 1e3
        null = np.arange(N) >= 2
        larger = against_random(scores, doses, null, 100, signed=False).p_values
        either = against_random(scores, doses, null, 100, signed=True).p_values
        assert larger[:2] == pytest.approx([1 / 101, 1.0])
        assert either[:2] == pytest.approx([2 / 101, 2 / 101])

    def test_a_gene_is_not_compared_with_itself(self) -> None:
        scores, doses = made(2)
        scores[5] = doses[5] * 1e3
        found = against_random(scores, doses, np.ones(N, dtype=bool), 100, signed=False)
        assert found.p_values[5] == pytest.approx(1 / 101)

    def test_only_genes_of_the_nearest_doses_count(self) -> None:
        doses = np.concatenate([[1.0], np.linspace(0.9, 1.1, 30), np.full(30, 50.0)])
        scores = np.concatenate([[5.0], np.full(30, 1.0), np.full(30, 50.0 * 9)])
        found = against_random(scores, doses, np.arange(61) > 0, 30, signed=False)
        assert found.p_values[0] == pytest.approx(1 / 31)

    def test_too_few_random_genes_or_no_dose_give_none(self) -> None:
        scores, doses = made(3)
        few = np.arange(N) < FEWEST - 1
        assert np.isnan(against_random(scores, doses, few, 100, signed=False).p_values).all()
        doses[7] = 0
        found = against_random(scores, doses, np.ones(N, dtype=bool), 100, signed=False)
        assert np.isnan(found.p_values[7])
        assert np.isnan(found.expected[7])
        assert np.isfinite(np.delete(found.p_values, 7)).all()


class TestRandomGenes:
    def test_all_levels_of_expression_are_drawn_from(self) -> None:
        expression = np.random.default_rng(0).permutation(1000).astype(float)
        drawn = random_genes(expression, np.arange(1000), 50, seed=0)
        assert (np.sort(expression[drawn]) // 20).tolist() == list(range(50))

    @given(seed=st.integers(0, 50))
    def test_the_draw_is_of_the_seed_and_not_of_the_order(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        expression, tokens = rng.random(300), rng.permutation(5000)[:300]
        order = rng.permutation(300)
        first = tokens[random_genes(expression, tokens, 40, seed=seed)]
        again = tokens[order][random_genes(expression[order], tokens[order], 40, seed=seed)]
        assert set(first) == set(again)
        assert set(first) != set(tokens[random_genes(expression, tokens, 40, seed=seed + 1)])

    def test_few_genes_are_all_taken(self) -> None:
        assert random_genes(np.arange(3.0), np.arange(3), 10, seed=0).tolist() == [0, 1, 2]


def test_adjusted_is_benjamini_hochberg_of_those_that_were_tested() -> None:
    p = np.random.default_rng(0).random(40) ** 3
    with_gaps = np.insert(p, [3, 20], np.nan)
    rates = adjusted(with_gaps)
    assert rates[np.isfinite(with_gaps)] == pytest.approx(false_discovery_control(p))
    assert np.isnan(rates[np.isnan(with_gaps)]).all()
    assert np.isnan(adjusted(np.full(3, np.nan))).all()
