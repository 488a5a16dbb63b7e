import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.perturb.labels.conditions import CONTROL, Conditions, canonical_name, parse_condition

genes = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.", min_size=1, max_size=6).filter(lambda g: g != "NT")


class TestParseCondition:
    @pytest.mark.parametrize("text", ["KLF1", "KLF1+ctrl", "ctrl+KLF1", " KLF1 ", "KLF1+control", "KLF1 + ctrl"])
    def test_spellings_of_a_single_are_one(self, text: str) -> None:
        assert parse_condition(text) == ("KLF1",)

    @pytest.mark.parametrize("text", ["ctrl", "control", "non-targeting", "ctrl+ctrl"])
    def test_control_has_no_genes(self, text: str) -> None:
        assert parse_condition(text) == ()
        assert canonical_name(parse_condition(text)) == CONTROL

    @given(names=st.lists(genes, min_size=1, max_size=4, unique=True), order=st.randoms())
    def test_order_does_not_matter_and_names_parse_to_their_genes(self, names: list[str], order: object) -> None:
        shuffled = sorted(names, key=lambda _: order.random())  # type: ignore[attr-defined]
        assert parse_condition("+".join(shuffled)) == tuple(sorted(names))
        assert parse_condition(canonical_name(names)) == tuple(sorted(names))

    def test_a_gene_called_ctrl_in_capitals_is_a_gene(self) -> None:
        assert parse_condition("CTRL+ctrl") == ("CTRL",)

    def test_a_named_control_may_hold_the_separator(self) -> None:
        assert parse_condition("KLF1_non_targeting", control="non_targeting", separator="_") == ("KLF1",)

    @pytest.mark.parametrize(
        ("text", "fault"),
        [("A+", "empty part"), ("", "empty part"), ("A++B", "empty part"), ("A+A", "twice"), ("ctrl+", "empty part")],
    )
    def test_what_does_not_parse_is_named(self, text: str, fault: str) -> None:
        with pytest.raises(DataError, match=fault) as error:
            parse_condition(text)
        assert repr(text) in str(error.value)

    def test_a_plus_inside_a_gene_name_is_refused(self) -> None:
        with pytest.raises(DataError, match="inside a gene name"):
            parse_condition("A+B_C", separator="_")

    def test_an_empty_separator_is_refused(self) -> None:
        with pytest.raises(OptionError, match="separator is empty"):
            parse_condition("A", separator="")


class TestFromLabels:
    def test_codes_names_and_spellings(self) -> None:
        found = Conditions.from_labels(["B+A", "ctrl", "A+ctrl", np.nan, "ctrl+A", "A+B", None, "A+ctrl"])
        assert found.names == ("control", "A+B", "A")
        assert found.genes == ((), ("A", "B"), ("A",))
        assert found.codes.tolist() == [1, 0, 2, -1, 2, 1, -1, 2]
        assert found.codes.dtype == np.int64
        assert found.spellings == (("ctrl",), ("B+A", "A+B"), ("A+ctrl", "ctrl+A"))
        assert found.labels == ("B+A", "ctrl", "A+ctrl", "ctrl+A", "A+B")
        assert found.written == (("B", "A"), (), ("A",), ("A",), ("A", "B"))
        assert (found.control, found.separator, found.perturbations) == ("ctrl", "+", ("A+B", "A"))

    @given(
        labels=st.lists(st.sampled_from(["ctrl", "A+ctrl", "ctrl+A", "A+B", "B+A", "C", None]), max_size=30),
        kind=st.sampled_from([list, np.array, pd.Series, pd.Categorical]),
    )
    def test_every_cell_keeps_its_genes(self, labels: list[str | None], kind: type) -> None:
        labels = [*labels, "ctrl"]
        found = Conditions.from_labels(kind(labels))
        read = [None if code < 0 else found.genes[code] for code in found.codes]
        assert read == [None if label is None else parse_condition(label) for label in labels]
        assert set(found.names[1:]) == {found.names[code] for code in found.codes[found.codes > 0]}

    def test_underscores_separate_where_labels_are_made_of_labels(self) -> None:
        found = Conditions.from_labels(["control", "A", "B", "B_A", "A_C"])
        assert found.names == ("control", "A", "B", "A+B", "A+C")
        assert found.separator == "_"

    @pytest.mark.parametrize(
        "labels", [["NT", "KLF1_g1", "KLF1_g2", "TP53_g1"], ["ctrl", "A_1+ctrl", "A_1+B", "B+ctrl", "A"]]
    )
    def test_underscores_within_names_stay(self, labels: list[str]) -> None:
        found = Conditions.from_labels(labels)
        assert found.separator == "+"
        assert {"KLF1_g1", "A_1"} & {gene for names in found.genes for gene in names}

    def test_a_named_separator_is_used(self) -> None:
        found = Conditions.from_labels(["ctrl", "A|B", "C_1"], separator="|")
        assert found.names == ("control", "A+B", "C_1")

    def test_control_is_found_or_named(self) -> None:
        assert Conditions.from_labels(["A", "non-targeting"]).control == "non-targeting"
        assert Conditions.from_labels(["A", "DMSO"], control="DMSO").names == ("control", "A")
        both = Conditions.from_labels(["A", "ctrl", "control"], control="ctrl")
        assert both.names == ("control", "A")
        assert both.spellings[0] == ("ctrl", "control")

    def test_no_and_several_controls_are_refused(self) -> None:
        with pytest.raises(DataError, match=r"No label of control among A\+ctrl, B.*Name it with control="):
            Conditions.from_labels(["A+ctrl", "B"])
        with pytest.raises(DataError, match="Several labels look like control: ctrl, NT"):
            Conditions.from_labels(["A", "ctrl", "NT"])

    def test_a_control_that_does_not_occur_is_refused_with_similar_labels(self) -> None:
        with pytest.raises(OptionError, match="similar ones: ctrl"):
            Conditions.from_labels(["ctrl", "KLF1"], control="ctr")

    def test_the_label_that_does_not_parse_is_named(self) -> None:
        with pytest.raises(DataError, match=r"'A\+A' names a gene twice"):
            Conditions.from_labels(["ctrl", "A+A"])


class TestLookup:
    def test_rows_of_a_name_and_of_a_label(self) -> None:
        found = Conditions.from_labels(["ctrl", "A+ctrl", "B+A", "ctrl+A"])
        assert found.rows("A").tolist() == found.rows("ctrl+A").tolist() == [1, 3]
        assert found.rows("A+B").tolist() == found.rows("B+A").tolist() == [2]
        assert found.rows("control").tolist() == found.rows("ctrl").tolist() == [0]

    def test_a_missing_name_is_answered_with_similar_ones(self) -> None:
        with pytest.raises(MissingKeyError, match="No perturbation 'KLF' among 2; similar names: KLF1"):
            Conditions.from_labels(["ctrl", "KLF1", "BAK1"]).index("KLF")
