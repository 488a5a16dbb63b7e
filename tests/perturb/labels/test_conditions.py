from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.perturb.labels.conditions import Conditions
from scgalore.perturb.labels.control import CONTROL, CONTROL_LABELS
from scgalore.perturb.labels.parsing import canonical_name, parse_condition
from scgalore.perturb.splits.split import split_conditions

genes = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.", min_size=1, max_size=6).filter(
    lambda g: parse_condition(g) != ()
)


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
        assert both.spellings[0] == ("ctrl",)
        assert both.left_out == {"control": 1}
        assert both.codes.tolist() == [1, 0, -1]

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


class TestNamedControl:
    """A named control is that label and no other."""

    @given(
        named=st.sampled_from(CONTROL_LABELS),
        others=st.lists(st.sampled_from(CONTROL_LABELS), max_size=4, unique=True),
        seed=st.randoms(),
    )
    def test_no_other_word_is_pooled_and_none_is_a_gene(self, named: str, others: list[str], seed: object) -> None:
        labels = [named, *others, "KLF1", f"KLF1+{named}", *(f"{word}+TP53" for word in CONTROL_LABELS)]
        found = Conditions.from_labels(labels, control=named)
        assert found.spellings[0] == (named,)
        assert found.names == (CONTROL, "KLF1", "TP53")
        assert set(found.left_out) == set(others) - {named}
        assert [code < 0 for code in found.codes] == [label in found.left_out for label in labels]

    @pytest.mark.parametrize(
        "control",
        [
            ["NT_1", "NT_2"],
            ("NT_1", "NT_2"),
            np.array(["NT_1", "NT_2"]),
            pd.Series(["NT_1", "NT_2"]),
            "NT_*",
            "NT_?",
            "NT_[12]",
        ],
        ids=str,
    )
    def test_several_are_pooled_on_purpose(self, control: Any, caplog: pytest.LogCaptureFixture) -> None:
        found = Conditions.from_labels(["NT_1", "KLF1", "NT_2", "NT_1", "NT"], control=control)
        assert found.codes.tolist() == [0, 1, 0, 0, -1]
        assert found.control == ["NT_1", "NT_2"]
        with caplog.at_level("INFO", "scgalore"):
            found.report()
        assert "'NT_1' (2 cells), 'NT_2' (1 cells)" in caplog.text

    def test_a_label_with_the_signs_of_a_pattern_is_itself(self) -> None:
        assert Conditions.from_labels(["*", "A", "B"], control="*").control == "*"

    @pytest.mark.parametrize("control", [[], [None], ["NT", None], float("nan")], ids=str)
    def test_nothing_named_is_refused(self, control: Any) -> None:
        with pytest.raises(OptionError, match="control="):
            Conditions.from_labels(["NT", "A"], control=control)

    def test_a_list_must_fit_label_by_label(self) -> None:
        with pytest.raises(OptionError, match="control='NT_3'"):
            Conditions.from_labels(["NT_1", "A"], control=["NT_1", "NT_3"])

    def test_pairs_of_control_words_are_control_only_with_the_named_one(self) -> None:
        found = Conditions.from_labels(["NT", "NT+NT", "NT+ctrl", "ctrl+ctrl", "KLF1"], control="NT")
        assert found.spellings[0] == ("NT", "NT+NT", "NT+ctrl")
        assert list(found.left_out) == ["ctrl+ctrl"]

    def test_also_with_underscores(self) -> None:
        found = Conditions.from_labels(["ctrl", "KLF1", "TP53", "KLF1_TP53", "NT_NT", "KLF1_NT"], control="ctrl")
        assert found.separator == "_"
        assert found.spellings == (("ctrl",), ("KLF1", "KLF1_NT"), ("TP53",), ("KLF1_TP53",))
        assert list(found.left_out) == ["NT_NT"]

    def test_a_control_of_the_same_guide_twice(self) -> None:
        labels = ["NegCtrl0_NegCtrl0", "KLF1_NegCtrl0", "NegCtrl0_TP53", "KLF1_TP53"]
        found = Conditions.from_labels(labels, control="NegCtrl0_NegCtrl0")
        assert (found.names, found.separator) == ((CONTROL, "KLF1", "TP53", "KLF1+TP53"), "_")

    def test_blanks_around_the_usual_word(self) -> None:
        assert Conditions.from_labels([" ctrl", "KLF1", "ctrl "]).codes.tolist() == [0, 1, 0]

    def test_a_label_left_out_is_not_control_when_asked_for(self) -> None:
        found = Conditions.from_labels(["ctrl", "unperturbed", "KLF1"], control="ctrl")
        assert found.genes_of("control") == found.genes_of("ctrl") == ()
        with pytest.raises(MissingKeyError, match="excluded"):
            found.genes_of("unperturbed")


