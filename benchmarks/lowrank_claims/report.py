"""Results as JSON and as tables."""

from __future__ import annotations

import json
import math
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING, Any

from scipy.stats import t as student

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    Study = dict[str, Any]

PACKAGES = ("scgalore", "torch", "peft", "scikit-learn", "scanpy", "numpy")
TARGETS = (0.90, 0.98)  # of the final accuracy of full fine-tuning
BATCH = 16  # of a GPT in claim A; a head's share of it is what "same steps" compares with
LARGE_RANK = 16  # of the adapter of claim B that has more parameters than those of claim C


def machine() -> dict[str, Any]:
    """Processor, versions and date."""
    lines = open("/proc/cpuinfo").read().splitlines() if os.path.exists("/proc/cpuinfo") else []  # noqa: PTH110, PTH123, SIM115
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "date": datetime.now(UTC).date().isoformat(),
    }


def values(study: Study, metric: str) -> list[float]:
    """Test scores, one a seed, in the order of the seeds."""
    return [run["test"][metric] for run in study["runs"]]


def spread(numbers: Sequence[float], digits: int = 3) -> str:
    """Mean and standard deviation in words."""
    sd = f" ± {stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{fmean(numbers):.{digits}f}{sd}"


def interval(study: Study, reference: Study, metric: str) -> tuple[float, float]:
    """Mean difference to a reference over the same seeds, and half of its 95 % interval (infinite for one seed)."""
    pairs = zip(values(study, metric), values(reference, metric), strict=True)
    gaps = [one - other for one, other in pairs]
    if len(gaps) < 2 or not all(map(math.isfinite, gaps)):
        return fmean(gaps), math.inf
    return fmean(gaps), float(student.ppf(0.975, len(gaps) - 1)) * stdev(gaps) / math.sqrt(len(gaps))


def difference(study: Study, reference: Study, metric: str, digits: int = 3) -> str:
    """Difference and half of its interval in words."""
    mean, half = interval(study, reference, metric)
    return f"{mean:+.{digits}f} ± {half:.{digits}f}"


def reading(study: Study, reference: Study, metric: str) -> str:
    """Whether a study is better than its reference, as far as its seeds can tell."""
    mean, half = interval(study, reference, metric)
    if abs(mean) <= half:
        return "no difference beyond noise"
    return "better" if (mean > 0) == (metric == "accuracy") else "worse"


def rate(study: Study) -> str:
    """Learning rate, with a star where the search ended at the largest or smallest rate it tried."""
    return f"{study['lr']:.3g}" + ("*" if study["lr_at_edge"] else "")


def n_tuned(study: Study) -> str:
    """Numbers that train at the tuned rate."""
    return f"{study['runs'][0]['n_tuned']:,}"


def epochs_to(study: Study, target: float) -> str:
    """Median epoch at which the accuracy first reaches a target, and the seeds that reach it."""
    curves = [[point["accuracy"] for point in run["curve"]] for run in study["runs"]]
    reached = [next((i for i, value in enumerate(curve, 1) if value >= target), math.inf) for curve in curves]
    middle = median(reached)
    n = sum(map(math.isfinite, reached))
    return f"{middle:g} ({n}/{len(reached)})" if math.isfinite(middle) else f"not reached ({n}/{len(reached)})"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows in markdown, all but the first column to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def same_task(study: Study, studies: Iterable[Study]) -> list[Study]:
    """Studies of the same task."""
    return [other for other in studies if other["task"] == study["task"]]


