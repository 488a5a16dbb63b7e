"""Predict masked expression, the objective of pre-training."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from scgalore._options import SWITCH, Kind, Option, are, choice, comma_separated, number
from scgalore.data.sampler import BatchRequest
from scgalore.nn.device import pick_device
from scgalore.objectives import PRETRAINING, GenerativeExpression, pretraining_objective
from scgalore.tasks.cells import CellTargets, CellTask
from scgalore.tasks.figures import bars, umap
from scgalore.tasks.findings import Findings, markdown_table, with_error

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore.data.cells import TokenCells
    from scgalore.data.streaming import TokenStream
    from scgalore.nn.base import CellNetwork
    from scgalore.objectives import Objective
    from scgalore.tasks.base import Prepared, TaskModel
    from scgalore.tasks.call import TrainingCall
    from scgalore.tasks.cells import CellReading

__all__ = ["Expression"]

BATCH = 16
RULES = ("each gene's mean bin", "mean bin of all genes", "mean visible bin of the cell")


RATIO = number("each ratio must lie strictly between 0 and 1", lambda ratio: 0 < ratio < 1)
RATIOS = Kind(
    "give a fraction of the genes between 0 and 1, or several such as [0.25, 0.5, 0.75], one of which is drawn per cell",
    lambda value: RATIO.fits(value) or (are(RATIO.fits)(value) and len(value) > 0),
    lambda text: [float(part) for part in comma_separated(text)],
    lambda value: float(value) if RATIO.fits(value) else [float(ratio) for ratio in value],
)


class Expression(CellTask):
    """Masked expression; needs no column of ``obs``."""

    name = "expression"
    arguments: ClassVar[tuple[Option, ...]] = (
        Option(
            "objective",
            choice(*PRETRAINING),
            "How expression is masked and predicted: an entry of ``scgalore.objectives.PRETRAINING``. By default the "
            "objective of the network's pre-training.",
            shown_default="that of the network's pre-training",
        ),
        Option(
            "mask_ratio",
            RATIOS,
            "Fraction of a cell's genes to predict, or several such as 0.25,0.5,0.75, one of which is drawn per cell and epoch.",
            shown_default="set by the objective",
        ),
        Option(
            "from_cell_prompt",
            SWITCH,
            "For ``objective='generative'``: whether genes are generated a second time, from the cell embedding of the first pass, as in scGPT's "
            "pre-training after 1,000 steps. Doubles the time per step.",
            shown_default="no",
        ),
    )
    summary = "to predict masked expression, as in pre-training"
    needs = frozenset({"expression"})
    next_steps = (
        "`sg.tl.embed(other_cells, model)` embeds other cells; `sg.tl.finetune(other_cells, model, labels_key=...)` continues "
        "from these weights."
    )

    def targets(self, adata: AnnData, call: TrainingCall) -> CellTargets:
        """Cells are their own targets."""
        return CellTargets(call.split_of(adata))

    def objective(self, network: CellNetwork, memory: None) -> Objective:
        """The objective of the network's pre-training."""
        return pretraining_objective(network)

    def objective_of(self, reading: CellReading, network: CellNetwork, call: TrainingCall) -> Objective:
        """The requested objective."""
        ratio = call.arguments.get("mask_ratio")
        ratio = tuple(ratio) if isinstance(ratio, list) else ratio
        prompt = call.arguments.get("from_cell_prompt") or None  # False is valid for any objective
        return pretraining_objective(
            network, call.arguments.get("objective"), mask_ratio=ratio, from_cell_prompt=prompt
        )

    def prepare(self, reading: CellReading, model: TaskModel, call: TrainingCall) -> Prepared:
        """Tokens, the objective, and a matching network."""
        prepared = super().prepare(reading, model, call)
        if isinstance(prepared.objective, GenerativeExpression) and not model.network.generates:
            return replace(prepared, network=model.network.generative_variant(seed=call.seed))
        return prepared

    def stream_memory(self, stream: TokenStream, call: TrainingCall) -> None:
        """No memory is needed."""

    # Pipeline ---------------------------------------------------------------------------------------------------------

    def evaluate(self, adata: AnnData, model: TaskModel, call: TrainingCall, *, name: str) -> Findings:
        """Mask test cells once, and compare the network with baselines from the training cells."""
        keys = model.keys("finetune")
        split = self.split_in(adata, keys.split)
        cells = model.cells(adata, **call.reading.of_tokens(), rng=call.seed)
        means, overall = _mean_bins(cells, split.train)
        errors = _errors(model, cells, split.test, means, overall, call)
        n, share = len(split.test), pretraining_objective(model.network).ratios[0]
        found = {
            method: {"mse": float(values.mean()), "mse_se": float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0}
            for method, values in zip((name, *RULES), errors, strict=True)
        }
        rival = min(RULES, key=lambda rule: found[rule]["mse"])
        of = [with_error(row["mse"], row["mse_se"]) for row in found.values()]
        rows = [(method, text, str(n)) for method, text in zip(found, of, strict=True)]
        section = "\n\n".join(
            [
                "## Masked values of held-out cells",
                markdown_table(("method", "squared error", "test cells"), rows),
                "Mean over the test cells of the squared error at masked positions, in bins of expression, ± its standard "
                f"error. {share:.0%} of the expressed genes of each cell were masked, the same for all methods. The first two baselines "
                "are means over the training cells; the third uses only the visible genes of the cell. This loss shows "
                "whether the network has learned dependencies between genes, not the quality of its embeddings.",
            ]
        )
        label = "squared error of masked bins, test cells"
        picture = bars(
            list(found), [row["mse"] for row in found.values()], [row["mse_se"] for row in found.values()], label=label
        )
        return Findings(
            {"test": {"n": n, **found[name]}, "baselines": {rule: found[rule] for rule in RULES}},
            f"squared error {found[name]['mse']:.2f} ({rival} {found[rival]['mse']:.2f}) on {n:,} test cells",
            [section],
            {
                "masked_expression.png": ("Squared error at masked positions; lower is better.", picture),
                **umap([keys.split], ["split"], adata.n_obs, use_rep=keys.embedding),
            },
        )


