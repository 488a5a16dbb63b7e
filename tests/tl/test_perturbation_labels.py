"""What users write for perturbations, control and contexts means the same in every function."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from tests.tiny_plugin import tiny_model
from tests.trained_screens import TRAINING

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.model import SCGPT

GENES = ["KLF1", "TP53", "CEBPA", "BAK1", "SPI1", "GATA1", "AAMDC", *(f"G{i:02d}" for i in range(20))]
RUN: dict[str, Any] = {"task": "perturbation", **TRAINING, "max_epochs": 1}


def screen(labels: Sequence[Any], n: int = 6, **obs: Any) -> AnnData:
    x = np.random.default_rng(0).poisson(2.0, (n * len(labels), len(GENES))).astype(np.float32)
    table = pd.DataFrame({"perturbation": pd.Series(list(labels)).repeat(n).to_numpy(), **obs})
    table.index = [f"c{i}" for i in range(len(table))]
    return AnnData(sp.csr_matrix(x), table, pd.DataFrame(index=GENES))


def finetuned(adata: AnnData, **options: Any) -> Any:
    return sg.tl.finetune(adata, tiny_model(GENES), **{**RUN, **options})


def warnings_of(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


CODES: dict[str, Any] = {
    "int": [0, 1, 2, 3, 4],
    "float with a gap": [0.0, 1.0, 2.0, 3.0, 4.0, np.nan],
    "category of int": pd.Categorical([0, 1, 2, 3, 4]),
    "category of float": pd.Series([0, 1, 2, 3, 4, None]).astype("category"),
    "text": list("01234"),
}


class TestNumbers:
    @pytest.mark.parametrize("control", [0, "0", 0.0, np.int64(0)], ids=repr)
    @pytest.mark.parametrize("form", CODES)
    def test_codes_are_predicted_with_the_control_of_training(self, form: str, control: Any) -> None:
        adata = screen(CODES[form])
        model = finetuned(adata, control=control)
        assert adata.uns["finetune"]["params"]["control"] == "0"
        sg.tl.predict_perturbation(adata, model=model)
        sg.tl.predict_perturbation(adata, [1, "2", 3.0], model=model, control=control)
        assert adata.uns["predict_perturbation"]["rows"]["perturbation"].tolist() == ["1", "2", "3"]
        assert sg.get.perturbed_cells(adata, 1, n_cells=2, with_control=False).n_obs == 2
        sg.tl.rank_perturbations(adata, 4, model=model, recovery=False)
        assert adata.uns["rank_perturbations"]["params"]["target"] == "4"
        sg.tl.evaluate_perturbation(adata, de=False, n_bootstrap=2, metrics=["mse"])

    def test_a_model_of_text_reads_numbers(self) -> None:
        model = finetuned(screen(CODES["text"]), control="0")
        other = screen(CODES["float with a gap"])
        sg.tl.predict_perturbation(other, [1], model=model)
        rows = other.uns["predict_perturbation"]["rows"]
        seen = model.memory.perturbations
        assert rows["measured"].tolist() == ["1" in {*seen["train"], *seen["validation"]}]

    @pytest.mark.parametrize("dtype", [int, float, str, "category"], ids=str)
    def test_contexts_and_split_columns(self, dtype: Any) -> None:
        labels = ["ctrl", *GENES[:4]]
        adata = screen(labels, line=pd.Series([1, 2] * 15).astype(dtype).to_numpy())
        sg.pp.split_perturbations(adata, "context", context_key="line", test_contexts=[2], validation_size=0)
        assert set(
            adata.obs["split"][(adata.obs["line"].astype(float) == 2) & (adata.obs["perturbation"] != "ctrl")]
        ) == {"test"}
        model = finetuned(adata, context_key="line")
        sg.tl.predict_perturbation(adata, ["KLF1"], model=model)
        assert adata.uns["predict_perturbation"]["rows"].index.tolist() == ["1 | KLF1", "2 | KLF1"]
        sg.tl.rank_perturbations(adata, "KLF1", model=model, context=1, recovery=False)
        assert adata.uns["rank_perturbations"]["params"]["context"] == "1"
        sg.tl.rank_perturbations(adata, 2, target_key="line", model=model, context=2.0, recovery=False)
        assert sg.get.perturbed_cells(adata, "2 | KLF1+ctrl", n_cells=1, with_control=False).n_obs == 1

    def test_custom_parts_of_numbers(self) -> None:
        adata = screen(CODES["float with a gap"])
        sg.pp.split_perturbations(adata, "custom", control=0, parts={"test": [1, "2"], "train": [3.0, 4]})
        assert (adata.uns["split"]["test"], adata.uns["split"]["train"]) == (["1", "2"], ["3", "4"])


class TestControl:
    labels = ("non-targeting", "unperturbed", "KLF1", "TP53", "CEBPA", "BAK1")

    def test_other_words_are_left_out_everywhere(self, caplog: pytest.LogCaptureFixture) -> None:
        adata = screen(self.labels)
        adata.X[6:12, 3] = 500  # untransfected cells differ
        model = finetuned(adata, control="non-targeting")
        assert "'unperturbed' (6 cells)" in warnings_of(caplog)
        without = screen(self.labels)[adata.obs["perturbation"] != "unperturbed"].copy()
        sg.tl.predict_perturbation(adata, ["KLF1"], model=model)
        sg.tl.predict_perturbation(without, ["KLF1"], model=model)
        for table in ("means", "control_means"):
            pd.testing.assert_frame_equal(
                adata.uns["predict_perturbation"][table], without.uns["predict_perturbation"][table]
            )
        sg.pp.split_perturbations(adata, control="non-targeting")
        assert adata.obs["split"][adata.obs["perturbation"] == "unperturbed"].isna().all()
        with pytest.raises(MissingKeyError, match="excluded"):
            sg.tl.predict_perturbation(adata, ["unperturbed"], model=model)

    def test_several_words_without_a_name_are_refused(self) -> None:
        with pytest.raises(DataError, match=r"non-targeting, unperturbed.*control=\["):
            finetuned(screen(self.labels))

    @pytest.mark.parametrize(
        "control", [["NT_1", "NT_2"], ("NT_2", "NT_1"), np.array(["NT_1", "NT_2"]), "NT_*"], ids=str
    )
    def test_several_are_pooled_on_purpose_and_remembered(
        self, control: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        adata = screen(["NT_1", "NT_2", *GENES[:4]])
        with caplog.at_level("INFO", "scgalore"):
            model = finetuned(adata, control=control)
        assert "'NT_1' (6 cells)" in caplog.text
        assert "'NT_2' (6 cells)" in caplog.text
        model.save(tmp_path / "model")
        assert set(json.loads((tmp_path / "model" / "screen.json").read_text())["params"]["control"]) == {
            "NT_1",
            "NT_2",
        }
        loaded = sg.model.SCGPT.load(tmp_path / "model")
        sg.tl.predict_perturbation(adata, ["KLF1"], model=loaded)
        adata.write_h5ad(tmp_path / "cells.h5ad")
        read = ad.read_h5ad(tmp_path / "cells.h5ad")
        cells = sg.get.perturbed_cells(read, "KLF1")
        assert (cells.obs["perturbation"] == "control").sum() == 12
        sg.tl.rank_perturbations(read, "TP53", model=loaded, recovery=False)

    def test_other_data_spell_control_otherwise(self) -> None:
        model = finetuned(screen(["NT_1", "NT_2", *GENES[:4]]), control=["NT_1", "NT_2"])
        for labels in (["NT_2", "KLF1"], ["ctrl", "KLF1"], ["control", "KLF1"]):
            other = screen(labels)
            sg.tl.predict_perturbation(other, ["TP53"], model=model)
            assert other.uns["predict_perturbation"]["params"]["control"] == labels[0]

    @pytest.mark.parametrize("control", [[], True, {"a": 1}, [["NT"]], ""], ids=str)
    def test_what_is_no_label_is_refused(self, control: Any) -> None:
        with pytest.raises(OptionError, match="control="):
            finetuned(screen(["NT", *GENES[:4]]), control=control)


@pytest.fixture(scope="module")
def trained() -> tuple[AnnData, SCGPT]:
    """A screen with "_" between genes, a model of it, and a prediction."""
    adata = screen(("non-targeting", "KLF1", "TP53", "CEBPA", "BAK1", "KLF1_TP53", "CEBPA_BAK1"))
    model = finetuned(adata)
    sg.tl.predict_perturbation(adata, ["KLF1", "KLF1+CEBPA", "KLF1+TP53"], model=model)
    return adata, model


class TestOneParser:
    def test_the_separator_is_recorded(self, trained: tuple[AnnData, SCGPT]) -> None:
        adata, model = trained
        assert model.memory is not None
        assert model.memory.params["separator"] == adata.uns["finetune"]["params"]["separator"] == "_"
        assert adata.uns["predict_perturbation"]["params"]["separator"] == "_"

    @pytest.mark.parametrize(
        ("spellings", "name"),
        [
            (("KLF1", "KLF1+ctrl", "ctrl+KLF1", "KLF1_ctrl", "non-targeting_KLF1", "ENSG00000105610"), "KLF1"),
            (("KLF1_TP53", "TP53_KLF1", "KLF1+TP53", "TP53+KLF1", "KLF1 + TP53", "KLF1+P53"), "KLF1+TP53"),
            (("CEBPA_KLF1", "KLF1+CEBPA"), "CEBPA+KLF1"),
        ],
    )
    def test_all_spellings_in_all_functions(
        self, trained: tuple[AnnData, SCGPT], spellings: tuple[str, ...], name: str
    ) -> None:
        adata, model = trained
        for label in spellings:
            predicted = sg.tl.predict_perturbation(adata, label, model=model, copy=True)
            assert predicted.uns["predict_perturbation"]["rows"].index.tolist() == [name]
            cells = sg.get.perturbed_cells(adata, label, n_cells=2, with_control=False)
            assert set(cells.obs["perturbation"]) == {name}
            if name == "CEBPA+KLF1":  # not measured
                continue
            ranked = sg.tl.rank_perturbations(adata, label, model=model, candidates=[label], recovery=False, copy=True)
            assert ranked.uns["rank_perturbations"]["params"]["target"] == name
            assert name in set(ranked.uns["rank_perturbations"]["ranking"]["perturbation"])
            split = sg.pp.split_perturbations(adata, "custom", parts={"test": [label]}, copy=True)
            assert split.uns["split"]["test"] == [name]

    def test_data_without_pairs_take_the_spelling_of_training(self, trained: tuple[AnnData, SCGPT]) -> None:
        other = screen(["ctrl", "KLF1"])
        sg.tl.predict_perturbation(other, ["TP53_CEBPA", "KLF1+TP53"], model=trained[1])
        rows = other.uns["predict_perturbation"]["rows"]
        assert rows["perturbation"].tolist() == ["CEBPA+TP53", "KLF1+TP53"]

    def test_data_with_another_separator_are_read_by_it(self, trained: tuple[AnnData, SCGPT]) -> None:
        other = screen(["ctrl", "KLF1+TP53", "KLF1+ctrl"])
        sg.tl.predict_perturbation(other, model=trained[1])
        assert set(other.uns["predict_perturbation"]["rows"]["perturbation"]) == {"KLF1+TP53", "KLF1"}

    def test_labels_of_cells(self, trained: tuple[AnnData, SCGPT]) -> None:
        adata = trained[0].copy()
        adata.obs["wanted"] = np.resize(["KLF1_TP53", "TP53+KLF1", "non-targeting", "control"], adata.n_obs)
        sg.tl.predict_perturbation(adata, model=trained[1], per_cell="wanted")
        assert adata.uns["predict_perturbation"]["rows"]["perturbation"].tolist() == ["KLF1+TP53"]
        adata.obs["wanted"] = adata.obs["wanted"].where(np.arange(adata.n_obs) > 2)
        with pytest.raises(DataError, match="wanted.*3 of"):
            sg.tl.predict_perturbation(adata, model=trained[1], per_cell="wanted")


class TestGuides:
    @pytest.mark.parametrize(
        "guides", [("KLF1_1", "KLF1_2"), ("KLF1_g1", "KLF1_sg2"), ("KLF1-1", "KLF1.2"), ("KLF1_sgRNA1", "KLF1_P1P2")]
    )
    def test_beside_their_gene_they_are_the_gene(
        self, guides: tuple[str, ...], caplog: pytest.LogCaptureFixture
    ) -> None:
        adata = screen(["ctrl", "KLF1", *guides, "TP53", "CEBPA"])
        finetuned(adata)
        found = adata.uns["finetune"]
        assert found["params"]["added_genes"] == []
        assert sorted(name for part in found["perturbations"].values() for name in part) == ["CEBPA", "KLF1", "TP53"]
        assert all(guide in warnings_of(caplog) for guide in guides)

    def test_alone_they_are_refused_with_the_call_that_helps(self) -> None:
        adata = screen(["ctrl", "KLF1_1", "KLF1_2", "TP53_1", "CEBPA_2"])
        obs = adata.obs.copy()
        with pytest.raises(DataError, match=r"sg\.pp\.collapse_guides"):
            finetuned(adata)
        pd.testing.assert_frame_equal(adata.obs, obs)
        assert not adata.uns
        sg.pp.collapse_guides(adata)
        finetuned(adata, pert_key="perturbed_gene")
        assert adata.uns["finetune"]["params"]["added_genes"] == []


class TestUnknown:
    @pytest.mark.parametrize("text", ["safe-targeting", "KLF1,TP53", "Unassigned", "multiplet", "SPI1_g1"])
    def test_text_that_is_no_gene_is_warned_of(self, text: str, caplog: pytest.LogCaptureFixture) -> None:
        finetuned(screen(["ctrl", *GENES[:4], text]))
        assert f"{text!r} (6 cells)" in warnings_of(caplog)

    @pytest.mark.parametrize("text", ["nan", "None", "NA", ""])
    def test_text_of_missing_values_is_left_out(self, text: str, caplog: pytest.LogCaptureFixture) -> None:
        adata = screen(["ctrl", *GENES[:4], text])
        finetuned(adata)
        assert f"{text!r} (6 cells)" in warnings_of(caplog)
        assert text not in {name for part in adata.uns["finetune"]["perturbations"].values() for name in part}
        assert adata.uns["finetune"]["params"]["added_genes"] == []

    def test_measured_and_known_genes_are_silent(self, caplog: pytest.LogCaptureFixture) -> None:
        finetuned(screen(["ctrl", *GENES[:4], "G00", "HLA-A", "MT-CO1"]))
        assert "no gene" not in warnings_of(caplog)

    def test_genes_that_the_vocabulary_alone_knows_are_silent(self, caplog: pytest.LogCaptureFixture) -> None:
        adata = screen(["ctrl", *GENES[:4], "G00"])[:, :-3].copy()
        adata.obs["perturbation"] = adata.obs["perturbation"].replace("G00", GENES[-1])
        finetuned(adata)
        assert "no gene" not in warnings_of(caplog)


class TestOneGene:
    def test_two_names_are_held_out_together(self, caplog: pytest.LogCaptureFixture) -> None:
        adata = screen(["ctrl", "C11ORF67", "AAMDC", "KLF1", "TP53"])
        sg.pp.split_perturbations(adata, "custom", parts={"test": ["C11ORF67"]})
        assert "'C11ORF67' and 'AAMDC'" in warnings_of(caplog)
        model = finetuned(adata)
        assert adata.uns["finetune"]["perturbations"]["train"] == ["KLF1", "TP53"]
        sg.tl.predict_perturbation(adata, model=model)
        assert adata.uns["predict_perturbation"]["rows"].index.tolist() == ["AAMDC"]
        assert not adata.uns["predict_perturbation"]["rows"]["measured"].any()

    @pytest.mark.parametrize(
        ("trained", "asked"), [("AAMDC", "C11ORF67"), ("C11orf67", "AAMDC"), ("ENSG00000087884", "C11ORF67")]
    )
    def test_what_was_trained_on_is_measured_by_any_name(self, trained: str, asked: str) -> None:
        adata = screen(["ctrl", trained, "KLF1", "TP53", "CEBPA"])
        sg.pp.split_perturbations(adata, "custom", parts={"test": ["CEBPA"]})
        model = finetuned(adata)
        other = screen(["ctrl", asked, "KLF1"])
        other.var_names = [*GENES[:6], "G99", *GENES[7:]]  # the gene is not measured here
        sg.tl.predict_perturbation(other, model=model)
        assert other.uns["predict_perturbation"]["rows"]["measured"].all()
        sg.tl.rank_perturbations(other, asked, model=model, recovery=False)
        ranking = other.uns["rank_perturbations"]["ranking"].set_index("perturbation")
        assert ranking.loc[asked, ["evidence", "is_target"]].tolist() == ["measured", True]
        assert len(ranking) == 3  # no gene twice

    def test_a_split_of_ones_own_that_separates_names_is_warned_of(self, caplog: pytest.LogCaptureFixture) -> None:
        adata = screen(["ctrl", "C11ORF67", "AAMDC", "KLF1", "TP53"])
        adata.obs["mine"] = np.where(adata.obs["perturbation"] == "C11ORF67", "test", "train")
        model = finetuned(adata, split_key="mine")
        assert "'C11ORF67' (test) and 'AAMDC' (train) are one perturbation" in warnings_of(caplog)
        sg.tl.predict_perturbation(adata, model=model)
        assert adata.uns["predict_perturbation"]["rows"]["measured"].all()
