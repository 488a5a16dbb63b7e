import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgalore.data.match import match_genes
from scgalore.data.vocab import GeneVocab
from scgalore.errors import DataError
from scgalore.genes.identifiers import _tables


def tokens(names: list[str], vocab: GeneVocab) -> list[str | None]:
    """Token of each name."""
    return [vocab.tokens[i] if i >= 0 else None for i in match_genes(names, vocab).token_ids]


@pytest.fixture(scope="module")
def pbmc_genes() -> list[str]:
    sc = pytest.importorskip("scanpy")

    return list(sc.datasets.pbmc68k_reduced().var_names)


def test_real_genes_by_symbol_and_by_id(pbmc_genes: list[str]) -> None:
    gene_id = _tables().gene_id
    vocab = GeneVocab.from_genes(sorted(gene_id))
    match = match_genes(pbmc_genes, vocab)
    assert match.n_vars == 765
    assert match.matched >= 745
    # Names of 2016: what is a current symbol stays, the rest is renamed, and nothing appears out of nowhere.
    assert sum(name in gene_id for name in pbmc_genes) == match.matched - len(match.renamed)
    assert {"FYB": "FYB1", "IGJ": "JCHAIN", "SEPT7": "SEPTIN7", "C10orf54": "VSIR"}.items() <= match.renamed.items()
    assert match.matched + len(match.dropped) + len(match.duplicates) == 765
    current = [vocab.tokens[i] for i in match.token_ids if i >= 0]
    by_id = match_genes([f"{gene_id[name]}.7" for name in current], vocab)
    assert by_id.token_ids.tolist() == vocab.ids(current).tolist()
    assert by_id.summary() == f"{match.matched:,} of {match.matched:,} genes matched ({match.matched:,} by Ensembl id)"


@pytest.mark.parametrize(
    ("name", "vocabulary", "token"),
    [
        pytest.param("CD4", ["CD4"], "CD4", id="exact"),
        pytest.param("OCT4", ["POU5F1"], "POU5F1", id="alias"),
        pytest.param("MARCH8", ["MARCHF8"], "MARCHF8", id="old_data"),
        pytest.param("MARCHF8", ["MARCH8"], "MARCH8", id="old_vocabulary"),
        pytest.param("SEPT7", ["SEPTIN7"], "SEPTIN7", id="old_data_septin"),
        pytest.param("SEPTIN7", ["SEPT7"], "SEPT7", id="old_vocabulary_septin"),
        pytest.param("C10orf11", ["LRMDA"], "LRMDA", id="old_data_orf"),
        pytest.param("LRMDA", ["C10orf11"], "C10orf11", id="old_vocabulary_orf"),
        pytest.param("SEPT7", ["CDC10"], "CDC10", id="vocabulary_older_than_old_data"),
        pytest.param("C1ORF159", ["C1orf159"], "C1orf159", id="all_upper_case"),
        pytest.param("UBXN10-AS1", ["PLA2G2C"], None, id="antisense_neighbour"),
        pytest.param("MARCHF8", ["MARCH8", "MIR"], None, id="two_old_names_in_the_vocabulary"),
        pytest.param("ENSG00000141510", ["TP53"], "TP53", id="id_to_symbol"),
        pytest.param("ENSG00000141510.18", ["TP53"], "TP53", id="id_with_version"),
        pytest.param("ENSG00000141510.18", ["TP53", "ENSG00000141510"], "ENSG00000141510", id="bare_id_before_symbol"),
        pytest.param("ENSG00000165406", ["MARCH8"], "MARCH8", id="id_to_old_symbol"),
        pytest.param("ENSG00000200344", ["Y_RNA_ENSG00000200344"], "Y_RNA_ENSG00000200344", id="id_to_suffixed"),
        pytest.param("ENSG00000214717", ["ZBED1_ENSG00000214717", "ZBED1"], "ZBED1", id="symbol_before_suffixed"),
        pytest.param("ENSG00000200344", ["A_ENSG00000200344", "B_ENSG00000200344"], None, id="two_suffixed"),
        pytest.param("TP53_ENSG00000141510", ["TP53"], "TP53", id="suffixed_to_symbol"),
        pytest.param("TP53", ["ENSG00000141510"], "ENSG00000141510", id="vocabulary_of_ids"),
        pytest.param("RGS5", ["RGS5_ENSG00000143248", "RGS5_ENSG00000232995"], "RGS5_ENSG00000143248", id="shared"),
        pytest.param("ENSG00000002586.20_PAR_Y", ["CD99"], None, id="y_copy"),
        pytest.param("Trp53", ["TP53"], None, id="mouse"),
        pytest.param("tp53", ["TP53"], None, id="lower_case"),
        pytest.param("TP53 ", ["TP53"], None, id="blank"),
        pytest.param("TRAC", ["NCOR2"], None, id="current_symbol_is_no_alias"),
        pytest.param("<pad>", [], None, id="special"),
        pytest.param("<mask>", ["<mask>"], None, id="unknown_special"),
    ],
)
def test_one_name(name: str, vocabulary: list[str], token: str | None) -> None:
    vocab = GeneVocab.from_genes(["GAPDH", *vocabulary])
    match = match_genes(["GAPDH", name], vocab)
    assert tokens(["GAPDH", name], vocab) == ["GAPDH", token]
    assert match.renamed == ({name: token} if token not in (None, name) else {})
    assert match.dropped == ((name,) if token is None else ())


