"""What each decision of a perturbation model does on PerturBench's devel data: one is turned back at a time.

The same splits as :mod:`benchmarks.perturbation`, scored without tests for differential expression.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from benchmarks.harness import begin, results_folder
from benchmarks.perturbation import DEFAULT, SPLITS, Variant, cell_text, fit_all, is_here, not_measured, options_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.harness import Report

ABLATION = {
    "default": DEFAULT,
    "perturbed gene a token only where measured (upstream)": replace(DEFAULT, flag_unmeasured=False),
    "epoch chosen by Pearson of expression (upstream)": replace(DEFAULT, monitor="validation_expression_error"),
    "epoch kept if better than the prior at all": replace(DEFAULT, monitor="validation_score"),
    "dropout 0.2 (upstream)": replace(DEFAULT, dropout=0.2),
    "no prior (upstream)": replace(DEFAULT, prior="none"),
    "network sees the fitted prior only": replace(DEFAULT, held_out=False),
    "all of upstream's": Variant(
        prior="none", monitor="validation_expression_error", flag_unmeasured=False, dropout=0.2
    ),
}


def ablate(report: Report, runs: dict[str, list[dict[str, Any]]], names: Sequence[str]) -> None:
    """One row a variant: Pearson delta and squared error of each split."""
    rows = []
    for variant, of_variant in runs.items():
        line: list[object] = [variant]
        for metric in ("pearson_delta", "mse"):
            for name in names:
                means = [
                    one["summary"]
                    .query(f"group == 'all' and metric == '{metric}' and method == 'model'")["mean"]
                    .iloc[0]
                    for one in of_variant
                    if one["split"] == name
                ]
                line.append(cell_text(np.array(means, dtype=float), metric, spread=True))
        rows.append(line)
    columns = ("", *(f"{metric}, {name}" for metric in ("Pearson delta", "mse") for name in names))
    report.table("Ablation: one decision turned back at a time", columns, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments = options_of(__doc__, 2, argv)
    report = begin("perturbation_ablation", "Ablation of perturbation models", arguments)
    if not is_here(arguments.data):
        not_measured(report, arguments)
        return
    names: Sequence[str] = SPLITS
    variants, n_seeds = ABLATION, arguments.seeds
    if arguments.quick:
        names, n_seeds = SPLITS[-1:], 1
        variants = {label: replace(ABLATION[label], max_epochs=1) for label in ("default", "all of upstream's")}
    tasks = [(label, name, seed) for label in variants for name in names for seed in range(n_seeds)]
    found = fit_all(
        [(arguments.data, name, seed, variants[label], False) for label, name, seed in tasks], arguments.processes
    )
    runs: dict[str, list[dict[str, Any]]] = {label: [] for label in variants}
    for (label, _, _), one in zip(tasks, found, strict=True):
        runs[label].append(one)
    ablate(report, runs, names)
    report.claim("ablation of perturbation models", "none", f"{len(variants)} variants in the table", holds=None)
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
