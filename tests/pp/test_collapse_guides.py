import re
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from mudata import MuData

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError

GENES = ["KLF1", "TP53", "HLA-A", "NKX2-5", "MT-CO1", "C11orf67", "H2BC12"]
SPELLINGS = [
    "{}_1",
    "{}-2",
    "{}.3",
    "{}_g2",
    "{}_sg12",
    "{}_sgRNA3",
    "{}_gRNA-4",
    "{}_guide5",
    "{}-sg1a",
    "{}|2",
    "{}_P1P2",
    "{}_+_53715438.23-P1P2",
    "{}_-_113524.23-P1",
    "{}_GACCTGTGCCCTGACAGGTT",
    "{}_1_2",
    "sg{}_1",
    "sg{}",
    "sgRNA_{}-2",
]


def cells(labels: Any, key: str = "perturbation") -> AnnData:
    obs = pd.DataFrame({key: labels})
    obs.index = [f"cell{i}" for i in range(len(obs))]
    return AnnData(np.ones((len(obs), 2), dtype=np.float32), obs=obs)


def collapsed(labels: Any, **options: Any) -> list[Any]:
    adata = cells(labels)
    sg.pp.collapse_guides(adata, **options)
    found = adata.obs["perturbed_gene"]
    return [None if gone else gene for gene, gone in zip(found, found.isna(), strict=True)]


@given(gene=st.sampled_from(GENES), spelling=st.sampled_from(SPELLINGS), other=st.sampled_from(GENES))
def test_usual_spellings_of_guides_leave_their_gene(gene: str, spelling: str, other: str) -> None:
    assert collapsed([spelling.format(gene), other]) == [gene, other]


@given(
    pairs=st.lists(
        st.tuples(st.sampled_from(GENES), st.sampled_from([s for s in SPELLINGS if "+" not in s])),
        min_size=2,
        max_size=3,
        unique_by=lambda pair: pair[0],
    )
)
def test_guides_of_several_genes_in_a_cell(pairs: list[tuple[str, str]]) -> None:
    label = "+".join(spelling.format(gene) for gene, spelling in pairs)
    assert collapsed([label, "NT"]) == ["+".join(gene for gene, _ in pairs), "NT"]


@pytest.mark.parametrize(
    "name",
    ["HLA-A", "NKX2-5", "KRTAP5-1", "A1BG-AS1", "H2BC12", "RGS5_ENSG00000143248", "ENSG00000141510", "SGK1", "G6PC1"],
)
def test_symbols_are_left_whole(name: str) -> None:
    assert collapsed([name, f"{name}_1"]) == [name, name]
    assert collapsed([name], pattern=r"(.+?)[-_]?\d+") == [name]


def test_targets_that_only_the_data_know() -> None:
    assert collapsed(["mine", "mine_1", "mine_g2", "yours_1"]) == ["mine", "mine", "mine", "yours_1"]
    adata = cells(["g0_1", "g1_2"])
    adata.var_names = ["g0", "g1"]
    sg.pp.collapse_guides(adata)
    assert adata.obs["perturbed_gene"].tolist() == ["g0", "g1"]


class TestControl:
    def test_control_guides_leave_their_word(self) -> None:
        labels = ["NT_1", "NT_2", "non-targeting_3", "KLF1_1+NT_2", "ctrl+ctrl"]
        assert collapsed(labels) == ["NT", "NT", "non-targeting", "KLF1", "ctrl"]

    @pytest.mark.parametrize("control", [["safe_1", "safe_2"], "safe_*", np.array(["safe_?"])], ids=str)
    def test_named_controls_become_control(self, control: Any) -> None:
        assert collapsed(["safe_1", "safe_2", "KLF1_1+safe_2", "NT_1"], control=control) == [
            "control",
            "control",
            "KLF1",
            "NT",
        ]

    def test_a_control_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(OptionError, match="control='safe_'"):
            collapsed(["KLF1_1"], control="safe_")


class TestSeparator:
    @pytest.mark.parametrize(
        ("label", "separator", "gene"),
        [
            ("KLF1_TP53", None, "KLF1+TP53"),
            ("KLF1_1|TP53_2", "|", "KLF1+TP53"),
            ("KLF1_1;KLF1_2", ";", "KLF1"),
            ("KLF1_1+unknown", None, "KLF1_1+unknown"),
        ],
    )
    def test_between_guides(self, label: str, separator: str | None, gene: str) -> None:
        assert collapsed([label], separator=separator) == [gene]


class TestPattern:
    @pytest.mark.parametrize(
        "pattern", [r"(.+)_guide[AB]", r"(?P<gene>.+)_guide(?:A|B)", re.compile(r"(?P<gene>.+)_(guide).")], ids=str
    )
    def test_own_pattern(self, pattern: Any) -> None:
        labels = ["KLF1_guideA", "mine_guideB", "KLF1_guideA+TP53_guideB", "KLF1_1"]
        assert collapsed(labels, pattern=pattern) == ["KLF1", "mine", "KLF1+TP53", "KLF1_1"]

    @pytest.mark.parametrize("pattern", ["(", r".+_\d", r"(.+)_(\d)", 3], ids=str)
    def test_patterns_that_cannot_be_used_are_refused(self, pattern: Any) -> None:
        with pytest.raises(OptionError, match="pattern="):
            collapsed(["KLF1_1"], pattern=pattern)


