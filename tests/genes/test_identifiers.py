import subprocess
import sys
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgalore.genes import ensembl_id, looks_like_mouse, ortholog, other_names, standardise
from scgalore.genes.identifiers import _orthologs, _tables


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ENSG00000141510", "ENSG00000141510"),
        ("ENSG00000141510.18", "ENSG00000141510"),
        ("SIGLEC5_ENSG00000105501", "ENSG00000105501"),
        ("Metazoa_SRP_ENSG00000268154", "ENSG00000268154"),
        ("ENSG00000002586.20_PAR_Y", None),  # its X copy is another column
        ("ENSG0000014151", None),
        ("ENSG000001415100", None),
        ("ensg00000141510", None),
        ("ENST00000269305", None),
        ("ENSMUSG00000059552", None),
        ("TP53", None),
        ("", None),
    ],
)
def test_ensembl_id(name: str, expected: str | None) -> None:
    assert ensembl_id(name) == expected


@pytest.mark.parametrize(
    ("name", "current"),
    [
        ("OCT4", "POU5F1"),
        ("MARCH8", "MARCHF8"),
        ("SEPT7", "SEPTIN7"),
        ("C10orf11", "LRMDA"),
        ("ENSG00000141510.18", "TP53"),
        ("ENSG00000251562", "MALAT1"),  # not only coding genes
        ("ENSG00000169100", "SLC25A6"),  # pseudoautosomal: the X copy has the symbol
        ("ENSG00000292334", "ENSG00000292334"),  # and the Y copy none
        ("ENSG00000200344", "ENSG00000200344"),  # one of hundreds of Y_RNA
        ("TP53", "TP53"),
        ("Actb", "Actb"),
        ("oct4", "oct4"),
        ("TRAC", "TRAC"),  # the sources call it an alias of NCOR2
        ("HLA-H", "HLA-H"),  # and this one of HFE
        ("AL627309.1", "AL627309.1"),
        ("17", "17"),
        ("no such gene", "no such gene"),
    ],
)
def test_standardise(name: str, current: str) -> None:
    assert standardise([name]) == [current]


def test_other_names_are_ordered_from_sure_to_likely() -> None:
    assert other_names("MARCHF8").steps == (("ENSG00000165406",), ("_ENSG00000165406",), ("MARCH8", "MIR"))
    assert other_names("MARCH8").steps == (("MARCHF8",), ("ENSG00000165406",), ("_ENSG00000165406",), ("MIR",))
    assert other_names("ENSG00000165406.17").steps == (
        ("ENSG00000165406",),
        ("MARCHF8",),
        ("_ENSG00000165406",),
        ("MARCH8", "MIR"),
    )
    kinds = [other_names(name).kind for name in ("ENSG00000165406", "MARCHF8", "MARCH8", "OCT4", "never heard of")]
    assert kinds == ["id", "current", "previous", "alias", "current"]
    assert other_names("never heard of").steps == ()


def _known_names() -> st.SearchStrategy[str]:
    tables = _tables()
    return st.one_of(*(st.sampled_from(sorted(names)) for names in (tables.symbol, tables.replaced, tables.alias)))


@given(st.lists(st.deferred(_known_names) | st.text(max_size=12), max_size=20))
def test_standardise_is_idempotent(names: list[str]) -> None:
    once = standardise(names)
    assert len(once) == len(names)
    assert standardise(once) == once


def test_no_name_in_the_tables_means_two_genes() -> None:
    tables = _tables()
    current = tables.gene_id.keys() | tables.previous.keys()
    assert len(tables.gene_id) == len(tables.symbol) > 40_000
    assert len(tables.alias) > 45_000
    assert not tables.replaced.keys() & tables.alias.keys()
    assert not current & (tables.replaced.keys() | tables.alias.keys())
    for number in tables.symbol:
        assert ensembl_id(number) == number
    # Such names would make genes of nameless columns, of mouse columns, or of another species' lower-case ones.
    assert not [name for name in tables.alias if name.isdecimal() or name == name.lower() or looks_like_mouse(name)]