FORMS: dict[str, Any] = {
    "int": np.array([0, 1, 2, 1]),
    "float": np.array([0.0, 1.0, 2.0, 1.0]),
    "gap": np.array([0, 1, 2, np.nan]),
    "text": np.array(["0", "1", "2", "1"]),
    "float text": ["0.0", "1.0", "2.0", "1.0"],
    "bytes": [b"0", b"1", b"2", b"1"],
    "category of int": pd.Categorical([0, 1, 2, 1]),
    "category of float": pd.Series([0, 1, 2, None]).astype("category"),
    "nullable": pd.array([0, 1, 2, None], dtype="Int64"),
}


class TestOneForm:
    @pytest.mark.parametrize("control", [0, 0.0, "0", np.int8(0), np.float32(0), b"0", "0.0", [0]], ids=repr)
    @pytest.mark.parametrize("form", FORMS)
    def test_numbers_are_what_they_look_like(self, form: str, control: Any) -> None:
        found = Conditions.from_labels(FORMS[form], control=control)
        assert found.names == (CONTROL, "1", "2")
        assert found.codes[:3].tolist() == [0, 1, 2]
        assert found.control == "0"
        assert found.index(1) == found.index("1") == found.index(1.0) == 1


class TestMissing:
    @given(text=st.sampled_from(["nan", "NaN", "NA", "", " ", "None", "<NA>", "null"]))
    def test_texts_of_missing_values_are_missing(self, text: str) -> None:
        found = Conditions.from_labels(["ctrl", text, "KLF1"])
        assert found.codes.tolist() == [0, -1, 1]
        assert found.left_out == {text: 1}

    def test_unless_they_are_named_as_control(self) -> None:
        assert Conditions.from_labels(["None", "KLF1", "nan"], control="None").codes.tolist() == [0, 1, -1]


class TestGuides:
    """``A_1`` beside ``A`` is a guide of it, and no pair with a gene "1"."""

    @given(
        gene=st.sampled_from(["KLF1", "HLA-A", "NKX2-5", "H4C3"]),
        guide=st.sampled_from(["_1", "_2", "_g2", "_sg3", "-2", ".1", "_sgRNA1", "_guide4", "_gRNA-2", "_P1P2", "_2a"]),
        pair=st.booleans(),
    )
    def test_guides_are_read_as_their_gene(self, gene: str, guide: str, pair: bool) -> None:
        labels = ["ctrl", gene, "TP53", f"{gene}{guide}"] + [f"{gene}_TP53"] * pair
        found = Conditions.from_labels(labels)
        assert {part for genes in found.genes for part in genes} == {gene, "TP53"}
        assert found.codes[3] == found.codes[1]
        assert found.guides == {f"{gene}{guide}": gene}
        assert ("TP53" in found.genes[-1] and len(found.genes[-1]) == 2) is pair

    def test_two_guides_of_one_gene_in_a_cell_are_the_gene(self) -> None:
        assert Conditions.from_labels(["ctrl", "KLF1", "KLF1_1+KLF1_2"]).names == (CONTROL, "KLF1")

    @pytest.mark.parametrize("symbol", ["NKX2-5", "HLA-A", "MT-CO1", "KRTAP5-1", "TP53-AS1"])
    def test_symbols_with_dashes_are_no_guides(self, symbol: str) -> None:
        found = Conditions.from_labels(["ctrl", symbol, "NKX2", "HLA", "KRTAP5", "TP53"])
        assert symbol in found.names
        assert symbol not in found.guides

    def test_measured_genes_that_look_like_guides_are_genes(self) -> None:
        found = Conditions.from_labels(["ctrl", "KLF1", "KLF1-2"], genes=["KLF1", "KLF1-2"])
        assert found.names == (CONTROL, "KLF1", "KLF1-2")

    @pytest.mark.parametrize("label", ["KLF1_1", "KLF1_sg2"])
    def test_guides_alone_stay_one_name_each_and_are_unknown(self, label: str) -> None:
        found = Conditions.from_labels(["ctrl", label, "TP53"])
        assert label in found.names
        assert found.unknown() == {label: 1}


class TestSeparator:
    @pytest.mark.parametrize(
        ("labels", "separator"),
        [
            (["NT", "KLF1", "TP53_CEBPA"], "_"),  # known genes, though no labels of their own
            (["NT", "X1", "X2", "X1_X2"], "_"),  # labels of their own, though nobody knows them
            (["NT", "KLF1", "KLF1_other"], "+"),  # only one part is a name
            (["NT", "KLF1", "KLF1_1", "KLF1_2"], "+"),
            (["NT", "KLF1", "KLF1_1", "KLF1_TP53"], "_"),
            (["NT", "KLF1", "RGS5_ENSG00000143248"], "+"),
            (["non_targeting", "KLF1", "KLF1_non_targeting"], "_"),
        ],
    )
    def test_underscores_stand_between_names_only(self, labels: list[str], separator: str) -> None:
        assert Conditions.from_labels(labels).separator == separator

    def test_a_separator_leaves_symbols_whole(self) -> None:
        found = Conditions.from_labels(["NT", "HLA-A", "KLF1-TP53"], separator="-")
        assert found.names == (CONTROL, "HLA-A", "KLF1+TP53")

    @given(
        order=st.permutations(["KLF1", "TP53"]),
        between=st.sampled_from(["+", "_"]),
        word=st.sampled_from(["ctrl", "NT"]),
    )
    def test_all_spellings_ask_for_the_same(self, order: list[str], between: str, word: str) -> None:
        found = Conditions.from_labels(["NT", "KLF1", "TP53", "KLF1_TP53"])
        assert found.genes_of(between.join(order)) == ("KLF1", "TP53")
        assert (
            found.genes_of(f"{order[0]}{between}{word}") == found.genes_of(f"{word}{between}{order[0]}") == (order[0],)
        )
        assert found.genes_of(between.join([order[0], "CEBPA"])) == tuple(sorted([order[0], "CEBPA"]))
        assert found.genes_of(word) == ()


