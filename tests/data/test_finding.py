"""Files as others distribute them, read without conversion."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from tests.data.test_streaming import tokens_of

import scgalore as sg
from scgalore.data.streaming import TokenStream
from scgalore.data.tokens import TokenizerConfig
from scgalore.data.vocab import GeneVocab
from scgalore.errors import DataError, MissingKeyError, OptionError

pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2", "ignore:Observation names are not unique")

# Symbol, human id, mouse symbol, mouse id.
GENES = [
    ("TP53", "ENSG00000141510", "Trp53", "ENSMUSG00000059552"),
    ("ACTB", "ENSG00000075624", "Actb", "ENSMUSG00000029580"),
    ("GAPDH", "ENSG00000111640", "Gapdh", "ENSMUSG00000057666"),
    ("CD3E", "ENSG00000198851", "Cd3e", "ENSMUSG00000032093"),
    ("MS4A1", "ENSG00000156738", "Ms4a1", "ENSMUSG00000024673"),
    ("LYZ", "ENSG00000090382", None, None),
]
SYMBOLS, IDS = [gene[0] for gene in GENES], [gene[1] for gene in GENES]
VOCAB = GeneVocab.from_genes([*SYMBOLS, "NKG7"])
CONFIG = TokenizerConfig(n_bins=5, max_length=10)


def counts(n_obs: int = 30, n_vars: int = 6, seed: int = 0) -> sp.csr_matrix:
    x = np.random.default_rng(seed).poisson(2.0, (n_obs, n_vars)).astype(np.float32)
    x[:, 0] += 1
    return sp.csr_matrix(x)


def logs(x: sp.csr_matrix) -> sp.csr_matrix:
    return sp.csr_matrix(np.log1p(1e4 * x.toarray() / x.toarray().sum(axis=1, keepdims=True)))


def cellxgene(n_obs: int = 30) -> AnnData:
    """As CELLxGENE distributes data: ids as names, symbols in a column, counts in raw.X and logarithms in X."""
    x = counts(n_obs)
    var = pd.DataFrame({"feature_name": pd.Categorical(SYMBOLS), "feature_is_filtered": False}, index=IDS)
    adata = AnnData(x, var=var)
    adata.obs["is_primary_data"] = np.arange(n_obs) % 3 != 0
    adata.obs["disease"] = pd.Categorical(np.where(np.arange(n_obs) % 2 == 0, "normal", "COVID-19"))
    adata.obs["organism"] = pd.Categorical(["Homo sapiens"] * n_obs)
    adata.raw = adata
    adata.X = logs(x)
    return adata


def streamed(sources: Any, **options: Any) -> TokenStream:
    defaults: dict[str, Any] = {"config": CONFIG, "batch_size": 8, "block_size": 4, "buffer_size": 16, "min_matched": 0}
    return sg.data.stream(sources, VOCAB, **{**defaults, **options})


def plain(x: Any, **options: Any) -> dict[int, Any]:
    """Tokens of a matrix whose genes are called by their symbols."""
    return keyed(streamed(AnnData(sp.csr_matrix(x), var=pd.DataFrame(index=SYMBOLS)), layer=None, **options))


def keyed(stream: TokenStream) -> dict[int, Any]:
    """Tokens and content key of each cell: the key tells counts from logarithms, which bins do not."""
    batches = list(stream)
    keys = {int(cell): int(key) for b in batches for cell, key in zip(b.cells, b.keys, strict=True)}
    return {cell: (keys[cell], *tokens) for cell, tokens in tokens_of(batches).items()}


@pytest.fixture(params=["memory", "backed", "h5ad", "zarr"])
def hold(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[AnnData], Any]:
    def held(adata: AnnData) -> Any:
        if request.param == "memory":
            return adata
        path = tmp_path / f"cells.{'zarr' if request.param == 'zarr' else 'h5ad'}"
        (adata.write_zarr if request.param == "zarr" else adata.write_h5ad)(path)
        return ad.read_h5ad(path, backed="r") if request.param == "backed" else path

    return held


# Counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["raw", "auto"])
def test_counts_are_read_from_raw(hold: Callable[[AnnData], Any], layer: str) -> None:
    source = hold(cellxgene())
    assert keyed(streamed(source, layer=layer)) == plain(counts())
    assert keyed(streamed(source, layer=None)) == plain(logs(counts()))


def test_raw_may_have_more_genes(hold: Callable[[AnnData], Any]) -> None:
    adata = cellxgene()[:, [4, 0, 2]].copy()  # raw keeps all six
    source = hold(adata)
    assert keyed(streamed(source)) == plain(counts())
    assert streamed(source, layer=None).n_matched == 3


def test_a_layer_called_counts_comes_first(hold: Callable[[AnnData], Any], caplog: pytest.LogCaptureFixture) -> None:
    adata = cellxgene()
    adata.layers["counts"] = counts(seed=1)
    adata.layers["log_counts"] = logs(counts())
    with caplog.at_level(logging.INFO, "scgalore"):
        assert keyed(streamed(hold(adata))) == plain(counts(seed=1))
    assert sum("counts in layer 'counts'" in text for text in caplog.messages) == 1


def test_a_layer_called_counts_that_holds_none_does_not(hold: Callable[[AnnData], Any]) -> None:
    adata = cellxgene()
    adata.layers["counts"] = logs(counts())
    assert keyed(streamed(hold(adata))) == plain(counts())


def test_logarithms_are_read_where_there_are_no_counts(
    hold: Callable[[AnnData], Any], caplog: pytest.LogCaptureFixture
) -> None:
    adata = cellxgene()
    adata.raw = AnnData(adata.X, var=adata.var)
    adata.X = np.asarray(adata.X.toarray() - 2.0)  # scaled
    with caplog.at_level(logging.INFO, "scgalore"):
        assert keyed(streamed(hold(adata))) == plain(logs(counts()))
    assert any("no counts found, so raw.X is read" in text for text in caplog.messages)


def test_nothing_to_read_is_an_error_that_says_what_each_holds() -> None:
    adata = cellxgene()
    adata.X = np.asarray(adata.X.toarray() - 2.0)
    adata.raw = adata
    with pytest.raises(DataError, match=r"raw\.X contains negative.*; X contains negative.*Pass the layer="):
        streamed(adata)


def test_the_layer_called_raw_is_the_layer(hold: Callable[[AnnData], Any]) -> None:
    adata = cellxgene()
    adata.layers["raw"] = counts(seed=2)
    assert keyed(streamed(hold(adata), layer="raw")) == plain(counts(seed=2))


def test_no_raw_is_an_error(hold: Callable[[AnnData], Any]) -> None:
    adata = cellxgene()
    del adata.raw
    with pytest.raises(MissingKeyError, match=r"no layer 'raw'; it has the layers \[\] and no raw\.X"):
        streamed(hold(adata), layer="raw")


def test_raw_by_columns_is_refused(tmp_path: Path) -> None:
    adata = cellxgene()
    x, adata.X = adata.X, sp.csr_matrix(counts().toarray())
    adata.raw = AnnData(sp.csc_matrix(counts()), var=adata.var)
    adata.X = x
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(DataError, match=r"stores raw\.X by columns \(CSC\)"):
        streamed(tmp_path / "cells.h5ad")
    assert streamed(tmp_path / "cells.h5ad", layer=None).n_obs == 30


# Names and species ------------------------------------------------------------------------------------------------


def test_names_are_those_that_match_more(hold: Callable[[AnnData], Any], caplog: pytest.LogCaptureFixture) -> None:
    adata = cellxgene()
    adata.var_names = [*IDS[:2], *(f"ENSG0000099999{n}" for n in range(4))]
    adata.raw = None
    adata.X = counts()
    with caplog.at_level(logging.INFO, "scgalore"):
        assert keyed(streamed(hold(adata))) == plain(counts())
    assert any("gene names from var['feature_name'], of which 6 match (2 by var_names)" in t for t in caplog.messages)


def test_ids_are_kept_where_symbols_match_no_more(hold: Callable[[AnnData], Any]) -> None:
    adata = cellxgene()
    adata.var["feature_name"] = pd.Categorical([*SYMBOLS[:3], "a", "b", "c"])
    adata.raw = None
    assert keyed(streamed(hold(adata))) == plain(logs(counts()))


def test_symbols_are_not_exchanged_for_a_column(hold: Callable[[AnnData], Any]) -> None:
    adata = AnnData(counts(), var=pd.DataFrame({"other": SYMBOLS}, index=[*SYMBOLS[:3], "X1", "X2", "X3"]))
    assert streamed(hold(adata)).n_matched == 3


MOUSE = [gene for gene in GENES if gene[2]]


def mouse(kind: str) -> AnnData:
    symbols, ids = [gene[2] for gene in MOUSE], [gene[3] for gene in MOUSE]
    x = counts(20, 5)
    if kind == "ids":
        return AnnData(x, var=pd.DataFrame(index=ids))
    if kind == "gene_ids":  # as 10x writes them
        return AnnData(x, var=pd.DataFrame({"gene_ids": ids}, index=symbols))
    adata = AnnData(x, var=pd.DataFrame({"feature_name": symbols}, index=[str(n) for n in range(5)]))
    adata.obs["organism" if kind == "organism" else "organism_ontology_term_id"] = pd.Categorical(
        ["Mus musculus" if kind == "organism" else "NCBITaxon:10090"] * 20
    )
    return adata


@pytest.mark.parametrize("kind", ["ids", "gene_ids", "organism", "ontology"])
def test_mouse_and_human_in_one_stream(
    hold: Callable[[AnnData], Any], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "scgalore"):
        found = keyed(streamed([cellxgene(), hold(mouse(kind))]))
    expected = plain(np.hstack([counts(20, 5).toarray(), np.zeros((20, 1))]))
    assert {cell - 30: tokens for cell, tokens in found.items() if cell >= 30} == expected
    assert {cell: tokens for cell, tokens in found.items() if cell < 30} == plain(counts())
    assert sum("mouse genes, inferred from" in text for text in caplog.messages) == 1


def test_species_by_source() -> None:
    nameless = AnnData(counts(20, 5), var=pd.DataFrame(index=[gene[2] for gene in MOUSE]))
    found = streamed({"blood": cellxgene(), "brain": nameless}, species={"brain": "mouse"})
    assert found.n_matched == 6
    with pytest.raises(OptionError, match="species contains the unknown source 'liver'; choose from"):
        streamed({"blood": cellxgene()}, species={"liver": "mouse"})
    with pytest.raises(OptionError, match="species"):
        streamed(cellxgene(), species="rat")


def test_two_species_in_one_file() -> None:
    adata = mouse("organism")
    adata.obs["organism"] = pd.Categorical(["Mus musculus"] * 15 + ["Homo sapiens"] * 5)
    with pytest.raises(
        DataError, match=r"cells of 'Mus musculus', 'Homo sapiens'.*where=\"organism == 'Mus musculus'\""
    ):
        streamed(adata)
    assert streamed(adata, where="organism == 'Mus musculus'").n_obs == 15


def test_a_mouse_vocabulary_needs_no_orthologs() -> None:
    names = [str(gene[2]) for gene in MOUSE]
    stream = sg.data.stream(mouse("gene_ids"), GeneVocab.from_genes(names), min_matched=0)
    assert stream.n_matched == 5


# Queries ----------------------------------------------------------------------------------------------------------


def test_cells_are_chosen_by_a_query(hold: Callable[[AnnData], Any], caplog: pytest.LogCaptureFixture) -> None:
    adata = cellxgene()
    with caplog.at_level(logging.INFO, "scgalore"):
        stream = streamed([adata, hold(adata)], where="is_primary_data and disease == 'normal'")
    wanted = np.flatnonzero(adata.obs["is_primary_data"] & (adata.obs["disease"] == "normal"))
    alone = plain(counts())
    expected = {file * 30 + row: alone[row] for file in (0, 1) for row in wanted.tolist()}
    assert keyed(stream) == expected
    assert stream.n_obs == 2 * len(wanted)
    assert sum("10 of 30 cells kept" in text for text in caplog.messages) == 2


def test_queries_may_differ_by_source() -> None:
    sources = {"blood": cellxgene(), "brain": cellxgene()}
    stream = streamed(sources, where={"brain": "disease == 'normal'"})
    groups, files, rows = stream.locate(np.sort(np.concatenate([batch.cells for batch in stream])))
    assert np.bincount(groups).tolist() == [30, 15]
    assert stream.names == ("blood", "brain")
    assert files.tolist() == groups.tolist()
    assert (cellxgene().obs["disease"].iloc[rows[30:]] == "normal").all()


def test_a_file_without_such_cells_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    adata = cellxgene()
    adata.obs["disease"] = "flu"
    adata.write_h5ad(tmp_path / "flu.h5ad")
    stream = streamed([tmp_path / "flu.h5ad", cellxgene()], where="disease == 'normal'")
    assert stream.n_obs == 15
    assert stream.files == ("AnnData number 1",)
    assert any("selects 0 of 30 cells" in t and "flu.h5ad" in t and "'disease': 'flu'" in t for t in caplog.messages)
    with pytest.raises(DataError, match="disease == 'none'"):
        streamed([tmp_path / "flu.h5ad", cellxgene()], where="disease == 'none'")


def test_a_column_that_is_not_there(hold: Callable[[AnnData], Any]) -> None:
    with pytest.raises(MissingKeyError, match=r"no column 'tissue' in obs; it has \['is_primary_data', 'disease'"):
        streamed(hold(cellxgene()), where="disease == 'normal' and tissue == 'lung'")


# Real files -------------------------------------------------------------------------------------------------------


def test_a_file_of_cellxgene_next_to_human_files(shared_data: Path) -> None:
    mini = sg.model.SCGPT.from_pretrained("scgpt-mini")
    paths = [shared_data / "mouse_brain_1000cells.h5ad", shared_data / "kang18_pbmc_ifnb_9015genes.h5ad"]
    stream = sg.data.stream(paths, mini.vocab, config=mini.tokenizer_config(), where={str(paths[0]): "is_primary_data"})
    assert stream.n_obs == 3000
    groups, _, _ = stream.locate(np.concatenate([batch.cells for batch in stream]))
    assert np.bincount(groups).tolist() == [1000, 2000]


def test_a_species_that_is_not_known_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    adata = AnnData(counts(20, len(GENES)), var=pd.DataFrame(index=[str(gene[0]) for gene in GENES]))
    adata.obs["organism"] = pd.Categorical(["Danio rerio"] * 20)
    sg.data.stream(adata, VOCAB, min_matched=0)
    assert "'Danio rerio' in obs['organism']" in caplog.text
    caplog.clear()
    sg.data.stream(adata, VOCAB, min_matched=0, species="human")
    assert "Danio" not in caplog.text
