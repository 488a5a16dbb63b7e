"""Predict expression after perturbations, including unmeasured ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from scgalore import _logging as logg
from scgalore._keys import PerturbationKeys
from scgalore._options import COUNT, TEXT, UNS_OR_OBSM, Option, choice
from scgalore.data.cells import gene_names
from scgalore.data.results import Results
from scgalore.data.split import PARTS
from scgalore.errors import OptionError
from scgalore.nn.device import pick_device
from scgalore.objectives import Perturbation as PerturbationObjective
from scgalore.perturb.baselines.choice import CHOSEN
from scgalore.perturb.baselines.effects import RULE_SETS
from scgalore.perturb.labels.reading import LABELS, PERT_KINDS, check_kind, read_conditions
from scgalore.perturb.labels.screen import Screen
from scgalore.perturb.scores.evaluation import PRIOR, choose_metrics
from scgalore.perturb.splits.own import SPLIT_KEYS, free_split_key, own_split, record_split
from scgalore.perturb.splits.split import default_kind, split_conditions
from scgalore.pp import split_perturbations
from scgalore.tasks.base import Task
from scgalore.tasks.cells import refuse_empty
from scgalore.tasks.figures import on_axes, panels, plot
from scgalore.tasks.findings import Findings, markdown_table
from scgalore.tasks.perturbation.evaluation import read_prediction, score_prediction
from scgalore.tasks.perturbation.fitting import NO_PRIOR, prepare_screen, remember_screen
from scgalore.tasks.perturbation.memory import read_memory
from scgalore.tasks.perturbation.prediction import Wanted, predict_wanted
from scgalore.tasks.perturbation.reading import CONTROL, READ, read_params
from scgalore.train.processes import training_processes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

    from scgalore._keys import CellKeys
    from scgalore.data.results import Read
    from scgalore.nn.base import CellNetwork
    from scgalore.objectives import Objective
    from scgalore.perturb.splits.own import Tables
    from scgalore.perturb.splits.split import PerturbationSplit
    from scgalore.tasks.base import Prepared, TaskMemory, TaskModel
    from scgalore.tasks.call import TrainingCall
    from scgalore.train.result import TrainResult

__all__ = ["Perturbation"]

KEYS = PerturbationKeys()
SPLIT_SEED = 42

SHOWN = {"pearson_delta": "Pearson of effects", "mse": "squared error", "pds_cosine": "discrimination (cosine)"}
"""Metrics of ``metrics.json`` that are shown in report and figure."""


@dataclass(frozen=True)
class ScreenReading:
    """A screen with a split.

    Attributes
    ----------
    screen
        The cells.
    ranks
        Rank of each gene for a curriculum.
    title
        Description of the training data.
    """

    screen: Screen
    ranks: NDArray[np.float64] | None = field(repr=False)
    title: str


class Perturbation(Task):
    """Correction of a simple prior by a network with perturbation flags."""

    name = "perturbation"
    summary = "to predict expression after perturbations"
    key = "pert_key"
    arguments = (
        Option(
            "pert_key",
            TEXT,
            "Column of obs with the perturbation of each cell: KLF1, KLF1+ctrl or KLF1+MAP2K6, or the name of a compound.",
            column="obs",
        ),
        Option(
            "pert_kind",
            choice(*PERT_KINDS),
            "Type of perturbation: gene, or compound for drugs, cytokines and other stimuli, whose labels are not parsed.",
            PERT_KINDS[0],
        ),
        Option(
            "dose_key",
            TEXT,
            "Column of obs with the dose of each compound, a positive number; 0 or missing for control. Omit if each "
            "compound has a single dose.",
            column="obs",
        ),
        Option(
            "vectors_key",
            TEXT,
            "Key of compound vectors, such as fingerprints: in uns a table with compounds as index, or in obsm a vector for "
            "each cell. By default compounds are represented by name, and only training compounds can be predicted.",
            column=UNS_OR_OBSM,
        ),
        Option(
            "control",
            CONTROL,
            "Label of control cells in that column. A pattern such as NT_* or a list, as in "
            "NT_1,NT_2, pools several labels. By default detected (control, ctrl, non-targeting, ...).",
        ),
        Option(
            "context_key",
            TEXT,
            "Column of obs with the cell type or line, within which cells are compared with control.",
            column="obs",
        ),
        Option(
            "batch_key",
            TEXT,
            "Column of obs with batches: perturbed cells are paired with control cells of their own batch.",
            column="obs",
        ),
        Option("separator", TEXT, "Separator between the genes of a label. Detected if not given."),
        Option(
            "prior",
            choice(CHOSEN, *dict.fromkeys(prior for rules in RULE_SETS.values() for prior in rules.priors), NO_PRIOR),
            "Baseline that the network corrects; chosen: selected by cross-validation; none: the network predicts "
            "expression directly, as in the original scGPT.",
            CHOSEN,
        ),
        Option(
            "genes_per_step",
            COUNT,
            "Number of genes per training step, sampled for each step; perturbed genes are always included.",
            shown_default="all",
        ),
    )
    training = {"dropout": 0.0, "max_epochs": 10, "patience": 3, "batch_size": 64, "lr": 1e-3}
    needs = frozenset({"flags"})
    gene_strategy = "perturbation"
    split_note = "by perturbation, from `sg.pp.split_perturbations`"
    next_steps = (
        '`sg.tl.predict_perturbation(adata, ["A", "A+B"], model=model)` predicts other perturbations; '
        "`sg.tl.evaluate_perturbation(adata, de=True)` adds scores of differential expression, with the extra `eval`."
    )

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Complete and check the arguments, depending on the type of perturbation."""
        found = super().check({"pert_key": "perturbation", **{k: v for k, v in arguments.items() if v is not None}})
        kind, prior = found["pert_kind"], found["prior"]
        check_kind(kind, **{name: found[name] for name in ("dose_key", "vectors_key", "separator")})
        offered = (CHOSEN, *RULE_SETS[kind].priors, NO_PRIOR)
        if prior not in offered:
            msg = f"prior={prior!r} is not available for pert_kind={kind!r}; choose one of {', '.join(map(repr, offered))}."
            raise OptionError(msg)
        return found

    # Training ---------------------------------------------------------------------------------------------------------

    def read(self, data: AnnData, call: TrainingCall) -> ScreenReading:
        """Read the screen, its split (drawn by default), and the ranking of the genes."""
        if not isinstance(data, AnnData) or call.validation is not None or call.split is not None:
            msg = (
                "task='perturbation' needs a single AnnData with a split in obs. See sg.pp.split_perturbations(adata)."
            )
            raise OptionError(msg)
        n_processes = training_processes(call.config).size
        if n_processes > 1:
            msg = f"task='perturbation' runs in a single process, but there are {n_processes}. Omit devices=, num_nodes= and the launcher."
            raise OptionError(msg)
        read = {name: call.arguments[name] for name in (*LABELS, "context_key", "batch_key", "vectors_key")}
        split_key = call.split_key or self.own_split_key(data, call.arguments)
        screen = Screen.from_adata(data, **read, split_key=split_key, **call.reading.params())
        if screen.parts is None:
            labels, key = _default_split(screen).cell_labels(screen.conditions), free_split_key(data)
            logg.info(
                f"    no split given or recorded: drawing the default split of sg.pp.split_perturbations into adata.obs[{key!r}]"
            )
            screen = screen.with_parts(labels, key)
        of_screen = {name: screen.params[name] for name in (*LABELS, "context_key")}
        seen = (screen.parts == "train") | (screen.conditions.codes == 0)
        ranks = call.ranks_of(data, seen, gene_strategy=self.gene_strategy, **of_screen)
        return ScreenReading(screen, ranks, f"{len(screen.conditions.perturbations):,} perturbations")

    def prepare(self, reading: ScreenReading, model: TaskModel, call: TrainingCall) -> Prepared:
        """A network with flags, its training data, and the prior that it corrects."""
        options = {name: call.arguments[name] for name in ("prior", "genes_per_step")}
        return prepare_screen(self, model, reading.screen, call.config, ranks=reading.ranks, **options)

    def remember(self, prepared: Prepared, result: TrainResult, adapter: Any = None) -> TaskMemory:
        """Genes, prior, perturbations and statistics."""
        return remember_screen(prepared, result)

    def load(self, folder: Path, config: Mapping[str, Any]) -> TaskMemory | None:
        """Read the files of the screen."""
        return read_memory(folder)

    def results(
        self, adata: AnnData, model: TaskModel, prepared: Prepared, call: TrainingCall, keys: CellKeys
    ) -> Results:
        """Statistics, the perturbations of each split, and the split itself if it was drawn now."""
        memory = model.memory
        if memory.stats["validation_pearson_delta"] and memory.stats["best_epoch"] < 0:
            logg.result("    no epoch was better than the prior alone: predictions are those of the prior")
        content = {
            "params": dict(memory.params),
            "stats": memory.stats,
            "perturbations": memory.perturbations,
            "genes": prepared.state.genes,
        }
        if memory.choice is not None:
            content["prior"] = memory.choice
        results = Results(uns={keys.uns: (content, "parameters, history, statistics, provenance")})
        key = memory.params["split_key"]
        if key not in adata.obs:
            labels, record = _recorded(prepared.state.screen, adata.obs)
            results.obs[key] = (labels, "split of the cells")
            results.uns[key] = (record, "perturbations of each split")
        return results

    def reads(self, call: TrainingCall) -> list[Read]:
        """Columns of the screen, and the record of its split."""
        return [*super().reads(call), *(("uns", "the split", key) for key in (call.split_key, *SPLIT_KEYS))]

    def writes(self, keys: CellKeys, call: TrainingCall) -> Mapping[str, Sequence[str]]:
        """No slots of cells. A new split is written to an unused key."""
        return {"uns": (keys.uns,)}

    def headline(self, content: Mapping[str, Any]) -> str:
        """Pearson correlation of effects on validation perturbations."""
        stats = content["stats"]
        scores = stats["validation_pearson_delta"]
        if not scores:
            return ""
        best = max((name for name in scores if name != "model"), key=lambda name: scores[name])
        return (
            f"Pearson delta on {stats['validation_perturbations']} validation perturbations: {scores['model']:.3f}; "
            f"best baseline ({best}): {scores[best]:.3f}"
        )

    # Memory estimate --------------------------------------------------------------------------------------------------

    def network_for(self, network: CellNetwork) -> CellNetwork:
        """The network with flags and another decoder."""
        n_tokens = network.config.n_tokens
        return network.perturbation_variant(n_tokens, n_tokens, seed=0)

    def objective_for(self, network: CellNetwork, sizes: Mapping[str, Any]) -> Objective:
        """Squared error of the expression of all genes."""
        return PerturbationObjective()

    # Pipeline ---------------------------------------------------------------------------------------------------------

    def goal(self, arguments: Mapping[str, Any]) -> str:
        """Goal with the column of perturbations."""
        return f"to predict expression after the perturbations of `obs['{arguments['pert_key']}']`"

    def infer_arguments(self, obs: pd.DataFrame, genes: Sequence[str], arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Detect control and separator from the labels."""
        found = read_conditions(obs, genes=genes, **{name: arguments[name] for name in LABELS})
        return {"control": found.control, "separator": found.separator}

    def own_split_key(self, data: Tables, arguments: Mapping[str, Any]) -> str | None:
        """Column written by :func:`scgalore.pp.split_perturbations` for these perturbations."""
        return own_split(data, **{name: arguments[name] for name in ("pert_key", "context_key", "dose_key")})

    def draw_keys(self, arguments: Mapping[str, Any]) -> list[str]:
        """Sampling is stratified by perturbation and context; cells without a label are excluded."""
        keys = (arguments["pert_key"], arguments["dose_key"], arguments["context_key"])
        return [key for key in keys if key is not None]

    def split(self, adata: AnnData, call: TrainingCall, key: str) -> None:
        """Hold out perturbations, unless there is a split."""
        read = {name: call.arguments[name] for name in LABELS}
        if call.split_key is None:
            how = {"context_key": call.arguments["context_key"], "gene_symbols": call.reading.gene_symbols}
            split_perturbations(adata, **read, **how, rng=call.seed, key_added=key)
        conditions = read_conditions(adata.obs, genes=gene_names(adata, call.reading.gene_symbols), **read)
        parts, is_perturbed = adata.obs[key].astype(str).to_numpy(), conditions.codes > 0
        sizes = {part: len(np.unique(conditions.codes[is_perturbed & (parts == part)])) for part in PARTS}
        refuse_empty(sizes, "perturbation")

    def predict(self, adata: AnnData, model: TaskModel, call: TrainingCall) -> str:
        """Write the effects of the held-out perturbations."""
        wanted = Wanted(adata, None, read_params(adata, model, dict.fromkeys(READ), None), model)
        device = pick_device(call.config.accelerator)
        predict_wanted(wanted, KEYS, device=device, seed=call.seed).write(adata, adata)
        return f"effects of {wanted.rows['perturbation'].nunique():,} held-out perturbations"

    def evaluate(self, adata: AnnData, model: TaskModel, call: TrainingCall, *, name: str) -> Findings:
        """Score the effects with baselines and the noise ceiling."""
        prediction, origin = read_prediction(adata, KEYS.prediction)
        # Tests of differential expression need optional packages, on which the report must not depend.
        rules = RULE_SETS[call.arguments["pert_kind"]]
        options = {"baselines": list(rules.baselines), "n_bootstrap": 1000, "max_cells": None}
        metrics = list(choose_metrics(None, de=False))
        score_prediction(
            adata, prediction, origin, KEYS, key=KEYS.prediction, metrics=metrics, seed=call.seed, **options
        ).write(adata, adata)
        summary = adata.uns[KEYS.evaluation]["summary"]
        everything = summary[summary["group"].astype(str) == "all"]
        of_model = everything[everything["method"].astype(str) == "model"].set_index("metric")
        n = int(adata.uns[KEYS.prediction]["rows"]["perturbation"].nunique())
        shown = [metric for metric in SHOWN if metric in set(everything["metric"])]
        groups = {str(group): _scores(part) for group, part in summary.groupby("group", observed=True, sort=False)}
        headline = [f"{SHOWN[metric]} {of_model.loc[metric, 'mean']:.3f}" for metric in shown[:1]]
        assert model.result is not None
        assert model.result.best_epoch is not None
        return Findings(
            {"test": {"n_perturbations": n}, "groups": groups},
            f"{', '.join(headline)} on {n} held-out perturbations",
            [_section(everything, shown, n, is_prior=model.result.best_epoch < 0)],
            {
                "perturbation_scores.png": (
                    "Mean scores with 95 % intervals over perturbations; the line is the noise ceiling.",
                    panels(lambda adata, name, ax: plot("perturbation_scores")(adata, name, ax=ax, show=False), shown),
                ),
                "perturbation_embedding.png": (
                    "Training and predicted perturbations in the plane of the largest effects.",
                    on_axes(lambda adata, ax: plot("perturbation_embedding")(adata, ax=ax, show=False), size=(6, 5)),
                ),
            },
        )


def _default_split(screen: Screen) -> PerturbationSplit:
    """Default split of :func:`scgalore.pp.split_perturbations`."""
    return split_conditions(screen.conditions, seed=SPLIT_SEED)


def _recorded(screen: Screen, obs: pd.DataFrame) -> tuple[pd.Categorical[Any], dict[str, Any]]:
    """Default split in the form in which it is written."""
    split = _default_split(screen)
    read = {name: screen.params[name] for name in (*LABELS, "context_key")}
    params = {"kind": default_kind(screen.conditions), **read, "rng": SPLIT_SEED, **split.options}
    return record_split(split, screen.conditions, obs, params)


def _section(table: pd.DataFrame, shown: list[str], n: int, *, is_prior: bool) -> str:
    methods = list(dict.fromkeys(table["method"].astype(str)))
    by_place = table.assign(method=table["method"].astype(str)).set_index(["method", "metric"])
    rows = [(method, *(_interval(by_place, method, metric) for metric in shown), str(n)) for method in methods]
    parts = [
        "## Held-out perturbations",
        markdown_table(("method", *(SHOWN[name] for name in shown), "perturbations"), rows),
        "Mean with a 95 % bootstrap interval over perturbations. All methods were fitted to the same data, without test "
        "cells. The ceiling is the agreement of two halves of the real cells, corrected to the full number of cells. Intervals "
        "do not include the seed of training. "
        "`results.h5ad` has every score of every perturbation in `uns['evaluate_perturbation']`.",
    ]
    if is_prior:
        parts.append(
            "**No epoch was better than the prior alone on the validation perturbations**, so the predictions are those of "
            f"the prior (method `{PRIOR}`)."
        )
    return "\n\n".join(parts)


def _scores(table: pd.DataFrame) -> dict[str, dict[str, dict[str, float | None]]]:
    """Mean and interval of each metric by method; ``None`` if undefined, since JSON has no NaN."""
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