# Symbol, and what else the gene is called.
NAMES = {
    "AAMDC": ("AAMDC", "C11ORF67", "C11orf67"),
    "KMT2A": ("KMT2A", "MLL", "ENSG00000118058"),
    "TP53": ("TP53", "ENSG00000141510", "ENSG00000141510.18", "P53"),
    "MAP3K21": ("MAP3K21", "KIAA1804", "MLK4"),
}
any_name = st.sampled_from([name for names in NAMES.values() for name in names])
TRUE = {name: gene for gene, names in NAMES.items() for name in names}


class TestOneGene:
    """The same gene under two names is one gene."""

    @given(
        labels=st.lists(st.lists(any_name, min_size=1, max_size=2).map("+".join), min_size=6, max_size=14, unique=True),
        kind=st.sampled_from(["simulation", "single", "combo_seen0", "combo_seen1", "no_test", "combo_seen2"]),
        seed=st.integers(0, 1000),
    )
    def test_no_perturbation_is_on_both_sides_of_a_split(self, labels: list[str], kind: str, seed: int) -> None:
        labels = ["ctrl", *NAMES, *(label for label in labels if len(set(label.split("+"))) == len(label.split("+")))]
        conditions = Conditions.from_labels(labels)
        try:
            split = split_conditions(conditions, kind, seed=seed)
        except DataError:  # no training cells are left
            return
        part_of: dict[frozenset[str], set[object]] = {}
        for label, part in zip(labels[1:], split.cell_labels(conditions)[1:], strict=True):
            part_of.setdefault(frozenset(TRUE[name] for name in label.split("+")), set()).add(part)
        assert all(len(parts) == 1 for parts in part_of.values())
        for name in split.groups["unseen_single"]:
            if kind == "simulation":  # holds genes out
                trained = {gene for other in (*split.train, *split.validation) for gene in other.split("+")}
                assert TRUE[name] not in {TRUE[gene] for gene in trained}

    @given(names=st.lists(any_name, min_size=1, max_size=8, unique=True), measured=st.lists(any_name, max_size=3))
    def test_names_are_joined_and_the_measured_one_is_used(self, names: list[str], measured: list[str]) -> None:
        measured = list({TRUE[name]: name for name in measured}.values())
        found = Conditions.from_labels(["ctrl", *names], genes=measured)
        assert len(found.perturbations) == len({TRUE[name] for name in names})
        for name in names:
            called = found.names[found.index(name)]
            assert TRUE[called] == TRUE[name]
            assert called in measured or not {TRUE[name]} & {TRUE[gene] for gene in measured}
            assert all(found.index(other) == found.index(name) for other in NAMES[TRUE[name]])

    def test_one_name_alone_stays_as_it_is_written(self) -> None:
        assert Conditions.from_labels(["ctrl", "C11ORF67"]).names == (CONTROL, "C11ORF67")
        assert Conditions.from_labels(["ctrl", "C11ORF67", "AAMDC"]).names == (CONTROL, "AAMDC")
        assert Conditions.from_labels(["ctrl", "AAMDC"], genes=["C11ORF67"]).names == (CONTROL, "C11ORF67")

    @pytest.mark.parametrize(
        ("measured", "name"), [("Trp53", "Trp53"), ("ENSMUSG00000059552", "ENSMUSG00000059552"), ("Cd4", "Trp53")]
    )
    def test_names_of_a_mouse(self, measured: str, name: str) -> None:
        genes = ["Actb", "Gata1", measured]
        found = Conditions.from_labels(["ctrl", "ENSMUSG00000059552.14", "Trp53", "Klf1"], genes=genes)
        assert found.names == (CONTROL, name, "Klf1")
        assert found.unknown() == {}

    def test_a_pair_of_two_names_is_the_single(self) -> None:
        assert Conditions.from_labels(["ctrl", "AAMDC+C11ORF67"]).names == (CONTROL, "AAMDC")

    def test_joined_names_are_reported(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level("WARNING", "scgalore"):
            Conditions.from_labels(["ctrl", "MLL", "KMT2A"]).report()
        assert "'MLL' and 'KMT2A' are called KMT2A" in caplog.text
