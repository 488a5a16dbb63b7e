"""Make ``scgpt-mini``, the small scGPT that ships with the package, and write its model card.

Reads public data sets of cells, listed below with the hash of the exact file, and gene annotation, from one folder::

    python scripts/pretrain_scgpt_mini.py DATA_FOLDER OUT_FOLDER

``benchmarks/bundled_model.py`` makes it again without each of the data sets, to measure the embedding on their cells.
Besides the package it needs ``rdata`` from PyPI, which reads one of the files.

The network starts as a linear map of expression that is known to be good, and not from random weights. ``<cls>`` attends to
the genes of a cell with weights that grow with their expression and informativeness, and takes up the mean of their
embeddings. These are the principal axes of co-expression, pooled over data sets, and what Gene Ontology knows of a gene, so
that genes without data are apart as well. The decoders are then trained to predict masked expression.

The decoders are trained on the cells as one AnnData, by ``model.train``. :func:`scgalore.tl.pretrain` on the same cells, with the same options,
reads them in another order: the embedding is the same to the last bit, the decoders are others and as good (masked squared error on 700
cells of pbmc68k, tokens and embedding: 72.8 and 65.6, here 72.6 and 65.6, standard error 0.7 and 0.8). The weights that ship are those of this script.

With one thread the result is the same, bit for bit, on machines with the same CPU features and torch.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.utils.extmath import randomized_svd

import scgalore as sg
from scgalore.data.binning import bin_rows
from scgalore.data.vocab import GeneVocab
from scgalore.nn import SCGPTConfig

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from pandas import DataFrame

    from scgalore.nn import SCGPTNetwork


@dataclass(frozen=True)
class Source:
    """One data set: file, hash, what to cite, and how it is read.

    Attributes
    ----------
    file, sha256
        Name in the data folder, and the hash of its content.
    what
        Line of the card.
    species
        ``"mouse"`` genes are read as their human orthologs.
    counts
        Whether the values are counts or FPKM, which are normalised to 10,000 a cell and logarithmised.
    symbols
        Column of ``.var`` with gene names; ``None`` for ``.var_names``.
    control
        Column and value of ``.obs`` of the cells to take; ``None`` takes all.
    """

    file: str
    sha256: str
    what: str
    species: str = "human"
    counts: bool = True
    symbols: str | None = None
    control: tuple[str, str] | None = None


SOURCES = (
    Source(
        "kang18_pbmc_ifnb_9015genes.h5ad",
        "00944e8a07e11e703488a71c39de0d541eaedf52f3bb3a445c4979baaa27ef10",
        "PBMC of lupus patients, control and stimulated with interferon beta (Kang et al. 2018, GSE96583)",
    ),
    Source(
        "kang18_pbmc_ifnb_muscat.h5ad",
        "1a1e12d03e8d0660b49c588c059c9d44d5abb9866f8f717c6fe2c26fb7fed0da",
        "PBMC of two donors of the same study, control and stimulated (Kang et al. 2018, GSE96583)",
    ),
    Source(
        "citeseq_500cells_citefuse.h5ad",
        "987c8ffc23811023c8cf35aa5eecc44bacbd11efac432953670643117080abb8",
        "PBMC, CITE-seq with ECCITE-seq chemistry, RNA (Mimitou et al. 2019, GSE126310)",
    ),
    Source(
        "pbmc_10k_protein_v3_200cells.h5ad",
        "512fe360bd1cc79821f67959cc47e19b92bb7edbbb9351da5d1e9d70b35102a2",
        "PBMC of a healthy donor, 200 cells of the 10k CITE-seq data set, RNA (10x Genomics)",
    ),
    Source(
        "pbmc_3assays_symphony.h5ad",
        "f7d6edce40d77a32660935148a034bdef80b9b150291257ee272d5759c82830d",
        "PBMC in three assays (10x Genomics, as in Kang et al. 2021, Symphony)",
        counts=False,
    ),
    Source(
        "hesc_chen_385cells.h5ad",
        "d6bd06433766d42e6173fd04247c9db1e51143cbfddb8f8c5e0eaf4358bd92ac",
        "human embryonic stem cells (Chen et al., as in the benchmark of Stone et al.)",
        counts=False,
    ),
    Source(
        "mouse_brain_1000cells.h5ad",
        "f109995258daf776ceae48def5f5fc81cf478e3b4369aee22c394423aa549281",
        "mouse brain, MERFISH of 1,122 genes, as human orthologs (whole mouse brain atlas)",
        species="mouse",
        symbols="gene_name",
    ),
    Source(
        "perturbench_devel.h5ad",
        "220998f5630c813228c8661c86dd52244b9ac87127511289af90e0d900d8429b",
        "control cells of two perturbation screens: K562 (Norman et al. 2019, GSE133344) and three glioma lines (McFaline-Figueroa et al. 2023)",
        counts=False,
        control=("condition", "control"),
    ),
    Source(
        "sample_cell_by_gene.csv",
        "0d729bd7a9e4d8f5a8ccc167f222530f4ece8d334b939d21b796bd77daf967f2",
        "human cells of a sample file whose origin its carrier does not state (celltypist 1.7.1 on PyPI, MIT, data/samples)",
    ),
    Source(
        "HSMM_expr_matrix.rda",
        "164937f63687f3fe3ec68f8509b7ba22b27b44bb7b3641ad462260675c4b015f",
        "human skeletal muscle myoblasts that differentiate, FPKM (Trapnell et al. 2014, GSE52529; Debian's r-bioc-hsmmsinglecell 1.18.0, Artistic-2.0)",
    ),
)

ANNOTATION = (
    Source(
        "org.Hs.eg.sqlite",
        "bba36057dd3100a099e8054511b34d831349761971829a72b84859d2efe34605",
        "Gene Ontology terms of human genes (Gene Ontology Consortium, CC BY 4.0; Debian's r-bioc-org.hs.eg.db 3.16.0, Artistic-2.0)",
    ),
    Source(
        "human_gencode49_genes.tsv.gz",
        "9d60f61b4de85ca52cf015cc00f61557953fb4f9485c2db96ca2b9095377f2ef",
        "which genes there are (GENCODE 49, free to use)",
    ),
)

SEED = 0
N_COEXPRESSION, N_KNOWLEDGE = 64, 56
LOG_WEIGHT, VALUE = slice(120, 122), slice(122, 128)
SIZES = {"d_model": 128, "n_heads": 4, "d_hid": 128, "n_layers": 2, "dropout": 0.1}
BIOTYPES = ("protein_coding", "IG_C_gene", "TR_C_gene")
GAIN = 12.0
"""Of the cell in the state of its tokens, next to what is the same for all cells; what is added to the state must survive dropout."""
COMMON = 0.02
"""Share of the cells of two data sets that must express a gene that codes for nothing."""
SHARPNESS = 2.0
"""Power of a value in the weight of its gene."""
SCALE = 0.1
"""Standard deviation of gene embeddings in the table, before their norm."""
TRAIN = {"batch_size": 32, "optimizer": "adamw", "lr": 2e-3, "warmup": 0.05}
OBJECTIVE = {"objective": "masked", "mask_ratio": [0.25, 0.5, 0.75]}
LENGTH, MAX_LENGTH, MIN_GENES, EPOCHS = 200, 1200, 30, 4

CARD = """# scgpt-mini