@pytest.mark.parametrize(
    "name",
    ["Actb", "Cd3e", "S100a8", "C1qa", "B2m", "H2-Ab1", "mt-Nd1", "Nkx2-1", "Hbb-bs", "Gm1992", "1700001A01Rik"]
    + ["A930004D18Rik", "D8Ertd738e", "ENSMUSG00000059552", "ENSMUSG00000059552.14", "Rps3a1", "Tmem181b-ps"],
)
def test_mouse_names(name: str) -> None:
    assert looks_like_mouse(name)


def test_human_names_do_not_look_like_mouse() -> None:
    tables = _tables()
    names = [*tables.gene_id, *tables.replaced, *tables.symbol, "C10orf11", "CXorf38", "p53", "AC004556.3", "C3"]
    assert [name for name in names if looks_like_mouse(name)] in ([], ["Vault"])


def test_tables_come_with_their_licences() -> None:
    tables = files("scgalore.genes") / "tables"
    text = (tables / "LICENCES.md").read_text()
    packed = [file.name for file in tables.iterdir() if file.name.endswith(".gz")]
    assert len(packed) == 4
    assert all(name in text for name in packed)


def test_import_is_light_and_reads_no_table() -> None:
    code = (
        "import sys, scgalore.genes.identifiers as names\n"
        "assert names._tables.cache_info().currsize == 0\n"
        "assert not {'numpy', 'pandas', 'torch', 'scanpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("TP53|ENSG00000141510", "ENSG00000141510"),
        ("ENSG00000141510.18|TP53", "ENSG00000141510"),
        ("ENSG00000141510_TP53", "ENSG00000141510"),
        ("TP53 (ENSG00000141510)", "ENSG00000141510"),
        ("ENSG00000002586.20_PAR_Y", None),
        ("ENSG00000141510;ENSG00000136997", None),
        ("ENSG00000141510A", None),
        ("XENSG00000141510", None),
    ],
)
def test_ensembl_id_beside_other_names(name: str, expected: str | None) -> None:
    assert ensembl_id(name) == expected


# Mouse -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "human"),
    [
        ("Trp53", "TP53"),
        ("ENSMUSG00000059552", "TP53"),
        ("ENSMUSG00000059552.14", "TP53"),
        ("Trp53|ENSMUSG00000059552", "TP53"),
        ("Pou5f1", "POU5F1"),  # beside the retrocopy POU5F1B
        ("Cd8b1", "CD8B"),
        ("Gapdh", "GAPDH"),  # lost among pseudogenes in the comparison of trees
        ("mt-Nd1", "MT-ND1"),
        ("Gm1992", None),
        ("Ifit1", "IFIT1B"),  # and not its namesake
        ("Tp53", None),
        ("TP53", None),
        ("trp53", None),
        ("", None),
    ],
)
def test_ortholog(name: str, human: str | None) -> None:
    assert ortholog(name) == human


def test_each_human_gene_is_the_ortholog_of_one_mouse_gene() -> None:
    pairs = _orthologs()
    ids = {name: human for name, human in pairs.items() if name.startswith("ENSMUSG")}
    symbols = {name: human for name, human in pairs.items() if name not in ids}
    assert len(set(ids.values())) == len(ids) > 18_000
    assert len(set(symbols.values())) == len(symbols) > 18_000
    assert set(symbols.values()) <= set(ids.values())
    # A human symbol that is also a mouse's is its ortholog, so a list of human genes means the same in either species.
    assert all(symbols[human] == human for human in ids.values() if human in symbols)


@given(st.deferred(lambda: st.sampled_from(sorted(_orthologs()))))
def test_mouse_names_are_the_names_of_their_ortholog(name: str) -> None:
    human = ortholog(name)
    assert human is not None
    assert other_names(name, "mouse").steps[0] == (human,)
    assert standardise([name], "mouse") == standardise([human])
    assert other_names("Gm1992", "mouse").steps == ()
