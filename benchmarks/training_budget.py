"""How long and how fast to train on few cells: scores of held-out cells by steps of the optimizer, learning rate and patience.

Cell types of four data sets of some hundred cells: pbmc68k of scanpy, Kang et al. 2018, symphony's PBMC and CITE-seq (classes from
clustering its proteins), at most 500 training cells, 55 validation and 200 test cells of each, and the 200 genes that vary most in the
training cells, so that a run takes half a minute. Each seed draws the parts anew; all budgets have the same. With
the network alone (``prior="none"``), which a run must train, and with the linear model that it corrects (``prior="linear"``), where a
correction that does not help should end soon.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from benchmarks.classes_floor import data_sets
from benchmarks.harness import begin, parser, results_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

N_TRAIN, N_VALIDATION, N_TEST, N_GENES = 500, 55, 200, 200
BATCH = 32


@dataclass(frozen=True)
class Budget:
    """How long to train: so many steps at least, in whole epochs."""

    steps: int
    lr: float
    patience: int | None = None

    @property
    def title(self) -> str:
        """As it stands in the table."""
        patience = "" if self.patience is None else f", patience {self.patience}"
        return f"{self.steps} steps, lr {self.lr:g}{patience}"

    def options(self, n_train: int) -> dict[str, Any]:
        """Options of a run on so many cells."""
        epochs = -(-self.steps // -(-n_train // BATCH))
        return {"max_epochs": epochs, "lr": self.lr, "patience": self.patience}


BEFORE, DEFAULT = Budget(160, 1e-4), Budget(500, 1e-4, 5)
BUDGETS = {
    "none": (
        BEFORE,
        DEFAULT,
        Budget(1000, 1e-4, 5),
        Budget(320, 3e-4, 5),
        Budget(160, 1e-3),
        Budget(500, 1e-3, 5),
    ),
    "linear": (BEFORE, DEFAULT, Budget(500, 1e-3, 5)),
}


def few_cells(adata: AnnData, seed: int) -> AnnData:
    """Cells with ``obs["part"]``, drawn within the types, and the genes that vary most."""
    rng, types = np.random.default_rng(seed), adata.obs["type"].to_numpy(dtype=str)
    sizes = {"test": N_TEST, "validation": N_VALIDATION, "train": N_TRAIN}
    shrink = min(1, sum(sizes.values()) / adata.n_obs)
    parts = np.full(adata.n_obs, "", dtype=object)
    for name in np.unique(types):
        cells = rng.permutation(np.flatnonzero(types == name))
        cells = cells[: max(3, round(shrink * len(cells)))]
        ends = np.cumsum(
            [max(1, round(len(cells) * sizes[part] / sum(sizes.values()))) for part in ("test", "validation")]
        )
        for part, some in zip(sizes, np.split(cells, ends), strict=True):
            parts[some] = part
    adata = adata[parts != ""].copy()
    adata.obs["part"] = parts[parts != ""]
    x = adata[adata.obs["part"] == "train"].X
    x = x.toarray() if hasattr(x, "toarray") else np.asarray(x)
    return adata[:, np.sort(np.argsort(-x.var(axis=0))[:N_GENES])].copy()


def one_run(adata: AnnData, prior: str, budget: Budget, seed: int, *, quick: bool) -> dict[str, Any]:
    """Scores of the test cells, and what the run took."""
    from sklearn.metrics import f1_score

    import scgalore as sg

    cells = adata.copy()
    options = budget.options(int((cells.obs["part"] == "train").sum()))
    options |= {"max_epochs": 1, "patience": None} if quick else {}
    read: dict[str, Any] = {"labels_key": "type", "split_key": "part", "prior": prior, "rng": seed}
    started = time.perf_counter()
    model = sg.tl.finetune(cells, "scgpt-mini", batch_size=BATCH, accelerator="cpu", **read, **options)
    seconds = time.perf_counter() - started
    test = (cells.obs["part"] == "test").to_numpy()
    truth, label = (cells.obs[key].to_numpy(dtype=str)[test] for key in ("type", "scgpt_label"))
    of_truth = cells.obsm["scgpt_probabilities"][test, np.searchsorted(model.classes, truth)]
    return {
        "accuracy": float((label == truth).mean()),
        "macro_f1": float(f1_score(truth, label, labels=np.unique(truth), average="macro", zero_division=0)),
        "log_loss": float(-np.log(np.maximum(of_truth, 1e-6)).mean()),
        "steps": model.result.steps,
        "best": model.result.best_epoch,
        "not_converged": model.result.converged is False,
        "seconds": seconds,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--seeds", type=int, default=2, help="repetitions")
    arguments = arguments_of.parse_args(argv)
    report = begin("training_budget", "How long to train on few cells", arguments)
    quick = arguments.quick
    found: list[dict[str, Any]] = []
    for seed in range(1 if quick else arguments.seeds):
        for name, _, adata, _ in data_sets(None if quick else arguments.data):
            cells = few_cells(adata, seed)
            torch.set_num_threads(arguments.threads)  # numba, which scanpy reads cells with, sets them
            for prior, budgets in BUDGETS.items():
                for budget in budgets:
                    scores = one_run(cells, prior, budget, seed, quick=quick)
                    found.append({"data": name, "seed": seed, "prior": prior, "budget": budget.title, **scores})
                    print(
                        *(f"{x:.3f}" if isinstance(x, float) else x for x in found[-1].values()), sep=" | ", flush=True
                    )
    runs = pd.DataFrame(found)
    n = runs.groupby(["data", "seed"]).ngroups
    for prior, of_prior in runs.groupby("prior", sort=False):
        rows = []
        before = of_prior[of_prior["budget"] == BEFORE.title].set_index(["data", "seed"])
        for title, some in of_prior.groupby("budget", sort=False):
            paired = some.set_index(["data", "seed"])
            numbers = []
            for key in ("accuracy", "macro_f1", "log_loss"):
                gain = paired[key] - before[key]
                error = gain.std(ddof=1) / np.sqrt(n) if n > 1 else 0.0
                numbers.append(f"{paired[key].mean():.3f} ({gain.mean():+.3f} ± {error:.3f})")
                report.measured[f"{prior}, {title}: {key}"] = float(paired[key].mean())
                if key == "log_loss" and title == DEFAULT.title:
                    report.claim(
                        f'prior="{prior}": log loss of the default budget minus that of {BEFORE.title}',
                        "not above 0 by more than two standard errors",
                        f"{gain.mean():+.3f} ± {error:.3f}",
                        holds=bool(gain.mean() <= 2 * error),
                    )
            kept = f"{int((some['best'] >= 0).sum())} of {n}"
            rows.append(
                (
                    title,
                    *numbers,
                    f"{some['steps'].mean():.0f}",
                    kept,
                    str(some["not_converged"].sum()),
                    f"{some['seconds'].mean():.0f}",
                )
            )
        header = (
            "budget",
            "accuracy",
            "macro F1",
            "log loss",
            "steps taken",
            "network used",
            "not converged",
            "seconds",
        )
        says = f'prior="{prior}": means over {n} runs (difference to the first row, paired, and its standard error over runs).'
        report.table(says, header, rows)
    report.finish(results_folder(arguments))


if __name__ == "__main__":
    main()
