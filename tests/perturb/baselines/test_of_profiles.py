"""Priors of profiles: log fold changes and pseudobulk."""

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData
from tests.dosed_screens import dosed

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.perturb.baselines.choice import REFERENCES, candidates_of
from scgalore.perturb.baselines.effects import RULE_SETS, SUB_ADDITIVE

GENES = [f"G{i:02d}" for i in range(40)]
SINGLES = [*GENES[:14], "X1"]
LFC: dict[str, Any] = {"pert_key": "guide", "data_type": "lfc"}


def changes(*, doubles: bool = True, seed: int = 0) -> AnnData:
    """Additive log fold changes of an activation screen; targets rise by 2."""
    rng = np.random.default_rng(seed)
    of_gene = {gene: rng.normal(0.2, 0.5, len(GENES)) for gene in SINGLES}
    for gene in SINGLES[:-1]:
        of_gene[gene][GENES.index(gene)] = 2 + rng.normal(0, 0.1)
    names = [*SINGLES, *(["G00+G01", "G02+G03", "G04+X1"] if doubles else [])]
    x = np.array([sum(of_gene[gene] for gene in name.split("+")) for name in names])
    return AnnData(x, pd.DataFrame({"guide": names}, index=names), pd.DataFrame(index=GENES))


class TestLogFoldChanges:
    def test_effects_are_the_profiles(self) -> None:
        adata = changes()
        before = adata.X.copy()
        model = sg.perturb.fit_effects(adata, **LFC)
        np.testing.assert_array_equal(model.profiles.effects, before)
        np.testing.assert_array_equal(adata.X, before)
        assert model.profiles.perturbations == tuple(adata.obs["guide"])
        found = model.predict(["G05", "G01+G00"])
        assert list(found.index) == ["G05", "G00+G01"]
        assert list(found.columns) == GENES
        np.testing.assert_allclose(found.loc["G05"], before[5], atol=0.3)

    def test_targets_that_were_never_perturbed_rise_as_others_did(self) -> None:
        new = sg.perturb.fit_effects(changes(), **LFC).predict("G30")
        assert new.loc["G30", "G30"] == pytest.approx(2, abs=0.3)
        assert new.loc["G30"].drop("G30").abs().max() < 1

    def test_doubles_of_measured_singles_are_less_than_their_sum_where_no_double_was_measured(self) -> None:
        adata = changes(doubles=False)
        found = sg.perturb.fit_effects(adata, **LFC).predict("G00+G01").iloc[0].to_numpy()
        total = adata.X[0] + adata.X[1]
        rest = np.arange(2, 40)  # their own genes change as they do alone
        np.testing.assert_allclose(found[rest], SUB_ADDITIVE * total[rest], rtol=1e-6)
        assert found[:2].min() > 1.5

    def test_scores_are_of_all_candidates(self) -> None:
        scores = sg.perturb.fit_effects(changes(), **LFC).scores
        assert set(scores["candidate"]) == {*REFERENCES, *candidates_of(RULE_SETS["gene"])}
        assert set(scores["question"]) == {"seen", "unseen"}
        assert np.isfinite(scores[["mse", "pearson_delta", "difference"]].to_numpy()).all()

    @pytest.mark.parametrize("prior", sg.perturb.PRIORS)
    def test_a_prior_may_be_named_and_all_are_scored(self, prior: str) -> None:
        model = sg.perturb.fit_effects(changes(), **LFC, prior=prior)
        assert model.effects.name == prior
        assert set(model.scores["candidate"]) == {*REFERENCES, *candidates_of(RULE_SETS["gene"])}

    def test_control_and_rows_without_a_label_are_left_out(self) -> None:
        adata = changes()
        labels = adata.obs["guide"].tolist()
        more = ad.concat([adata, adata[:2].copy()], index_unique="-")
        more.obs["guide"] = [*labels, "ctrl", None]
        model = sg.perturb.fit_effects(more, **LFC)
        assert model.profiles.perturbations == tuple(labels)
        more.obs["guide"] = [*labels, "safe-harbour", None]
        model = sg.perturb.fit_effects(more, **LFC, control="safe-harbour")
        assert model.profiles.perturbations == tuple(labels)

    def test_sparse_layers_and_other_names_are_read_alike(self) -> None:
        adata = changes()
        expected = sg.perturb.fit_effects(adata, **LFC).predict("G30")
        other = AnnData(np.zeros_like(adata.X), adata.obs, pd.DataFrame({"symbol": GENES}))
        other.layers["lfc"] = sp.csr_matrix(adata.X)
        found = sg.perturb.fit_effects(other, **LFC, layer="lfc", gene_symbols="symbol").predict("G30")
        pd.testing.assert_frame_equal(found, expected)

    def test_contexts_are_apart(self) -> None:
        one, other = changes(seed=0), changes(seed=1)
        both = ad.concat({"A": one, "B": other}, label="line", index_unique="-")
        model = sg.perturb.fit_effects(both, **LFC, context_key="line", prior="additive")
        for line, alone in (("A", one), ("B", other)):
            np.testing.assert_allclose(model.predict("G05", context=line).iloc[0], alone.X[5])
        for context in (None, "C"):
            with pytest.raises(OptionError, match="choose one of 'A', 'B'"):
                model.predict("G05", context=context)


