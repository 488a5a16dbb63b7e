"""Cell types in cells that lack genes: the linear model, which predicts them from the others, next to models fitted again.

Data sets and test cells are those of ``classes_floor``: a random fifth of the cells, or those of another donor, condition or assay.
Each seed draws the validation cells and the genes that the test cells keep. The model is fitted once, to all genes. The last side is a linear model that is fitted to the
remaining genes alone, which needs the training cells.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from benchmarks.classes_floor import data_sets, split_of
from benchmarks.harness import begin, parser, results_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore.tasks.linear_model import LinearModel

EXPECTED, MEAN, AGAIN = "predicted from the others", "at their mean (0.12.0)", "model of these genes"
SHARES = (1.0, 0.5, 0.25, 0.1)


def one_draw(adata: AnnData, held: NDArray[np.bool_] | None, seed: int) -> dict[tuple[float, str], float]:
    """Accuracy on the test cells, by share of the genes that they have and side."""
    from scgalore.data.reading import AS_IT_IS
    from scgalore.data.split import Split
    from scgalore.tasks.linear import fit_classes

    part = split_of(adata.obs["type"].to_numpy(dtype=str), held, None, seed)
    codes = np.unique(adata.obs["type"].to_numpy(dtype=str), return_inverse=True)[1]
    split = Split(*(np.flatnonzero(part == name) for name in ("train", "validation", "test")))

    def fitted(cells: AnnData) -> LinearModel:
        return fit_classes(cells, AS_IT_IS, codes, split, n_classes=codes.max() + 1, seed=seed).model

    def accuracy(model: LinearModel, cells: AnnData) -> float:
        found = model.predict(cells[split.test].copy(), AS_IT_IS).argmax(axis=1)
        return float((found == codes[split.test]).mean())

    whole = fitted(adata)
    at_mean = replace(whole, loadings=whole.loadings[:, :0])
    genes, scores = np.random.default_rng(seed).permutation(adata.n_vars), {}
    for share in SHARES:
        cells = adata[:, np.sort(genes[: round(share * adata.n_vars)])].copy()
        scores[share, EXPECTED] = accuracy(whole, cells)
        scores[share, MEAN] = accuracy(at_mean, cells)
        scores[share, AGAIN] = accuracy(whole if share == 1 else fitted(cells), cells)
    return scores


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=3, help="repetitions of each case")
    arguments = options.parse_args(argv)
    report = begin("missing_genes", "Cell types: cells that lack genes", arguments)
    logging.getLogger("scgalore").setLevel(logging.ERROR)  # of scales, which few genes do not tell
    seeds = range(2 if arguments.quick else arguments.seeds)
    rows: list[tuple[Any, ...]] = []
    behind = []
    for name, _, adata, held_out in data_sets(None if arguments.quick else arguments.data):
        for case, held in held_out.items():
            draws = [one_draw(adata, held, seed) for seed in seeds]
            for share in SHARES:
                sides = {side: np.array([draw[share, side] for draw in draws]) for side in (EXPECTED, MEAN, AGAIN)}
                gain = sides[EXPECTED] - sides[MEAN]
                behind.append(float((sides[AGAIN] - sides[EXPECTED]).mean()))
                numbers = [f"{values.mean():.3f}" for values in sides.values()]
                error = gain.std(ddof=1) / np.sqrt(len(gain))
                genes = f"{round(share * adata.n_vars):,}"
                rows.append((name, case, genes, *numbers, f"{gain.mean():+.3f} ± {error:.3f}"))
                report.measured[f"{name}, {case}, {share:g}"] = {side: found.tolist() for side, found in sides.items()}
                print(*rows[-1], sep=" | ", flush=True)
    header = ("data", "test cells", "genes", EXPECTED, MEAN, AGAIN, "difference to the mean")
    report.table(f"Accuracy on the test cells, means over {len(seeds)} draws.", header, rows)
    report.claim(
        "largest distance behind a model of the remaining genes, of means over the draws",
        "at most 0.05",
        f"{max(behind):.3f}",
        holds=max(behind) <= 0.05,
    )
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
