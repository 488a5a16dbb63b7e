"""Cell types with and without ``unlabelled=``: what a linear model learns from cells that have no label.

Cases are those of ``classes_floor``: with 5, 10 and 20 labelled cells per class, where all other cells of the data set are the
unlabelled ones, and with all labels, where they are those of another donor, condition or assay, or a fifth of the cells. Labels
of the unlabelled cells are only scored, and their expression is all that is passed. Both models are those that training
starts from (the linear model and its correction), with the weights of the bundled model for both; each seed draws other
labelled cells. In the last cases the most frequent class has no label at all, and only cells of the others are scored.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from benchmarks.classes_floor import data_sets, split_of
from benchmarks.harness import begin, parser, results_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

WITHOUT, LINEAR, WITH = "without", "linear model with", "with"
FEW = (5, 10, 20)


def logits(cells: AnnData, others: AnnData, unlabelled: AnnData | None, seed: int) -> tuple[Any, ...]:
    """What a model predicts for ``others``, its linear model alone too, its classes and what it has learnt from them."""
    import scgalore as sg
    from scgalore.tasks.correction import last_inputs
    from scgalore.tasks.registry import resolve_call

    options = {"labels_key": "type", "accelerator": "cpu", "unlabelled": unlabelled}
    task, call = resolve_call(options, task=None, seed=seed, function=sg.tl.finetune, split_key="part")
    model = sg.model.load("scgpt-mini")
    prepared: Any = task.prepare(task.read(cells, call), model, call)
    fit, correction = prepared.state["prior"]
    linear = fit.model.predict(others, call.reading)
    found = linear
    if correction.helps:
        weight, bias = prepared.start["classes"]
        source = model.cells(others, rng=seed)
        found = (
            linear
            + last_inputs(model, source, np.arange(others.n_obs), "classes", len(bias), call.config) @ weight.T
            + bias
        )
    return found, linear, np.array(prepared.memory.classes), fit.unlabelled


def one_fit(adata: AnnData, part: NDArray[Any], scored: NDArray[np.bool_], seed: int) -> dict[str, float]:
    """Accuracy on the scored cells of each model, and the share of guesses that are right."""
    known = np.isin(part, ["train", "validation"])
    cells, others = adata[known].copy(), adata[part == "test"].copy()
    cells.obs["part"] = part[known]
    truth, scored = others.obs.pop("type").to_numpy(dtype=str), scored[part == "test"]

    def accuracy(found: NDArray[np.float32], classes: NDArray[np.str_]) -> float:
        return float((classes[found.argmax(axis=1)] == truth)[scored].mean())

    before, _, classes, _ = logits(cells, others, None, seed)
    after, linear, _, learned = logits(cells, others, others, seed)
    result = {WITHOUT: accuracy(before, classes), LINEAR: accuracy(linear, classes), WITH: accuracy(after, classes)}
    return {**result, "labelled": float(known.sum()), "n": float(scored.sum()), "used": learned["n_used"] / len(truth)}


def cases(folder: Any) -> Iterator[tuple[str, str, AnnData, NDArray[np.bool_] | None, int | None, str | None]]:
    """Group, title, cells, test cells, labelled cells per class, and the class that has no label."""
    for name, _, adata, held_out in data_sets(folder):
        adata.obs_names_make_unique()
        for case, held in held_out.items():
            if held is not None:
                yield "another donor, condition or assay", f"{name}, {case}", adata, held, None, None
                continue
            yield "all labels", f"{name}, {case}", adata, None, None, None
            if name == "CITE-seq":  # which has fewer than 20 cells in some
                continue
            for few in FEW:
                yield "few labels", f"{name}, {few} per class", adata, None, few, None
            novel = str(adata.obs["type"].value_counts().index[0])
            yield "few labels, one class unknown", f"{name}, 20 per class, no {novel}", adata, None, 20, novel


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--seeds", type=int, default=3, help="repetitions of each case")
    arguments = arguments_of.parse_args(argv)
    report = begin("classes_unlabelled", "Cell types: what cells without labels add", arguments)
    logging.getLogger("scgalore").setLevel(logging.ERROR)  # of the splits, which have no test cells
    seeds = range(1 if arguments.quick else arguments.seeds)
    rows, gains = [], {}
    for group, title, adata, held, few, novel in cases(None if arguments.quick else arguments.data):
        types = adata.obs["type"].to_numpy(dtype=str)
        found: list[dict[str, float]] = []
        for seed in seeds:
            part = split_of(types, held, few, seed)
            if few is not None:
                part[part == "none"] = "test"
            if novel is not None:
                part[types == novel] = "test"
            found.append(one_fit(adata, part, types != novel, seed))
        mean = {key: float(np.mean([one[key] for one in found])) for key in found[0]}
        paired = np.array([one[WITH] - one[WITHOUT] for one in found])
        error = paired.std(ddof=1) / np.sqrt(len(paired)) if len(paired) > 1 else 0.0
        gains.setdefault(group, []).append(float(paired.mean()))
        numbers = [f"{mean[key]:.3f}" for key in (WITHOUT, LINEAR, WITH)]
        sizes = [f"{mean[key]:.0f}" for key in ("labelled", "n")]
        rows.append((title, *sizes, f"{mean['used']:.2f}", *numbers, f"{paired.mean():+.3f} ± {error:.3f}"))
        print(*rows[-1], sep=" | ", flush=True)
    header = ("case", "labelled cells", "scored cells", "share used", WITHOUT, LINEAR, WITH, "difference")
    report.table(f"Accuracy on cells without labels, means over {len(seeds)} seeds.", header, rows)
    summary = []
    for group, values in gains.items():
        error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
        report.measured[group] = float(np.mean(values))
        summary.append((group, str(len(values)), f"{np.mean(values):+.4f} ± {error:.4f}"))
    report.table("Mean difference, with its standard error over the cases.", ("cases", "n", "difference"), summary)
    few_mean = np.mean(gains["few labels"])
    few_error = np.std(gains["few labels"], ddof=1) / np.sqrt(len(gains["few labels"]))
    report.claim(
        "with few labels, more than two standard errors over the cases",
        "above 2",
        f"{few_mean / few_error:.1f} standard errors",
        holds=bool(few_mean > 2 * few_error),
    )
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
