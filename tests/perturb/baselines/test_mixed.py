"""The mixed model against dense formulas: generalised least squares, best linear prediction, restricted likelihood."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

from scgalore.perturb.baselines.mixed import _Design, fit_mixed
from scgalore.perturb.labels.parsing import canonical_name

Perturbed = list[tuple[str, ...]]


def design(n_perturbed: int, n_doubles: int, *, seed: int = 0) -> Perturbed:
    """All singles, and some of the doubles."""
    genes = [f"G{i:03d}" for i in range(n_perturbed)]
    pairs = list(combinations(genes, 2))
    chosen = np.random.default_rng(seed).choice(len(pairs), n_doubles, replace=False)
    return [(gene,) for gene in genes] + [pairs[i] for i in chosen]


def simulated(
    perturbed: Perturbed,
    *,
    gene: float = 1.0,
    residual: float = 0.2,
    interaction: float = 0.5,
    noise: float = 0.1,
    n_measured: int = 50,
    seed: int = 0,
) -> np.ndarray:
    """Effects drawn from the model, with a mean effect that differs between measured genes."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(0.3, 0.5, n_measured)
    names = sorted({name for part in perturbed for name in part})
    of_gene = {name: rng.normal(0, np.sqrt(gene), n_measured) for name in names}
    rows = []
    for part in perturbed:
        spread = residual + noise + interaction * (len(part) > 1)
        rows.append(sum(mean + of_gene[name] for name in part) + rng.normal(0, np.sqrt(spread), n_measured))
    return np.array(rows)


def found_variances(perturbed: Perturbed, effects: np.ndarray, noise: np.ndarray) -> np.ndarray:
    return _Design.of(perturbed, noise).variances(effects)


def deviance(perturbed: Perturbed, effects: np.ndarray, noise: np.ndarray, variances: np.ndarray) -> float:
    """Twice the negative log-likelihood of contrasts that do not depend on the mean."""
    gene, residual, interaction = variances
    names = sorted({name for part in perturbed for name in part})
    z = np.array([[float(name in part) for name in names] for part in perturbed])
    n_genes = z.sum(axis=1)
    covariance = gene * z @ z.T + np.diag(noise + residual + interaction * (n_genes > 1))
    contrasts = linalg.null_space(n_genes[None])
    inner = contrasts.T @ covariance @ contrasts
    y = contrasts.T @ effects
    return float(effects.shape[1] * np.linalg.slogdet(inner)[1] + np.sum(y * np.linalg.solve(inner, y)))


class TestAgainstDenseFormulas:
    @pytest.mark.parametrize(("n_perturbed", "n_doubles"), [(8, 12), (6, 0), (10, 3), (5, 10)])
    def test_mean_and_predictions(self, n_perturbed: int, n_doubles: int) -> None:
        perturbed = design(n_perturbed, n_doubles)
        effects = simulated(perturbed)
        noise = np.random.default_rng(1).uniform(0.05, 0.3, len(perturbed))
        gene, residual, interaction = found_variances(perturbed, effects, noise)
        mean, names, rows = fit_mixed(perturbed, effects, noise)

        genes = sorted({name for part in perturbed for name in part})
        z = np.array([[float(name in part) for name in genes] for part in perturbed])
        k = z.sum(axis=1)
        several = k > 1
        inverse = np.linalg.inv(gene * z @ z.T + np.diag(noise + residual + interaction * several))
        expected_mean = (k @ inverse @ effects) / (k @ inverse @ k)
        rest = inverse @ (effects - np.outer(k, expected_mean))
        of_genes = expected_mean + gene * z.T @ rest
        np.testing.assert_allclose(mean, expected_mean, rtol=1e-8, atol=1e-10)
        assert names == (*genes, *(canonical_name(part) for part in perturbed if len(part) > 1))
        np.testing.assert_allclose(rows[: len(genes)], of_genes, rtol=1e-7, atol=1e-9)
        of_several = z[several] @ of_genes + interaction * rest[several]
        np.testing.assert_allclose(rows[len(genes) :], of_several, rtol=1e-7, atol=1e-9)

    @pytest.mark.parametrize("seed", range(3))
    def test_no_variances_of_a_grid_are_likelier(self, seed: int) -> None:
        perturbed = design(9, 15, seed=seed)
        effects = simulated(perturbed, seed=seed)
        noise = np.full(len(perturbed), 0.1)
        best = found_variances(perturbed, effects, noise)
        lowest = deviance(perturbed, effects, noise, best)
        factors = (0.2, 0.5, 0.8, 0.95, 1.05, 1.25, 2.0, 5.0)
        for scale in product(factors, repeat=3):
            assert deviance(perturbed, effects, noise, best * scale) > lowest - 1e-2

    def test_singles_need_one_variance_only(self) -> None:
        perturbed = design(12, 0)
        effects = simulated(perturbed)
        noise = np.full(len(perturbed), 0.1)
        best = found_variances(perturbed, effects, noise)
        assert best[1:].tolist() == [0, 0]
        lowest = deviance(perturbed, effects, noise, best)
        for factor in (0.3, 0.9, 1.1, 3.0):
            assert deviance(perturbed, effects, noise, best * factor) > lowest


