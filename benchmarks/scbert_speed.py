"""scBERT at its full size: training steps and embedding, next to performer-pytorch in the original's configuration.

    pip install --target FOLDER --no-deps performer-pytorch==1.1.4 einops local-attention axial-positional-embedding hyper-connections
    python benchmarks/run.py scbert_speed --performer FOLDER
    python benchmarks/run.py scbert_speed --quick

One cell, random weights, float32. "All genes" is the released model's function: 16,907 tokens, attention by 266 features of each
head. "Expressed genes" is a new model of the same size with exact attention, for a cell of 1,300 expressed genes. Every
kind has a process of its own; its memory is the growth of the process in a step beyond the network. Ratios are those of CPU time, of
neighbouring rounds.

FLOPs are counted from the sizes: a multiplication and an addition are two, a backward pass is two forward passes, and what is computed a second time counts once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import (
    MB,
    Answer,
    Report,
    Side,
    Spread,
    begin,
    interleave,
    parser,
    ratio,
    results_folder,
    seconds,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

SIZES = {"d_model": 200, "n_layers": 6, "n_heads": 10, "d_head": 64}
SMALL = {"d_model": 32, "n_layers": 2, "n_heads": 2, "d_head": 16}
N_GENES, N_EXPRESSED, N_FEATURES = 16906, 1300, 266
SAME, LESS, FASTER = 1.5, 0.5, 8.0
A10, ASKED = 125e12, 69  # FLOP/s in bfloat16, and cells/s
THEIRS, OURS, EXACT = "performer-pytorch, all genes", "scgalore, all genes", "scgalore, expressed genes"
KINDS = {THEIRS: "performer-pytorch", OURS: "favor", EXACT: "exact"}


def flops(n_tokens: int, *, exact: bool) -> float:
    """FLOPs of a forward pass over one cell of the full size."""
    d, inner, hidden = SIZES["d_model"], SIZES["n_heads"] * SIZES["d_head"], 4 * SIZES["d_model"]
    linear = 2 * n_tokens * (4 * d * inner + 2 * d * hidden)
    mixing = 4 * n_tokens**2 * inner if exact else 8 * n_tokens * N_FEATURES * inner
    return SIZES["n_layers"] * (linear + mixing)


def measure(
    kinds: Sequence[str], n_genes: int, n_expressed: int, sizes: dict[str, int], folder: Path | None, arguments: Any
) -> dict[str, dict[str, list[Answer]]]:
    """Answers by what was done and kind."""
    sides: dict[str, Side] = {}
    try:
        for kind in kinds:
            side = sides[kind] = Side("benchmarks.scbert_steps", threads=arguments.threads)
            side.ask("build", kind=KINDS[kind], n_genes=n_genes, sizes=sizes, folder=str(folder))
            side.ask("set_cell", n_genes=n_genes, n_expressed=min(200, n_expressed), every=kind != EXACT)
            side.ask("set_cell", n_genes=n_genes, n_expressed=n_expressed, every=kind != EXACT)
        n = arguments.rounds or (1 if arguments.quick else 3)
        found = {}
        for what in ("step", "embed"):
            tasks = {kind: (lambda side=side, what=what: side.ask(what)) for kind, side in sides.items()}
            found[what] = interleave(tasks, n, what)
        return found
    finally:
        for side in sides.values():
            side.close()


def compare_features(report: Report, threads: int) -> None:
    """How far attention by the released number of features is from the softmax, by the size of the logits."""
    rows = []
    with Side("benchmarks.scbert_steps", threads=threads) as side:
        for scale in (0.3, 0.5, 1.0, 1.5):
            how = {"scale": scale, "n_features": N_FEATURES, "length": 1024}
            errors = [side.ask("feature_error", seed=seed, **how).value for seed in range(5)]
            favor, plain = (Spread.of(one).text() for one in zip(*errors, strict=True))
            # Logits are dot products of 64 numbers over 8.
            rows.append((scale, f"{scale**2:.2f}", favor, plain))
    columns = ("size of queries and keys", "size of logits", "error of 266 features", "error of plain averaging")
    heading = "Error relative to softmax attention, 1,024 tokens of Gaussian numbers, five draws: median and range."
    report.table(heading, columns, rows)


def write_report(report: Report, found: dict[str, dict[str, list[Answer]]], n_expressed: int) -> None:
    """Tables and claims."""
    grown = {kind: max(a.peak - a.rss for a in answers) for kind, answers in found["step"].items()}
    rows = [
        (
            kind,
            seconds(found["step"][kind], "cpu").text(),
            seconds(found["step"][kind]).text(),
            f"{grown[kind] / MB:,.0f}",
            seconds(found["embed"][kind], "cpu").text(),
            f"{1 / seconds(found['step'][kind], 'cpu').median:.3f}",
        )
        for kind in grown
    ]
    columns = ("what", "step, CPU s", "step, s", "step, MB added", "embedding, CPU s", "training cells per CPU s")
    report.table("One cell: median of the rounds, with the range.", columns, rows)
    pairs = [(OURS, SAME), (EXACT, FASTER)]
    if THEIRS in grown:
        for kind, least in pairs:
            for what in ("step", "embed"):
                times = ratio(found[what][THEIRS], found[what][kind], "cpu")
                holds = times.median >= least if what == "step" or kind == OURS else None
                report.claim(
                    f"{what}, performer-pytorch / {kind}", f"at least {least}x", f"{times.text()}x", holds=holds
                )
            share = grown[kind] / grown[THEIRS]
            report.claim(
                f"memory of a step, {kind} / performer-pytorch", f"at most {LESS}", f"{share:.2f}", holds=share <= LESS
            )
    lengths = {"all genes": (N_GENES + 1, False), "expressed genes": (n_expressed + 1, True)}
    for what, (length, exact) in lengths.items():
        step = 3 * flops(length, exact=exact)
        text = f"{step / 1e12:.3f} TFLOP a step: at most {A10 / step:,.0f} cells/s of 125 TFLOP/s; {ASKED} cells/s are {ASKED * step / A10:.0%} of it"
        report.claim(f"FLOPs of one cell of {length:,} tokens, {what}", "none", text, holds=None)
    report.measured |= {
        f"{what}, {kind}": [{"wall": a.wall, "cpu": a.cpu, "grown": a.peak - a.rss} for a in answers]
        for what, answers_of in found.items()
        for kind, answers in answers_of.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    options = parser(__doc__)
    options.add_argument("--performer", type=Path, help="folder with performer-pytorch; without it, it is left out")
    arguments = options.parse_args(argv)
    report = begin("scbert_speed", "scBERT at its full size", arguments)
    kinds = [kind for kind in KINDS if kind != THEIRS or arguments.performer is not None]
    sizes, n_genes, n_expressed = (SMALL, 400, 50) if arguments.quick else (SIZES, N_GENES, N_EXPRESSED)
    found = measure(kinds, n_genes, n_expressed, sizes, arguments.performer, arguments)
    compare_features(report, arguments.threads)
    write_report(report, found, N_EXPRESSED)
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
