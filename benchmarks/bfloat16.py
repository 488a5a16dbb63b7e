"""What bfloat16 changes in the embeddings of trained weights, those of the bundled scgpt-mini.

    python benchmarks/run.py bfloat16 --data FOLDER
    python benchmarks/run.py bfloat16 --quick

``embedding`` measures the same with random weights of whole-human size. Beside the cosine distance of each cell to its float32
embedding stands what that does to a graph of neighbours: the share of a cell's 15 nearest that stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
from benchmarks.harness import Report, begin, parser, results_folder
from benchmarks.inputs import FILES, PBMC68K, data_set
from sklearn.neighbors import NearestNeighbors

import scgalore as sg

if TYPE_CHECKING:
    from collections.abc import Sequence

N_NEIGHBORS = 15


def neighbours_kept(first: np.ndarray, second: np.ndarray) -> float:
    """Share of each cell's nearest cells that are the same in both embeddings."""
    found = [
        NearestNeighbors(n_neighbors=N_NEIGHBORS).fit(x).kneighbors(return_distance=False) for x in (first, second)
    ]
    return float(np.mean([len(np.intersect1d(a, b)) / N_NEIGHBORS for a, b in zip(*found, strict=True)]))


def measure(report: Report, names: Sequence[str], n_cells: int | None, arguments: object) -> None:
    """Embed every data set twice."""
    model = sg.model.SCGPT.from_pretrained("scgpt-mini")
    rows = []
    for name in names:
        cells = data_set(name, n_cells, getattr(arguments, "data", None))
        if cells is None:
            continue
        ready = model.cells(ad.read_h5ad(cells.path))
        exact, rough = (model.run(ready, precision=precision).embedding for precision in ("32-true", "bf16-true"))
        distances = 0.5 * np.square(exact.astype(np.float64) - rough).sum(axis=1)
        kept = neighbours_kept(exact, rough)
        report.measured[name] = {"largest": distances.max(), "mean": distances.mean(), "neighbours": kept}
        rows.append((name, cells.n_obs, f"{distances.max():.1e}", f"{distances.mean():.1e}", f"{kept:.1%}"))
    columns = ("cells of", "cells", "largest distance", "mean", f"of {N_NEIGHBORS} neighbours kept")
    report.table("scgpt-mini: cosine distance of bfloat16 to float32.", columns, rows)
    largest = max(found["largest"] for found in report.measured.values())
    report.claim("cosine distance of bfloat16 to float32, scgpt-mini", "none", f"largest {largest:.1e}", holds=None)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    sg.settings.progress = False
    arguments = parser(__doc__).parse_args(argv)
    report = begin("bfloat16", "bfloat16 and trained weights", arguments)
    names = [PBMC68K] if arguments.quick else [PBMC68K, *FILES]
    measure(report, names, 60 if arguments.quick else None, arguments)
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
