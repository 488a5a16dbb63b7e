"""Pretrain ``scgpt-mini``, the small scGPT that ships with the package, and write its model card.

Reads five public data sets of human blood cells (listed below with the hash of the exact file) from a folder::

    python scripts/pretrain_scgpt_mini.py DATA_FOLDER OUT_FOLDER

An interrupted run continues where it stopped when called again. With one thread the result is the same, bit for bit, on
machines with the same CPU features and torch.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import torch

import scgalore as sg
from scgalore.data.sampler import BatchRequest
from scgalore.data.vocab import GeneVocab
from scgalore.nn import SCGPTConfig
from scgalore.objectives import MaskedExpression
from scgalore.tasks.registry import resolve_call

if TYPE_CHECKING:
    from pandas import DataFrame

    from scgalore.data.cells import TokenCells
    from scgalore.data.split import Split


@dataclass(frozen=True)
class Source:
    """One data set: file, hash, and what to cite."""

    file: str
    sha256: str
    what: str


SOURCES = (
    Source(
        "kang18_pbmc_ifnb_9015genes.h5ad",
        "00944e8a07e11e703488a71c39de0d541eaedf52f3bb3a445c4979baaa27ef10",
        "PBMC of lupus patients, control and stimulated with interferon beta, counts (Kang et al. 2018, GSE96583)",
    ),
    Source(
        "kang18_pbmc_ifnb_muscat.h5ad",
        "1a1e12d03e8d0660b49c588c059c9d44d5abb9866f8f717c6fe2c26fb7fed0da",
        "PBMC of two donors of the same study, control and stimulated, counts (Kang et al. 2018, GSE96583)",
    ),
    Source(
        "citeseq_500cells_citefuse.h5ad",
        "987c8ffc23811023c8cf35aa5eecc44bacbd11efac432953670643117080abb8",
        "PBMC, CITE-seq with ECCITE-seq chemistry, RNA counts (Mimitou et al. 2019, GSE126310)",
    ),
    Source(
        "pbmc_10k_protein_v3_200cells.h5ad",
        "512fe360bd1cc79821f67959cc47e19b92bb7edbbb9351da5d1e9d70b35102a2",
        "PBMC of a healthy donor, 200 cells of the 10k CITE-seq data set, RNA counts (10x Genomics)",
    ),
    Source(
        "pbmc_3assays_symphony.h5ad",
        "f7d6edce40d77a32660935148a034bdef80b9b150291257ee272d5759c82830d",
        "PBMC in three assays, log-normalised (10x Genomics, as in Kang et al. 2021, Symphony)",
    ),
)

N_GENES = 8_000
SEED = 0
LENGTH = 200
MIN_GENES = 30
TRAIN = {"max_epochs": 20, "batch_size": 32, "optimizer": "adamw", "lr": 2e-3, "warmup": 0.05}
OBJECTIVE = MaskedExpression(mask_ratio=(0.25, 0.5, 0.75))
SIZES = {"d_model": 64, "n_heads": 4, "d_hid": 64, "n_layers": 4, "dropout": 0.1}


def read_cells(folder: Path) -> ad.AnnData:
    """All cells by all genes, under current symbols; genes that a data set lacks are zero there."""
    parts = []
    for source in SOURCES:
        path = folder / source.file
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != source.sha256:
            msg = f"{path} has sha256 {found}, expected {source.sha256}"
            raise SystemExit(msg)
        part = ad.read_h5ad(path)
        part = ad.AnnData(part.X, obs=part.obs[[]], var=part.var[[]])
        part.var_names = sg.genes.standardise(part.var_names)
        parts.append(part[:, ~part.var_names.duplicated()])
    cells = ad.concat(parts, join="outer", keys=[source.file for source in SOURCES], index_unique="-", fill_value=0)
    return cells


def choose_genes(cells: ad.AnnData) -> list[str]:
    """Genes expressed in most cells, sorted by name."""
    n_cells = np.asarray((cells.X > 0).sum(axis=0)).ravel()
    return sorted(cells.var_names[np.argsort(-n_cells, kind="stable")[:N_GENES]])


def gene_mean_error(cells: TokenCells, split: Split) -> float:
    """Squared error of predicting each gene's mean bin in the training cells, on the validation cells."""
    train, validation = (cells.batch(BatchRequest(rows)) for rows in (split.train, split.validation))
    frame = pd.DataFrame({"gene": train.genes[~train.padding], "bin": train.values[~train.padding]})
    means = frame.groupby("gene")["bin"].mean()
    real = ~validation.padding
    real[:, 0] = False  # <cls> has no expression
    predicted = means.reindex(validation.genes[real].numpy()).fillna(frame["bin"].mean()).to_numpy()
    return float(((predicted - validation.values[real].numpy()) ** 2).mean())


