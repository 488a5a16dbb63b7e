"""Rules of compounds at doses: each against its formula or what must hold of it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dosed_screens import COMPOUNDS, DOSES, KEYS, dosed

from scgalore.errors import DataError, OptionError
from scgalore.perturb.baselines.choice import candidates_of, choose_prior
from scgalore.perturb.baselines.dose import DoseEffects, log_dose
from scgalore.perturb.baselines.effects import RULE_SETS, Effects, fit_rule, held_out_effects, prior_of
from scgalore.perturb.labels.parsing import at_dose, subject_of
from scgalore.perturb.labels.profiles import Profiles
from scgalore.perturb.labels.screen import Screen

OF_COMPOUNDS = RULE_SETS["compound"].rules
N = 25


def profiles(
    effects: dict[tuple[str, float], np.ndarray], *, contexts: int = 1, shift: float = 1.0, noise: float = 0.0
) -> Profiles:
    """Rows with these effects in each context, whose control expression differs."""
    pairs = [(c, compound, dose) for c in range(contexts) for compound, dose in effects]
    control = np.random.default_rng(5).uniform(1, 2, (contexts, N))
    control[1:] += shift
    means = np.array([control[c] + effects[compound, dose] for c, compound, dose in pairs])
    names = tuple(at_dose(compound, dose) for _, compound, dose in pairs)
    return Profiles(
        genes=tuple(f"G{i}" for i in range(N)),
        perturbations=names,
        perturbed=tuple((name,) for name in names),
        context_names=tuple(f"line {c}" if contexts > 1 else "" for c in range(contexts)),
        contexts=np.array([c for c, _, _ in pairs]),
        means=means,
        variances=np.full(means.shape, noise),
        n_cells=np.full(len(names), 10),
        control_means=control,
        control_variances=np.zeros_like(control),
        n_controls=np.full(contexts, 10),
        kind="compound",
    )


def drawn(
    seed: int = 0, compounds: tuple[str, ...] = COMPOUNDS, doses: tuple[float, ...] = DOSES
) -> tuple[Profiles, pd.DataFrame]:
    """Heights that are linear in vectors, times a share of the dose, with some noise."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(len(compounds), 3))
    heights = vectors @ rng.normal(size=(3, N))
    rows = {
        (name, dose): heights[i] * dose / (dose + 1) + rng.normal(0, 0.1, N)
        for i, name in enumerate(compounds)
        for dose in doses
    }
    return profiles(rows, noise=0.1), pd.DataFrame(vectors, index=list(compounds))


def at(rule: Effects, compound: str, dose: float, context: str = "") -> np.ndarray:
    return rule.predict((at_dose(compound, dose),), context)


@pytest.mark.parametrize("name", ["dose mean", "dose interpolation", "vector ridge", "dose response"])
def test_above_the_highest_dose_effects_are_held(name: str) -> None:
    train, vectors = drawn()
    rule = fit_rule(name, train, embeddings=vectors)
    np.testing.assert_array_equal(at(rule, "dex", 1e7), at(rule, "dex", max(DOSES)))
    assert np.abs(at(rule, "dex", max(DOSES)) - at(rule, "dex", max(DOSES) / 2)).max() > 0


class TestCurves:
    train = profiles({("a", 1.0): np.full(N, 1.0), ("a", 100.0): np.full(N, 3.0), ("b", 1.0): np.full(N, 2.0)})

    def test_lines_between_doses_and_to_no_effect_at_no_dose(self) -> None:
        rule = fit_rule("dose interpolation", self.train)
        np.testing.assert_allclose(at(rule, "a", 1.0), 1.0)
        np.testing.assert_allclose(at(rule, "a", 100.0), 3.0)
        np.testing.assert_allclose(at(rule, "a", 1e5), 3.0)
        share = (log_dose(10.0, 1.0) - log_dose(1.0, 1.0)) / (log_dose(100.0, 1.0) - log_dose(1.0, 1.0))
        np.testing.assert_allclose(at(rule, "a", 10.0), 1 + 2 * share)
        np.testing.assert_allclose(at(rule, "a", 0.1), log_dose(0.1, 1.0) / log_dose(1.0, 1.0))
        np.testing.assert_allclose(at(rule, "a", 1e-9), 0.0, atol=1e-7)

    def test_a_compound_that_was_not_measured_gets_the_mean_curve(self) -> None:
        rules = [fit_rule(name, self.train) for name in ("dose interpolation", "dose mean")]
        for rule in rules:
            np.testing.assert_allclose(at(rule, "new", 1.0), 1.5)
            np.testing.assert_allclose(at(rule, "new", 100.0), 3.0)
        np.testing.assert_allclose(at(rules[1], "a", 1.0), 1.5)

    def test_means_of_all_and_of_the_compound(self) -> None:
        np.testing.assert_allclose(at(fit_rule("training mean", self.train), "new", 7.0), 2.0)
        matching = fit_rule("matching mean", self.train)
        np.testing.assert_allclose(at(matching, "a", 5.0), 2.0)
        np.testing.assert_allclose(at(matching, "new", 5.0), 2.0)


