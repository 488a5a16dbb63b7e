from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scgalore.data.finding import AUTO
from scgalore.data.looking import Look, Wanted
from scgalore.data.query import Query
from scgalore.data.reading import Reading
from scgalore.data.sources import Source
from scgalore.data.vocab import GeneVocab

GENES = [f"G{n}" for n in range(12)]
VOCAB = GeneVocab.from_genes(GENES)


def write(path: Path, genes: list[str], n_obs: int = 20) -> Path:
    x = sp.csr_matrix(np.random.default_rng(0).poisson(2.0, (n_obs, len(genes))).astype(np.float32) + 1)
    adata = AnnData(x, obs=pd.DataFrame({"kind": ["a", "b"] * (n_obs // 2)}), var=pd.DataFrame(index=genes))
    adata.obs_names = adata.obs_names.astype(str)
    adata.raw = adata
    adata.write_h5ad(path)
    return path


def test_what_is_kept_leaves_nothing_open(tmp_path: Path) -> None:
    look = Look(VOCAB)
    paths = [write(tmp_path / f"{n}.h5ad", genes) for n, genes in enumerate((GENES, GENES[::-1], GENES))]
    kept = []
    for path in paths:
        source = Source.of(path, 0, reading=Reading(AUTO, min_matched=0))
        place = source.place()
        kept.append(look.at(place, Wanted(source, query=Query.of("kind == 'b'"), find_species=True)))
        place.close()
    assert [one.table for one in kept if one] == [0, 1, 0]  # files of the same genes share a table
    for one in kept:
        assert one is not None
        assert one.source.reading == Reading("raw", None, species="human", min_matched=0)
        assert one.source.fingerprint is not None
        assert one.rows is not None
        assert one.rows.tolist() == list(range(1, 20, 2))
        assert (one.n_obs, one.n_kept) == (20, 10)
        assert one.only(np.arange(10) < 2).rows.tolist() == [1, 3]
    tokens = look.tables[1].astype(np.int64) - 1
    assert [VOCAB.tokens[token] for token in tokens] == GENES[::-1]


def test_nothing_that_is_meant(tmp_path: Path) -> None:
    source = Source.of(write(tmp_path / "cells.h5ad", GENES), 0, reading=Reading(min_matched=0))
    place = source.place()
    assert Look(VOCAB).at(place, Wanted(source, query=Query.of("kind == 'c'"))) is None
    place.close()