def test_variances_are_found_again() -> None:
    perturbed = design(40, 150)
    gene, residual, interaction = truth = (1.0, 0.2, 0.5)
    effects = simulated(perturbed, gene=gene, residual=residual, interaction=interaction, noise=0.1, n_measured=60)
    found = found_variances(perturbed, effects, np.full(len(perturbed), 0.1))
    np.testing.assert_allclose(found, truth, rtol=0.15)


class TestLimits:
    def test_singles_without_noise_stay_as_measured(self) -> None:
        perturbed = design(7, 0)
        effects = simulated(perturbed)
        _, names, rows = fit_mixed(perturbed, effects, np.zeros(7))
        assert names == tuple(part[0] for part in perturbed)
        np.testing.assert_allclose(rows, effects, rtol=1e-6, atol=1e-6)

    def test_everything_without_noise_stays_nearly_as_measured(self) -> None:
        perturbed = design(6, 8)
        effects = simulated(perturbed, residual=1e-6, noise=0.0)
        _, names, rows = fit_mixed(perturbed, effects, np.zeros(len(perturbed)))
        place = {name: i for i, name in enumerate(names)}
        for part, effect in zip(perturbed, effects, strict=True):
            np.testing.assert_allclose(rows[place[canonical_name(part)]], effect, atol=0.02)

    @pytest.mark.parametrize("perturbed", [[("A",)], [("A", "B")], [("A", "B", "C")]])
    def test_one_perturbation_is_shared_among_its_genes(self, perturbed: Perturbed) -> None:
        effects = np.random.default_rng(0).normal(0, 1, (1, 9))
        mean, names, rows = fit_mixed(perturbed, effects, np.array([0.1]))
        np.testing.assert_allclose(mean, effects[0] / len(perturbed[0]), rtol=1e-9)
        np.testing.assert_allclose(rows[names.index("A")], mean, rtol=1e-9)
        np.testing.assert_allclose(rows[names.index(canonical_name(perturbed[0]))], effects[0], rtol=1e-9)

    def test_no_effect_at_all(self) -> None:
        perturbed = design(4, 3)
        for effects in (np.zeros((7, 5)), np.full((7, 5), 1e-9)):
            mean, _, rows = fit_mixed(perturbed, effects, np.full(7, 0.1))
            np.testing.assert_allclose(mean, 0, atol=1e-8)
            np.testing.assert_allclose(rows, 0, atol=1e-8)

    def test_a_perturbation_measured_in_several_contexts_without_noise(self) -> None:
        perturbed: Perturbed = [("A",), ("B",), ("C",)] * 2
        effects = np.random.default_rng(0).normal(0, 1, (6, 8))
        mean, names, rows = fit_mixed(perturbed, effects, np.zeros(6))
        assert names == ("A", "B", "C")
        assert np.isfinite(mean).all()
        np.testing.assert_allclose(rows, (effects[:3] + effects[3:]) / 2, atol=0.05)


