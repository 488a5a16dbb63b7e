"""Names of antibodies: cleaned, told from isotype controls, and brought to genes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgalore.genes.antibodies import antibody_gene, clean_antibodies, is_isotype_control

GENES = {
    "CD3_TotalSeqB": "CD3E",
    "CD8a_TotalSeqC": "CD8A",
    "Hu.CD101_BB27": "CD101",
    "HuMsRt.CD278_C398.4A": "ICOS",
    "prot:CD19": "CD19",
    "anti-human CD14": "CD14",
    "CD20_MS4A1_AHS0008_pAbO": "MS4A1",
    "CD3-CTCATTGTAACTCCT": "CD3E",
    "C-kit (CD117)": "KIT",
    "PD-1 (CD279)": "PDCD1",
    "B220 (CD45R)": "PTPRC",
    "MHCII (HLA-DR)": "HLA-DRA",
    "HLA-A,B,C": "HLA-A",
    "CD45RO": "PTPRC",
    "CD15": "FUT4",
    "CD79b": "CD79B",
    "TCR-a/b": "TRAC",
    "Siglec-8": "SIGLEC8",
    "IgM": "IGHM",
}


@pytest.mark.parametrize(("name", "gene"), GENES.items())
def test_genes_of_names_as_vendors_and_programs_write_them(name: str, gene: str) -> None:
    assert antibody_gene(name) == gene


@pytest.mark.parametrize("name", ["", "X5_8", "no protein", "Notch 2", "hashtag 3"])
def test_a_name_that_does_not_tell_has_no_gene(name: str) -> None:
    assert antibody_gene(name) is None


def test_a_number_at_the_end_is_not_of_the_name() -> None:
    assert antibody_gene("CD8-1") == "CD8A"  # and not CD81


@pytest.mark.parametrize(
    "name", ["IgG1", "IgG2a", "Mouse-IgG1", "Rat_IgG2b", "mIgG2a", "IgG1_control_TotalSeqB", "Isotype_MOPC.21"]
)
def test_isotype_controls_are_told(name: str) -> None:
    assert is_isotype_control(name)


@pytest.mark.parametrize("name", [*GENES, "IgG", "IgG Fc", "IgD", "Ig light chain k"])
def test_antibodies_against_something_are_no_controls(name: str) -> None:
    assert not is_isotype_control(name)


def test_names_are_cleaned_unless_two_would_be_the_same() -> None:
    given = ["CD3_TotalSeqB", "Hu.CD4_RPA.T4", "CD45-HI30", "CD45-2D1", "PD-1 (CD279)", "PD1 (CD279)", "HLA-DR"]
    expected = ["CD3", "CD4", "CD45-HI30", "CD45-2D1", "PD-1 (CD279)", "PD1 (CD279)", "HLA-DR"]
    assert clean_antibodies(given) == expected
    assert clean_antibodies(["CD45", "p_CD45", "CD45-HI30"]) == ["CD45", "p_CD45", "CD45-HI30"]


@given(st.lists(st.sampled_from([*GENES, "x", "CD4", "CD4_TotalSeqA", "p_CD4"]), unique=True))
def test_cleaned_names_stay_apart(names: list[str]) -> None:
    cleaned = clean_antibodies(names)
    assert len(cleaned) == len(names)
    assert len(set(cleaned)) == len(names)
