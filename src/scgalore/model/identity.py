"""Identity of a training run, which must match when it is resumed, and of weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scgalore.data.hashing import digest
from scgalore.data.identity import parts_of
from scgalore.train.processes import training_processes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from scgalore.data.source import CellSource
    from scgalore.data.split import Split
    from scgalore.data.vocab import GeneVocab
    from scgalore.nn import CellNetwork
    from scgalore.objectives import Objective
    from scgalore.train.config import TrainConfig

__all__ = ["embedding_identity", "run_identity"]

# Device and speed options may differ between sessions of a run, as long as results are the same.
FREE = (
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "num_workers",
    "gradient_checkpointing",
    "deterministic",
    "shard_optimizer",
    "checkpoint_every",
)


def run_identity(
    source: CellSource,
    split: Split | None,
    objective: Objective,
    config: TrainConfig,
    network: CellNetwork,
    *,
    validation: CellSource | None = None,
) -> dict[str, Any]:
    """Describe a run by numbers and hashes; cells are read once for this, except those of a stream.

    Parameters
    ----------
    source, split, objective, config
        As for :func:`scgalore.train.fit`.
    network
        The network before training.
    validation
        Cells for selecting the best epoch, if these are not in the split.

    Returns
    -------
    Numbers and strings by name (``"lr"``, ``"labels"``), so that differences can be reported.
    """
    held = {} if validation is None else validation.identity()
    settings = {name: value for name, value in config.to_dict().items() if name not in FREE}
    return {
        **source.identity(),
        **{f"validation: {name}": value for name, value in held.items()},
        "split": "none" if split is None else digest([split.train, split.validation, split.test]),
        "objective": parts_of(objective, objective.name),
        "network": parts_of(network.config),
        "processes": training_processes(config).size,
        # Heads are determined by the seed, by the run that trained the other weights, or by the cells.
        "initial weights": _weights(network),
        **settings,
        "optimizer_options": json.dumps(config.optimizer_options, sort_keys=True, default=str),
    }


def embedding_identity(network: CellNetwork, vocab: GeneVocab, added: Iterable[NDArray[Any]]) -> str:
    """Hash of everything that embeddings depend on, 16 hexadecimal digits: identical in memory and in files.

    Parameters
    ----------
    network
        The network, without heads and decoders.
    vocab
        Its vocabulary.
    added
        Result of :meth:`scgalore.tasks.Task.arrays_of_embedding`.
    """
    genes = np.frombuffer("\n".join(vocab.tokens).encode(), dtype=np.uint8)
    weights = [
        _bytes(tensor) for name, tensor in network.state_dict().items() if name.partition(".")[0] in network.body
    ]
    return digest([genes, *weights, *added])


def _weights(network: CellNetwork) -> str:
    return digest(_bytes(tensor) for name, tensor in network.state_dict().items() if not network.is_head_tensor(name))


def _bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    # As bytes, since NumPy has no bfloat16.
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
