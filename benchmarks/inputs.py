"""What both sides read: random weights in the official layout, and cells of real data sets as h5ad files.

Weights are random, since the released ones are no part of any package index; time and memory do not depend on them.
They have the released sizes (12 layers of 512, 8 heads, 60,697 tokens, 205 MB) and the released tensor names
(``Wqkv``), and are written once into ``benchmarks/.cache``.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import scanpy as sc
import torch
from benchmarks.harness import CACHE, say

from scgalore.data.vocab import SPECIALS, GeneVocab
from scgalore.nn import SCGPTConfig, SCGPTNetwork
from scgalore.weights import export_scgpt

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


@dataclass(frozen=True)
class Size:
    """Sizes of a network."""

    n_tokens: int = 60_697
    d_model: int = 512
    n_heads: int = 8
    n_layers: int = 12

    def config(self, pad_id: int) -> SCGPTConfig:
        """Give the network's own description; no head for classes, as in the released files."""
        return SCGPTConfig(
            n_tokens=self.n_tokens,
            pad_id=pad_id,
            d_model=self.d_model,
            d_hid=self.d_model,
            n_heads=self.n_heads,
            n_layers=self.n_layers,
        )


WHOLE_HUMAN = Size()
SMALL = Size(n_tokens=6_003, d_model=64, n_heads=4, n_layers=2)
"""For ``--quick``: shows that all runs, and nothing else."""


def weights_folder(size: Size, genes: Iterable[str] = ()) -> Path:
    """Folder with ``args.json, vocab.json, best_model.pt``, written when it is not there.

    Parameters
    ----------
    size
        Sizes of the network.
    genes
        Names that the vocabulary must hold; made-up names fill the rest.
    """
    known = sorted(set(genes))
    n_fillers = size.n_tokens - len(SPECIALS) - len(known)
    if n_fillers < 0:
        known, n_fillers = known[:n_fillers], 0
    tokens = [*known, *(f"FILLER{number:05d}" for number in range(n_fillers))]
    digest = hashlib.sha256(repr((asdict(size), tokens)).encode()).hexdigest()[:12]
    folder = CACHE / f"weights-{size.n_layers}x{size.d_model}-{digest}"
    if not folder.exists():
        say(f"writing random weights to {folder}")
        vocab = GeneVocab.from_genes(tokens)
        config = size.config(vocab.pad_id)
        torch.manual_seed(0)
        export_scgpt(folder, args=config.to_args(), vocab=vocab.to_dict(), tensors=SCGPTNetwork(config).state_dict())
    return folder


@dataclass(frozen=True)
class Cells:
    """Some cells of a data set, in a file that both sides read.

    Attributes
    ----------
    name
        Name of the data set.
    path
        The h5ad file; gene names are ``var_names``.
    n_obs
        Number of cells.
    genes
        Names of the genes.
    expressed
        Mean number of expressed genes of a cell.
    """

    name: str
    path: Path
    n_obs: int
    genes: list[str]
    expressed: float


FILES = {"CITE-seq": "citeseq_500cells_citefuse.h5ad", "Kang": "kang18_pbmc_ifnb_9015genes.h5ad"}
PBMC68K = "pbmc68k"


def data_set(name: str, n_cells: int | None, folder: Path | None) -> Cells | None:
    """Draw cells of a data set; ``None``, with a line that says so, where its file is not there."""
    if name == PBMC68K:
        adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    else:
        path = None if folder is None else folder / FILES[name]
        if path is None or not path.exists():
            say(f"{name} is left out: --data names no folder with {FILES[name]}")
            return None
        adata = ad.read_h5ad(path)
    rows = np.arange(adata.n_obs)
    if n_cells is not None and n_cells < adata.n_obs:
        rows = np.sort(np.random.default_rng(0).choice(adata.n_obs, n_cells, replace=False))
    adata.var_names_make_unique()
    return written(name, ad.AnnData(adata.X[rows], var=adata.var[[]].copy()))


def written(name: str, adata: ad.AnnData) -> Cells:
    """Write cells to the cache."""
    CACHE.mkdir(exist_ok=True)
    # Zeros and ones of an integer matrix make the original's collator fail; it reads floats.
    adata.X = adata.X.astype(np.float32)
    path = CACHE / f"{name}-{adata.n_obs}.h5ad"
    adata.write_h5ad(path)
    expressed = float((adata.X > 0).sum() / adata.n_obs)
    return Cells(name, path, adata.n_obs, adata.var_names.tolist(), expressed)


def training_batch(path: Path, *, n_cells: int, length: int, n_tokens: int, seed: int = 0) -> None:
    """Write a batch without padding in which 40 % of the values are masked, as both programs make it.

    Random genes and bins: what a step costs does not depend on them.
    """
    rng = np.random.default_rng(seed)
    genes = np.stack([rng.choice(n_tokens - len(SPECIALS), length, replace=False) for _ in range(n_cells)])
    targets = rng.integers(1, 51, (n_cells, length)).astype(np.float32)
    genes[:, 0], targets[:, 0] = n_tokens - 2, -2.0  # <cls>, which is never masked here
    masked = np.zeros((n_cells, length), dtype=bool)
    for row in masked:
        row[1 + rng.choice(length - 1, int(0.4 * (length - 1)), replace=False)] = True
    values = np.where(masked, -1.0, targets).astype(np.float32)
    np.savez(path, genes=genes.astype(np.int64), values=values, targets=targets, masked=masked)
