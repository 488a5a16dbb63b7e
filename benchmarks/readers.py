"""The sides of the streaming benchmark: each reads random cells from several h5ad files."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp
from benchmarks.side import serve

import scgalore as sg
from scgalore.data.vocab import GeneVocab


def stream(paths: list[str], genes: list[str], batch_size: int, **options: Any) -> dict[str, int]:
    """An epoch of ``sg.data.stream``: shuffled token batches."""
    vocab = GeneVocab.from_genes(genes)
    n_cells = n_tokens = 0
    for batch in sg.data.stream(paths, vocab, batch_size=batch_size, rng=0, **options):
        n_cells += len(batch)
        n_tokens += batch.n_tokens
    return {"cells": n_cells, "tokens": n_tokens}


def files(paths: list[str], genes: list[str], **options: Any) -> dict[str, float]:
    """The same with the time that making the stream takes apart, in seconds of the processor."""
    vocab = GeneVocab.from_genes(genes)
    began = time.process_time()
    batches = sg.data.stream(paths, vocab, rng=0, min_matched=0, **options)
    made = time.process_time() - began
    n_cells = sum(len(batch) for batch in batches)
    return {"cells": n_cells, "made": made, "read": time.process_time() - began - made}


def draws(named: dict[str, list[str]], genes: list[str], n_epochs: int, **options: Any) -> dict[str, Any]:
    """Cells drawn in some epochs, by source and value of a column."""
    vocab = GeneVocab.from_genes(genes)
    batches = sg.data.stream(named, vocab, rng=0, min_matched=0, **options)
    labels = [ad.read_h5ad(path, backed="r").obs[options["weights_key"]].astype(str) for path in batches.files]
    counts: Counter[tuple[str, str]] = Counter()
    for epoch in range(n_epochs):
        for batch in batches.batches(epoch):
            places = zip(*batches.locate(batch.cells), strict=True)
            counts.update((batches.names[group], labels[file].iloc[row]) for group, file, row in places)
    return {"counts": [[*key, n] for key, n in sorted(counts.items())]}


def backed_rows(paths: list[str], batch_size: int, n_cells: int) -> dict[str, int]:
    """Random rows of files that anndata opened backed, a batch from one file at a time; no tokens are made of them."""
    rng = np.random.default_rng(0)
    files: list[Any] = [ad.read_h5ad(path, backed="r") for path in paths]
    read = 0
    while read < n_cells:
        file = files[rng.integers(len(files))]
        rows = np.sort(rng.choice(file.n_obs, batch_size, replace=False))
        read += sp.csr_matrix(file.X[rows]).shape[0]
    return {"cells": read}


def collection_rows(paths: list[str], batch_size: int, n_cells: int) -> dict[str, int]:
    """Random rows of anndata's AnnCollection over backed files; no tokens are made of them."""
    from anndata.experimental import AnnCollection

    rng = np.random.default_rng(0)
    files = [ad.read_h5ad(path, backed="r") for path in paths]
    collection = AnnCollection(files, join_vars="inner", join_obs="inner", index_unique="-")
    read = 0
    while read < n_cells:
        rows = np.sort(rng.choice(collection.n_obs, batch_size, replace=False))
        read += sp.csr_matrix(collection[rows].X).shape[0]
    return {"cells": read}


if __name__ == "__main__":
    sg.settings.progress = False
    serve({handler.__name__: handler for handler in (stream, files, draws, backed_rows, collection_rows)})
