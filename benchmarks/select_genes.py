"""Time and memory of ``sg.tl.select_genes`` against scanpy's highly variable genes alone, and against a loop over genes.

Data: 100,000 cells x 20,000 genes with 5 % of the counts not zero and 150 perturbations, made up; and with ``--data`` 2,000 x
9,015 of Kang et al. 2018 (``kang18_pbmc_ifnb_9015genes.h5ad``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.harness import MB, Side, Spread, begin, growth, interleave, parser, ratio, results_folder, seconds

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from benchmarks.harness import Report

KANG = "kang18_pbmc_ifnb_9015genes.h5ad"
STRATEGIES = ("biological", "perturbation")
MOST_TIME, MOST_MEMORY, LEAST_GAIN = 2.0, 1.5, 100.0


def compare(report: Report, arguments: argparse.Namespace, name: str, load: dict[str, Any]) -> None:
    """Measure one data set."""
    n_rounds = arguments.rounds or (1 if arguments.quick else 5)
    n_columns = 3 if arguments.quick else 20
    with (
        Side("benchmarks.gene_side", threads=arguments.threads) as ours,
        Side("benchmarks.gene_side", threads=arguments.threads) as scanpy,
    ):
        about = ours.ask("load", **load).value
        scanpy.ask("load", **load)
        tasks = {
            "scanpy": lambda: scanpy.ask("scanpy"),
            **{strategy: lambda strategy=strategy: ours.ask(strategy) for strategy in STRATEGIES},
            "loop": lambda: scanpy.ask("per_gene", n=n_columns),
        }
        answers = interleave(tasks, n_rounds, name)
    base = growth(answers["scanpy"])
    rows = [(side, seconds(answers[side]).text("{:.3f}"), f"{growth(answers[side]) / MB:.0f} MB") for side in answers]
    size = f"{about['n_cells']:,} cells x {about['n_genes']:,} genes"
    report.table(f"{name}, {size} (the loop: {n_columns} genes):", ("", "seconds", "memory growth"), rows)
    report.measured[name] = {
        side: {"seconds": seconds(found).to_dict(), "bytes": growth(found)} for side, found in answers.items()
    }
    per_gene = about["n_genes"] / n_columns
    for strategy in STRATEGIES:
        slower = ratio(answers[strategy], answers["scanpy"])
        report.claim(
            f"{name}: time of {strategy!r} against scanpy's seurat_v3 alone",
            f"at most {MOST_TIME:g}x",
            f"{slower.text()}x",
            holds=slower.median <= MOST_TIME,
        )
        more = growth(answers[strategy]) / max(base, 1)
        report.claim(
            f"{name}: memory growth of {strategy!r} against it",
            f"at most {MOST_MEMORY:g}x",
            f"{more:.2f}x ({growth(answers[strategy]) / MB:.0f} and {base / MB:.0f} MB)",
            holds=more <= MOST_MEMORY,
        )
        gain: Spread = ratio(answers["loop"], answers[strategy], factor=per_gene)
        report.claim(
            f"{name}: time a gene of a loop over columns against {strategy!r}",
            f"at least {LEAST_GAIN:g}x",
            f"{gain.text('{:.0f}')}x",
            holds=gain.median >= LEAST_GAIN,
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments = parser(__doc__).parse_args(argv)
    report = begin("select_genes", "Choosing genes", arguments)
    size = (1_000, 400, 10) if arguments.quick else (100_000, 20_000, 150)
    made_up = dict(zip(("n_cells", "n_genes", "n_perturbations"), size, strict=True))
    compare(report, arguments, "synthetic", {"path": None, **made_up})
    kang = arguments.data / KANG if arguments.data else None
    if kang is not None and kang.exists():
        compare(report, arguments, "Kang 2018", {"path": str(kang), **made_up})
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