class TestShrinkage:
    def test_noisier_measurements_are_trusted_less(self) -> None:
        perturbed = design(15, 0)
        effects = simulated(perturbed, gene=1.0, residual=0.0, noise=0.2)
        spreads = []
        for noise in (0.0, 0.05, 0.2, 0.6):
            mean, _, rows = fit_mixed(perturbed, effects, np.full(15, noise))
            spreads.append(float(np.square(rows - mean).mean()))
        assert all(less < more for more, less in zip(spreads[:-1], spreads[1:], strict=True))

    def test_of_two_perturbations_the_noisier_one_is_drawn_to_the_mean(self) -> None:
        perturbed = design(15, 0)
        effects = simulated(perturbed, residual=0.0)
        effects[0] = effects[1]
        noise = np.full(15, 0.05)
        noise[0] = 2.0
        mean, _, rows = fit_mixed(perturbed, effects, noise)
        trusted, doubted = (np.linalg.norm(row - mean) for row in (rows[1], rows[0]))
        assert doubted < 0.6 * trusted

    def test_a_gene_unseen_has_the_mean_effect_and_the_mean_is_right(self) -> None:
        perturbed = design(60, 60)
        effects = simulated(perturbed, n_measured=40)
        mean, _, _ = fit_mixed(perturbed, effects, np.full(len(perturbed), 0.1))
        truth = np.random.default_rng(0).normal(0.3, 0.5, 40)  # as simulated() draws it
        # Of 60 genes of variance 1: standard error 0.13.
        assert np.abs(mean - truth).max() < 5 * 0.13

    @pytest.mark.parametrize(("noise", "tolerance"), [(1e-4, 0.03), (1e-2, 0.15)])
    def test_unseen_doubles_of_measured_singles_approach_the_sum(self, noise: float, tolerance: float) -> None:
        perturbed = design(10, 12)
        effects = simulated(perturbed, residual=0.0, interaction=0.0, noise=noise)
        _, names, rows = fit_mixed(perturbed, effects, np.full(len(perturbed), noise))
        place = {name: i for i, name in enumerate(names)}
        unseen = [pair for pair in combinations(names[:10], 2) if canonical_name(pair) not in place]
        assert len(unseen) == 33
        for a, b in unseen:
            total = effects[place[a]] + effects[place[b]]  # singles come first, in the order of their names
            spread = np.sqrt(np.square(rows[place[a]] + rows[place[b]] - total).mean())
            assert spread < tolerance

    def test_interactions_that_were_measured_are_kept(self) -> None:
        perturbed = design(12, 30)
        effects = simulated(perturbed, residual=0.0, interaction=2.0, noise=0.01)
        _, names, rows = fit_mixed(perturbed, effects, np.full(len(perturbed), 0.01))
        place = {name: i for i, name in enumerate(names)}
        for part, effect in zip(perturbed[12:], effects[12:], strict=True):
            whole = rows[place[canonical_name(part)]]
            parts = sum(rows[place[gene]] for gene in part)
            assert np.linalg.norm(whole - effect) < 0.2 * np.linalg.norm(parts - effect)


@given(st.permutations(range(16)))
@settings(max_examples=15)
def test_order_of_perturbations_changes_nothing(order: list[int]) -> None:
    perturbed = design(7, 9)
    effects = simulated(perturbed)
    noise = np.random.default_rng(1).uniform(0.05, 0.3, 16)
    mean, names, rows = fit_mixed(perturbed, effects, noise)
    other = fit_mixed([perturbed[i] for i in order], effects[order], noise[order])
    np.testing.assert_allclose(other[0], mean, atol=1e-3)
    for name, row in zip(names, rows, strict=True):
        np.testing.assert_allclose(other[2][other[1].index(name)], row, atol=1e-3)