@pytest.mark.parametrize(
    ("names", "winner"),
    [
        pytest.param(["POU5F1", "OCT4"], "POU5F1", id="exact_before_alias"),
        pytest.param(["POU5F1", "ENSG00000204531"], "POU5F1", id="exact_before_id"),
        pytest.param(["OTF3", "ENSG00000204531"], "ENSG00000204531", id="id_before_previous"),
        pytest.param(["OTF3", "OCT4"], "OTF3", id="previous_before_alias"),
        pytest.param(["ENSG00000204531.20", "ENSG00000204531.19"], "ENSG00000204531.19", id="two_versions"),
    ],
)
def test_two_columns_of_one_gene(names: list[str], winner: str) -> None:
    vocab = GeneVocab.from_genes(["POU5F1"])
    for order in (names, names[::-1]):
        match = match_genes(order, vocab)
        assert match.token_ids[order.index(winner)] == 0
        assert match.matched == 1
        assert match.duplicates == tuple(name for name in names if name != winner)
        assert match.dropped == ()


def test_summary() -> None:
    vocab = GeneVocab.from_genes(["POU5F1", "TP53", "CD4", "CD8A", "MARCHF8"])
    names = ["CD4", "CD8A", "ENSG00000141510.18", "OCT4", "MARCH8", "OTF3", "AL627309.1"]
    match = match_genes(names, vocab)
    assert match.summary() == (
        "5 of 7 genes matched (1 by Ensembl id, 2 by alias), 1 not in the vocabulary, "
        "1 omitted because another column is the same gene"
    )
    assert match_genes(["CD4"], vocab).summary() == "1 of 1 genes matched"
    copy = pickle.loads(pickle.dumps(match))
    assert copy.token_ids.dtype == np.int64
    assert copy.token_ids.tolist() == match.token_ids.tolist()
    assert list(match.renamed) == ["ENSG00000141510.18", "MARCH8", "OTF3"]


@st.composite
def columns(draw: st.DrawFn) -> tuple[list[str], GeneVocab]:
    """Columns and a vocabulary that share genes, under names of every kind."""
    tables = _tables()
    genes = draw(st.lists(st.sampled_from(sorted(tables.previous)), min_size=1, max_size=8, unique=True))
    aliases: dict[str, list[str]] = {gene: [] for gene in genes}
    for alias, gene in tables.alias.items():
        if gene in aliases and len(aliases[gene]) < 3:
            aliases[gene].append(alias)
    names = [name for gene in genes for name in (gene, *tables.previous[gene], *aliases[gene])]
    ids = [tables.gene_id[gene] for gene in genes if gene in tables.gene_id]
    pool = [*names, *ids, *(f"{gene_id}.{version}" for gene_id in ids for version in (1, 2)), "unheard of"]
    vocabulary = draw(st.lists(st.sampled_from(pool), unique=True))
    data = draw(st.lists(st.sampled_from(pool), unique=True))
    return [*data, "GAPDH"], GeneVocab.from_genes([*vocabulary, "GAPDH"])


