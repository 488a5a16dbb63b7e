"""What makes a training run this run: a resumed one must agree in all of it."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scgalore.data.cells import TokenCells
    from scgalore.data.split import Split
    from scgalore.nn import SCGPTNetwork
    from scgalore.objectives import Objective
    from scgalore.train.config import TrainConfig

__all__ = ["run_identity"]

FREE = ("accelerator", "devices")  # where to compute may differ between the parts of a run


def run_identity(
    cells: TokenCells, split: Split, objective: Objective, config: TrainConfig, network: SCGPTNetwork
) -> dict[str, str | int | float]:
    """Describe a run by numbers and hashes.

    Parameters
    ----------
    cells, split, objective, config
        As for :func:`scgalore.train.fit`.
    network
        The network before training.
    """
    labels = np.empty(0, dtype=np.int64) if cells.labels is None else cells.labels
    settings = {name: value for name, value in config.to_dict().items() if name not in FREE}
    return {
        "cells": cells.n_obs,
        "tokens": _digest(cells.lengths, cells.tokenizer.token_ids),
        "labels": _digest(labels),
        "split": _digest(split.train, split.validation, split.test),
        "objective": repr(objective),
        "network": repr(network.config),
        "weights": _digest(*(tensor.detach().cpu().numpy() for tensor in network.state_dict().values())),
        "settings": json.dumps(settings, sort_keys=True, default=str),
    }


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]
