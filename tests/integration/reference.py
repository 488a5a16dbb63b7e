"""A small embedding with batches, and what scib-metrics and harmonypy say of it; made by ``scripts/reference_integration_scores.py``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Reference:
    batches: NDArray[np.int64]
    labels: NDArray[np.int64]
    embeddings: dict[str, NDArray[np.float64]]
    scores: dict[str, dict[str, Any]]
    harmony: NDArray[np.float64]


def read_reference() -> Reference:
    content = json.loads(Path(__file__).with_name("scib_metrics.json").read_text(encoding="utf-8"))
    return Reference(
        batches=np.array(content["batches"]),
        labels=np.array(content["labels"]),
        embeddings={name: np.array(x) for name, x in content["embeddings"].items()},
        scores=content["scores"],
        harmony=np.array(content["harmony"]),
    )


REFERENCE = read_reference()
EMBEDDINGS = sorted(REFERENCE.embeddings)
