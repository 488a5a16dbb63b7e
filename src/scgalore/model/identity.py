"""What makes a training run this run: a resumed one must agree in all of it."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scgalore.data.perturbations import PerturbationCells
from scgalore.data.streaming import TokenStream
from scgalore.train.processes import training_processes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from scgalore.data.cells import TokenCells
    from scgalore.data.split import Split
    from scgalore.nn import CellNetwork
    from scgalore.objectives import Objective
    from scgalore.train.config import TrainConfig

__all__ = ["run_identity"]

# Where and how to compute may differ between the parts of a run, as long as what is computed stays the same.
FREE = (
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "num_workers",
    "gradient_checkpointing",
    "deterministic",
    "shard_optimizer",
)


def run_identity(
    cells: TokenCells | TokenStream | PerturbationCells,
    split: Split | None,
    objective: Objective,
    config: TrainConfig,
    network: CellNetwork,
    *,
    validation: TokenCells | None = None,
) -> dict[str, Any]:
    """Describe a run by numbers and hashes; the cells are read once for it, but for those of a stream.

    Parameters
    ----------
    cells, split, objective, config
        As for :func:`scgalore.train.fit`.
    network
        The network before training.
    validation
        Cells that a stream is validated on.

    Returns
    -------
    Numbers and strings by what they stand for (``"lr"``, ``"labels"``), so that a difference can be named.
    """
    settings = {name: value for name, value in config.to_dict().items() if name not in FREE}
    return {
        "number of cells": cells.n_obs,
        "genes": _digest([cells.tokens()]),
        "tokens": repr(cells if isinstance(cells, PerturbationCells) else cells.tokenizer.config),
        "classes": ", ".join(cells.classes),
        "expression": _expression(cells),
        "labels": _labels(cells),
        "split": "none" if split is None else _digest([split.train, split.validation, split.test]),
        "ranking of genes": _ranking(cells, config),
        "validation": "none" if validation is None else _digest(validation.keys()) + _labels(validation),
        "objective": repr(objective),
        "network": repr(network.config),
        "processes": training_processes(config).size,
        "initial weights": _digest(_bytes(tensor) for tensor in network.state_dict().values()),
        **settings,
        "optimizer_options": json.dumps(config.optimizer_options, sort_keys=True, default=str),
    }


def _expression(cells: TokenCells | TokenStream | PerturbationCells) -> str:
    if isinstance(cells, TokenStream):
        return repr(cells)
    return _digest(cells.digests() if isinstance(cells, PerturbationCells) else cells.keys())


def _labels(cells: TokenCells | TokenStream | PerturbationCells) -> str:
    labels = None if isinstance(cells, TokenStream) else cells.labels
    return "none" if labels is None else _digest([labels])


def _ranking(cells: TokenCells | TokenStream | PerturbationCells, config: TrainConfig) -> str:
    if config.curriculum is None or isinstance(cells, TokenStream) or cells.ranked is None:
        return "none"
    return _digest([cells.ranked])


def _bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    # As bytes, since NumPy has no bfloat16.
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _digest(arrays: Iterable[NDArray[np.generic]]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]
