"""Gene sets that ship, GMT files, and the columns that names of genes mean."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import scgalore as sg
from scgalore.errors import DataError, OptionError
from scgalore.genes.sets import COLLECTIONS, GeneColumns, get_gene_set, list_gene_sets, read_gmt


def test_every_set_says_where_it_comes_from() -> None:
    for name in list_gene_sets():
        found = get_gene_set(name)
        assert found.name == name
        assert len(set(found.genes)) == len(found.genes) > 5
        assert all([found.title, found.source, found.licence, found.citation])


def test_no_set_comes_from_the_list_that_may_not_be_shipped() -> None:
    assert not [name for name in list_gene_sets() if "pyscenic" in name or name.startswith("union")]


def test_unions_hold_the_genes_of_their_parts() -> None:
    for name, parts in COLLECTIONS.items():
        assert set(get_gene_set(name).genes) == {gene for part in parts for gene in get_gene_set(part).genes}
    assert len(get_gene_set("cell_cycle").genes) == 97


def test_known_genes_are_in_their_sets() -> None:
    assert {"POU5F1", "NANOG", "SOX2"} <= set(get_gene_set("pluripotency").genes)
    assert {"POU5F1", "STAT1", "TP53"} <= set(get_gene_set("transcription_factors").genes)
    assert {"GAPDH", "CS", "G6PD", "COX4I1"} <= set(get_gene_set("metabolism").genes)


def test_unknown_set_names_a_near_one() -> None:
    with pytest.raises(OptionError, match="hallmark_hypoxia"):
        get_gene_set("hallmark_hypoxa")


# GMT ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_gmt_is_read(tmp_path: Path, packed: bool) -> None:
    text = "A\tfirst\tTP53\tKRAS\tTP53\n\nB\t\tMYC\t\n"
    path = tmp_path / ("sets.gmt.gz" if packed else "sets.gmt")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    sets = read_gmt(path)
    assert {name: found.genes for name, found in sets.items()} == {"A": ("TP53", "KRAS"), "B": ("MYC",)}
    assert sets["A"].title == "first"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no gene set"),
        (b"A\tfirst\tTP53\nA\tagain\tKRAS\n", "line 2 repeats the name of a set"),
        (b"TP53\nKRAS\n", "line 1 is malformed"),
        (b"A\tfirst\n", "line 1 is malformed"),
        (b"\xff\xfe\x00", "could not be read"),
    ],
)
def test_what_is_no_gmt_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "sets.gmt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_gmt(path)


def test_missing_gmt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="could not be read"):
        read_gmt(tmp_path / "none.gmt")


# Columns -----------------------------------------------------------------------------------------------------------


def columns(names: list[str], genes: list[str], **options: object) -> tuple[list[int], tuple[str, ...]]:
    found, absent = GeneColumns(names, **options).find(genes)  # type: ignore[arg-type]
    return found.tolist(), absent


def test_aliases_earlier_symbols_and_ids_are_found() -> None:
    assert columns(["ACTB", "POU5F1"], ["OCT4"]) == ([1], ())
    assert columns(["OCT4", "ACTB"], ["POU5F1"]) == ([0], ())
    assert columns(["SEPT7"], ["SEPTIN7"]) == ([0], ())
    assert columns(["ENSG00000141510.18", "ENSG00000136997"], ["MYC", "TP53"]) == ([1, 0], ())
    assert columns(["ENSG00000141510"], ["ENSG00000141510.3"]) == ([0], ())


def test_an_exact_name_is_the_one_meant() -> None:
    assert columns(["OCT4", "POU5F1"], ["POU5F1"]) == ([1], ())
    assert columns(["OCT4", "POU5F1"], ["OCT4"]) == ([0], ())


def test_a_column_is_given_once_and_absent_names_are_returned() -> None:
    assert columns(["POU5F1"], ["OCT4", "POU5F1", "ENSG00000204531", "NOT_A_GENE"]) == ([0], ("NOT_A_GENE",))


def test_of_several_columns_of_a_gene_the_best_expressed_is_meant() -> None:
    names = ["ENSG00000204531", "OCT4"]
    assert columns(names, ["POU5F1"], weights=np.array([1.0, 2.0])) == ([1], ())
    assert columns(names, ["POU5F1"], weights=np.array([2.0, 1.0])) == ([0], ())
    assert columns(["A", "A"], ["A"], weights=np.array([1.0, 2.0])) == ([1], ())


def test_mouse_symbols_are_found_by_their_orthologs() -> None:
    assert columns(["Pou5f1", "Trp53"], ["TP53", "OCT4"], species="mouse") == ([1, 0], ())
    assert columns(["Pou5f1"], ["Pou5f1"], species="mouse") == ([0], ())
    assert columns(["Pou5f1"], ["POU5F1"]) == ([], ("POU5F1",))
    assert columns(["ENSMUSG00000024406", "ENSMUSG00000059552.14"], ["TP53", "POU5F1"], species="mouse") == ([1, 0], ())
    # Tp53 is no name of a mouse gene, and case is no way from one species to another.
    assert columns(["Tp53"], ["TP53"], species="mouse") == ([], ("TP53",))


NAMES = st.sampled_from(["OCT4", "POU5F1", "ENSG00000204531.2", "TP53", "P53", "X1", "X2", "MYC"])


@given(st.lists(NAMES, min_size=1, unique=True), st.lists(NAMES), st.randoms(use_true_random=False))
def test_the_column_found_does_not_depend_on_the_order_of_columns(names, genes, random) -> None:
    weight = {name: len(name) % 3 for name in names}
    shuffled = random.sample(names, len(names))

    def found(order: list[str]) -> tuple[list[str], tuple[str, ...]]:
        here, absent = GeneColumns(order, weights=np.array([weight[name] for name in order], dtype=float)).find(genes)
        return [order[i] for i in here], absent

    assert found(shuffled) == found(names)


def test_public_names_are_there() -> None:
    assert sg.genes.get_gene_set("stress").name in sg.genes.list_gene_sets()
