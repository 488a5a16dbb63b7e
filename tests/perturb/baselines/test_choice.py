"""The prior is chosen by perturbations that rules were not fitted to, and by nothing else."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from scgalore.perturb.baselines.choice import CLEAR, COLUMNS, FEWEST, REFERENCES, candidates_of, choose_prior
from scgalore.perturb.baselines.effects import QUESTIONS, RULE_SETS, fit_rule, prior_of
from scgalore.perturb.labels.parsing import canonical_name
from scgalore.perturb.labels.profiles import Profiles

N = 80
RULES = RULE_SETS["gene"].stacked
GENES = tuple(f"G{i:02d}" for i in range(N))


def profiles(
    perturbed: Sequence[tuple[str, ...]], effects: np.ndarray, *, contexts: list[int] | None = None
) -> Profiles:
    n = len(perturbed)
    codes = np.zeros(n, dtype=np.int64) if contexts is None else np.array(contexts)
    control = np.random.default_rng(9).uniform(1, 3, (codes.max(initial=0) + 1, N))
    return Profiles(
        genes=GENES,
        perturbations=tuple(map(canonical_name, perturbed)),
        perturbed=tuple(perturbed),
        context_names=tuple(f"line {i}" if contexts else "" for i in range(len(control))),
        contexts=codes,
        means=control[codes] + effects,
        variances=np.zeros((n, N)),
        n_cells=np.ones(n, dtype=np.int64),
        control_means=control,
        control_variances=np.zeros_like(control),
        n_controls=np.ones(len(control), dtype=np.int64),
    )


def singles(n: int, *, mean: float = 0.0, spread: float = 1.0, own: float = 0.0, seed: int = 0) -> Profiles:
    """Singles with a shared effect, one of their own, and one on the target itself."""
    rng = np.random.default_rng(seed)
    targets = rng.permutation(N)[:n]
    effects = mean * rng.normal(0, 1, N) + spread * rng.normal(0, 1, (n, N))
    effects[np.arange(n), targets] += own
    return profiles([(GENES[i],) for i in targets], effects)


def combined(n_genes: int = 8, n_doubles: int = 14, *, seed: int = 0) -> Profiles:
    """All singles and some of the doubles, additive."""
    rng = np.random.default_rng(seed)
    of_gene = {f"X{i}": rng.normal(0.3, 1, N) for i in range(n_genes)}
    pairs = list(combinations(of_gene, 2))
    perturbed = [(gene,) for gene in of_gene] + [pairs[i] for i in rng.choice(len(pairs), n_doubles, replace=False)]
    effects = [sum((of_gene[gene] for gene in part), np.zeros(N)) + rng.normal(0, 0.1, N) for part in perturbed]
    return profiles(perturbed, np.array(effects))


def of_table(table: pd.DataFrame, question: str) -> pd.DataFrame:
    return table[table["question"] == question].set_index("candidate")


class TestTable:
    def test_every_candidate_and_reference_is_scored_for_each_question(self) -> None:
        choice = choose_prior(combined())
        assert list(choice.table.columns) == list(COLUMNS)
        for question in ("seen", "unseen"):
            part = of_table(choice.table, question)
            assert list(part.index) == [*REFERENCES, *candidates_of(RULE_SETS["gene"])]
            assert part["chosen"].sum() == 1
            assert part.loc["mixed", "difference"] == 0

    def test_errors_are_those_of_fits_to_the_other_perturbations(self) -> None:
        """Of rules with a fixed weight, where leaving out a gene is leaving out its perturbation."""
        train = combined()
        part = of_table(choose_prior(train).table, "seen")
        errors: dict[str, list[float]] = {rule: [] for rule in RULES}

        def ask(out: set[int], row: int) -> None:
            rest = train.take([i for i in range(len(train)) if i not in out])
            if not {gene for genes in rest.perturbed for gene in genes}.isdisjoint(train.perturbed[row]):
                for rule in RULES:
                    effect = prior_of(rule).fit(rest).predict(train.perturbed[row])
                    errors[rule].append(float(((effect - train.effects[row]) ** 2).mean()))

        for row in range(len(train)):
            ask({row}, row)
        for gene in {gene for genes in train.perturbed for gene in genes}:
            with_it = {i for i, genes in enumerate(train.perturbed) if gene in genes}
            for row in with_it:
                ask(with_it, row)
        for rule in RULES:
            assert part.loc[rule, "mse"] == pytest.approx(np.mean(errors[rule]), rel=1e-3)

    @pytest.mark.parametrize("n", [1, 2])
    def test_too_few_perturbations_leave_the_default(self, n: int) -> None:
        choice = choose_prior(singles(n, mean=1))
        assert choice.recipe.rules == ("mixed",)
        assert np.isfinite(choice.recipe.fit(singles(n, mean=1)).predict(("NEW",))).all()

    def test_contexts_of_one_perturbation_are_held_out_together(self) -> None:
        """Otherwise what a perturbation does in one context would be told by the other."""
        rng = np.random.default_rng(0)
        effects = rng.normal(0, 1, (12, N))
        perturbed: list[tuple[str, ...]] = [(f"X{i}",) for i in range(12)]
        both = profiles(perturbed * 2, np.concatenate([effects, effects]), contexts=[0] * 12 + [1] * 12)
        table = choose_prior(both).table
        assert set(table["question"]) == {"unseen"}
        part = of_table(table, "unseen")
        assert part.loc["mixed", "n"] == 12
        assert part["mse"]["mixed"] > 0.9  # of a variance of 1


class TestShrinkage:
    def test_where_perturbations_have_nothing_in_common_an_unseen_gene_has_hardly_an_effect(self) -> None:
        choice = choose_prior(singles(30))
        weights = dict(zip(QUESTIONS, choice.recipe.weights, strict=True))  # type: ignore[arg-type]
        assert weights["unseen"].sum() < 0.3
        assert weights["measured"].sum() == weights["seen"].sum() == 1

    def test_what_all_share_is_kept(self) -> None:
        choice = choose_prior(singles(30, mean=1.0, spread=0.3))
        assert choice.recipe.weights is not None
        assert choice.recipe.weights[QUESTIONS.index("unseen")].sum() > 0.95

    def test_unseen_genes_are_predicted_better_than_by_no_effect_and_by_the_mean(self) -> None:
        """Over many screens of few, weak and heterogeneous perturbations."""
        errors = []
        for seed in range(12):
            everything = singles(40, mean=0.3, spread=1.0, own=3.0, seed=seed)
            train, test = everything.take(range(14)), everything.take(range(14, 40))
            rules = [fit_rule(name, train) for name in ("control mean", "training mean")]
            rules.append(choose_prior(train).recipe.fit(train))
            errors.append([((rule.predict_rows(test) - test.effects) ** 2).mean() for rule in rules])
        no_effect, mean, chosen = np.mean(errors, axis=0)
        assert chosen < min(no_effect, mean)

    def test_one_perturbation_of_several_genes_does_not_hang_on_the_weight_of_unseen_ones(self) -> None:
        train = combined()
        fitted = choose_prior(train).recipe.fit(train)
        np.testing.assert_allclose(
            fitted.predict(("X0", "X1")), prior_of("mixed").fit(train).predict(("X0", "X1")), atol=0.2
        )


class TestChoice:
    def test_singles_say_nothing_of_the_rule_for_doubles(self) -> None:
        """All means are the same for what is unseen; for doubles of measured singles only sums will do."""
        train = singles(30, mean=1.0)
        recipe = choose_prior(train).recipe
        assert recipe.weights is not None
        seen = dict(zip(recipe.rules, recipe.weights[QUESTIONS.index("seen")], strict=True))
        assert seen["mixed"] == 1

    def test_another_rule_needs_to_be_clearly_better(self) -> None:
        for seed in range(4):
            table = choose_prior(combined(seed=seed)).table
            for question in ("seen", "unseen"):
                part = of_table(table, question)
                chosen = part[part["chosen"]].iloc[0]
                if chosen.name != "mixed":
                    assert chosen["n"] >= FEWEST
                    assert chosen["difference"] < -CLEAR * chosen["standard_error"]

    def test_a_rule_that_knows_more_is_chosen(self) -> None:
        """Embeddings that hold the effects of unseen genes."""
        rng = np.random.default_rng(0)
        vectors = pd.DataFrame(rng.normal(size=(45, 3)), index=[f"X{i}" for i in range(45)])
        loadings = rng.normal(0, 1, (3, N))
        effects = vectors.to_numpy() @ loadings + rng.normal(0, 0.2, (45, N))
        everything = profiles([(name,) for name in vectors.index], effects)
        train, test = everything.take(range(35)), everything.take(range(35, 45))
        choice = choose_prior(train, embeddings=vectors)
        part = of_table(choice.table, "unseen")
        assert part.index[part["chosen"]].tolist()[0] in ("linear", "stack")
        fitted = choice.recipe.fit(train, embeddings=vectors)
        rivals = fit_rule("training mean", train)
        error, of_mean = (((rule.predict_rows(test) - test.effects) ** 2).mean() for rule in (fitted, rivals))
        assert error < 0.3 * of_mean

    def test_weights_of_a_perturbation_come_from_others(self) -> None:
        """One perturbation that is all the mean must not make the mean look right for itself."""
        train = singles(12)
        table = choose_prior(train).table
        part = of_table(table, "unseen")
        assert part["mse"]["training mean"] >= part["mse"]["own gene"] - 0.05

    def test_order_of_rows_changes_nothing(self) -> None:
        train = combined()
        one = choose_prior(train)
        other = choose_prior(train.take(np.random.default_rng(0).permutation(len(train))))
        assert one.recipe.rules == other.recipe.rules
        np.testing.assert_allclose(one.recipe.weights, other.recipe.weights, atol=0.05)  # type: ignore[arg-type]
