"""A task from outside the package: which of some marker genes a cell expresses, from its other genes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from anndata import AnnData
from torch import Generator, Tensor

from scgalore._options import NAMES, Option
from scgalore.data.results import Results
from scgalore.objectives import Loss
from scgalore.tasks import TASKS, CellTargets, CellTask, Findings


@dataclass(frozen=True)
class MarkerLoss:
    """Binary cross entropy, one output for each marker."""

    n: int
    name: str = "markers"
    monitor: str = "validation_loss"
    start_score: float = math.inf
    heads: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", {"markers": self.n})

    def corrupt(self, batch: Any, *, seed: int, draw: int) -> Any:
        return batch

    def example(self, batch: Any) -> Any:
        return batch.with_targets(markers=batch.values.new_zeros(len(batch), self.n))

    def __call__(self, network: Any, batch: Any) -> Loss:
        encoded = network.encode(batch.genes, batch.values, batch.padding_if_any, cell_only=True, **batch.conditions)
        logits = network.read_head("markers", encoded.cell)
        loss = F.binary_cross_entropy_with_logits(logits, batch.targets["markers"])
        return Loss(loss, {}, len(batch))

    def weight(self, batch: Any) -> float:
        return len(batch)

    def over_epoch(self, parts: list[dict[str, Tensor]]) -> dict[str, float]:
        return {}

    def self_sampled(self, network: Any, batch: Any, generator: Generator) -> tuple[Tensor, int]:
        raise NotImplementedError


@dataclass(frozen=True)
class Markers:
    """Names of the markers."""

    genes: tuple[str, ...]
    task: str = "markers"
    outlives_training: bool = True

    def to_config(self) -> dict[str, Any]:
        return {"genes": list(self.genes)}

    def files(self, provenance: Any, evaluation: Any) -> dict[str, str | bytes]:
        return {}


class MarkerTask(CellTask):
    """Marker genes of each cell."""

    name = "markers"
    summary = "to predict which markers a cell expresses"
    key = "markers"
    arguments = (Option("markers", NAMES, "Genes to predict."),)

    def targets(self, adata: AnnData, call: Any) -> CellTargets:
        genes = tuple(call.arguments["markers"])
        expressed = np.asarray(adata[:, list(genes)].X.toarray() > 0, dtype=np.float32)
        return CellTargets(call.split_of(adata), {"markers": expressed}, Markers(genes))

    def objective(self, network: Any, memory: Markers | None) -> MarkerLoss:
        return MarkerLoss(1 if memory is None else len(memory.genes))

    def load(self, folder: Path, config: Mapping[str, Any]) -> Markers | None:
        genes = config.get("memory", {}).get("genes")
        return None if genes is None else Markers(tuple(genes))

    def predictions(self, output: Any, memory: Markers, keys: Any) -> Results:
        probabilities = torch.from_numpy(output.heads["markers"]).sigmoid().numpy()
        return Results(obsm={f"{keys.stem}_markers": (probabilities, "probability of each marker")})

    def evaluate(self, adata: AnnData, model: Any, call: Any, *, name: str) -> Findings:
        keys = model.keys("finetune")
        split = self.split_in(adata, keys.split)
        truth = self.targets(adata, call).arrays["markers"][split.test]
        right = float(((adata.obsm[f"{keys.stem}_markers"][split.test] > 0.5) == (truth > 0)).mean())
        usual = float(np.maximum(truth.mean(axis=0), 1 - truth.mean(axis=0)).mean())
        metrics = {"test": {"n": len(split.test), "accuracy": right}, "baselines": {"majority": {"accuracy": usual}}}
        return Findings(metrics, f"accuracy {right:.3f} ({usual:.3f})", [f"## Markers\n\n{name}: {right:.3f}"], {})


@pytest.fixture
def marker_task(monkeypatch: pytest.MonkeyPatch) -> MarkerTask:
    """Register the task for a test."""
    task = MarkerTask()
    monkeypatch.setitem(TASKS, task.name, task)
    return task
