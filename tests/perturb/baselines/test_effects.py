"""Each rule against its formula, written down once more."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from hypothesis import given, settings
from hypothesis import strategies as st

from scgalore.errors import DataError, OptionError
from scgalore.perturb.baselines.effects import (
    OWN_GENE,
    PRIORS,
    RECIPES,
    RULE_SETS,
    SUB_ADDITIVE,
    fit_rule,
    folds_of,
    held_out_effects,
    prior_of,
)
from scgalore.perturb.labels.parsing import canonical_name
from scgalore.perturb.labels.profiles import Profiles
from scgalore.perturb.labels.screen import Screen

OF_GENES = RULE_SETS["gene"].rules
N_MEASURED = 15
GENES = tuple(f"G{i:02d}" for i in range(N_MEASURED))
SINGLES = [("G00",), ("G01",), ("G02",), ("G03",), ("X1",), ("X2",)]
DOUBLES = [("G00", "G01"), ("G02", "X1"), ("X1", "X2"), ("G04", "G05")]
PERTURBED = SINGLES + DOUBLES


def measured(
    perturbed: Sequence[tuple[str, ...]],
    effects: np.ndarray,
    *,
    contexts: Sequence[int] | None = None,
    context_names: tuple[str, ...] = ("",),
) -> Profiles:
    """Profiles with these effects; the controls of contexts differ."""
    n, n_genes = effects.shape
    codes = np.zeros(n, dtype=np.int64) if contexts is None else np.asarray(contexts, dtype=np.int64)
    controls = np.random.default_rng(99).uniform(0, 2, (len(context_names), n_genes))
    return Profiles(
        genes=GENES[:n_genes],
        perturbations=tuple(map(canonical_name, perturbed)),
        perturbed=tuple(perturbed),
        context_names=context_names,
        contexts=codes,
        means=controls[codes] + effects,
        variances=np.full((n, n_genes), 0.3),
        n_cells=np.full(n, 50),
        control_means=controls,
        control_variances=np.full_like(controls, 0.3),
        n_controls=np.full(len(context_names), 100),
    )


def effects_of(perturbed: Sequence[tuple[str, ...]] = PERTURBED, *, seed: int = 0) -> np.ndarray:
    """Nearly additive effects."""
    rng = np.random.default_rng(seed)
    of_gene = {gene: rng.normal(0.2, 1, N_MEASURED) for gene in sorted({gene for part in PERTURBED for gene in part})}
    return np.array([sum(of_gene[gene] for gene in part) + rng.normal(0, 0.2, N_MEASURED) for part in perturbed])


@pytest.fixture
def train() -> Profiles:
    return measured(PERTURBED, effects_of())


@pytest.fixture
def effect(train: Profiles) -> dict[tuple[str, ...], np.ndarray]:
    return dict(zip(train.perturbed, train.effects, strict=True))


class TestFormulas:
    def test_control_mean_is_no_effect(self, train: Profiles) -> None:
        rule = fit_rule("control mean", train)
        for genes in (("G00",), ("NEW",), ("G00", "G01")):
            np.testing.assert_array_equal(rule.predict(genes), np.zeros(N_MEASURED))

    def test_training_mean_is_that_of_perturbations_not_cells(self, train: Profiles) -> None:
        object.__setattr__(train, "n_cells", np.arange(len(train)) * 100 + 1)
        rule = fit_rule("training mean", train)
        for genes in (("G00",), ("NEW",), ("G00", "G01")):
            np.testing.assert_allclose(rule.predict(genes), train.effects.mean(axis=0), rtol=1e-12)

    def test_additive(self, train: Profiles, effect: dict[tuple[str, ...], np.ndarray]) -> None:
        rule = fit_rule("additive", train)
        np.testing.assert_allclose(rule.predict(("G01", "G03")), effect["G01",] + effect["G03",])
        np.testing.assert_allclose(rule.predict(("G01", "NEW")), effect["G01",])
        np.testing.assert_allclose(rule.predict(("G04",)), 0)  # measured within a double only
        np.testing.assert_allclose(rule.predict(("G01", "G03", "X2")), effect["G01",] + effect["G03",] + effect["X2",])

    def test_matching_mean(self, train: Profiles, effect: dict[tuple[str, ...], np.ndarray]) -> None:
        rule = fit_rule("matching mean", train)
        mean = train.effects.mean(axis=0)
        np.testing.assert_allclose(rule.predict(("G01", "G03")), (effect["G01",] + effect["G03",]) / 2)
        np.testing.assert_allclose(rule.predict(("G01", "NEW")), (effect["G01",] + mean) / 2)
        np.testing.assert_allclose(rule.predict(("NEW",)), mean)

    def test_ridge_with_the_penalty_of_the_smallest_error_left_out(self, train: Profiles) -> None:
        genes = sorted({gene for part in PERTURBED for gene in part})
        x = np.array([[float(gene in part) for gene in genes] for part in PERTURBED])
        y = train.effects

        def fitted(rows: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
            centre, mean = x[rows].mean(axis=0), y[rows].mean(axis=0)
            z = x[rows] - centre
            weights = np.linalg.solve(z.T @ z + penalty * np.eye(len(genes)), z.T @ (y[rows] - mean))
            return weights, mean - centre @ weights

        def left_out(penalty: float) -> float:
            everything = np.arange(len(x))
            errors = []
            for i in everything:
                weights, intercept = fitted(everything != i, penalty)
                errors.append(y[i] - x[i] @ weights - intercept)
            return float(np.square(errors).mean())

        best = min(np.geomspace(1e-2, 1e2, 13), key=left_out)
        weights, intercept = fitted(np.full(len(x), fill_value=True), best)
        rule = fit_rule("ridge", train)
        for wanted in (("G00",), ("G01", "X2"), ("G00", "G01"), ("NEW", "X2")):
            present = np.array([float(gene in wanted) for gene in genes])
            np.testing.assert_allclose(rule.predict(wanted), present @ weights + intercept, rtol=1e-8)

    @pytest.mark.parametrize("with_embeddings", [False, True])
    def test_linear(self, train: Profiles, with_embeddings: bool) -> None:
        def scores(x: np.ndarray) -> np.ndarray:
            centred = x - x.mean(axis=0)
            values, vectors = np.linalg.eigh(centred.T @ centred)
            return centred @ vectors[:, np.argsort(-values)[:10]]

        g = scores(train.effects.T)
        names, p_of = list(GENES), g
        embeddings = None
        if with_embeddings:
            names = ["X1", "G00", "X2", "G02", "G01", "NEW"] + [f"E{i}" for i in range(20)]
            vectors = np.random.default_rng(3).normal(size=(len(names), 24))
            embeddings, p_of = pd.DataFrame(vectors, index=names), scores(vectors)
        place = {name: i for i, name in enumerate(names)}
        rows = [i for i, part in enumerate(PERTURBED) if set(part) <= set(names)]
        assert 2 < len(rows) < len(PERTURBED)
        b = train.effects.mean(axis=0)
        y = (train.effects[rows] - b).T
        p = np.array([sum(p_of[place[gene]] for gene in PERTURBED[i]) for i in rows])
        w = (
            np.linalg.inv(g.T @ g + 0.1 * np.eye(g.shape[1]))
            @ g.T
            @ y
            @ p
            @ np.linalg.inv(p.T @ p + 0.1 * np.eye(p.shape[1]))
        )
        rule = fit_rule("linear", train, embeddings=embeddings)
        known = ("X1", "NEW") if with_embeddings else ("G07", "G02")
        for wanted in (known, known[:1], ("G00", "G01")):
            expected = b + g @ w @ sum(p_of[place[gene]] for gene in wanted)
            np.testing.assert_allclose(rule.predict(wanted), expected, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(rule.predict(("NOWHERE",)), b)

    def test_linear_reads_the_geometry_of_embeddings_only(self, train: Profiles) -> None:
        rng = np.random.default_rng(0)
        names = sorted({gene for part in PERTURBED for gene in part})
        vectors = rng.normal(size=(len(names), 6))
        turned = vectors @ np.linalg.qr(rng.normal(size=(6, 6)))[0] + rng.normal(size=6)
        found = [
            fit_rule("linear", train, embeddings=pd.DataFrame(x, index=names)).predict(("G01", "X2"))
            for x in (vectors, turned)
        ]
        np.testing.assert_allclose(found[0], found[1], rtol=1e-7)


class TestWhatWasMeasured:
    @pytest.mark.parametrize("name", ["additive", "matching mean"])
    @pytest.mark.parametrize("double", DOUBLES)
    def test_a_measured_double_is_looked_up(
        self, train: Profiles, effect: dict[tuple[str, ...], np.ndarray], name: str, double: tuple[str, str]
    ) -> None:
        rule = fit_rule(name, train)
        np.testing.assert_array_equal(rule.predict(double), effect[double])
        np.testing.assert_array_equal(rule.predict(double[::-1]), effect[double])

    @pytest.mark.parametrize("name", OF_GENES)
    def test_no_gene_has_no_effect(self, train: Profiles, name: str) -> None:
        np.testing.assert_array_equal(fit_rule(name, train).predict(()), np.zeros(N_MEASURED))

    @pytest.mark.parametrize("name", OF_GENES)
    def test_order_of_genes_does_not_matter(self, train: Profiles, name: str) -> None:
        rule = fit_rule(name, train)
        for pair in (("G00", "G01"), ("G03", "X2"), ("NEW", "G01")):
            np.testing.assert_allclose(rule.predict(pair), rule.predict(pair[::-1]), rtol=1e-12)


class TestContexts:
    two = ("a line", "b line", "c line")

    def both(self) -> Profiles:
        n_second = len(SINGLES) + 1
        effects = np.concatenate([effects_of(seed=0), effects_of(seed=1)[:n_second]])
        perturbed = PERTURBED + PERTURBED[:n_second]
        contexts = [0] * len(PERTURBED) + [1] * n_second
        return measured(perturbed, effects, contexts=contexts, context_names=self.two)

    # The vectors of genes that the linear rule is given, or makes, are those of all contexts.
    @pytest.mark.parametrize("name", [name for name in OF_GENES if name != "linear"])
    def test_each_has_a_fit_of_its_own(self, name: str) -> None:
        train = self.both()
        rule = fit_rule(name, train)
        for code in (0, 1):
            alone = fit_rule(name, train.take(np.flatnonzero(train.contexts == code)))
            for genes in (("G00",), ("G00", "X2"), ("NEW",)):
                found = rule.predict(genes, self.two[code])
                np.testing.assert_allclose(found, alone.predict(genes, self.two[code]), rtol=1e-9)

    @pytest.mark.parametrize("name", OF_GENES)
    def test_a_context_without_training_rows_gets_the_pooled_fit(self, name: str) -> None:
        rule = fit_rule(name, self.both())
        for genes in (("G00",), ("G00", "X2")):
            elsewhere = rule.predict(genes, "never heard of")
            np.testing.assert_array_equal(rule.predict(genes, "c line"), elsewhere)
            others = [i for i, gene in enumerate(GENES) if gene not in genes]
            np.testing.assert_array_equal(elsewhere[others], rule.pooled.predict(genes)[others])

    @pytest.mark.parametrize("name", ["additive", "matching mean"])
    def test_pooled_effects_of_a_perturbation_are_averaged_over_contexts(self, name: str) -> None:
        train = self.both()
        rule = fit_rule(name, train)
        for genes in PERTURBED[: len(SINGLES) + 1]:
            rows = [i for i, part in enumerate(train.perturbed) if part == genes]
            assert len(rows) == 2
            np.testing.assert_allclose(rule.predict(genes, "c line"), train.effects[rows].mean(axis=0), rtol=1e-12)

    @pytest.mark.parametrize("name", OF_GENES)
    def test_order_of_rows_changes_nothing(self, name: str) -> None:
        train = self.both()
        shuffled = train.take(np.random.default_rng(0).permutation(len(train)))
        # The variances of the mixed rule are searched for, to a tolerance.
        tolerance = 2e-2 if name == "mixed" else 1e-8
        for context in self.two:
            for genes in (("G00",), ("G00", "G01"), ("G03", "X2")):
                found = [fit_rule(name, rows).predict(genes, context) for rows in (train, shuffled)]
                np.testing.assert_allclose(found[0], found[1], rtol=tolerance, atol=tolerance)


class TestHeldOut:
    @pytest.mark.parametrize("name", OF_GENES)
    def test_each_row_is_predicted_from_perturbations_of_other_names(self, name: str) -> None:
        names = ("a line", "b line", "c line")
        perturbed = PERTURBED + SINGLES
        contexts = [0] * len(PERTURBED) + [1] * len(SINGLES)
        effects = np.concatenate([effects_of(seed=0), effects_of(SINGLES, seed=1)])
        train = measured(perturbed, effects, contexts=contexts, context_names=names)
        found = held_out_effects(RECIPES[name], train)
        for i, (genes, context) in enumerate(zip(train.perturbed, train.contexts, strict=True)):
            others = np.flatnonzero([other != genes for other in train.perturbed])
            control = train.control_means[context]
            expected = fit_rule(name, train.take(others)).predict(genes, names[context], control=control)
            np.testing.assert_allclose(found[i], expected, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("name", OF_GENES)
    def test_a_row_is_not_told_its_own_effect(self, name: str) -> None:
        effects = effects_of()
        recipe = prior_of(name)
        found = held_out_effects(recipe, measured(PERTURBED, effects))
        changed = effects.copy()
        changed[4] += 0.1
        np.testing.assert_array_equal(held_out_effects(recipe, measured(PERTURBED, changed))[4], found[4])

    @pytest.mark.parametrize("name", OF_GENES)
    def test_a_perturbation_that_is_alone_has_no_effect(self, name: str) -> None:
        alone = measured([("A",)], np.ones((1, 4)))
        np.testing.assert_array_equal(held_out_effects(RECIPES[name], alone), np.zeros((1, 4)))

    def test_many_perturbations_are_held_out_in_folds(self) -> None:
        names = tuple(f"P{i % 100}" for i in range(150))
        folds = folds_of(names)
        assert len(folds) == 10
        assert sorted(np.concatenate(folds).tolist()) == list(range(150))
        for fold in folds:
            inside = {names[i] for i in fold}
            assert inside.isdisjoint(names[i] for i in np.setdiff1d(np.arange(150), fold))


class TestPriors:
    @pytest.mark.parametrize("name", PRIORS)
    def test_several_genes_do_less_than_their_sum_where_no_such_perturbation_was_measured(self, name: str) -> None:
        train = measured(SINGLES, effects_of(SINGLES))
        plain, prior = fit_rule(name, train), prior_of(name).fit(train)
        others = np.setdiff1d(np.arange(N_MEASURED), [2, 3])
        found, expected = prior.predict(("G02", "X1"))[others], plain.predict(("G02", "X1"))[others]
        np.testing.assert_allclose(found, SUB_ADDITIVE * expected, rtol=0.2, atol=0.05)
        with_doubles = measured(PERTURBED, effects_of())
        assert prior_of(name).fit(with_doubles).pooled.several == 1

    def test_a_measured_perturbation_is_not_shrunken_for_having_several_genes(self) -> None:
        train = measured(PERTURBED, effects_of())
        found = prior_of("additive").fit(train).predict(("X1", "X2"))
        np.testing.assert_allclose(found, train.effects[PERTURBED.index(("X1", "X2"))], rtol=1e-9)


class TestTooLittle:
    @pytest.mark.parametrize("name", OF_GENES)
    @pytest.mark.parametrize("n", [1, 2])
    def test_every_rule_says_something_finite(self, name: str, n: int) -> None:
        train = measured(PERTURBED[:n], effects_of(PERTURBED[:n]))
        rule = fit_rule(name, train)
        for genes in (("G00",), ("NEW",), ("G00", "NEW")):
            assert np.isfinite(rule.predict(genes)).all()

    def test_ridge_and_linear_fall_back_to_the_training_mean(self) -> None:
        train = measured([("X1",), ("X2",)], effects_of([("X1",), ("X2",)]))
        mean = train.effects.mean(axis=0)
        np.testing.assert_allclose(fit_rule("ridge", train).predict(("X1",)), mean)
        np.testing.assert_allclose(fit_rule("linear", train).predict(("X1",)), mean)
        one_known = pd.DataFrame(np.eye(2), index=["X1", "E1"])
        np.testing.assert_allclose(fit_rule("linear", train, embeddings=one_known).predict(("X1",)), mean)

    def test_ridge_is_nearly_additive_where_no_gene_is_perturbed_twice(self) -> None:
        # All penalties leave the same error there: the choice must not be left to rounding.
        effects = effects_of(SINGLES)
        rule = fit_rule("ridge", measured(SINGLES, effects))
        for i, genes in enumerate(SINGLES):
            np.testing.assert_allclose(rule.predict(genes), effects[i], atol=0.05)

    def test_nothing_to_fit_to(self, train: Profiles) -> None:
        with pytest.raises(DataError, match="There are no perturbations to fit.*split"):
            fit_rule("additive", train.take([]))

    def test_rule_that_does_not_exist(self, train: Profiles) -> None:
        with pytest.raises(OptionError, match="no baseline 'additiv'; choose one of 'control mean'.*'mixed'"):
            fit_rule("additiv", train)
        assert set().union(*(rules.rules for rules in RULE_SETS.values())) == set(RECIPES)


@given(
    order=st.permutations(range(N_MEASURED)),
    name=st.sampled_from([name for name in OF_GENES if name not in ("linear", OWN_GENE)]),
)
@settings(max_examples=40)
def test_permuting_measured_genes_permutes_predictions(order: list[int], name: str) -> None:
    effects = effects_of()
    one, other = (fit_rule(name, measured(PERTURBED, x)) for x in (effects, effects[:, order]))
    tolerance = 1e-2 if name == "mixed" else 1e-7
    for genes in (("G00",), ("G01", "X2"), ("X1", "X2"), ("NEW",)):
        np.testing.assert_allclose(one.predict(genes)[order], other.predict(genes), rtol=tolerance, atol=tolerance)


@given(order=st.permutations(range(N_MEASURED)), name=st.sampled_from(["linear", OWN_GENE]))
@settings(max_examples=20)
def test_permuting_measured_genes_with_their_names_permutes_predictions(order: list[int], name: str) -> None:
    # The names of the columns matter here: they are where a measured target finds its vector.
    effects = effects_of()
    train = measured(PERTURBED, effects)
    moved = {name: getattr(train, name)[:, order] for name in ("means", "variances", "control_means")}
    shuffled = replace(train, genes=tuple(GENES[i] for i in order), **moved)
    one, other = (fit_rule(name, part) for part in (train, shuffled))
    for genes in (("G00",), ("G01", "G03"), ("G07",)):
        np.testing.assert_allclose(one.predict(genes)[order], other.predict(genes), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", OF_GENES)
def test_test_cells_of_the_object_are_not_looked_at(name: str) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(["ctrl", "A", "B", "A+B", "C"], 12)
    parts = np.where(labels == "C", "test", "train")
    x = np.log1p(rng.poisson(1.5, (len(labels), N_MEASURED)) * 0.7)
    obs = pd.DataFrame({"perturbation": labels, "split": parts}, index=[f"c{i}" for i in range(len(labels))])
    whole = ad.AnnData(x, obs=obs, var=pd.DataFrame(index=GENES))
    changed = whole.copy()
    changed.X[labels == "C"] = 3.3
    found = []
    for adata in (whole, whole[parts == "train"].copy(), changed):
        profiles = Screen.from_adata(adata, pert_key="perturbation", split_key="split").profiles("train")
        rule = fit_rule(name, profiles)
        found.append(np.array([rule.predict(genes) for genes in (("A",), ("C",), ("A", "B"), ("A", "C"))]))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.fixture(scope="module")
def k562(shared_data: Path) -> Profiles:
    path = shared_data / "perturbench_devel.h5ad"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    adata = ad.read_h5ad(path)
    adata = adata[adata.obs["cell_type"] == "k562"].copy()
    sc.pp.filter_genes(adata, min_cells=1)
    return Screen.from_adata(adata, pert_key="perturbation").profiles()


class TestRealScreen:
    def test_k562_has_33_perturbations(self, k562: Profiles) -> None:
        assert (len(k562), len(k562.genes)) == (33, 250)
        assert sum(len(genes) == 2 for genes in k562.perturbed) == 15
        assert k562.n_controls.tolist() == [100]

    def test_additive_rule_on_doubles_of_measured_singles(self, k562: Profiles) -> None:
        singles = {genes[0] for genes in k562.perturbed if len(genes) == 1}
        held_out = np.array([len(genes) == 2 and singles.issuperset(genes) for genes in k562.perturbed])
        assert held_out.sum() == 5
        train, test = k562.take(np.flatnonzero(~held_out)), k562.take(np.flatnonzero(held_out))
        control = k562.control_means[0]

        def score(name: str) -> float:
            rule = fit_rule(name, train)
            predicted = [np.maximum(control + rule.predict(genes), 0) - control for genes in test.perturbed]
            return float(np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(predicted, test.effects, strict=True)]))

        # Computed from the file by another program.
        assert score("additive") == pytest.approx(0.871, abs=5e-4)
        assert score("matching mean") == pytest.approx(0.870, abs=5e-4)
        assert score("training mean") == pytest.approx(0.171, abs=5e-4)