def claim_a(studies: Sequence[Study]) -> str:
    """LTE compared with full training: same tokens and steps, and same steps at the batch size of a head."""
    full = {(s["batch"], s["steps"]): s for s in studies if s["method"] == "matrices"}
    steps = min((steps for _, steps in full), default=0)
    rows = []
    for s in sorted(studies, key=_by_heads):
        n_heads = s["options"].get("n_heads")
        token_matched, step_matched = full.get((BATCH, steps)), full.get((BATCH // (n_heads or 1), steps))
        rows.append(
            [
                s["arm"],
                n_tuned(s),
                rate(s),
                f"{s['batch'] // (n_heads or 1)}",
                spread(values(s, "loss")),
                difference(s, token_matched, "loss") if n_heads and token_matched else "",
                difference(s, step_matched, "loss") if n_heads and step_matched else "",
                f"{fmean(run['seconds'] for run in s['runs']):.0f}",
            ]
        )
    header = ["arm", "numbers", "rate", "windows a head", "test loss", "minus full, same tokens"]
    return table([*header, "minus full, same steps and windows a head", "CPU s"], rows)


def _by_heads(study: Study) -> tuple[Any, ...]:
    options = study["options"]
    if not options:
        return 0, -study["batch"], study["steps"]
    return 1, options["n_heads"], options["rank"], options["merge_every"], options["alpha"]


def claim_b(studies: Sequence[Study]) -> str:
    """LoRA compared with full fine-tuning of a ViT: accuracy, and epochs to reach that of full fine-tuning."""
    rows = []
    for s in studies:
        full = next((other for other in same_task(s, studies) if other["method"] == "full"), None)
        accuracies = values(s, "accuracy")
        row = [f"{s['task']}: {s['arm']}", n_tuned(s), rate(s), spread(accuracies), spread(values(s, "loss"))]
        if full is None:
            rows.append([*row, *[""] * (1 + len(TARGETS))])
            continue
        goal = fmean(values(full, "accuracy"))
        gap = "" if full is s else difference(s, full, "accuracy")
        rows.append([*row, gap, *(epochs_to(s, share * goal) for share in TARGETS)])
    header = ["arm", "numbers", "rate", "test accuracy", "test loss", "accuracy minus full"]
    return table([*header, *(f"epochs to {share:.0%} of full's accuracy" for share in TARGETS)], rows)


def claim_c(studies: Sequence[Study]) -> str:
    """Attention, MLP and both with the same number of parameters, compared with full fine-tuning and a new head alone."""
    rows = []
    for s in studies:
        beside = same_task(s, studies)
        attention = next((other for other in beside if other["options"].get("targets") == "attention"), None)
        row = [f"{s['task']}: {s['arm']}", n_tuned(s), rate(s)]
        for metric in ("loss", "accuracy"):
            is_measured = metric in s["runs"][0]["test"]
            is_compared = is_measured and attention is not None and attention is not s
            row.append(spread(values(s, metric)) if is_measured else "")
            row.append(difference(s, attention, metric) if is_compared and attention else "")
        rows.append(row)
    header = ["arm", "numbers", "rate"]
    return table(
        [*header, *(f"{what}{m}" for m in ("loss", "accuracy") for what in ("test ", "minus attention only, "))], rows
    )


def summary(studies: Sequence[Study]) -> str:
    """One row for each question, read off the intervals."""
    rows = []

    def compare(claim: str, study: Study | None, reference: Study | None, metric: str, beside: str) -> None:
        if study is None or reference is None:
            return
        what = f"{study['task']}: {study['arm']}, beside {beside}"
        rows.append([claim, what, metric, difference(study, reference, metric), reading(study, reference, metric)])

    a = [s for s in studies if s["claim"] == "A"]
    full = {s["arm"]: s for s in a if s["method"] == "matrices"}
    for n_heads in (1, 4, 16):
        best = best_trial(s for s in a if s["options"].get("n_heads") == n_heads)
        compare("A", best, full.get("full"), "loss", "full, same tokens")
        if n_heads > 1:
            at_head = full.get(f"full, batch of {BATCH // n_heads}")
            compare("A", best, at_head, "loss", "full, same steps and windows a head")
    for task in dict.fromkeys(s["task"] for s in studies if s["claim"] != "A"):
        arms = [s for s in studies if s["task"] == task]
        by_place = {s["options"].get("targets", s["method"]): s for s in arms if s["options"].get("rank") != LARGE_RANK}
        large = next((s for s in arms if s["options"].get("rank") == LARGE_RANK), None)
        metric = "accuracy" if arms[0]["claim"] == "B" else "loss"
        if arms[0]["claim"] == "B":
            compare("B", by_place.get("all"), by_place.get("full"), metric, "full")
            compare("B", large, by_place.get("full"), metric, "full")
        for place, words in (("mlp", "MLP only"), ("all", "both")):
            compare("C", by_place.get("attention"), by_place.get(place), metric, words)
    return table(["claim", "arm", "score", "difference", "reading"], sorted(rows, key=lambda row: row[0]))


def best_trial(studies: Iterable[Study]) -> Study | None:
    """Study with the lowest validation loss among its trials: the test part has no say in the choice."""
    losses = {s["arm"]: (min(trial["validation"]["loss"] for trial in s["trials"]), s) for s in studies}
    return min(losses.values(), key=lambda pair: pair[0])[1] if losses else None


def tables(studies: Sequence[Study], about: dict[str, Any]) -> str:
    """All tables."""
    by_claim = {letter: [s for s in studies if s["claim"] == letter] for letter in "ABC"}
    # The adapters of the ViT that have as many parameters as one another, and what they are compared with.
    vit = [s for s in by_claim["B"] if s["options"].get("rank") != LARGE_RANK]
    parts = [
        ("A. Many small heads against full training, GPT", claim_a, by_claim["A"]),
        ("B. LoRA against full fine-tuning, ViT", claim_b, by_claim["B"]),
        ("C. Attention, MLP or both, at equally many parameters", claim_c, [*by_claim["C"], *vit]),
    ]
    packages = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = [
        f"{about['processor']}, one thread for each of {about['workers']} processes; Python {about['python']}, {packages}; "
        f"{about['date']}.",
        "Mean ± standard deviation over seeds; differences are means over the same seeds ± half of the 95 % interval. "
        "*Numbers* train at the tuned rate. A star: the best rate was the largest or smallest that was tried.",
        "### In short",
        "Each row compares an arm with what follows *beside*. Of the arms with one, four and sixteen heads, the one with the lowest "
        "validation loss in its trials speaks for all.",
        summary(studies),
    ]
    for title, write, chosen in parts:
        if chosen:
            n_seeds = len(chosen[0]["runs"])
            lines += [
                f"### {title}",
                f"{len(chosen[0]['trials'])} trials for each rate, {n_seeds} seeds.",
                write(chosen),
            ]
    return "\n\n".join(lines) + "\n"


def write(studies: Sequence[Study], about: dict[str, Any], out: Path) -> str:
    """Write ``lowrank_claims.json`` and ``lowrank_claims.md``; the text of the latter is returned."""
    out.mkdir(parents=True, exist_ok=True)
    text = tables(studies, about)
    (out / "lowrank_claims.json").write_text(json.dumps({**about, "arms": list(studies)}, indent=1) + "\n")
    (out / "lowrank_claims.md").write_text(text)
    return text