A small scGPT for demos, documentation, tests and first looks: the architecture of the published model with a quarter of its
width, a sixth of its layers and a few thousand cells. **It is not a foundation model**: use `model="scgpt"` for work that matters.

Zero-shot, its embedding of blood cells from studies it has not seen is as good as PCA of these cells; cells of a tissue that
it has never seen (mouse brain) are embedded worse than by PCA. The table is below.

| | |
|---|---|
| architecture | scGPT (post-norm transformer on expressed genes), {sizes} |
| vocabulary | {n_genes} human genes: all that code for proteins, antibodies and T cell receptors, and other genes that are common in the data; 3 special tokens |
| gene embeddings | {n_axes} principal axes of co-expression, pooled over the data sets; {n_terms} axes of Gene Ontology and the package's gene sets, mixed with random directions |
| cell embedding | set, not trained: `<cls>` takes up the mean of its genes' embeddings, weighted by expression and by how rarely a gene is expressed |
| decoders | trained to predict masked expression, from tokens and from the cell embedding; at most {length} genes of a cell at a time |
| cells | {n_cells}, of which 5 % for the validation of the decoders. No label of any cell was used |
| training of the decoders | {training} |
| masked squared error | validation cells, last epoch, bins 1 to 50: {mse} |
| kept | float16 |
| software | scgalore {version}, torch {torch} |
| licence | BSD-3-Clause, as the package |

## Zero-shot

