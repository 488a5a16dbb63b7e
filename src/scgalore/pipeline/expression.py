"""A run that goes on with masked expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scgalore.data.sampler import BatchRequest
from scgalore.model.inference import RunOptions
from scgalore.objectives import MaskedExpression
from scgalore.pipeline.figures import bars, umap
from scgalore.pipeline.findings import Findings, markdown_table, with_error
from scgalore.pipeline.splits import CellSplit

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore.data.cells import TokenCells
    from scgalore.model import SCGPT
    from scgalore.pipeline.config import RunConfig

__all__ = ["Expression"]

BATCH = 16
RULES = ("each gene's mean bin", "mean bin of all genes", "mean visible bin of the cell")


class Expression(CellSplit):
    """Learn masked expression, and predict the masked values of held-out cells.

    Parameters
    ----------
    config
        Of the run.
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.goal = "to predict masked expression, as in pre-training"

    def check(self, adata: AnnData, model: SCGPT) -> None:
        """Read the cells once as training will."""
        self._cells(adata, model)

    def options(self) -> dict[str, Any]:
        """The task has none of its own."""
        return {}

    def predict(self, adata: AnnData, model: SCGPT) -> str:
        """Nothing is left to do: fine-tuning has written the embeddings."""
        return f"embeddings of {adata.n_obs:,} cells, written by fine-tuning"

    def evaluate(self, adata: AnnData, model: SCGPT) -> Findings:
        """Mask test cells once, and compare the network with rules that know the training cells only."""
        split = self.parts(adata)
        cells = self._cells(adata, model)
        means, overall = _mean_bins(cells, split.train)
        errors = self._errors(model, cells, split.test, means, overall)
        name = f"{self.config.model_name} + {self.config.optimizer}"
        n = len(split.test)
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
                f"error. {MaskedExpression().mask_ratio:.0%} of the genes of each cell were masked, once and for all methods alike. The first two rules "
                "know nothing of the cell and answer with means over the training cells; the third knows nothing else. This is a loss and not a task: "
                "it says whether the network has learnt how genes go together, and not what its embeddings are worth.",
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
                "masked_expression.png": ("Squared error at masked positions; less is better.", picture),
                **umap([self.split_key], ["part of the data"], adata.n_obs),
            },
        )

    def _cells(self, adata: AnnData, model: SCGPT) -> TokenCells:
        return model.cells(adata, gene_symbols=self.config.gene_symbols, rng=self.config.seed)

    def _errors(
        self,
        model: SCGPT,
        cells: TokenCells,
        rows: NDArray[np.int64],
        means: NDArray[np.float64],
        overall: float,
    ) -> list[NDArray[np.float64]]:
        """Squared error of each test cell, averaged over its masked positions: of the network and of the rules."""
        objective = MaskedExpression(mask_value=model.network.config.mask_value)
        device = RunOptions.of(accelerator=self.config.device).device
        network = model.network.to(device).eval()
        errors: list[list[NDArray[np.float64]]] = [[] for _ in ("network", *RULES)]
        try:
            for start in range(0, len(rows), BATCH):
                batch = objective.corrupt(
                    cells.batch(BatchRequest(rows[start : start + BATCH])), seed=self.config.seed, draw=0
                )
                genes = batch.genes.numpy()
                targets, masked = (batch.targets[name].numpy() for name in ("expression", "masked"))
                here = batch.to(device)
                with torch.inference_mode():
                    encoded = network.encode(here.genes, here.values, here.padding_if_any)
                    predicted = network.expression(encoded, here.values)[0].float().cpu().numpy()
                visible = ~masked & ~batch.padding.numpy()
                visible[:, 0] = False  # <cls>
                of_cell = (targets * visible).sum(axis=1) / np.maximum(visible.sum(axis=1), 1)
                for part, values in zip(errors, (predicted, means[genes], overall, of_cell[:, None]), strict=True):
                    squared = np.where(masked, (values - targets.astype(np.float64)) ** 2, 0)
                    part.append(squared.sum(axis=1) / np.maximum(masked.sum(axis=1), 1))
        finally:
            network.cpu()
        return [np.concatenate(part) for part in errors]


def _mean_bins(cells: TokenCells, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], float]:
    """Mean value of each token over some cells, and over all of them; tokens that do not occur have that."""
    n = int(cells.tokens().max()) + 1
    sums, counts = np.zeros(n), np.zeros(n)
    for start in range(0, len(rows), BATCH):
        batch = cells.batch(BatchRequest(rows[start : start + BATCH]))
        real = ~batch.padding.numpy()
        real[:, 0] = False  # <cls>
        genes, values = batch.genes.numpy()[real], batch.values.numpy()[real]
        sums += np.bincount(genes, weights=values, minlength=n)
        counts += np.bincount(genes, minlength=n)
    overall = sums.sum() / counts.sum()
    return np.where(counts > 0, sums / np.maximum(counts, 1), overall), float(overall)
