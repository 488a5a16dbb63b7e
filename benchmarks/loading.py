"""Reading the vocabulary of 60,697 tokens and the checkpoint of 205 MB.

    python benchmarks/run.py loading
    python benchmarks/run.py loading --quick

The original has had three vocabularies (see ``benchmarks/peers.py``), and each that has an environment is measured:

- *0.2.4, stand-in*: its own code with a few lines in place of torchtext, which cannot be imported with a current torch.
- *0.2.4, torchtext*: its own code with the last torchtext and torch 2.3 (``peers.py --torchtext``).
- *0.2.5*: its own code without torchtext (``peers.py --newer SOURCE``). One call, since it takes minutes.

The claim is about 0.2.5, the current version of the original; the others are reported for comparison. Files are in the
system's cache for both sides. The checkpoint is read into a network on the CPU; scgalore also verifies its sha256.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from benchmarks import peers
from benchmarks.harness import Answer, Report, Side, begin, interleave, parser, ratio, results_folder, say, seconds
from benchmarks.inputs import SMALL, WHOLE_HUMAN, weights_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

OURS, STAND_IN, TORCHTEXT, NEWER = "scgalore", "scGPT 0.2.4, stand-in", "scGPT 0.2.4, torchtext", "scGPT 0.2.5"
FASTER = 20.0
LIMITS = {"vocabulary": 2.0, "checkpoint": 3.0}


def start(stack: ExitStack, report: Report, threads: int) -> dict[str, Side]:
    """Processes for every environment that is there."""
    sides = {OURS: stack.enter_context(Side("benchmarks.ours", threads=threads))}
    pythons = {
        STAND_IN: peers.ensure_original(),
        TORCHTEXT: peers.interpreter("torchtext"),
        NEWER: peers.interpreter("newer"),
    }
    for name, python in pythons.items():
        if not python.exists():
            report.note(f"{name}: not measured, since its environment was not made (benchmarks/peers.py says how).")
            continue
        sides[name] = stack.enter_context(Side("benchmarks.original", threads=threads, python=python))
        about = sides[name].ask("import_vocabulary_only" if name == TORCHTEXT else "about").value
        report.measured.setdefault("versions", {})[name] = about
        say(f"{name}: {about}")
    return sides


def measure(report: Report, sides: dict[str, Side], weights: Path, n_rounds: int) -> dict[str, dict[str, list[Answer]]]:
    """Vocabulary and checkpoint, in turn; 0.2.5 reads its vocabulary once."""
    folder = str(weights)

    def reads(do: str, name: str) -> Callable[[], Answer]:
        return lambda: sides[name].ask(do, folder=folder)

    several = [name for name in sides if name != NEWER]
    vocabulary = interleave({name: reads("vocabulary", name) for name in several}, n_rounds, "vocabulary")
    if NEWER in sides:
        vocabulary |= interleave({NEWER: reads("vocabulary", NEWER)}, 1, "vocabulary")
    with_weights = [name for name in several if name != TORCHTEXT]
    for name in with_weights:
        reads("load", name)()  # what is loaded on first use
    checkpoint = interleave({name: reads("load", name) for name in with_weights}, n_rounds, "checkpoint")
    found = {"vocabulary": vocabulary, "checkpoint": checkpoint}
    for what, answers in found.items():
        report.measured[what] = {name: [{"wall": a.wall, "cpu": a.cpu} for a in some] for name, some in answers.items()}
    return found


def add_claims(report: Report, what: str, answers: dict[str, list[Answer]]) -> None:
    """Limit in seconds, and the ratio to each of the originals."""
    ours = answers[OURS]
    title = "checkpoint with its vocabulary" if what == "checkpoint" else what
    report.claim(
        f"reading the {title}",
        f"under {LIMITS[what]:.0f} s",
        f"{seconds(ours).text('{:.3f}')} s",
        holds=seconds(ours).high < LIMITS[what],
    )
    for name, some in answers.items():
        if name == OURS:
            continue
        found = ratio(some, ours[: len(some)])
        claimed = what == "vocabulary" and name == NEWER
        holds = found.median >= FASTER if claimed else None
        report.claim(
            f"{what} against {name}",
            f"at least {FASTER:.0f}x" if claimed else "none",
            f"{found.text('{:.1f}')}x",
            holds=holds,
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments = parser(__doc__).parse_args(argv)
    report = begin("loading", "Vocabulary and checkpoint", arguments)
    size = SMALL if arguments.quick else WHOLE_HUMAN
    weights = weights_folder(size)
    with ExitStack() as stack:
        sides = start(stack, report, arguments.threads)
        found = measure(report, sides, weights, arguments.rounds or (2 if arguments.quick else 7))
    rows = [
        (what, name, len(some), seconds(some).text("{:.3f}"), seconds(some, "cpu").text("{:.3f}"))
        for what, answers in found.items()
        for name, some in answers.items()
    ]
    heading = f"Seconds to read {size.n_tokens:,} tokens, and a network of {size.n_layers} layers of {size.d_model}."
    report.table(heading, ("what", "program", "calls", "s", "CPU s"), rows)
    for what, answers in found.items():
        add_claims(report, what, answers)
    if NEWER in sides:
        both = found["vocabulary"][NEWER][0].wall + seconds(found["checkpoint"][STAND_IN]).median
        mine = seconds(found["checkpoint"][OURS]).median
        report.claim(
            "vocabulary and checkpoint together against scGPT 0.2.5 (its checkpoint by 0.2.4's code)",
            f"at least {FASTER:.0f}x",
            f"{both / mine:.1f}x",
            holds=both / mine >= FASTER,
        )
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
