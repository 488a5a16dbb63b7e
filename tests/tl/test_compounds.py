"""Drugs and cytokines at doses, from the split to the scores."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from matplotlib.axes import Axes
from tests.bitwise import differences
from tests.dosed_screens import COMPOUNDS, DOSES, KEYS, TRAINING, dosed, untrained

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.model import SCGPT, CellModel, load
from scgalore.objectives import Perturbation

RUN: dict[str, Any] = {**TRAINING, "vectors_key": "fingerprints", "context_key": "cell_line"}


@pytest.fixture(scope="module")
def _finished() -> tuple[AnnData, CellModel]:
    adata = dosed(contexts=("A", "B"))
    sg.pp.split_perturbations(adata, "compound", **KEYS, test_compounds=["dex"], validation_compounds=["IL6"])
    return adata, sg.tl.finetune(adata, untrained(), **RUN)


@pytest.fixture
def finished(_finished: tuple[AnnData, CellModel]) -> tuple[AnnData, CellModel]:
    return _finished[0].copy(), _finished[1]


def effects(adata: AnnData) -> pd.DataFrame:
    return sg.get.perturbation_effects(adata)


class TestPredicting:
    def test_held_out_compounds_with_scores(self, finished: tuple[AnnData, CellModel], tmp_path: Path) -> None:
        adata, model = finished
        sg.tl.predict_perturbation(adata, model=model)
        rows = adata.uns["predict_perturbation"]["rows"]
        assert set(rows["perturbation"]) == {"dex@0.1", "dex@1", "dex@10"}
        assert set(rows["compound"]) == {"dex"}
        assert sorted(set(rows["dose"])) == list(DOSES)
        assert set(rows["group"]) == {"unseen_compound"}
        assert not rows["measured"].any()
        observed = adata.uns["predict_perturbation"]["observed"]
        assert list(observed) == [f"{context} | dex@{dose:g}" for context in "AB" for dose in DOSES]
        sg.tl.evaluate_perturbation(adata, de=False, n_bootstrap=5)
        adata.write_h5ad(tmp_path / "x.h5ad")
        again = ad.read_h5ad(tmp_path / "x.h5ad")
        ax = sg.pl.dose_response(again, "G03", "dex", context="A", show=False)
        assert isinstance(ax, Axes)
        np.testing.assert_array_equal(ax.lines[2].get_ydata(), observed.loc["G03"].iloc[:3])
        scores = sg.get.perturbation_scores(again)
        methods = {"model", "prior", "ceiling", *sg.perturb.COMPOUND_BASELINES}
        assert set(scores["method"]) == methods
        assert set(scores["compound"]) == {"dex"}
        assert set(scores["dose"]) == set(DOSES)
        mse = scores[scores["metric"] == "mse"].groupby("method", observed=True)["value"].mean()
        assert mse["model"] < min(mse["control mean"], mse["dose mean"])

    def test_doses_that_were_never_measured(self, finished: tuple[AnnData, CellModel]) -> None:
        adata, model = finished
        sg.tl.predict_perturbation(adata, ["tsa@0.1", "tsa@0.3", "tsa@1", "tsa@1e-6"], model=model)
        found = effects(adata).to_numpy().reshape(2, 4, -1)
        assert adata.uns["predict_perturbation"]["rows"]["measured"].tolist() == [True, False, True, False] * 2
        sizes = np.linalg.norm(found, axis=2)
        assert (sizes[:, 3] < 0.05 * sizes[:, 0]).all()
        between = np.linalg.norm(found[:, 1] - (found[:, 0] + found[:, 2]) / 2, axis=1)
        assert (between < np.linalg.norm(found[:, 2] - found[:, 0], axis=1)).all()

    def test_above_the_highest_dose_its_effect_is_held(
        self, finished: tuple[AnnData, CellModel], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        adata, model = finished
        model.save(tmp_path / "model")
        for known in (model, load(tmp_path / "model")):
            caplog.clear()
            found = effects_of(adata, known, ["tsa@10", "tsa@1e6"]).to_numpy().reshape(2, 2, -1)
            np.testing.assert_array_equal(found[:, 0], found[:, 1])
            assert np.abs(found).max() > 0.1
            assert "'tsa@1e+06' is above 10, the highest dose of the training data" in caplog.text

    def test_the_network_is_told_the_dose(self, finished: tuple[AnnData, CellModel], tmp_path: Path) -> None:
        adata, model = finished
        model.save(tmp_path / "model")
        moved = SCGPT.load(tmp_path / "model")
        torch.manual_seed(0)
        for parameter in moved.network.decoder.parameters():  # as if training had been worth something
            torch.nn.init.normal_(parameter, std=1.0)
        names = ["tsa@1", "tsa@3", "7@1"]
        sg.tl.predict_perturbation(adata, names, model=moved)
        prior = adata.uns["predict_perturbation"]["prior"].T
        correction = (effects(adata) - prior).to_numpy()
        for i, j in ((0, 1), (0, 2)):
            assert np.abs(correction[i] - correction[j]).max() > 1e-4

    def test_a_compound_that_comes_with_a_vector(self, finished: tuple[AnnData, CellModel]) -> None:
        adata, model = finished
        before = effects_of(adata, model, ["tsa@1"])
        adata.uns["fingerprints"].loc["twin"] = adata.uns["fingerprints"].loc["tsa"]
        n_tokens = len(model.vocab)
        found = effects_of(adata, model, ["twin@1", "tsa@1"])
        assert len(model.vocab) == n_tokens
        np.testing.assert_array_equal(found.loc["A | tsa@1"], before.loc["A | tsa@1"])
        likeness = np.corrcoef(found.loc["A | twin@1"], found.loc["A | tsa@1"])[0, 1]
        assert likeness > 0.9
        del adata.uns["fingerprints"]  # the model keeps what it was trained with
        np.testing.assert_array_equal(effects_of(adata, model, ["tsa@1"]), before)
        with pytest.raises(DataError, match="not trained on the compound 'twin'"):
            sg.tl.predict_perturbation(adata, ["twin@1"], model=model)

    def test_ranking(self, finished: tuple[AnnData, CellModel]) -> None:
        adata, model = finished
        sg.tl.rank_perturbations(adata, "tsa@10", model=model, context="A", candidates=["tsa@3", "dex@10"])
        table = adata.uns["rank_perturbations"]["ranking"].set_index("perturbation")
        assert {"tsa@3", "dex@10", "IL6@0.1", "(+)-JQ1@1"} <= set(table.index)
        assert table.loc["tsa@10", "is_target"]
        assert table.loc[["tsa@10", "tsa@3", "dex@10"], "evidence"].tolist() == ["measured", "parts measured", "unseen"]
        with pytest.raises(OptionError, match="pairs=True ranks pairs of genes"):
            sg.tl.rank_perturbations(adata, "tsa@10", model=model, context="A", pairs=True)

    def test_cells_and_genes(self, finished: tuple[AnnData, CellModel]) -> None:
        adata, model = finished
        sg.tl.predict_perturbation(adata, ["(+)-JQ1@0.5"], model=model)
        cells = sg.get.perturbed_cells(adata, "(+)-JQ1@0.5", n_cells=4, rng=0)
        assert cells.obs.loc[cells.obs["predicted"], "perturbation"].tolist() == ["(+)-JQ1@0.5"] * 8
        sg.tl.select_genes(adata, 10, "perturbation", **KEYS)
        assert adata.var["selected"].sum() == 10


def effects_of(adata: AnnData, model: CellModel, names: list[str]) -> pd.DataFrame:
    sg.tl.predict_perturbation(adata, names, model=model)
    return effects(adata)


class TestKeeping:
    def test_saved_and_loaded(self, finished: tuple[AnnData, CellModel], tmp_path: Path) -> None:
        adata, model = finished
        names = ["tsa@0.3", "dex@5", "(+)-JQ1@10"]
        before = effects_of(adata, model, names)
        model.save(tmp_path / "model")
        again = load(tmp_path / "model")
        assert again.memory.params["pert_kind"] == "compound"
        assert list(again.memory.vectors.index) == list(model.memory.vectors.index)
        np.testing.assert_array_equal(again.memory.vectors, model.memory.vectors)
        pd.testing.assert_frame_equal(effects_of(adata, again, names), before, check_exact=True)
        assert "vectors of 3 numbers" in (tmp_path / "model" / "README.md").read_text()

    def test_resumed_bit_for_bit(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        adata = dosed(compounds=COMPOUNDS[:4], n_cells=6)
        sg.pp.split_perturbations(adata, "dose", **KEYS, test_doses=[1], validation_doses=[10])
        run = {**RUN, "context_key": None, "max_epochs": 3, "batch_size": 8, "prior": "none"}
        expected = sg.tl.finetune(adata.copy(), untrained(), **run)
        with monkeypatch.context() as patch:
            interrupt(patch, after=4)
            with pytest.raises(KeyboardInterrupt):
                sg.tl.finetune(adata, untrained(), **run, checkpoint_dir=tmp_path)
        resumed = sg.tl.finetune(adata, untrained(), **run, checkpoint_dir=tmp_path, resume=True)
        assert differences(resumed.network.state_dict(), expected.network.state_dict()) == []
        adata.obs["dose"] = adata.obs["dose"].replace(0.1, 0.2)
        with pytest.raises((OptionError, DataError), match="belongs to another run|no longer the split"):
            sg.tl.finetune(adata, untrained(), **run, split_key="split", checkpoint_dir=tmp_path, resume=True)


def interrupt(patch: pytest.MonkeyPatch, *, after: int) -> None:
    loss, seen = Perturbation.__call__, {"batches": 0}

    def interrupted(self: Perturbation, network: Any, batch: Any) -> Any:
        seen["batches"] += network.training
        if seen["batches"] > after:
            raise KeyboardInterrupt
        return loss(self, network, batch)

    patch.setattr(Perturbation, "__call__", interrupted)


class TestSplits:
    def test_one_is_made_where_there_is_none(self) -> None:
        adata = dosed(n_cells=4)
        model = sg.tl.finetune(adata, untrained(), **{**RUN, "context_key": None, "max_epochs": 1})
        assert adata.uns["split"]["params"]["kind"] == "compound"
        assert adata.uns["split"]["params"]["dose_key"] == "dose"
        drugs = adata.obs.loc[adata.obs["split"] == "test", "drug"]
        assert drugs.nunique() == 1
        sg.tl.predict_perturbation(adata, model=model)
        assert set(adata.uns["predict_perturbation"]["rows"]["compound"]) == set(drugs)

    def test_a_changed_dose_is_noticed(self) -> None:
        adata = dosed(n_cells=4)
        sg.pp.split_perturbations(adata, "dose", **KEYS, test_doses=[1])
        adata.obs.loc[(adata.obs["drug"] == "dex") & (adata.obs["dose"] == 1), "dose"] = 10.0
        with pytest.raises(DataError, match="no longer the split"):
            sg.tl.finetune(adata, untrained(), **RUN)

    def test_of_other_doses_is_not_used(self, caplog: pytest.LogCaptureFixture) -> None:
        adata = dosed(n_cells=4)
        sg.pp.split_perturbations(adata, "compound", pert_key="drug", pert_kind="compound")
        adata.obs["mM"] = adata.obs["dose"] / 1000
        sg.tl.finetune(adata, untrained(), **{**RUN, "dose_key": "mM", "max_epochs": 1})
        assert "was made for dose_key=None" in caplog.text
        assert "perturbation_split" in adata.obs


def test_one_stimulus_in_a_cell_type_that_was_held_out() -> None:
    adata = dosed(compounds=["IFN"], doses=[1.0], contexts=("A", "B", "C", "D"), n_cells=20)
    keys: dict[str, Any] = {"pert_key": "drug", "pert_kind": "compound", "context_key": "cell_line"}
    sg.pp.split_perturbations(adata, "context", **keys, test_contexts=["C"], validation_contexts=["D"])
    model = sg.tl.finetune(adata, untrained(), **{**TRAINING, **keys, "dose_key": None})
    sg.tl.predict_perturbation(adata)
    assert effects(adata).index.tolist() == ["C | IFN@1"]
    sg.tl.evaluate_perturbation(adata, de=False, n_bootstrap=5, metrics=["mse", "pearson_delta"])
    summary = sg.get.perturbation_scores(adata, summary=True).set_index(["method", "metric"])["mean"]
    assert summary["model", "mse"] < 0.5 * summary["control mean", "mse"]
    by_name = effects_of(adata, model, ["IFN"])
    assert by_name.index.tolist() == [f"{context} | IFN@1" for context in "ABCD"]


def bad(change: Callable[[AnnData], None], **options: Any) -> tuple[Callable[[AnnData], None], dict[str, Any]]:
    return change, options


def set_dose(value: float, label: str) -> Callable[[AnnData], None]:
    def change(adata: AnnData) -> None:
        adata.obs.loc[adata.obs_names[adata.obs["drug"] == label][0], "dose"] = value

    return change


def unlabel(adata: AnnData) -> None:
    adata.obs.loc[adata.obs_names[adata.obs["drug"] == "dex"][0], "drug"] = None


def no_vector(adata: AnnData) -> None:
    adata.uns["fingerprints"] = adata.uns["fingerprints"].drop("dex")


def numbered(adata: AnnData) -> None:
    adata.uns["fingerprints"].columns = [0, 1, 2]


def nothing_to_train_on(adata: AnnData) -> None:
    sg.pp.split_perturbations(adata, "no_split", **KEYS, key_added="split")


def nothing(adata: AnnData) -> None:
    pass


class TestBadInput:
    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            pytest.param(bad(set_dose(-1.0, "dex")), DataError, "a dose that is negative", id="negative_dose"),
            pytest.param(bad(set_dose(np.nan, "dex")), DataError, "a compound and no dose", id="nan_dose"),
            pytest.param(bad(set_dose(0.0, "dex")), DataError, "a compound at dose 0", id="zero_dose"),
            pytest.param(bad(set_dose(3.0, "DMSO")), DataError, "control with a dose", id="control_with_dose"),
            pytest.param(bad(unlabel), DataError, "a dose and no compound", id="dose_without_compound"),
            pytest.param(
                bad(numbered), DataError, r"Columns of adata.uns\['fingerprints'\] are named '0', '1'", id="columns"
            ),
            pytest.param(
                bad(nothing_to_train_on), DataError, "all splits of kind 'no_split'.*'compound', ...", id="no_split"
            ),
            pytest.param(bad(no_vector), DataError, "1 of 6 compounds have no vector.*'dex'", id="no_vector"),
            pytest.param(
                bad(nothing, vectors_key=None),
                DataError,
                "without vectors only training compounds can be predicted.*Pass vectors_key=",
                id="by_name",
            ),
            pytest.param(
                bad(nothing, vectors_key="absent"), MissingKeyError, "vectors_key='absent' is neither", id="key"
            ),
            pytest.param(
                bad(nothing, dose_key="absent"), MissingKeyError, "dose_key='absent' is not a column", id="dose"
            ),
            pytest.param(
                bad(nothing, pert_kind="gene"), OptionError, "dose_key='dose' belongs to pert_kind='comp", id="kind"
            ),
            pytest.param(
                bad(nothing, prior="mixed"),
                OptionError,
                "prior='mixed' is not available for pert_kind='comp",
                id="prior",
            ),
            pytest.param(bad(nothing, separator="_"), OptionError, "separator='_' belongs to genes", id="separator"),
        ],
    )
    def test_nothing_is_trained_or_written(
        self,
        given: tuple[Callable[[AnnData], None], dict[str, Any]],
        error: type[Exception],
        message: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def trained(*args: Any, **kwargs: Any) -> None:
            pytest.fail("training began")

        monkeypatch.setattr(SCGPT, "fit", trained)
        adata, (change, options) = dosed(n_cells=3), given
        sg.pp.split_perturbations(adata, "compound", **KEYS)
        change(adata)
        before = {*adata.obs, *adata.uns}
        with pytest.raises(error, match=message):
            sg.tl.finetune(adata, untrained(), **{**RUN, "context_key": None, "split_key": "split", **options})
        assert {*adata.obs, *adata.uns} == before

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            pytest.param(["tsa"], "'tsa' has no positive dose", id="no_dose"),
            pytest.param(["tsa@0"], "dose 0, at which a compound is control", id="zero"),
            pytest.param(["tsa@-1"], "no positive dose", id="negative"),
            pytest.param(["new@1"], "not trained on the compound 'new'", id="unknown"),
            pytest.param(["DMSO@1"], "'DMSO@1' is control with a dose.*'DMSO' for control", id="control"),
            pytest.param(["dex@1+IL6@1"], "joins 2 compounds, and compounds are not combined", id="joined"),
            pytest.param(["dex+IL6@1"], "joins 2 compounds", id="joined_at_a_dose"),
        ],
    )
    def test_what_cannot_be_predicted(
        self, finished: tuple[AnnData, CellModel], names: list[str], message: str
    ) -> None:
        adata, model = finished
        with pytest.raises(DataError, match=message):
            sg.tl.predict_perturbation(adata, names, model=model)
        assert "predict_perturbation" not in adata.uns

    def test_vectors_of_another_kind(self, finished: tuple[AnnData, CellModel]) -> None:
        adata, model = finished
        adata.uns["fingerprints"] = adata.uns["fingerprints"][["a", "b"]]
        with pytest.raises(DataError, match="have 2 numbers, but those of the training data have 3"):
            sg.tl.predict_perturbation(adata, ["tsa@1"], model=model)

    def test_vectors_with_other_columns(self, finished: tuple[AnnData, CellModel]) -> None:
        adata, model = finished
        table = adata.uns["fingerprints"]
        adata.uns["fingerprints"] = table[table.columns[::-1]]
        with pytest.raises(DataError, match="columns in the same order"):
            sg.tl.predict_perturbation(adata, model=model)

    def test_vectors_are_not_written_over(self, finished: tuple[AnnData, CellModel]) -> None:
        adata, model = finished
        with pytest.raises(OptionError, match="fingerprints"):
            sg.tl.predict_perturbation(adata, ["tsa@1"], model=model, key_added="fingerprints")
