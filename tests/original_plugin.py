"""What the original program (scGPT 0.2.5) computed, and our networks with its weights, as fixtures."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from scgalore.data.tokens import TokenBatch
from scgalore.nn import SCGPTConfig, SCGPTNetwork
from scgalore.weights import Checkpoint, load_tensors, read_scgpt

FOLDER = Path(__file__).parent / "data" / "scgpt"
WHOLE = "model/full_wqkv.pt"  # with the classification head that the official layout leaves out


class Original:
    """Arrays and weights of the original program.

    Parameters
    ----------
    scratch
        Where to put checkpoint folders together.
    """

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._checkpoints: dict[str, Checkpoint] = {}

    @property
    def manifest(self) -> dict[str, Any]:
        """Versions that made the arrays, and the names of all arrays by file."""
        content: dict[str, Any] = json.loads((FOLDER / "manifest.json").read_text())
        return content

    def arrays(self, name: str) -> Mapping[str, NDArray[Any]]:
        """Give the arrays of one file."""
        return np.load(FOLDER / f"{name}.npz")

    def folder(self, weights: str = "model/best_model.pt") -> Path:
        """Put a checkpoint folder in the official layout together."""
        folder = self.scratch / weights.replace("/", "_")
        if not folder.exists():
            folder.mkdir()
            for file in ("args.json", "vocab.json"):
                shutil.copyfile(FOLDER / "model" / file, folder / file)
            shutil.copyfile(FOLDER / weights, folder / "best_model.pt")
        return folder

    def checkpoint(self, weights: str = WHOLE) -> Checkpoint:
        """Read one of the weight files."""
        if weights not in self._checkpoints:
            self._checkpoints[weights] = read_scgpt(self.folder(weights))
        return self._checkpoints[weights]

    def config(self, weights: str = WHOLE, **parts: Any) -> SCGPTConfig:
        """Config of one of the weight files, without dropout."""
        checkpoint = self.checkpoint(weights)
        shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.items()}
        parts = {"dropout": 0.0, **parts}
        return SCGPTConfig.from_args(checkpoint.args, shapes=shapes, pad_id=checkpoint.vocab["<pad>"], **parts)

    def network(self, weights: str = WHOLE, **parts: Any) -> SCGPTNetwork:
        """Our network with the original's weights, in evaluation mode."""
        network = SCGPTNetwork(self.config(weights, **parts))
        report = load_tensors(network, self.checkpoint(weights))
        assert not report.random
        assert not report.ignored
        return network.eval()

    def batch(self) -> TokenBatch:
        """Six cells of 24, 24, 17, 9, 2 and 20 tokens, masked."""
        z = {name: torch.from_numpy(array) for name, array in self.arrays("batch").items()}
        return TokenBatch(
            genes=z["gene_ids"],
            values=z["values"],
            padding=z["src_key_padding_mask"],
            cells=torch.arange(6),
            keys=torch.arange(6),
            conditions={"batches": z["batch_labels"]},
            targets={
                "labels": z["celltype_labels"],
                "expression": z["target_values"],
                "masked": z["masked_positions"],
            },
        )


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    """Give the arrays and weights of the original program."""
    return Original(tmp_path_factory.mktemp("original"))