def card(history: DataFrame, n_cells: int, baseline: float) -> str:
    """Model card in markdown."""
    best = history["validation_loss"].idxmin()
    minutes = history["seconds"].sum() / 60
    training = ", ".join(f"{name} {value}" for name, value in TRAIN.items())
    columns = [name for name in history.columns if name.startswith(("train_", "validation_"))]
    curve = history[columns].round(2).to_markdown()
    data = "\n".join(f"- {source.what}; file `{source.file}`, sha256 `{source.sha256}`" for source in SOURCES)
    sizes = ", ".join(f"{name} {value}" for name, value in SIZES.items())
    return f"""# scgpt-mini

A small scGPT for demos, documentation and tests: the architecture of the published model with an eighth of its width, a
third of its layers and a six-thousandth of its cells. It makes everything run offline with a network that has seen human cells. **It is not a foundation model**: use
`model="scgpt"` for work that matters.

| | |
|---|---|
| architecture | scGPT (post-norm transformer on expressed genes), {sizes} |
| vocabulary | {N_GENES:,} human genes (those expressed in most of the training cells) and 3 special tokens |
| objective | masked expression, from tokens and from the cell embedding; mask ratio drawn from {OBJECTIVE.mask_ratio} |
| training cells | {n_cells:,}, of which 5 % for validation; at most {LENGTH} genes of a cell at a time, sampled anew every epoch |
| training | {training}, seed {SEED}, one thread of a busy CPU, {minutes:.0f} minutes |
| kept | weights of epoch {best} (counted from 0), rounded to float16 |
| software | scgalore {sg.__version__}, torch {torch.__version__} |
| licence | BSD-3-Clause, as the package |

## Data

Public measurements of human peripheral blood:

{data}

scanpy's pbmc68k, which the demo fine-tunes on, was not used.

## Good for

Trying the package, tests, teaching: a network of the real architecture that has learnt which genes go together in blood.

Do not expect more of it. `python -m scgalore demo` compares it with logistic regression; with `--model` and the folder of the
same network with random weights, it shows what pre-training adds.

## Not good for

Other tissues, other species, rare genes (anything outside the {N_GENES:,}), benchmarks against published models, or any
conclusion about foundation models in general.

## Loss by epoch

Squared error of binned expression (bins 1 to 50) at masked positions: from the tokens, from the cell embedding, and their
sum. Predicting each gene's mean bin in the training cells has an error of {baseline:.2f} on the validation cells.

{curve}
"""


def main() -> None:
    """Pretrain, round to float16, save, and describe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--checkpoints", type=Path, default=Path("scgpt-mini-checkpoints"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sg.settings.verbosity = 2

    cells = read_cells(arguments.data)
    vocab = GeneVocab.from_genes(choose_genes(cells))
    cells = cells[:, vocab.ids(cells.var_names) >= 0].copy()
    sc.pp.filter_cells(cells, min_genes=MIN_GENES)
    model = sg.model.SCGPT.from_config(
        SCGPTConfig(n_tokens=len(vocab), pad_id=vocab.pad_id, max_length=LENGTH, **SIZES), vocab, rng=SEED
    )
    task, call = resolve_call(
        TRAIN, task="expression", seed=SEED, function=model.train, validation_size=0.05, test_size=0.0
    )
    prepared = replace(task.prepare(task.read(cells, call), model, call), objective=OBJECTIVE)
    model.fit(prepared, checkpoint_dir=arguments.checkpoints, resume=True)
    model.provenance = {"name": "scgpt-mini", "sha256": "", "layout": "scgalore"}
    baseline = gene_mean_error(model.cells(cells, rng=SEED), model.split)
    # Tokens have no positions, so a network trained on short cells reads long ones.
    model.network.config = model.network.config.replace(max_length=1200)
    model.network.half()
    model.save(arguments.out, overwrite=True)
    text = card(model.history, cells.n_obs, baseline)
    (arguments.out / "README.md").write_text(text)
    for path in sorted(arguments.out.iterdir()):
        content = path.read_bytes()
        print(f"{path.name}: size = {len(content)}, sha256 = {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