Accuracy of 15 nearest neighbours (five folds, five seeds) and silhouette of the labels, each data set left out when the weights
were made again for it. PCA: 50 components of these very cells, of unit norm, which is its better form on average. Earlier:
`scgpt-mini` of scgalore 0.7, which was trained on the four sets from PBMC in three assays to 10k PBMC, without their labels.
About 25 variants of the recipe were compared on these same cells, so the figures of the one that was kept are somewhat optimistic.

| cells | scgpt-mini | PCA | earlier |
|---|---|---|---|
| pbmc68k, 10 types (700) | 0.818 / 0.23 | 0.801 / 0.11 | 0.699 / 0.07 |
| PBMC in three assays, 9 types (1,197) | 0.922 / 0.30 | 0.924 / 0.15 | 0.819 / 0.17 |
| Kang, 5 types (1,556) | 0.916 / 0.11 | 0.915 / 0.10 | 0.807 / 0.06 |
| Kang, interferon (1,556) | 0.980 / 0.13 | 0.981 / 0.12 | 0.909 / 0.06 |
| CITE-seq, clusters of proteins (500) | 0.874 / 0.16 | 0.886 / 0.08 | 0.711 / 0.04 |
| 10k PBMC, clusters of proteins (200) | 0.816 / 0.26 | 0.756 / 0.13 | 0.686 / 0.15 |
| mouse brain, cell types (993) | 0.799 / -0.01 | 0.890 / 0.10 | 0.448 / -0.15 |
| four cell lines (400) | 0.997 / 0.28 | 0.997 / 0.42 | 0.737 / 0.09 |
| mean | 0.890 / 0.18 | 0.894 / 0.15 | 0.727 / 0.06 |

## Data

Public measurements. Of perturbation screens, only control cells were taken.

{data}

What is known of genes:

{annotation}
- gene sets of the package: Reactome, WikiPathways, MSigDB hallmarks, cell cycle, transcription factors (see `scgalore.genes`)

scanpy's pbmc68k, which the demo fine-tunes on, was not used.

## Good for

Trying the package, tests, teaching, a first embedding of blood cells, and as a start of small fine-tuning runs.

## Not good for

