"""Predict a number for each cell, such as age, pseudotime or a score."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgalore._options import TEXT, Option
from scgalore.data.columns import read_column
from scgalore.data.results import Results
from scgalore.errors import DataError
from scgalore.objectives import Regression as Objective
from scgalore.tasks.baselines import expression_of, ridge
from scgalore.tasks.cells import CellTargets, CellTask
from scgalore.tasks.correction import fit_correction, ridge_after
from scgalore.tasks.figures import on_axes, umap
from scgalore.tasks.findings import Findings, held_out, markdown_table, with_error
from scgalore.tasks.linear import PRIOR, PRIOR_ALONE, fit_values, with_held_out_prior, with_prior
from scgalore.tasks.linear_model import PRIOR_FILE, LinearModel, read_part
from scgalore.tasks.value_scores import METRICS, ValueScores, score_values

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore._keys import CellKeys
    from scgalore.data.reading import Reading
    from scgalore.data.split import Split
    from scgalore.nn.base import CellNetwork, CellOutput
    from scgalore.tasks.base import Prepared, TaskMemory, TaskModel
    from scgalore.tasks.call import TrainingCall
    from scgalore.tasks.cells import CellReading
    from scgalore.tasks.correction import Correction
    from scgalore.tasks.linear import LinearFit

__all__ = ["Regression", "RegressionMemory"]

HEAD = "regression"
TITLES = {"r2": "R2", "spearman": "Spearman", "mae": "mean absolute error"}
RIDGE, MEAN = "ridge regression", "mean of the training cells"


@dataclass(frozen=True)
class RegressionMemory:
    """Target column of a regression, and its scale.

    Attributes
    ----------
    column
        Column of ``obs`` that the values came from.
    mean, std
        Mean and standard deviation in the training cells: outputs of the head are ``(value - mean) / std``.
    prior
        Ridge regression that the network corrects, or ``None``.
    """

    column: str
    mean: float
    std: float
    task: str = "regression"
    outlives_training: bool = True
    prior: LinearModel | None = field(default=None, repr=False)

    def to_config(self) -> dict[str, Any]:
        """Column and scale."""
        return {"column": self.column, "mean": self.mean, "std": self.std}

    def files(self, provenance: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> dict[str, str | bytes]:
        """The ridge regression, if any."""
        return {} if self.prior is None else {PRIOR_FILE: self.prior.to_bytes()}

    def values(self, output: CellOutput) -> NDArray[np.float32]:
        """Predicted values on the original scale, float32 ``(n_obs,)``."""
        return _on_scale(output.heads[HEAD], self)

    def table(self, output: CellOutput) -> dict[str, NDArray[np.float32]]:
        """The values, under the name of their column."""
        return {self.column: self.values(output)}


class Regression(CellTask):
    """Squared error on a numeric column of ``obs``, standardised by the training cells."""

    name = "regression"
    summary = "to predict a number for each cell"
    key = "values_key"
    head = HEAD
    heads_at_zero = True  # the mean of the training cells
    arguments = (
        Option(
            "values_key",
            TEXT,
            "Column of obs with the value of each cell to predict, such as age or a score.",
            column="obs",
        ),
        PRIOR,
    )
    next_steps = "`sg.tl.annotate(other_cells, model)` predicts the values of other cells; `sg.tl.embed(other_cells, model)` embeds them."

    def targets(self, adata: AnnData, call: TrainingCall) -> CellTargets:
        """Standardised values; the scale is that of the training cells."""
        column = call.arguments["values_key"]
        values = read_values(adata, column)
        split = call.split_of(adata)
        mean, std = float(values[split.train].mean()), float(values[split.train].std())
        if not std > 0:
            msg = f"adata.obs[{column!r}] is {mean:g} in all training cells; expected values that differ."
            raise DataError(msg)
        return CellTargets(
            split, {"values": ((values - mean) / std).astype(np.float32)}, RegressionMemory(column, mean, std)
        )

    def objective(self, network: CellNetwork, memory: RegressionMemory | None) -> Objective:
        """Squared error."""
        return Objective()

    def fit_prior(self, reading: CellReading, call: TrainingCall) -> LinearFit | None:
        """A ridge regression."""
        if call.arguments["prior"] == "none":
            return None
        assert reading.targets is not None
        targets = reading.targets
        return fit_values(reading.data, call.reading, targets.arrays["values"], targets.split, seed=call.seed)

    def fit_correction(self, reading: CellReading, fit: LinearFit, features: NDArray[np.float32]) -> Correction:
        """Ridge regression on the residuals of the linear model."""
        assert reading.targets is not None
        predicted, values = fit.predicted[fit.cells], reading.targets.arrays["values"][fit.cells]

        def loss(outputs: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
            return (outputs[:, 0] - y) ** 2

        return fit_correction(features, predicted, values, fit.folds, lambda: ridge_after, loss)

    def load(self, folder: Path, config: Mapping[str, Any]) -> TaskMemory | None:
        """Column, scale and ridge regression."""
        memory = config.get("memory", {})
        if "column" not in memory:
            return None
        prior = read_part(folder / PRIOR_FILE, partial(LinearModel.from_bytes, n_outputs=1))
        return RegressionMemory(memory["column"], memory["mean"], memory["std"], prior=prior)

    def complete(self, output: CellOutput, memory: RegressionMemory, adata: AnnData, reading: Reading) -> CellOutput:
        """Sum of the outputs of the network and of the ridge regression that it corrects."""
        return with_prior(output, HEAD, memory.prior, adata, reading)

    def predictions(self, output: CellOutput, memory: RegressionMemory, keys: CellKeys) -> Results:
        """The predicted value."""
        return Results(obs={keys.value: (memory.values(output), f"predicted {memory.column}")})

    def scores(
        self, adata: AnnData, output: CellOutput, prepared: Prepared, call: TrainingCall, keys: CellKeys
    ) -> Results:
        """R2, Spearman correlation and mean absolute error of each split."""
        memory = prepared.memory
        assert isinstance(memory, RegressionMemory)
        assert prepared.split is not None
        truth = read_values(adata, memory.column)
        scale = {"column": memory.column, "mean": memory.mean, "std": memory.std}
        source: Any = prepared.source
        found = memory.values(with_held_out_prior(output, HEAD, source.targets))
        content: dict[str, Any] = {"metrics": _by_part(found, truth, prepared.split), "scale": scale}
        if memory.prior is not None:
            table = _by_part(_on_scale(prepared.state["prior"][0].predicted, memory), truth, prepared.split)
            content["prior"] = self.prior_report(prepared, table)
        return Results(uns={keys.uns: (content, "")})

    def headline(self, content: Mapping[str, Any]) -> str:
        """R2 of the model and the linear model; the mean of the cells has 0."""
        part, row = held_out(content["metrics"])
        linear = f"; linear model: {content['prior']['metrics'].loc[part, 'r2']:.3f}" if "prior" in content else ""
        return f"R2 on {int(row['n']):,} {part} cells: {row['r2']:.3f}{linear}; their mean: 0"

    # Pipeline ---------------------------------------------------------------------------------------------------------

    def goal(self, arguments: Mapping[str, Any]) -> str:
        """Which column is predicted."""
        return f"to predict `obs['{arguments['values_key']}']`"

    def draw_keys(self, arguments: Mapping[str, Any]) -> list[str]:
        """Cells are drawn at random."""
        return []

    def predict(self, adata: AnnData, model: TaskModel, call: TrainingCall) -> str:
        """Fine-tuning has written values and embeddings."""
        return f"values and embeddings of {adata.n_obs:,} cells, written by fine-tuning"

    def evaluate(self, adata: AnnData, model: TaskModel, call: TrainingCall, *, name: str) -> Findings:
        """Compare the values of test cells with those of a ridge regression on the same genes and cells."""
        keys, column = model.keys("finetune"), call.arguments["values_key"]
        truth, split = read_values(adata, column), self.split_in(adata, keys.split)
        prior = getattr(model.memory, "prior", None)
        alone = {} if prior is None else {PRIOR_ALONE: _on_scale(prior.predict(adata, call.reading), model.memory)}
        predicted = {
            name: adata.obs[keys.value].to_numpy(np.float64),
            **alone,
            RIDGE: ridge(expression_of(adata, call.reading), truth, split),
            MEAN: np.full(adata.n_obs, truth[split.train].mean()),
        }
        scores = ValueScores.of({key: x[split.test] for key, x in predicted.items()}, truth[split.test], seed=call.seed)
        differences = {rival: scores.difference(name, rival) for rival in (RIDGE, *alone)}
        mine, theirs = scores.row(name), scores.row(RIDGE)
        metrics = {
            "test": {"n": scores.n, **mine},
            "baselines": {method: scores.row(method) for method in (RIDGE, MEAN)},
            "difference": {"to": RIDGE, **differences[RIDGE]},
        }
        if alone:
            metrics["prior"] = {**scores.row(PRIOR_ALONE), "difference": differences[PRIOR_ALONE]}
        headline = [f"{TITLES[key]} {mine[key]:.3f} ({RIDGE} {theirs[key]:.3f})" for key in METRICS[:2]]

        def scatter(adata: AnnData, ax: Any) -> None:
            ax.plot(truth[split.test], predicted[name][split.test], ".", ms=3, alpha=0.5)
            ends = [truth[split.test].min(), truth[split.test].max()]
            ax.plot(ends, ends, color="0.6", lw=1)
            ax.set(xlabel=f"true {column}", ylabel=f"predicted {column}")
            ax.spines[["top", "right"]].set_visible(False)

        return Findings(
            metrics,
            f"{', '.join(headline)} on {scores.n:,} test cells",
            [_section(scores, name, differences)],
            {
                "values.png": ("Held-out cells by true and predicted value.", on_axes(scatter, size=(5, 4.5))),
                **umap([column, keys.value], ["true value", "predicted value"], adata.n_obs, use_rep=keys.embedding),
            },
        )


def _on_scale(outputs: NDArray[np.floating], memory: RegressionMemory) -> NDArray[np.float32]:
    return (outputs[:, 0] * memory.std + memory.mean).astype(np.float32)


def _by_part(predicted: NDArray[np.floating], truth: NDArray[np.float64], split: Split) -> pd.DataFrame:
    rows = {
        part: {"n": n, **score_values(predicted[cells], truth[cells])}
        for part, n in split.sizes().items()
        if len(cells := getattr(split, part))
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def read_values(adata: AnnData, column: str) -> NDArray[np.float64]:
    """Read a numeric column of ``adata.obs``, float64 ``(n_obs,)``.

    Raises
    ------
    MissingKeyError
        If the column does not exist.
    DataError
        If it does not contain a finite number for each cell.
    """
    found = read_column(adata.obs, column)
    if not pd.api.types.is_numeric_dtype(found) or pd.api.types.is_bool_dtype(found):
        msg = f"adata.obs[{column!r}] contains {found.dtype}, not numbers. For classes, pass the column as labels_key=."
        raise DataError(msg)
    values = found.to_numpy(dtype=np.float64)
    n_missing = int((~np.isfinite(values)).sum())
    if n_missing:
        msg = (
            f"{n_missing:,} of {len(values):,} cells have no finite value in adata.obs[{column!r}]. Train on the others, "
            f"adata[adata.obs[{column!r}].notna()], and predict all of them with sg.tl.annotate."
        )
        raise DataError(msg)
    return values


def _section(scores: ValueScores, name: str, differences: dict[str, dict[str, float]]) -> str:
    rows = [
        (method, *(with_error(row[key], row[f"{key}_se"]) for key in METRICS), str(scores.n))
        for method in scores.samples
        for row in [scores.row(method)]
    ]
    lines = [
        f"- {rival}, {TITLES[key]}: {with_error(found[key], found[f'{key}_se'], sign='+')}"
        for rival, found in differences.items()
        for key in METRICS
    ]
    return "\n\n".join(
        [
            "## Held-out cells",
            markdown_table(("method", *(TITLES[key] for key in METRICS), "test cells"), rows),
            "Value ± standard error, from bootstrap samples of the test cells; it does not include the seed of training. The ridge regression "
            "was fitted to all genes of training and validation cells, with a penalty chosen by leave-one-out.",
            f"{name} minus baselines:",
            "\n".join(lines),
        ]
    )
