"""What makes a training run this run, which a resumed one must agree in, and weights these weights."""

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
    """Describe a run by numbers and hashes; the cells are read once for it, but for those of a stream.

    Parameters
    ----------
    source, split, objective, config
        As for :func:`scgalore.train.fit`.
    network
        The network before training.
    validation
        Cells that choose the best epoch, where these are not of the split.

    Returns
    -------
    Numbers and strings by what they stand for (``"lr"``, ``"labels"``), so that a difference can be named.
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
        # Heads are made from the seed, or kept from the run that made the other weights, or fitted to the cells.
        "initial weights": _weights(network),
        **settings,
        "optimizer_options": json.dumps(config.optimizer_options, sort_keys=True, default=str),
    }


def embedding_identity(network: CellNetwork, vocab: GeneVocab, added: Iterable[NDArray[Any]]) -> str:
    """Hash of what embeddings depend on, the same for a model in memory and in any file: 16 hexadecimal digits.

    Parameters
    ----------
    network
        The network; its heads and decoders do not matter.
    vocab
        Its genes.
    added
        From :meth:`scgalore.tasks.Task.arrays_of_embedding`.
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