@given(columns(), st.randoms(use_true_random=False))
def test_order_of_the_columns_does_not_matter(case: tuple[list[str], GeneVocab], rng: object) -> None:
    names, vocab = case
    shuffled = list(names)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert dict(zip(names, tokens(names, vocab), strict=True)) == dict(
        zip(shuffled, tokens(shuffled, vocab), strict=True)
    )


@given(columns())
def test_no_two_columns_share_a_token_and_exact_names_keep_theirs(case: tuple[list[str], GeneVocab]) -> None:
    names, vocab = case
    match = match_genes(names, vocab)
    taken = match.token_ids[match.token_ids >= 0].tolist()
    assert len(set(taken)) == len(taken) == match.matched
    for name, token in zip(names, tokens(names, vocab), strict=True):
        assert token == name if name in vocab else match.renamed.get(name) == token
    unmatched = {name for name, i in zip(names, match.token_ids, strict=True) if i < 0}
    assert unmatched == set(match.dropped) | set(match.duplicates)
    assert not set(match.dropped) & set(match.duplicates)


def test_repeated_names_of_a_token_are_refused() -> None:
    vocab = GeneVocab.from_genes(["CD4", "POU5F1"])
    with pytest.raises(DataError, match=r"2 genes .* 'CD4', 'OCT4'.*var_names_make_unique.*'CD4-1'"):
        match_genes(["CD4", "OCT4", "CD4", "OCT4"], vocab)
    # Nobody asks for these, so they are no reason to stop.
    match = match_genes(["CD4", "Y_RNA", "Y_RNA"], vocab)
    assert match.dropped == ("Y_RNA", "Y_RNA")
    # Nor are these, since neither has the token.
    assert match_genes(["POU5F1", "OCT4", "OCT4"], vocab).duplicates == ("OCT4", "OCT4")


MOUSE = ["Actb", "Cd3e", "Cd4", "mt-Nd1", "H2-Ab1", "Gm1992", "1700001A01Rik", "S100a8"]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(MOUSE, id="symbols"),
        # C3 is written alike in both species and must not carry the rest through.
        pytest.param([*MOUSE, *(f"Olfr{i}" for i in range(20)), "C3"], id="symbols_with_a_namesake"),
        pytest.param([f"ENSMUSG{i:011}" for i in range(10)], id="ids"),
    ],
)
def test_mouse_data_with_a_human_vocabulary(names: list[str]) -> None:
    with pytest.raises(DataError, match=r"look like mouse or rat genes .* human orthologs"):
        match_genes(names, GeneVocab.from_genes(["ACTB", "CD3E", "CD4", "C3"]))


def test_mouse_data_with_a_mouse_vocabulary() -> None:
    assert match_genes([*MOUSE, *(f"Olfr{i}" for i in range(200))], GeneVocab.from_genes(MOUSE)).matched == len(MOUSE)


def test_some_mouse_genes_among_human_ones() -> None:
    vocab = GeneVocab.from_genes(["ACTB", "CD3E", "CD4", "CD8A"])
    assert tokens(["CD4", "CD8A", "Actb", "Cd3e", "Gm1"], vocab) == ["CD4", "CD8A", None, None, None]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        pytest.param([], "no genes", id="no_genes"),
        pytest.param(["0", "1", "2"], "are numbers.*gene_symbols=", id="row_numbers"),
        pytest.param(["AT1G01010", "AT1G01020"], "'AT1G01010', 'AT1G01020'.*'CD4', 'CD8A'.*gene_symbols=", id="plant"),
        pytest.param(["cd4", "cd8a", "xyz"], "2 would match in upper case", id="lower_case"),
        pytest.param(["ENSG00000141510"], "Human Ensembl ids", id="other_human_ids"),
        pytest.param(["ENSDARG00000000001"], "another species", id="fish_ids"),
        pytest.param(["<pad>", "<cls>"], "None of the 2", id="specials"),
    ],
)
def test_nothing_matched(names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        match_genes(names, GeneVocab.from_genes(["CD4", "CD8A"]))


def test_names_may_come_as_arrays() -> None:
    pd = pytest.importorskip("pandas")
    vocab = GeneVocab.from_genes(["CD4", "CD8A"])
    names = ["CD8A", "CD4"]
    for given_names in (np.array(names), pd.Index(names), pd.CategoricalIndex(names), pd.Series(names)):
        assert match_genes(given_names, vocab).token_ids.tolist() == [1, 0]