class TestResponse:
    def test_it_is_the_best_linear_prediction_of_its_covariance(self) -> None:
        train, vectors = drawn()
        effects = fit_rule("dose response", train, embeddings=vectors)
        rule = effects.pooled.rules[0]
        assert isinstance(rule, DoseEffects)
        length, of_vectors, _, *variances = rule.numbers
        centred = vectors - vectors.mean()

        def covariance(one: str, other: str) -> float:
            (a, d), (b, e) = (rule.space.place((name,)) for name in (one, other))
            dose = np.exp(-((d - e) ** 2) / (2 * length**2)) - np.exp(-(d**2 + e**2) / (2 * length**2))
            x, y = centred.loc[a], centred.loc[b]
            alike = [1.0, 2 * x @ y / of_vectors, np.exp(-((x - y) ** 2).sum() / (2 * of_vectors)), float(a == b)]
            return float(dose * np.dot(variances[:4], alike))

        names = train.perturbations
        noise = 0.1 / 10 + variances[-1]
        gram = np.array([[covariance(a, b) for b in names] for a in names]) + noise * np.eye(len(names))
        for asked in ("dex@0.3", "7@5", "IL6@10"):
            weights = np.linalg.solve(gram, [covariance(asked, name) for name in names])
            np.testing.assert_allclose(effects.predict((asked,)), weights @ train.effects, rtol=1e-4, atol=1e-5)

    def test_variances_are_those_of_highest_likelihood(self) -> None:
        train, vectors = drawn()
        rule = fit_rule("dose response", train, embeddings=vectors).pooled.rules[0]
        assert isinstance(rule, DoseEffects)
        # What the compounds share was not drawn, and what their vectors say was.
        shared, linear = rule.numbers[3], rule.numbers[4]
        assert linear > 3 * shared

    @pytest.mark.parametrize("seed", range(3))
    def test_doses_and_compounds_that_were_held_out(self, seed: int) -> None:
        train, vectors = drawn(seed, tuple(f"c{i}" for i in range(14)), (0.03, 0.3, 3.0, 30.0))
        is_new = np.array([subject_of(name) in ("c0", "c1", "c2") for name in train.perturbations])
        is_dose = np.array([name.endswith("@3") for name in train.perturbations])
        # Nothing tells what happens between two doses but that curves are smooth, which lines are, too.
        for held, others, share in (
            (is_new, ["dose mean", "training mean"], 0.7),
            (is_dose, ["dose mean", "dose interpolation"], 1.1),
        ):
            known, asked = train.take(np.flatnonzero(~held)), train.take(np.flatnonzero(held))
            error = {
                name: ((fit_rule(name, known, embeddings=vectors).predict_rows(asked) - asked.effects) ** 2).mean()
                for name in ("dose response", *others)
            }
            assert error["dose response"] < share * min(error[name] for name in others)

    def test_it_vanishes_with_the_dose(self) -> None:
        train, vectors = drawn()
        rule = fit_rule("dose response", train, embeddings=vectors)
        sizes = [np.abs(at(rule, "dex", dose)).max() for dose in (1.0, 1e-2, 1e-4, 1e-8)]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[-1] < 1e-5

    def test_a_new_context_is_predicted_by_those_most_like_it(self) -> None:
        rng = np.random.default_rng(0)
        # Two kinds of cells with opposite effects, three contexts of each.
        effect = rng.normal(size=N)
        rows = profiles({("stim", 1.0): np.zeros(N)}, contexts=6, shift=0.0)
        kind = np.repeat([0, 1], 3)
        control = np.where(kind[:, None] == 0, 1.0, 3.0) + rng.normal(0, 0.05, (6, N))
        means = control + np.where(kind[:, None] == 0, effect, -effect) + rng.normal(0, 0.05, (6, N))
        rows = replace(rows, means=means, control_means=control)
        for held in range(6):
            rule = fit_rule("dose response", rows.take(np.flatnonzero(np.arange(6) != held)))
            predicted = rule.predict(("stim@1",), f"line {held}", control=control[held])
            assert ((predicted - rows.effects[held]) ** 2).mean() < 0.15 * (effect**2).mean()

    def test_one_row_is_enough(self) -> None:
        for name in OF_COMPOUNDS:
            rule = fit_rule(
                name, profiles({("a", 1.0): np.ones(N)}, noise=0.1), embeddings=pd.DataFrame([[1.0]], index=["a"])
            )
            assert np.isfinite(at(rule, "a", 2.0)).all()


@pytest.mark.parametrize("name", OF_COMPOUNDS)
def test_order_of_rows_changes_nothing(name: str) -> None:
    train, vectors = drawn()
    order = np.random.default_rng(1).permutation(len(train))
    one, other = (fit_rule(name, rows, embeddings=vectors) for rows in (train, train.take(order)))
    np.testing.assert_allclose(at(one, "dex", 0.4), at(other, "dex", 0.4), rtol=1e-3, atol=1e-4)


