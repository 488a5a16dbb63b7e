"""Run a network over many cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from scgalore._progress import progress
from scgalore.data.sampler import sorted_batches
from scgalore.errors import OptionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgalore.data.cells import TokenCells
    from scgalore.nn import SCGPTNetwork

__all__ = ["CellOutput", "pick_device", "run_network"]


@dataclass(frozen=True)
class CellOutput:
    """What a network says of each cell, in the order of the data.

    Attributes
    ----------
    embedding
        Cell embeddings with unit norm, float32 ``(n_obs, d_model)``.
    probabilities
        Class probabilities, float32 ``(n_obs, n_classes)``; ``None`` without a classification head.
    """

    embedding: NDArray[np.float32]
    probabilities: NDArray[np.float32] | None


def pick_device(accelerator: str) -> torch.device:
    """Turn Lightning's word for an accelerator into a device of torch.

    Raises
    ------
    OptionError
        If there is no such word, or no such device on this machine.
    """
    available = {
        "cpu": True,
        "gpu": torch.cuda.is_available(),
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if accelerator == "auto":
        return torch.device("cuda" if available["cuda"] else "cpu")
    if not available.get(accelerator, False):
        there = ", ".join(repr(name) for name, is_there in {"auto": True, **available}.items() if is_there)
        msg = f"accelerator={accelerator!r} is not on this machine; choose one of {there}."
        raise OptionError(msg)
    return torch.device("cuda" if accelerator == "gpu" else accelerator)


def run_network(
    network: SCGPTNetwork, cells: TokenCells, *, batch_size: int, device: torch.device, label: str
) -> CellOutput:
    """Embed cells and, where the network can, classify them.

    Parameters
    ----------
    network
        Left in evaluation mode on ``device``.
    cells
        Cells to run over; each has its own result whatever the batch it lands in.
    batch_size
        Cells in a batch.
    device
        Where to compute.
    label
        Words in front of the progress bar.
    """
    network.eval().to(device)  # outside of inference mode, in which moved weights could never be trained again
    config = network.config
    embedding = np.empty((cells.n_obs, config.d_model), dtype=np.float32)
    probabilities = np.empty((cells.n_obs, config.n_classes), dtype=np.float32) if config.n_classes else None
    requests = sorted_batches(np.arange(cells.n_obs), cells.lengths, batch_size=batch_size)
    for request in progress(requests, label=label):
        batch = cells.batch(request).to(device)
        with torch.inference_mode():
            encoded = network.encode(batch.genes, batch.values, batch.padding)
            embedding[request.rows] = F.normalize(encoded.cell.float(), dim=1).cpu().numpy()
            if probabilities is not None:
                probabilities[request.rows] = network.classify(encoded).float().softmax(dim=1).cpu().numpy()
    return CellOutput(embedding, probabilities)