TABLE = {"g1": "KLF1", "g2": "KLF1", "g3": "TP53", "g4": "non-targeting"}
TABLES = {
    "dict": TABLE,
    "series": pd.Series(TABLE),
    "index": pd.DataFrame({"gene": TABLE}),
    "columns": pd.DataFrame({"sgrna": list(TABLE), "target_gene": list(TABLE.values()), "sequence": list("ACGT")}),
    "two columns": pd.DataFrame({"a": list(TABLE), "b": list(TABLE.values())}),
}


class TestTable:
    @pytest.mark.parametrize("table", TABLES)
    def test_tables(self, table: str) -> None:
        labels = ["g1", "g2", "g3+g2", "g4", "g9", "NT"]
        assert collapsed(labels, table=TABLES[table]) == ["KLF1", "KLF1", "TP53+KLF1", "non-targeting", "g9", "NT"]

    def test_numbers(self) -> None:
        assert collapsed([1.0, 2.0, np.nan], table={1: "KLF1", "2": "TP53"}) == ["KLF1", "TP53", None]

    @pytest.mark.parametrize(
        ("table", "error"),
        [
            (["KLF1"], OptionError),
            (pd.DataFrame({"a": ["g1"], "b": ["x"], "c": ["y"]}), OptionError),
            (pd.DataFrame({"guide": ["g1", "g1"], "gene": ["KLF1", "TP53"]}), DataError),
        ],
    )
    def test_tables_that_cannot_be_used_are_refused(self, table: Any, error: type[Exception]) -> None:
        with pytest.raises(error, match="table"):
            collapsed(["g1"], table=table)

    def test_pattern_and_table_are_refused(self) -> None:
        with pytest.raises(OptionError, match="pattern= and table="):
            collapsed(["g1"], table=TABLE, pattern="(.+)_1")


class TestRecord:
    labels = ["KLF1_1", "KLF1_1", "KLF1_2", "NT_1", "who knows", "TP53", np.nan, "nan"]

    def test_what_was_done(self, caplog: pytest.LogCaptureFixture) -> None:
        adata = cells(self.labels)
        with caplog.at_level("INFO", "scgalore"):
            sg.pp.collapse_guides(adata)
        record = adata.uns["perturbed_gene"]
        assert record["labels"].loc["KLF1_1"].tolist() == ["KLF1", 2, "guide"]
        assert record["labels"]["how"].to_dict() == {
            "KLF1_1": "guide",
            "KLF1_2": "guide",
            "NT_1": "control",
            "who knows": "unmapped",
            "TP53": "gene",
            "nan": "missing",
        }
        assert record["targets"].loc["KLF1"].to_dict() == {"n_guides": 2, "n_cells": 3}
        assert record["unmapped"] == ["who knows"]
        assert adata.obs["perturbed_gene"].isna().tolist() == [False] * 6 + [True] * 2
        assert "'who knows' (1 cells)" in caplog.text
        assert "2 labels are guides of 1 targets" in caplog.text

    def test_survives_a_file(self, tmp_path: Any) -> None:
        adata = cells(self.labels)
        sg.pp.collapse_guides(adata, "perturbation", control="NT_*", key_added="mine")
        adata.write_h5ad(tmp_path / "cells.h5ad")
        read = ad.read_h5ad(tmp_path / "cells.h5ad")
        pd.testing.assert_series_equal(read.obs["mine"], adata.obs["mine"])
        pd.testing.assert_frame_equal(read.uns["mine"]["targets"], adata.uns["mine"]["targets"], check_dtype=False)

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"key_added": "perturbation"}, OptionError),
            ({"key_added": "a/b"}, OptionError),
            ({"pert_key": "none"}, MissingKeyError),
        ],
    )
    def test_refusals_leave_the_object_as_it_was(self, options: dict[str, Any], error: type[Exception]) -> None:
        adata = cells(self.labels)
        before = adata.copy()
        with pytest.raises(error):
            sg.pp.collapse_guides(adata, **options)
        pd.testing.assert_frame_equal(adata.obs, before.obs)
        assert not adata.uns

    def test_copies_views_and_modalities(self) -> None:
        adata = cells(self.labels)
        copy = sg.pp.collapse_guides(adata, copy=True)
        assert isinstance(copy, AnnData)
        assert "perturbed_gene" in copy.obs
        assert "perturbed_gene" not in adata.obs
        view = adata[:3]
        sg.pp.collapse_guides(view)
        assert view.obs["perturbed_gene"].tolist() == ["KLF1"] * 3
        assert "perturbed_gene" not in adata.obs
        mdata = MuData({"rna": adata})
        sg.pp.collapse_guides(mdata)
        assert mdata.obs["rna:perturbed_gene"][:3].tolist() == ["KLF1"] * 3


def test_a_screen_of_guides_is_split_by_gene() -> None:
    labels = [f"{gene}_{i}" for gene in ("KLF1", "TP53", "CEBPA", "BAK1", "SPI1") for i in (1, 2, 3)] + ["NT_1", "NT_2"]
    adata = cells(labels)
    sg.pp.collapse_guides(adata)
    sg.pp.split_perturbations(adata, pert_key="perturbed_gene")
    parts = adata.obs.groupby("perturbed_gene", observed=True)["split"].nunique()
    assert set(parts) == {1}
    assert adata.uns["split"]["params"]["control"] == "NT"