@pytest.mark.parametrize("data_type", ["log1p", "counts"])
def test_pseudobulk_is_compared_with_its_control(data_type: str) -> None:
    rng = np.random.default_rng(0)
    base = rng.gamma(2.0, 50, len(GENES))
    names = ["control", *SINGLES]
    rates = [base * np.exp(0 if name == "control" else rng.normal(0, 0.4, len(GENES))) for name in names]
    counts = rng.poisson(np.array(rates)).astype(np.float32)
    logs = np.log1p(counts * 1e4 / counts.sum(axis=1, keepdims=True))
    adata = AnnData(
        counts if data_type == "counts" else logs, pd.DataFrame({"guide": names}), pd.DataFrame(index=GENES)
    )
    adata.obs_names = names
    model = sg.perturb.fit_effects(adata, pert_key="guide", data_type=data_type)
    np.testing.assert_allclose(model.profiles.effects, logs[1:] - logs[0], atol=1e-3)
    np.testing.assert_allclose(model.profiles.control_means[0], logs[0], atol=1e-3)


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "column": ({"pert_key": "gene"}, MissingKeyError, "pert_key='gene' is not a column"),
    "type": ({"data_type": "logs"}, OptionError, "data_type='logs': choose one of 'lfc', 'log1p', 'counts'"),
    "prior": ({"prior": "mean"}, OptionError, "prior='mean': choose one of 'chosen', 'mixed'"),
    "layer": ({"layer": "lfc"}, MissingKeyError, "layer='lfc' is not in adata.layers"),
    "control": ({"control": "NT"}, OptionError, "control='NT' is none of"),
    "context": ({"context_key": "line"}, MissingKeyError, "context_key='line' is not a column"),
}


class TestRefusals:
    @pytest.mark.parametrize("case", REFUSED)
    def test_options(self, case: str) -> None:
        options, error, message = REFUSED[case]
        with pytest.raises(error, match=message):
            sg.perturb.fit_effects(changes(), **{**LFC, **options})

    def test_values(self) -> None:
        adata = changes()
        adata.X[3, 4] = np.nan
        with pytest.raises(DataError, match="log fold changes contain NaN"):
            sg.perturb.fit_effects(adata, **LFC)

    def test_nothing_to_fit_to(self) -> None:
        adata = changes()
        adata.obs["guide"] = "ctrl"
        with pytest.raises(DataError, match="contains no perturbation"):
            sg.perturb.fit_effects(adata, **LFC)

    def test_name_of_a_rule_says_what_fits_it(self) -> None:
        with pytest.raises(DataError, match=r"AnnData of profiles, not a str.*sg\.perturb\.fit_rule"):
            sg.perturb.fit_effects("additive", **LFC)

    def test_no_perturbation_to_predict(self) -> None:
        with pytest.raises(OptionError, match="perturbations is empty"):
            sg.perturb.fit_effects(changes(), **LFC).predict([])


class TestCompounds:
    @pytest.fixture
    def drugs(self) -> AnnData:
        """Pseudobulk of compounds at doses, and its difference from control as a layer."""
        adata = sc.get.aggregate(dosed(), ["drug", "dose"], func="mean")
        adata.X = adata.layers.pop("mean")
        control = adata.X[(adata.obs["drug"] == "DMSO").to_numpy()]
        adata.layers["lfc"] = adata.X - control
        adata.obs["dose"] = adata.obs["dose"].astype(float)
        return adata

    def test_log_fold_changes_are_those_of_means(self, drugs: AnnData) -> None:
        keys: dict[str, Any] = {"pert_key": "drug", "pert_kind": "compound", "dose_key": "dose"}
        vectors = dosed().uns["fingerprints"]
        changes = drugs[drugs.obs["drug"] != "DMSO"].copy()
        one = sg.perturb.fit_effects(drugs, data_type="log1p", embeddings=vectors, prior="dose response", **keys)
        two = sg.perturb.fit_effects(
            changes, data_type="lfc", layer="lfc", embeddings=vectors, prior="dose response", **keys
        )
        asked = ["dex@0.3", "(+)-JQ1@20"]
        assert one.predict(asked).index.tolist() == asked
        np.testing.assert_allclose(one.predict(asked), two.predict(asked), rtol=1e-3, atol=1e-4)
        assert set(one.scores["candidate"]) == {"control mean", *candidates_of(RULE_SETS["compound"])}
        with pytest.raises(DataError, match="1 of 6 compounds have no vector under 'embeddings=': 'dex'"):
            sg.perturb.fit_effects(drugs, data_type="log1p", embeddings=vectors.drop("dex"), **keys)
        with pytest.raises(OptionError, match="prior='mixed': choose one of 'chosen', 'dose response'"):
            sg.perturb.fit_effects(drugs, data_type="log1p", prior="mixed", **keys)
