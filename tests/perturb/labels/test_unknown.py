import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgalore.errors import DataError
from scgalore.perturb.labels.conditions import Conditions
from scgalore.perturb.labels.unknown import check_genes

GENES = ["KLF1", "TP53", "CEBPA", "BAK1"]


@given(
    text=st.sampled_from(["safe-targeting", "KLF1,TP53", "Unassigned", "multiplet", "KLF1_g9", "a gene", "AAVS1 cut"])
)
def test_text_that_is_no_gene_is_named_with_its_cells(text: str) -> None:
    conditions = Conditions.from_labels(["ctrl", *GENES[1:], *[text] * 3], control="ctrl")
    assert conditions.unknown() == {text: 3}
    assert conditions.unknown(lambda gene: gene == text) == {}
    assert Conditions.from_labels(["ctrl", text], genes=[text]).unknown() == {}


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        ("KLF1,TP53", "separator=','"),
        ("KLF1|TP53", r"separator='\|'"),
        ("SPI1_sg1", "Map guides to genes with sg.pp.collapse_guides"),
        ("safe-targeting", r"control=\[\.\.\.\]"),
    ],
)
def test_warning_says_what_to_do(text: str, cure: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "scgalore"):
        check_genes(Conditions.from_labels(["ctrl", *GENES, text, text]))
    [record] = caplog.records
    assert f"{text!r} (2 cells)" in record.getMessage()
    assert re.search(cure, record.getMessage())
    with pytest.raises(DataError, match=cure):
        check_genes(Conditions.from_labels(["ctrl", text]))


def test_known_genes_are_silent(caplog: pytest.LogCaptureFixture) -> None:
    labels = ["ctrl", *GENES, "KLF1+TP53", "HLA-A", "ENSG00000141510", "C11orf67", np.nan]
    check_genes(Conditions.from_labels(labels))
    check_genes(Conditions.from_labels(["ctrl", "Gata1", "Actb"], genes=["Actb", "Klf1", "Cd4"]))  # a mouse's
    assert not caplog.records


def test_more_than_half_are_refused() -> None:
    half = Conditions.from_labels(["ctrl", "KLF1", "TP53", "drug a", "drug b"])
    check_genes(half)
    more = Conditions.from_labels(["ctrl", "KLF1", "drug a", "drug b"])
    with pytest.raises(DataError, match="2 of 3 perturbations .*'drug a'.*'drug b'"):
        check_genes(more)
    check_genes(more, refuse=False)
    check_genes(more, {"drug a"}.__contains__)


def test_numbers_are_codes_and_not_refused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "scgalore"):
        check_genes(Conditions.from_labels([0, 1, 2], control=0))
    assert "2 of 2 perturbations" in caplog.text
