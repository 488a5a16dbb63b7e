"""Run benchmarks by name: ``python benchmarks/run.py NAME|all [--quick] [--threads N] [...]``.

Further options go to the scripts; ``python benchmarks/run.py NAME --help`` lists them.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPTS = {
    "embedding": "sg.tl.embed against embed_data: cells/s, memory, distances",
    "bfloat16": "what bfloat16 changes with trained weights",
    "training_step": "a step of 8 x 1,200 tokens: seconds, activation memory",
    "loading": "vocabulary and checkpoint",
    "first_use": "seconds of a first embedding, a fine-tuning and a perturbation fit, next to an earlier version",
    "streaming": "token batches from several files; a file larger than memory",
    "stream_files": "a stream of 1 to 200 files cut from real ones: cells/s, memory, shares of what is drawn",
    "scaling": "throughput over cells and over length, with a plot",
    "two_processes": "the same results with two processes, and their throughput",
    "peak_share": "share of the matrix-multiply peak, and the top costs",
    "compiled": "torch.compile against none: a training step",
    "select_genes": "choosing genes against scanpy's variable genes and a loop: time, memory",
    "perturbation": "perturbation models compared with baselines and the ceiling",
    "perturbation_scores": "how long scoring predicted perturbations takes",
    "perturbation_priors": "rules that a perturbation model may start from, on other data",
    "perturbation_floor": "models and priors against the best baseline, on all screens that are here",
    "perturbation_choice": "other ways to choose the prior of a perturbation model",
    "compounds": "compounds at doses: a made dose-response, and interferon in cell types left out",
    "perturbation_ablation": "one decision of a perturbation model turned back at a time",
    "classes_floor": "cell types: the model and its linear model against the best simple baseline",
    "classes_unlabelled": "cell types: what cells without labels add to few labels and to other studies",
    "missing_genes": "cell types in cells that lack genes: the linear model, next to one that is fitted again",
    "training_budget": "how long and how fast to train on few cells",
    "bundled_model": "zero-shot embeddings of the bundled model, next to PCA",
    "integration": "batches: the model from bundled and random weights next to PCA and Harmony, labels, queries, what is kept",
    "integration_scores": "how long scoring an integration takes, and scores of two real data sets",
    "gene_networks": "edges from factors to targets against known ones, by every method, with chance",
    "gene_programs": "programs of genes in blood, by embeddings and by co-expression",
    "gene_attention": "mean attention over cells against keeping whole maps: numbers, seconds, memory",
    "regression": "a number for each cell, next to ridge regression",
    "proteins": "RNA and proteins: next to ridge regression, PCA and totalVI",
    "unknown_types": "cells of a type that training had none of: are they found?",
    "mapping": "cells mapped to a reference: labels, new types, and neighbours among a million cells",
    "in_silico": "genes changed in silico against real perturbations: directions, sizes, time",
    "memory_estimate": "sg.estimate_memory compared with measurements",
    "long_cells": "one cell of 5,000 tokens: attention that keeps its maps against our best settings",
    "curriculum": "few genes first against all genes from the start: losses, accuracy, time",
    "scbert_speed": "scBERT at its full size, next to performer-pytorch: time, memory, FLOPs",
    "pretraining_optimizers": "optimizers in pre-training on several files: held-out loss at equal steps and time",
    "gpu": "cells/s on a GPU, where there is one",
}


def main(argv: list[str] | None = None) -> int:
    """Run one script or all, each in a process of its own; the number of those that failed."""
    arguments = sys.argv[1:] if argv is None else argv
    name, *options = arguments or ["--help"]
    if name != "all" and name not in SCRIPTS:
        print(__doc__)
        print("\n".join(f"  {script:23}{what}" for script, what in {**SCRIPTS, "all": "one after the other"}.items()))
        return 0 if name in ("-h", "--help") else 2
    failed = []
    for script in SCRIPTS if name == "all" else [name]:
        print(f"== {script}", flush=True)
        begin = time.perf_counter()
        if subprocess.run([sys.executable, "-m", f"benchmarks.{script}", *options], cwd=ROOT).returncode:
            failed.append(script)
        print(f"== {script}: {time.perf_counter() - begin:.0f} s{' (failed)' if script in failed else ''}", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
