"""A run that learns effects of perturbations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from scgalore import pl
from scgalore._keys import PerturbationKeys
from scgalore.data.split import PARTS
from scgalore.perturb.baselines.effects import BASELINES
from scgalore.perturb.labels.conditions import Conditions
from scgalore.tasks.figures import on_axes, panels
from scgalore.tasks.findings import Findings, markdown_table
from scgalore.tasks.cells import OWN_KEY, refuse_empty
from scgalore.pp import split_perturbations
from scgalore.tl import evaluate_perturbation, predict_perturbation

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from scgalore.model import SCGPT
    from scgalore.pipeline.config import RunConfig

__all__ = ["Perturbation"]

KEYS = PerturbationKeys()
SHOWN = {"pearson_delta": "Pearson of effects", "mse": "squared error", "pds_cosine": "discrimination (cosine)"}
"""What report and picture show, of all that ``metrics.json`` holds."""

PRIOR = "mixed"
"""Rule that the network corrects, scored by itself: it shows what the network adds."""


class Perturbation:
    """Learn ``pert_key``, and predict the effects of held-out perturbations.

    Parameters
    ----------
    config
        Of the run.
    """

    def __init__(self, config: RunConfig) -> None:
        assert config.pert_key is not None
        self.config = config
        self.pert_key = config.pert_key
        self.goal = f"to predict expression after the perturbations of `obs['{self.pert_key}']`"

    @property
    def split_key(self) -> str:
        """Column of ``obs`` with the part of each cell."""
        return self.config.split_key or OWN_KEY

    def keys(self) -> list[str]:
        """Each perturbation keeps its share of the cells, in each context and part."""
        further = (self.config.context_key, self.config.split_key)
        return [self.pert_key, *(key for key in further if key is not None)]

    def _read(self) -> dict[str, Any]:
        config = self.config
        names = ("pert_key", "control", "context_key", "separator")
        return {name: getattr(config, name) for name in names}

    def split(self, adata: AnnData) -> None:
        """Hold out perturbations, unless that was done."""
        if self.config.split_key is None:
            split_perturbations(adata, **self._read(), rng=self.config.seed, key_added=self.split_key)
        conditions = Conditions.from_labels(
            adata.obs[self.pert_key].tolist(), control=self.config.control, separator=self.config.separator
        )
        parts = adata.obs[self.split_key].astype(str).to_numpy()
        is_perturbed = conditions.codes > 0
        refuse_empty(
            {part: len(np.unique(conditions.codes[is_perturbed & (parts == part)])) for part in PARTS}, "perturbation"
        )

    def check(self, adata: AnnData, model: SCGPT) -> None:
        """Nothing more than the split has checked."""

    def options(self) -> dict[str, Any]:
        """How to read the screen."""
        return {"task": "perturbation", **self._read(), "batch_key": self.config.batch_key}

    def predict(self, adata: AnnData, model: SCGPT) -> str:
        """Write the effects of the held-out perturbations."""
        predict_perturbation(adata, model=model, accelerator=self.config.device, rng=self.config.seed)
        rows = adata.uns[KEYS.prediction]["rows"]
        return f"effects of {rows['perturbation'].nunique():,} held-out perturbations"

    def evaluate(self, adata: AnnData, model: SCGPT) -> Findings:
        """Score the effects beside baselines and the ceiling of the data."""
        # Tests of differential expression need packages that not everybody has, and the numbers must not hang on that.
        evaluate_perturbation(adata, baselines=(*BASELINES, PRIOR), de=False, rng=self.config.seed)
        summary = adata.uns[KEYS.evaluation]["summary"]
        everything = summary[summary["group"].astype(str) == "all"]
        of_model = everything[everything["method"].astype(str) == "model"].set_index("metric")
        n = int(adata.uns[KEYS.prediction]["rows"]["perturbation"].nunique())
        shown = [name for name in SHOWN if name in set(everything["metric"])]
        metrics = {
            "test": {"n_perturbations": n},
            "groups": {
                str(group): _scores(part) for group, part in summary.groupby("group", observed=True, sort=False)
            },
        }
        headline = [f"{SHOWN[name]} {of_model.loc[name, 'mean']:.3f}" for name in shown[:1]]
        return Findings(
            metrics,
            f"{', '.join(headline)} on {n} held-out perturbations",
            [self._section(everything, shown, n, model)],
            {
                "perturbation_scores.png": (
                    "Mean scores with 95 % intervals over perturbations; the line is the ceiling of the data.",
                    panels(lambda adata, name, ax: pl.perturbation_scores(adata, name, ax=ax, show=False), shown),
                ),
                "perturbation_embedding.png": (
                    "Training perturbations and predicted ones in the plane of the largest effects.",
                    on_axes(lambda adata, ax: pl.perturbation_embedding(adata, ax=ax, show=False), size=(6, 5)),
                ),
            },
        )

    def _section(self, table: pd.DataFrame, shown: list[str], n: int, model: SCGPT) -> str:
        methods = list(dict.fromkeys(table["method"].astype(str)))
        by_place = table.assign(method=table["method"].astype(str)).set_index(["method", "metric"])
        rows = [(method, *(_interval(by_place, method, metric) for metric in shown), str(n)) for method in methods]
        parts = [
            "## Held-out perturbations",
            markdown_table(("method", *(SHOWN[name] for name in shown), "perturbations"), rows),
            "Mean with a 95 % interval over samples of the perturbations. All methods know the same: everything but the test "
            "cells. The ceiling is how well one half of the real cells predicts the other, brought to full size. Interval "
            "and ceiling say what these perturbations and cells can tell; another seed of training is not in them. "
            "`results.h5ad` has every score of every perturbation in `uns['evaluate_perturbation']`.",
        ]
        if model.training["best_epoch"] < 0:
            parts.append(
                "**No epoch did better on the validation perturbations than the prior alone**, so the predictions are those of "
                f"the prior, the method `{PRIOR}`."
            )
        return "\n\n".join(parts)


def _scores(table: pd.DataFrame) -> dict[str, dict[str, dict[str, float | None]]]:
    """Mean and interval of each metric by method; what is undefined is ``None``, since JSON knows no NaN."""
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    columns = ("mean", "low", "high", "n", "n_nan")
    for row in table.to_dict("records"):
        numbers = {name: None if math.isnan(row[name]) else float(row[name]) for name in columns}
        found.setdefault(str(row["metric"]), {})[str(row["method"])] = numbers
    return found


def _interval(table: pd.DataFrame, method: str, metric: str) -> str:
    if (method, metric) not in table.index:
        return ""
    mean, low, high = table[["mean", "low", "high"]].loc[[(method, metric)]].to_numpy(float)[0]
    return "undefined" if math.isnan(mean) else f"{mean:.3f} [{low:.3f}, {high:.3f}]"
