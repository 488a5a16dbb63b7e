"""The change of the perturbed gene itself, in screens of each kind."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scgalore.perturb.baselines.effects import OWN_GENE, PRIORS, fit_rule, prior_of
from scgalore.perturb.baselines.own import OwnGene, fit_own, target_columns
from scgalore.perturb.labels.profiles import Profiles

N = 60
KINDS = {"CRISPRi": (0.0, -0.8), "CRISPRa": (2.0, 0.0), "knock-out": (0.0, 0.0)}
"""Intercept and slope of the change of the target."""


def screen(kind: str, *, n: int = 25, noise: float = 0.1, seed: int = 0, logs: bool = True) -> Profiles:
    """Singles whose targets are measured, and that do a little of the same to all genes."""
    rng = np.random.default_rng(seed)
    control = rng.uniform(0.2, 3, N) if logs else np.zeros(N)
    genes = tuple(f"G{i:02d}" for i in range(N))
    targets = rng.permutation(N)[:n]
    effects = 0.1 * rng.normal(0, 1, N) + rng.normal(0, noise, (n, N))
    intercept, slope = KINDS[kind]
    effects[np.arange(n), targets] += intercept + slope * control[targets]
    means = np.maximum(control + effects, 0) if logs else effects
    return Profiles(
        genes=genes,
        perturbations=tuple(genes[i] for i in targets),
        perturbed=tuple((genes[i],) for i in targets),
        context_names=("",),
        contexts=np.zeros(n, dtype=np.int64),
        means=means,
        variances=np.zeros((n, N)),
        n_cells=np.ones(n, dtype=np.int64),
        control_means=control[None],
        control_variances=np.zeros((1, N)),
        n_controls=np.ones(1, dtype=np.int64),
    )


class TestLine:
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_kind_of_a_screen_is_found_in_it(self, kind: str) -> None:
        found = fit_own(screen(kind))
        control = np.linspace(0.3, 3, 5)
        intercept, slope = KINDS[kind]
        np.testing.assert_allclose(found.intercept + found.slope * control, intercept + slope * control, atol=0.15)
        assert found.n == 25

    @pytest.mark.parametrize("n", [0, 1])
    def test_fewer_than_two_targets_say_nothing(self, n: int) -> None:
        assert fit_own(screen("CRISPRa", n=n)) == OwnGene()

    def test_noise_is_no_line(self) -> None:
        """Where targets do not change, leaving targets out asks for no line, or for a small one."""
        for seed in range(5):
            found = fit_own(screen("knock-out", n=8, noise=1.0, seed=seed))
            assert np.abs(found.intercept + found.slope * np.array([0.3, 3.0])).max() < 1.0

    def test_a_target_that_is_measured_often_is_left_out_as_a_whole(self) -> None:
        """Otherwise its own other rows would predict it, and a line through two targets would look certain."""
        one = screen("knock-out", n=2, noise=0.01)
        object.__setattr__(one, "means", one.control_means + np.zeros_like(one.means))
        columns = target_columns(one.perturbed, one.genes)
        one.means[0, columns[0]] += 1
        one.means[1, columns[1]] -= 1
        often = one.take([0] * 20 + [1] * 20)
        assert fit_own(often).intercept == fit_own(often).slope == 0

    @given(st.permutations(range(25)))
    @settings(max_examples=15)
    def test_order_of_rows_changes_nothing(self, order: list[int]) -> None:
        train = screen("CRISPRi")
        one, other = fit_own(train), fit_own(train.take(order))
        assert (other.intercept, other.slope) == pytest.approx((one.intercept, one.slope), rel=1e-6, abs=1e-9)


class TestEffects:
    def test_expression_does_not_fall_below_zero(self) -> None:
        own = OwnGene(-1.0, -0.5, 9)
        controls = np.array([[0.4, 3.0, 1.0]])
        np.testing.assert_allclose(own.effects([[0, 1]], controls), [[-0.4, -2.5, 0]])

    def test_log_fold_changes_have_no_floor(self) -> None:
        np.testing.assert_allclose(OwnGene(-1.0, -0.5, 9).effects([[2]], np.zeros((1, 3))), [[0, 0, -1]])


class TestRules:
    @pytest.mark.parametrize("kind", ["CRISPRi", "CRISPRa"])
    @pytest.mark.parametrize("name", [OWN_GENE, *PRIORS])
    def test_targets_that_were_never_perturbed_change_as_others_did(self, kind: str, name: str) -> None:
        train = screen(kind, n=30)
        new = [i for i, gene in enumerate(train.genes) if gene not in train.perturbations]
        rule = fit_rule(name, train) if name == OWN_GENE else prior_of(name).fit(train)
        control = train.control_means[0]
        intercept, slope = KINDS[kind]
        for i in new:
            effect = rule.predict((train.genes[i],))
            assert effect[i] == pytest.approx(max(intercept + slope * control[i], -control[i]), abs=0.6)
            assert np.abs(np.delete(effect, i)).max() < 0.5

    def test_it_stands_on_the_control_cells_that_are_given(self) -> None:
        train = screen("CRISPRi")
        rule = fit_rule(OWN_GENE, train)
        gene = next(i for i, name in enumerate(train.genes) if name not in train.perturbations)
        high = train.control_means[0] + 1
        change = rule.predict((train.genes[gene],), control=high) - rule.predict((train.genes[gene],))
        assert change[gene] == pytest.approx(rule.pooled.own.slope, abs=1e-9)
        assert not np.delete(change, gene).any()

    def test_genes_that_are_not_measured_have_none(self) -> None:
        rule = fit_rule(OWN_GENE, screen("CRISPRa"))
        np.testing.assert_array_equal(rule.predict(("NOWHERE",)), rule.pooled.predict(("NOWHERE",)))

    def test_the_mean_of_the_others_is_that_without_their_own_genes(self) -> None:
        train = screen("CRISPRa")
        rest = train.effects.copy()
        for row, (column,) in enumerate(target_columns(train.perturbed, train.genes)):
            own = fit_own(train)
            rest[row, column] -= own.intercept + own.slope * train.controls[row, column]
        np.testing.assert_allclose(fit_rule(OWN_GENE, train).predict(("NOWHERE",)), rest.mean(axis=0), rtol=1e-9)

    def test_two_perturbed_genes_change_both(self) -> None:
        train = screen("CRISPRa")
        effect = fit_rule(OWN_GENE, train).predict(train.genes[:2])
        assert min(effect[:2]) > 1.5
        assert np.abs(effect[2:]).max() < 0.5
