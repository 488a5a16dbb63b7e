"""Mean attention between factors and genes over cells of 1,200 tokens, 12 x 512 network, against keeping whole maps.

Whole maps are how the original's tutorial does it: the query-key products of all heads of one layer for a batch of cells, ranked by
two sorts, summed for all pairs of tokens. Ours reduces each layer of each cell to the pairs that are asked for. Cells are made, with
the same genes in each, so that whole maps can be summed. The last layer is measured on 500 cells; all layers and whole maps, which take
half an hour for as many, on a tenth of them. Memory is what the process has in addition during the call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from benchmarks.harness import begin, parser, results_folder
from benchmarks.side import measured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.harness import Report

    from scgalore.nn import SCGPTNetwork

FULL = {"n_tokens": 1200, "n_keys": 100, "n_layers": 12, "d_model": 512, "n_heads": 8}
QUICK = {"n_tokens": 60, "n_keys": 5, "n_layers": 2, "d_model": 32, "n_heads": 4}
BATCH = 4


def network(sizes: dict[str, int]) -> SCGPTNetwork:
    """Random weights."""
    from scgalore.nn import SCGPTConfig, SCGPTNetwork

    torch.manual_seed(0)
    n, d = sizes["n_tokens"], sizes["d_model"]
    config = SCGPTConfig(
        n_tokens=n + 1, pad_id=n, d_model=d, d_hid=d, n_heads=sizes["n_heads"], n_layers=sizes["n_layers"]
    )
    return SCGPTNetwork(config).eval()


def cells(n_cells: int, n_tokens: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Tokens and binned values."""
    generator = torch.Generator().manual_seed(0)
    genes = torch.arange(n_tokens)
    return [(genes, torch.randint(1, 51, (n_tokens,), generator=generator).float()) for _ in range(n_cells)]


def ours(made: SCGPTNetwork, n_cells: int, sizes: dict[str, int], layers: Sequence[int] | None) -> np.ndarray:
    """Means of the wanted pairs, ``(n_keys, n_tokens)``."""
    from scgalore.nn import AttentionMeans

    means = AttentionMeans(made, np.arange(sizes["n_keys"]), np.arange(sizes["n_tokens"]), layers=layers)
    for genes, values in cells(n_cells, sizes["n_tokens"]):
        means.add(genes, values)
    return means.means()[0]


@torch.no_grad()
def whole_maps(made: SCGPTNetwork, n_cells: int, sizes: dict[str, int]) -> torch.Tensor:
    """Means of all pairs in the last layer, ``(n_tokens, n_tokens)``, queries by keys."""
    from scgalore.nn import attention_scores, rank_scores

    total = torch.zeros(sizes["n_tokens"], sizes["n_tokens"])
    every = cells(n_cells, sizes["n_tokens"])
    for start in range(0, n_cells, BATCH):
        genes, values = (torch.stack(part) for part in zip(*every[start : start + BATCH], strict=True))
        total += rank_scores(attention_scores(made, genes, values)).sum(dim=0)
    return total / n_cells


@torch.no_grad()
def exact(made: SCGPTNetwork, n_cells: int, sizes: dict[str, int]) -> np.ndarray:
    """As :func:`ours` for all layers, from whole maps that SciPy ranks."""
    from scipy.stats import rankdata

    from scgalore.nn import attention_scores

    s, total = sizes["n_tokens"], np.zeros((sizes["n_keys"], sizes["n_tokens"]))
    for genes, values in cells(n_cells, s):
        for layer in range(sizes["n_layers"]):
            scores = attention_scores(made, genes[None], values[None], layer=layer)[0].numpy()
            for head in scores:
                ranks = rankdata(rankdata(head, axis=1), axis=0) - 1
                total += ranks[:, : sizes["n_keys"]].T / s / len(scores) / sizes["n_layers"]
    return total / n_cells


def compare(report: Report, sizes: dict[str, int], n_cells: dict[str, int]) -> None:
    """Numbers, then seconds and memory."""
    made = network(sizes)
    small = n_cells["exact"]
    difference = float(np.abs(ours(made, small, sizes, None) - exact(made, small, sizes)).max())
    report.claim(
        f"means over {small} cells, all layers, next to whole maps ranked by SciPy: largest difference",
        "below 1e-5",
        f"{difference:.1e}",
        holds=difference < 1e-5,
    )
    rows: list[list[Any]] = []
    per_cell, memory = {}, {}
    runs: dict[str, tuple[Any, int, dict[str, Any]]] = {
        "ours, last layer, few cells": (ours, n_cells["few"], {"layers": [-1]}),
        "ours, last layer": (ours, n_cells["ours"], {"layers": [-1]}),
        "ours, all layers": (ours, n_cells["all layers"], {"layers": None}),
        f"whole maps, last layer, {BATCH} cells at a time": (whole_maps, n_cells["whole"], {}),
    }
    for name, (function, n, more) in runs.items():
        found = measured(function, made=made, n_cells=n, sizes=sizes, **more)
        per_cell[name], memory[name] = found["cpu"] / n, (found["peak"] - found["rss"]) / 1e6
        times = f"{found['wall'] / n:.2f}", f"{found['cpu']:.0f}", f"{per_cell[name]:.2f}"
        rows.append([name, n, *times, f"{memory[name]:.0f}"])
        report.measured[name] = {
            "cells": n,
            "cpu": found["cpu"],
            "cpu_per_cell": per_cell[name],
            "megabytes": memory[name],
        }
    report.table("Seconds and memory", ["way", "cells", "wall s per cell", "CPU s", "CPU s per cell", "MB"], rows)
    few, many, _, whole = runs
    report.claim(
        "CPU time of whole maps over ours, last layer",
        "reported",
        f"{per_cell[whole] / per_cell[many]:.1f}",
        holds=None,
    )
    grown = memory[many] - memory[few]
    report.claim(
        f"memory for {n_cells['ours']} cells less that for {n_cells['few']}",
        "below 20 MB",
        f"{grown:.0f} MB",
        holds=grown < 20,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments = parser(__doc__).parse_args(argv)
    report = begin("gene_attention", "Mean attention over cells", arguments)
    sizes = QUICK if arguments.quick else FULL
    report.note(", ".join(f"{name} {value:,}" for name, value in sizes.items()))
    counts = (
        {"exact": 3, "few": 2, "ours": 6, "all layers": 3, "whole": 4}
        if arguments.quick
        else {"exact": 1, "few": 3, "ours": 500, "all layers": 48, "whole": 48}
    )
    compare(report, sizes, counts)
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