@given(seed=st.integers(0, 1000), name=st.sampled_from(OF_COMPOUNDS), factor=st.sampled_from([1e-3, 1e3]))
@settings(max_examples=20)
def test_the_unit_of_the_dose_changes_nothing(seed: int, name: str, factor: float) -> None:
    train, vectors = drawn(seed, COMPOUNDS[:4])
    other = [at_dose(subject_of(name), float(name.rpartition("@")[2]) * factor) for name in train.perturbations]
    scaled = replace(train, perturbations=tuple(other), perturbed=tuple((name,) for name in other))
    one, two = (fit_rule(name, rows, embeddings=vectors) for rows in (train, scaled))
    np.testing.assert_allclose(at(one, "IL6", 0.5), at(two, "IL6", 0.5 * factor), rtol=1e-4, atol=1e-5)


class TestKnowing:
    @pytest.mark.parametrize("name", ["vector ridge", "dose response"])
    def test_a_compound_that_came_with_its_vector_later(self, name: str) -> None:
        train, vectors = drawn()
        known = vectors.drop("dex")
        rows = train.take([i for i, one in enumerate(train.perturbations) if subject_of(one) != "dex"])
        rule, at_once = (fit_rule(name, rows, embeddings=table) for table in (known, vectors))
        with pytest.raises(DataError, match="compound 'dex' has no vector"):
            at(rule, "dex", 1.0)
        np.testing.assert_allclose(at(rule.knowing(vectors), "dex", 1.0), at(at_once, "dex", 1.0), rtol=1e-9)
        np.testing.assert_array_equal(at(rule.knowing(vectors), "tsa", 1.0), at(rule, "tsa", 1.0))

    def test_what_is_no_compound_at_a_dose(self) -> None:
        rule = fit_rule("dose mean", drawn()[0])
        np.testing.assert_array_equal(rule.predict(()), np.zeros(N))
        with pytest.raises(DataError, match="'KLF1' is not one compound at a dose"):
            rule.predict(("KLF1",))

    def test_rules_of_genes_are_refused(self) -> None:
        with pytest.raises(
            OptionError, match="'additive' is not available for compound perturbations; choose one of 'control mean'"
        ):
            fit_rule("additive", drawn()[0])


class TestHoldingOut:
    def test_questions_are_asked_of_compounds(self) -> None:
        train, vectors = drawn()
        fitted = prior_of("dose response").fit(train, embeddings=vectors).pooled
        assert [fitted.question((name,)) for name in ("dex@1", "dex@2", "new@1")] == ["measured", "seen", "unseen"]

    def test_rows_are_not_told_their_own_effect(self) -> None:
        train, vectors = drawn()
        recipe = prior_of("dose response")
        changed = replace(train, means=train.means + np.where(np.arange(len(train)) == 4, 50.0, 0.0)[:, None])
        one, other = (held_out_effects(recipe, rows, embeddings=vectors) for rows in (train, changed))
        np.testing.assert_array_equal(one[4], other[4])
        assert not np.array_equal(one[5], other[5])

    def test_one_compound_is_held_out_context_by_context(self) -> None:
        rows = profiles({("stim", 1.0): np.ones(N)}, contexts=3)
        found = held_out_effects(prior_of("dose response"), rows)
        assert (found > 0.5).all()
        changed = replace(rows, means=rows.means + np.array([9.0, 0, 0])[:, None])
        np.testing.assert_array_equal(held_out_effects(prior_of("dose response"), changed)[0], found[0])

    def test_a_choice_of_priors_with_its_scores(self) -> None:
        train, vectors = drawn()
        choice = choose_prior(train, embeddings=vectors)
        candidates = candidates_of(RULE_SETS["compound"])
        for question in ("seen", "unseen"):
            part = choice.table[choice.table["question"] == question].set_index("candidate")
            assert list(part.index) == ["control mean", *candidates]
            assert part["chosen"].sum() == 1
            error = part["mse"].to_dict()
            assert part["mse"][part["chosen"]].item() <= error["dose response"]
            assert error["dose response"] < 0.5 * error["control mean"]


def test_cells_of_a_screen() -> None:
    adata = dosed(contexts=("A", "B"))
    adata.obs["split"] = np.where(adata.obs["drug"] == "dex", "test", "train")
    screen = Screen.from_adata(adata, **KEYS, context_key="cell_line", vectors_key="fingerprints", split_key="split")
    train, test = screen.profiles("train"), screen.profiles("test")
    assert train.kind == test.kind == "compound"
    assert set(test.perturbations) == {"dex@0.1", "dex@1", "dex@10"}
    error = {
        name: ((fit_rule(name, train, embeddings=screen.vectors).predict_rows(test) - test.effects) ** 2).mean()
        for name in ("control mean", "dose mean", "dose response")
    }
    assert error["dose response"] < min(error["control mean"], error["dose mean"])
