from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgalore.errors import DataError, OptionError
from scgalore.perturb.labels.compounds import Compounds
from scgalore.perturb.labels.conditions import Conditions
from scgalore.perturb.labels.unknown import check_genes

LABELS = ["DMSO", "dex", "(+)-JQ1", "dex", None, "DMSO", "dex", "nan"]
DOSES = [0.0, 10.0, 0.1, 1, np.nan, np.nan, 10.0, np.nan]


def read(labels: list[Any] = LABELS, doses: list[Any] | None = DOSES, **options: Any) -> Compounds:
    return Compounds.from_doses(labels, None if doses is None else pd.Series(doses, name="dose"), **options)


class TestNames:
    def test_a_perturbation_is_a_compound_at_a_dose(self) -> None:
        found = read()
        assert found.names == ("control", "dex@10", "(+)-JQ1@0.1", "dex@1")
        assert found.genes == ((), ("dex@10",), ("(+)-JQ1@0.1",), ("dex@1",))
        assert found.codes.tolist() == [0, 1, 2, 3, -1, 0, 1, -1]
        assert found.control == "DMSO"
        assert dict(zip(found.labels, found.n_cells, strict=True)) == {
            "DMSO": 2,
            "dex@10": 2,
            "(+)-JQ1@0.1": 1,
            "dex@1": 1,
        }
        assert found.left_out == {"nan": 1}

    def test_without_doses_all_are_at_dose_1(self) -> None:
        found = read(["ctrl", "stim", "stim"], None)
        assert found.names == ("control", "stim@1")
        assert found.genes_of("stim") == found.genes_of("stim@1") == ("stim@1",)
        assert found.index("stim") == 1
        with pytest.raises(DataError, match="'stim@2' names a dose, and these data have none.*dose_key="):
            found.genes_of("stim@2")

    @pytest.mark.parametrize(
        "doses", [["0", "10", "1e-1"], pd.Categorical([0.0, 10.0, 0.1]), np.array([0, 10, 0.1], dtype=np.float32)]
    )
    def test_doses_of_any_type(self, doses: Any) -> None:
        found = Compounds.from_doses(["DMSO", "a", "b"], pd.Series(doses, name="dose"))
        assert found.perturbations == ("a@10", "b@0.1")

    def test_another_word_for_control_is_left_out(self) -> None:
        found = read(["DMSO", "untreated", "vehicle", "a"], [0, 0, 0, 1], control="untreated")
        assert found.controls == ("untreated",)
        assert found.left_out == {"DMSO": 1, "vehicle": 1}

    @given(st.permutations(range(len(LABELS))))
    def test_order_of_cells_changes_names_only_in_order(self, order: list[int]) -> None:
        found, other = read(), read([LABELS[i] for i in order], [DOSES[i] for i in order])
        assert set(found.names) == set(other.names)
        named = [*found.names, None]
        assert [[*other.names, None][code] for code in other.codes] == [named[found.codes[i]] for i in order]

    def test_any_text_may_be_a_compound(self) -> None:
        check_genes(read())
        assert Conditions.kind != Compounds.kind


class TestAsking:
    def test_any_dose(self) -> None:
        found = read()
        assert found.genes_of("dex@0.30") == ("dex@0.3",)
        assert found.genes_of("new@5e-2") == ("new@0.05",)
        assert found.genes_of("DMSO") == found.genes_of("control") == ()
        assert found.name_of("dex@10.0") == "dex@10"

    @pytest.mark.parametrize(
        ("label", "message"),
        [
            pytest.param(
                "dex", "'dex' has no positive dose.*'compound@dose'.*measured were 'dex@10', 'dex@1'", id="none"
            ),
            pytest.param("dex@0", "dose 0, at which a compound is control", id="zero"),
            pytest.param("dex@-1", "'dex@-1' has no positive dose", id="negative"),
            pytest.param("dex@high", "'dex@high' has no positive dose", id="text"),
            pytest.param(None, "names no compound", id="missing"),
        ],
    )
    def test_what_is_no_compound_at_a_dose(self, label: Any, message: str) -> None:
        with pytest.raises(DataError, match=message):
            read().genes_of(label)


class TestBadInput:
    @pytest.mark.parametrize(
        ("labels", "doses", "message"),
        [
            pytest.param(
                ["DMSO", "a"],
                [0, -1],
                "1 cells have a dose that is negative.*'a' with adata.obs\\['dose'\\] = -1",
                id="negative",
            ),
            pytest.param(["DMSO", "a"], [0, np.inf], "negative or infinite", id="infinite"),
            pytest.param(["DMSO", "a"], [0, np.nan], "a compound and no dose.*'a'", id="missing"),
            pytest.param(["DMSO", "a"], [0, 0], "a compound at dose 0, which is control", id="zero"),
            pytest.param(["DMSO", "a"], [5, 1], "control with a dose.*'DMSO'", id="control"),
            pytest.param(["DMSO", None], [0, 1], "a dose and no compound", id="no_label"),
            pytest.param(["DMSO", "nan"], [0, 1], "a dose and no compound", id="no_label_as_text"),
            pytest.param(["DMSO", "a"], ["0", "high"], "holds 'high'; a dose is a positive number", id="text"),
            pytest.param(["b", "a"], [1, 1], "No label of control", id="no_control"),
        ],
    )
    def test_doses_that_do_not_go_with_labels(self, labels: list[Any], doses: list[Any], message: str) -> None:
        with pytest.raises(DataError, match=message):
            read(labels, doses)

    def test_control_that_is_no_label(self) -> None:
        with pytest.raises(OptionError, match="control='PBS' is none of"):
            read(control="PBS")