def _errors(
    model: TaskModel,
    cells: TokenCells,
    rows: NDArray[np.int64],
    means: NDArray[np.float64],
    overall: float,
    call: TrainingCall,
) -> list[NDArray[np.float64]]:
    """Mean squared error over masked positions of each test cell, for the network and the baselines."""
    objective = pretraining_objective(model.network)
    device = pick_device(call.config.accelerator)
    network = model.network.to(device).eval()
    errors: list[list[NDArray[np.float64]]] = [[] for _ in ("network", *RULES)]
    try:
        for start in range(0, len(rows), BATCH):
            batch = cells.batch(BatchRequest(rows[start : start + BATCH]))
            batch = objective.corrupt(batch, seed=call.seed, draw=0)
            genes, targets, masked = (
                part.numpy() for part in (batch.genes, batch.targets["expression"], batch.targets["masked"])
            )
            here = batch.to(device)
            with torch.inference_mode():
                encoded = network.encode(
                    here.genes, here.values, here.padding_if_any, cell_only=False, **here.conditions
                )
                predicted = network.expression(encoded, here.values, **here.conditions)[0].float().cpu().numpy()
            visible = ~masked & (targets > 0) & ~batch.padding.numpy()
            visible[:, 0] = False  # <cls>
            of_cell = (targets * visible).sum(axis=1) / np.maximum(visible.sum(axis=1), 1)
            for part, values in zip(errors, (predicted, means[genes], overall, of_cell[:, None]), strict=True):
                squared = np.where(masked, (values - targets.astype(np.float64)) ** 2, 0)
                part.append(squared.sum(axis=1) / np.maximum(masked.sum(axis=1), 1))
    finally:
        network.cpu()
    return [np.concatenate(part) for part in errors]


def _mean_bins(cells: TokenCells, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], float]:
    """Mean value of each token over the cells that express it, and over all tokens (used for tokens that do not occur)."""
    n = int(cells.tokens().max()) + 1
    sums, counts = np.zeros(n), np.zeros(n)
    for start in range(0, len(rows), BATCH):
        batch = cells.batch(BatchRequest(rows[start : start + BATCH]))
        real = (batch.values.numpy() > 0) & ~batch.padding.numpy()
        real[:, 0] = False  # <cls>
        genes, values = batch.genes.numpy()[real], batch.values.numpy()[real]
        sums += np.bincount(genes, weights=values, minlength=n)
        counts += np.bincount(genes, minlength=n)
    overall = sums.sum() / counts.sum()
    return np.where(counts > 0, sums / np.maximum(counts, 1), overall), float(overall)
