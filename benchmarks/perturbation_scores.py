"""How long ``sg.tl.evaluate_perturbation`` takes without tests for differential expression: 30 perturbations x 100 cells x 2,000 genes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp
from benchmarks.harness import Spread, begin, parser, results_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

LIMIT = 5.0


def screen(n_cells: int, n_genes: int) -> AnnData:
    """60 perturbations and 500 control cells, a tenth of the values not zero; half of the perturbations are held out."""
    from anndata import AnnData

    names = [f"G{i}" for i in range(60)]
    labels = np.repeat([*names, "control"], [n_cells] * 60 + [500])
    rng = np.random.default_rng(0)
    x = sp.random(len(labels), n_genes, 0.1, format="csr", dtype=np.float32, random_state=rng)
    x.data = np.log1p(10 * x.data)
    obs = pd.DataFrame({"perturbation": labels}, index=[f"c{i}" for i in range(len(labels))])
    obs["split"] = np.where(np.isin(labels, names[:30]), "test", "train")
    return AnnData(x, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(n_genes)]))


def predict(adata: AnnData) -> None:
    """Write a baseline as a prediction."""
    from scgalore.perturb.baselines.effects import fit_rule
    from scgalore.perturb.labels.screen import Screen

    read = Screen.from_adata(adata, pert_key="perturbation", split_key="split")
    test, rule = read.profiles("test"), fit_rule("matching mean", read.profiles("train"))
    effects = np.array([rule.predict(genes) for genes in test.perturbed])
    columns = pd.Index(test.labels)
    rows = pd.DataFrame({"perturbation": test.perturbations, "context": "", "group": ""}, index=columns)
    adata.uns["predict_perturbation"] = {
        "params": read.params,
        "means": pd.DataFrame(np.maximum(test.controls + effects, 0).T, pd.Index(test.genes), columns),
        "effects": pd.DataFrame(effects.T, pd.Index(test.genes), columns),
        "rows": rows,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    import scgalore as sg

    arguments = parser(__doc__).parse_args(argv)
    report = begin("perturbation_scores", "Scores of predicted perturbations", arguments)
    adata = screen(10 if arguments.quick else 100, 200 if arguments.quick else 2000)
    predict(adata)
    seconds = []
    for _ in range(arguments.rounds or (1 if arguments.quick else 7)):
        start = time.perf_counter()
        sg.tl.evaluate_perturbation(adata, de=False)
        seconds.append(time.perf_counter() - start)
    first, later = seconds[0], Spread.of(seconds[1:] or seconds)
    report.measured["seconds"] = {"first": first, "later": later.to_dict()}
    report.claim(
        "30 perturbations x 100 cells x 2,000 genes, model, six baselines and ceiling, 1,000 bootstrap samples",
        f"under {LIMIT:g} s",
        f"{later.text()} s, the first call of a process {first:.2f} s",
        holds=max(seconds) < LIMIT,
    )
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
