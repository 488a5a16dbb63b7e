import pytest
from tests.in_silico import changed

import scgalore as sg
from scgalore.errors import MissingKeyError


def test_effects_of_a_gene_in_a_group() -> None:
    adata = changed()
    every = sg.get.in_silico_effects(adata)
    assert len(every) == 4
    found = sg.get.in_silico_effects(adata, "G1", group=0)
    assert found["target"].tolist() == ["G2"]
    found["effect"] = 0
    assert (sg.get.in_silico_effects(adata)["effect"] != 0).all()


def test_a_gene_that_was_not_changed_is_an_error() -> None:
    with pytest.raises(MissingKeyError, match="This table has no gene 'G9'"):
        sg.get.in_silico_effects(changed(), "G9")
