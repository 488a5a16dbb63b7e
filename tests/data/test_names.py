"""Names as they are read, and the call that a message proposes where they do not match."""

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st

from scgalore.data.cells import TokenCells, gene_names
from scgalore.data.match import advice_for, match_genes
from scgalore.data.names import other_columns
from scgalore.data.reading import Reading
from scgalore.data.tokens import TokenizerConfig
from scgalore.data.vocab import GeneVocab
from scgalore.errors import DataError
from scgalore.genes.identifiers import _orthologs, _tables

SYMBOLS = ["TP53", "POU5F1", "CD8B", "GAPDH", "HLA-A", "MT-ND1"]
IDS = [_tables().gene_id[name] for name in SYMBOLS]
MOUSE = ["Trp53", "Pou5f1", "Cd8b1", "Gapdh", "mt-Nd1", "Actb"]
VOCAB = GeneVocab.from_genes([*SYMBOLS, "ACTB", *(f"X{i}" for i in range(50))])
ID_OF_MOUSE = {name: gene_id for gene_id, name in ((k, v) for k, v in _orthologs().items() if k.startswith("ENSMUSG"))}


def adata_of(names: list[str], **columns: object) -> AnnData:
    adata = AnnData(np.ones((3, len(names)), dtype=np.float32))
    adata.var_names = names
    for key, values in columns.items():
        adata.var[key] = values
    return adata


def proposed(adata: AnnData, **read: str) -> TokenCells:
    """Do what the message says, so that it is the message that is tested."""
    with pytest.raises(DataError) as refused:
        cells_of(adata, **read)
    text = str(refused.value)
    for call in re.findall(r"(adata\.var_names = adata\.var_names\.str\.\w+\([^)]*\))", text):
        exec(call, {"adata": adata})
    passed = dict(re.findall(r"(gene_symbols|species)='([^']*)'", text.rpartition(": ")[2]))
    kept = {key: value for key, value in read.items() if key != "gene_symbols" or "omit gene_symbols=" not in text}
    if "Omit species=" in text:
        del kept["species"], passed["species"]
    return cells_of(adata, **{**kept, **passed})


def cells_of(adata: AnnData, **read: Any) -> TokenCells:
    return TokenCells.from_adata(adata, VOCAB, config=TokenizerConfig(), reading=Reading(**read))


@pytest.mark.parametrize("prefix", ["GRCh38_", "GRCh38______", "hg19_", "hg38-", "rna:", "GRCh38-2020-A_", "human_"])
@pytest.mark.parametrize("column", [None, "symbol"])
def test_a_prefix_of_all_names_is_left_out(prefix: str, column: str | None) -> None:
    named = [prefix + name for name in SYMBOLS]
    adata = adata_of(named) if column is None else adata_of(IDS, symbol=pd.Categorical(named))
    assert gene_names(adata, column) == SYMBOLS
    assert cells_of(adata, gene_symbols=column).match.matched == len(SYMBOLS)


@pytest.mark.parametrize(
    "form",
    ["{symbol}|{id}", "{id}|{symbol}", "{id}_{symbol}", "{symbol}_{id}", "{symbol} ({id}.12)", "{id}.3;{symbol}"],
)
def test_names_that_hold_an_id_are_that_gene(form: str) -> None:
    names = [form.format(symbol=symbol, id=gene_id) for symbol, gene_id in zip(SYMBOLS, IDS, strict=True)]
    assert match_genes(names, VOCAB).token_ids.tolist() == VOCAB.ids(SYMBOLS).tolist()


def test_an_id_is_surer_than_what_stands_beside_it() -> None:
    assert match_genes([f"GAPDH|{IDS[0]}"], VOCAB).token_ids.tolist() == VOCAB.ids(["TP53"]).tolist()
    assert match_genes([f"{IDS[0]};{IDS[1]}", "ACTB"], VOCAB).token_ids[0] == -1  # two genes
    assert match_genes(["TP53|7157", "7157|GAPDH", "CD8B|ACTB", "ACTB"], VOCAB).token_ids.tolist() == [
        VOCAB["TP53"],
        VOCAB["GAPDH"],
        -1,
        VOCAB["ACTB"],
    ]