Comparisons with published models, or any conclusion about foundation models in general. Tissues and species other than
those above: what the embedding knows of their genes comes from annotation. Data sets above have been seen, without labels:
to judge the model on them, make it again without them (`benchmarks/bundled_model.py`).
"""


def located(folder: Path, source: Source) -> Path:
    """Path of a file, whose content must be the one listed."""
    path = folder / source.file
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != source.sha256:
        msg = f"{path} has sha256 {found}, expected {source.sha256}"
        raise SystemExit(msg)
    return path


def read_genes(folder: Path) -> dict[str, bool]:
    """Symbols of human genes, and whether they code for proteins, antibodies or T cell receptors."""
    with gzip.open(located(folder, ANNOTATION[1]), "rt") as file:
        table = pd.read_csv(file, sep="\t")
    # A gene without a symbol is listed under its id, which no data set names it by.
    table = table[~table.gene_name.str.startswith("ENSG")]
    return table.biotype.isin(BIOTYPES).groupby(table.gene_name).any().to_dict()


def read_cells(path: Path, source: Source, genes: list[str]) -> tuple[sp.csr_matrix, NDArray[np.bool_]]:
    """Log-normalised expression ``(cells, genes)``, and which genes were measured."""
    if path.suffix == ".h5ad":
        data = ad.read_h5ad(path)
    elif path.suffix == ".csv":
        table = pd.read_csv(path, index_col=0)
        data = ad.AnnData(table.to_numpy(np.float32), var=pd.DataFrame(index=table.columns))
    else:
        import rdata  # for this file alone

        table = rdata.read_rda(path)[path.stem]
        data = ad.AnnData(np.asarray(table).T.astype(np.float32), var=pd.DataFrame(index=table.dim_0.astype(str)))
    if source.control is not None:
        data = data[data.obs[source.control[0]] == source.control[1]]
    values = sp.csr_matrix(data.X, dtype=np.float32)
    if source.counts:
        values = sp.csr_matrix(sp.diags(1e4 / np.maximum(np.asarray(values.sum(axis=1)).ravel(), 1)) @ values).log1p()
    names: Iterable[str] = data.var_names if source.symbols is None else data.var[source.symbols].astype(str)
    if source.species == "mouse":
        names = [sg.genes.ortholog(name) or "" for name in names]
    else:
        names = sg.genes.standardise(names)
    column = {name: at for at, name in reversed(list(enumerate(names)))}
    measured = np.array([gene in column for gene in genes])
    choose = sp.csr_matrix(
        (np.ones(measured.sum()), ([column[gene] for gene in genes if gene in column], np.flatnonzero(measured))),
        shape=(values.shape[1], len(genes)),
    )
    cells = sp.csr_matrix(values @ choose, dtype=np.float32)
    cells.sort_indices()
    return cells, measured


def coexpression(data: Iterable[sp.csr_matrix]) -> NDArray[np.float32]:
    """Principal axes ``(genes, axes)`` of standardised expression, every data set centred and of the same weight."""
    parts = []
    for cells in data:
        mean = np.asarray(cells.mean(axis=0)).ravel()
        variance = np.asarray(cells.multiply(cells).mean(axis=0)).ravel() - mean**2
        # Rare genes have a small variance and would be blown up to noise.
        part = (cells.toarray() - mean) / np.sqrt(variance + 0.05 * variance.max() + 0.02)
        parts.append((part / np.linalg.norm(part)).astype(np.float32))
    _, _, axes = randomized_svd(
        np.vstack(parts), N_COEXPRESSION, n_iter=4, n_oversamples=32, random_state=SEED
    )  # whitened: axes of cell types that are rare here may be the main ones elsewhere
    return axes.T


def knowledge(folder: Path, genes: list[str]) -> NDArray[np.float32]:
    """Directions ``(genes, n)`` of unit length: what a gene is annotated with, and a random part that tells it apart."""
    row = {gene: at for at, gene in enumerate(genes)}
    pairs = set()
    with sqlite3.connect(located(folder, ANNOTATION[0])) as annotation:
        ids, symbols = zip(*annotation.execute("SELECT _id, symbol FROM gene_info ORDER BY _id"), strict=True)
        at = dict(zip(ids, map(row.get, sg.genes.standardise(symbols)), strict=True))
        for table in ("go_bp_all", "go_cc_all", "go_mf_all"):
            pairs |= {(at[i], term) for i, term in annotation.execute(f"SELECT _id, go_id FROM {table}")}
    for name in sg.genes.list_gene_sets():
        pairs |= {(row.get(gene), name) for gene in sg.genes.standardise(sg.genes.get_gene_set(name).genes)}
    frame = pd.DataFrame(sorted((gene, term) for gene, term in pairs if gene is not None), columns=["gene", "term"])
    size = frame.groupby("term").gene.transform("size")
    frame = frame[size.between(5, 2000)]
    term, _ = pd.factorize(frame.term)
    weight = np.log(len(genes) / frame.groupby("term").gene.transform("size"))
    matrix = sp.csr_matrix((weight, (frame.gene, term)), shape=(len(genes), term.max() + 1), dtype=np.float32)
    axes = TruncatedSVD(N_KNOWLEDGE, random_state=SEED).fit_transform(unit(matrix.toarray()))
    random = np.random.default_rng(SEED).normal(size=axes.shape)
    return unit(unit(axes) + unit(random)).astype(np.float32)


def unit(rows: NDArray) -> NDArray:
    """Scale rows to length 1; rows of zeros stay."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def gene_vectors(
    data: list[tuple[sp.csr_matrix, NDArray[np.bool_]]], folder: Path, genes: list[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Direction of each gene ``(genes, n)``, of unit length, and its weight in the embedding of a cell ``(genes,)``."""
    axes = coexpression(cells for cells, _ in data)
    length = np.linalg.norm(axes, axis=1)
    vectors = np.hstack([axes / np.median(length[length > 0]), knowledge(folder, genes)])
    shares = np.array([np.asarray((cells > 0).mean(axis=0)).ravel() for cells, _ in data])
    times = np.array([measured for _, measured in data]).sum(axis=0)
    share = np.where(times > 0, shares.sum(axis=0) / np.maximum(times, 1), 0.1)
    vectors -= vectors.mean(axis=1, keepdims=True)  # a layer norm would take it away
    weight = np.log1p(1 / (share + 0.02)) * np.sqrt(np.linalg.norm(vectors, axis=1))
    return unit(vectors), weight


def value_weight(values: NDArray) -> NDArray:
    """Logarithm of what the value of a gene, a bin, contributes to its weight."""
    return SHARPNESS * np.log((np.maximum(values, 0) + 2) / 52)


@torch.no_grad()
def put_in_place(
    network: SCGPTNetwork, vocab: GeneVocab, directions: NDArray, weight: NDArray, data: Iterable[sp.csr_matrix]
) -> None:
    """Let the first block put into ``<cls>`` the weighted mean of the directions of a cell's genes, less that of all cells.

    The weight of a gene and that of its value are added up in the keys, as logarithms; the query is the same for every
    cell. The second block starts as the identity.
    """
    d, n_genes = network.config.d_model, len(weight)
    rows = np.random.default_rng(SEED).normal(size=(len(vocab), d))
    # Rows as their norm leaves them: mean 0 and variance 1.
    log_weight = np.log(weight / np.median(weight))
    for _ in range(3):
        size = np.sqrt(d - 2 * (0.5 * log_weight) ** 2)
        log_weight = np.log(weight / size)
        log_weight -= np.median(log_weight)
    rows[:, VALUE] = 0
    rows[:n_genes, : directions.shape[1]] = directions * size[:, None]
    rows[:n_genes, LOG_WEIGHT] = np.outer(0.5 * log_weight, (1, -1))
    # Special tokens weigh nothing, and have no direction: <cls> is then free for that of the cell.
    rows[n_genes:] = 0
    rows[n_genes:, LOG_WEIGHT] = np.sqrt(d / 2) * np.array((-1, 1))
    network.encoder.embedding.weight.copy_(torch.from_numpy(rows * SCALE))

    # The value encoder interpolates linearly between whole numbers, on a sphere, so that its norm changes nothing.
    levels = np.arange(-2, 52)
    value = value_weight(levels)
    first = (value - value.mean()) / np.abs(value - value.mean()).max()
    second = np.where(levels < 0, -1.0, 0.5 * levels / 51)
    third = np.sqrt(9 - first**2 - second**2)
    wanted = np.stack([first, -first, second, -second, third, -third], axis=1) * np.sqrt(d / 18)
    kinks = np.concatenate([levels[:-1] - 0.0, np.full(d - len(levels) + 1, 100.0)])
    hidden = np.maximum(levels[:, None] - kinks, 0) / 10
    encoder = network.value_encoder
    encoder.linear1.weight.fill_(0.1)
    encoder.linear1.bias.copy_(torch.from_numpy(-kinks / 10))
    slopes = np.linalg.lstsq(np.hstack([hidden, np.ones((len(levels), 1))]), wanted, rcond=None)[0]
    encoder.linear2.weight.zero_()
    encoder.linear2.bias.zero_()
    encoder.linear2.weight[VALUE] = torch.from_numpy(slopes[:-1].T).float()
    encoder.linear2.bias[VALUE] = torch.from_numpy(slopes[-1]).float()

    first_block, second_block = network.blocks
    attention, e = first_block.self_attn, d // network.config.n_heads
    q, k, v = attention.Wqkv.weight.chunk(3)
    q.zero_()
    v.copy_(torch.eye(d))
    attention.Wqkv.bias.zero_()
    per_value = np.abs(value - value.mean()).max() / np.sqrt(d / 18)
    for head in range(0, d, e):
        attention.Wqkv.bias[head] = e**0.5  # the query
        k[head] = 0
        k[head, LOG_WEIGHT] = torch.tensor([1.0, -1.0])
        k[head, VALUE.start] = per_value
    directed = torch.zeros(d)
    directed[: directions.shape[1]] = 1
    attention.out_proj.weight.copy_(GAIN * torch.diag(directed))
    for block in network.blocks:
        block.linear2.weight.zero_()
        block.linear2.bias.zero_()
    second_block.self_attn.out_proj.weight.zero_()
    centre = np.mean([mean_cell(cells, directions * size[:, None], np.exp(log_weight)) for cells in data], axis=0)
    attention.out_proj.bias.zero_()
    attention.out_proj.bias[: len(centre)] = torch.from_numpy(-GAIN * centre).float()


def mean_cell(cells: sp.csr_matrix, vectors: NDArray, weight: NDArray) -> NDArray[np.float64]:
    """Mean over cells of the weighted mean over genes of ``vectors``."""
    bins = bin_rows(cells.data, cells.indptr.astype(np.int64), 51, ties="upper")
    weighted = sp.csr_matrix((np.exp(value_weight(bins)), cells.indices, cells.indptr), cells.shape) @ sp.diags(weight)
    return ((weighted @ vectors) / np.maximum(np.asarray(weighted.sum(axis=1)), 1e-9)).mean(axis=0)


def make(folder: Path, without: Iterable[str] = ()) -> tuple[sg.model.SCGPT, ad.AnnData]:
    """Make the untrained model, with the data sets in place, and the cells to train on.

    Parameters
    ----------
    folder
        With the files of ``SOURCES`` and ``ANNOTATION``.
    without
        Names of files to leave out.
    """
    sources = [source for source in SOURCES if source.file not in set(without)]
    coding = read_genes(folder)
    data = [read_cells(located(folder, source), source, list(coding)) for source in sources]
    common = sum(np.asarray((cells > 0).mean(axis=0)).ravel() >= COMMON for cells, _ in data) >= 2
    kept = np.array(list(coding.values())) | common
    genes = [gene for gene, keep in zip(coding, kept, strict=True) if keep]
    data = [(cells[:, kept], measured[kept]) for cells, measured in data]
    vocab = GeneVocab.from_genes(genes)
    config = SCGPTConfig(n_tokens=len(vocab), pad_id=vocab.pad_id, max_length=MAX_LENGTH, **SIZES)
    model = sg.model.SCGPT.from_config(config, vocab, rng=SEED)
    directions, weight = gene_vectors(data, folder, genes)
    put_in_place(model.network, vocab, directions, weight, [cells for cells, _ in data])
    model.network.half().float()  # as it is shipped
    cells = ad.AnnData(sp.vstack([cells for cells, _ in data]).tocsr(), var=pd.DataFrame(index=genes))
    cells.obs_names = [str(number) for number in range(cells.n_obs)]
    return model, cells[np.diff(cells.X.indptr) >= MIN_GENES].copy()


def train(model: sg.model.SCGPT, cells: ad.AnnData, epochs: int) -> DataFrame:
    """Train the decoders to predict masked expression; everything that an embedding depends on stays as it is."""
    for name, parameter in model.network.named_parameters():
        parameter.requires_grad_("decoder" in name)
    # Tokens have no positions, so what was trained on short cells reads long ones.
    model.network.config = model.network.config.replace(max_length=LENGTH)
    model.train(cells, task="expression", **OBJECTIVE, max_epochs=epochs, validation_size=0.05, rng=SEED, **TRAIN)
    model.network.config = model.network.config.replace(max_length=MAX_LENGTH)
    model.network.requires_grad_()
    history, model.result = model.history, None  # wall times do not belong into weights that are the same every time
    return history


def card(model: sg.model.SCGPT, history: DataFrame, n_cells: int) -> str:
    """Model card in markdown."""
    minutes = history["seconds"].sum() / 60
    last = history.iloc[-1]
    sizes = ", ".join(f"{name} {value}" for name, value in SIZES.items())
    training = ", ".join(f"{name} {value}" for name, value in TRAIN.items())
    lines = {
        group: "\n".join(f"- {source.what}; file `{source.file}`, sha256 `{source.sha256}`" for source in sources)
        for group, sources in (("cells", SOURCES), ("annotation", ANNOTATION))
    }
    return CARD.format(
        sizes=sizes,
        n_genes=f"{len(model.vocab) - 3:,}",
        n_cells=f"{n_cells:,}",
        n_axes=N_COEXPRESSION,
        n_terms=N_KNOWLEDGE,
        length=LENGTH,
        training=f"max_epochs {len(history)}, {training}, seed {SEED}, one thread of a busy CPU, {minutes:.0f} minutes",
        mse=f"{last.validation_mse:.1f} from the tokens, {last.validation_mse_from_cell:.1f} from the embedding",
        version=sg.__version__,
        torch=torch.__version__,
        data=lines["cells"],
        annotation=lines["annotation"],
    )


def main() -> None:
    """Make, train, round to float16, save, and describe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sg.settings.verbosity = 2

    model, cells = make(arguments.data)
    history = train(model, cells, EPOCHS)
    model.provenance = {"name": "scgpt-mini", "sha256": "", "layout": "scgalore", "base": ""}
    model.network.half()
    model.save(arguments.out, overwrite=True)
    (arguments.out / "README.md").write_text(card(model, history, cells.n_obs))
    for path in sorted(arguments.out.iterdir()):
        content = path.read_bytes()
        print(f"{path.name}: size = {len(content)}, sha256 = {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