@pytest.mark.parametrize(
    ("adata", "read", "species"),
    [
        pytest.param(adata_of(list("012345"), feature_name=SYMBOLS), {}, "human", id="numbers"),
        pytest.param(
            adata_of(list("012345"), n=range(6), symbol=pd.Categorical(SYMBOLS)), {}, "human", id="categories"
        ),
        pytest.param(adata_of(list("012345"), x=IDS, kind=["a"] * 6), {}, "human", id="ids"),
        pytest.param(adata_of(SYMBOLS, probe=list("abcdef")), {"gene_symbols": "probe"}, "human", id="var_names"),
        pytest.param(adata_of(list("012345"), gene_name=MOUSE), {}, "mouse", id="mouse_in_a_column"),
        pytest.param(adata_of(list("012345"), g=MOUSE), {"species": "mouse"}, "mouse", id="mouse_column_forgotten"),
        pytest.param(adata_of(MOUSE), {}, "mouse", id="mouse"),
        pytest.param(adata_of([ID_OF_MOUSE["TP53"], ID_OF_MOUSE["ACTB"]]), {}, "mouse", id="mouse_ids"),
        pytest.param(adata_of(SYMBOLS), {"species": "mouse"}, "human", id="no_mouse"),
        pytest.param(adata_of([name.lower() for name in SYMBOLS]), {}, "human", id="lower_case"),
        pytest.param(adata_of([f" {name} " for name in SYMBOLS]), {}, "human", id="blanks"),
        pytest.param(adata_of([f"plate7_{name}" for name in SYMBOLS]), {}, "human", id="own_prefix"),
        pytest.param(adata_of([f"mm10___{name}" for name in MOUSE]), {}, "mouse", id="mouse_reference"),
    ],
)
def test_the_call_that_the_message_proposes_works(adata: AnnData, read: dict[str, str], species: str) -> None:
    cells = proposed(adata.copy(), **read)
    assert cells.match.species == species
    assert cells.match.matched == adata.n_vars


def test_a_prefix_of_most_names_is_proposed_to_be_removed() -> None:
    assert ".str.removeprefix('GRCh38_')" in advice_for([*(f"GRCh38_{name}" for name in SYMBOLS), "GFP"], VOCAB)


@pytest.mark.parametrize(
    "names",
    [
        [*(f"GRCh38_{name}" for name in SYMBOLS), *(f"mm10___{name}" for name in MOUSE)],
        [*(f"hg19_{name}" for name in SYMBOLS), *(f"mm10_{name}" for name in MOUSE)],
        ["rna:TP53", "rna:ACTB", "GEX:CD8B"],
    ],
)
def test_several_references_are_named(names: list[str]) -> None:
    with pytest.raises(DataError, match=r"several genomes or modalities.*str\.startswith\("):
        match_genes(names, VOCAB)


def test_two_species_without_prefixes_are_named() -> None:
    assert "cells of two species" in advice_for([*SYMBOLS, *MOUSE], VOCAB)
    assert advice_for([*SYMBOLS, *(f"AC{i}.1" for i in range(50))], VOCAB) == ""


@given(st.permutations(["first", "gene_name", "third"]))
def test_the_best_column_is_named_whatever_the_order(order: list[str]) -> None:
    columns = {
        "first": [f"g{i}" for i in range(6)],
        "gene_name": SYMBOLS,
        "third": ["TP53", *(f"h{i}" for i in range(5))],
    }
    adata = adata_of(list("012345"), **{key: columns[key] for key in order})
    assert "gene_symbols='gene_name'" in advice_for(
        list("012345"), VOCAB, columns=lambda: other_columns(adata.var, None)
    )


def test_columns_of_few_values_and_numbers_hold_no_names() -> None:
    adata = adata_of(
        SYMBOLS, feature_types=["Gene Expression"] * 6, length=range(6), missing=[None] * 6, symbol=SYMBOLS
    )
    assert list(other_columns(adata.var, None)) == ["symbol"]
    assert list(other_columns(adata.var, "symbol")) == [None]


def test_mouse_names_are_never_proposed_to_be_written_in_upper_case() -> None:
    rat = [*MOUSE, *(f"Olr{i}" for i in range(30))]
    assert "upper" not in advice_for(rat, VOCAB)
    with pytest.raises(DataError, match=r"For rat genes") as refused:
        match_genes(rat, VOCAB)
    assert ".str." not in str(refused.value)


def test_one_name_that_matches_by_chance_is_no_advice() -> None:
    vocab = GeneVocab.from_genes(["CD4", "A"])
    assert advice_for(["a", "b", "c", "d", "e"], vocab) == ""
    assert "1 would match in upper case" in advice_for(["a"], vocab)
    assert "2 would match in upper case" in advice_for(["a", "b", "c", "d", "cd4"], vocab)
