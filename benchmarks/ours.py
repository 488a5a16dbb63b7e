"""The side of scgalore."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import torch
from benchmarks.harness import matmul_peak
from benchmarks.side import saved_for_backward, serve, storages_of

import scgalore as sg
from scgalore.data.sampler import BatchRequest
from scgalore.data.tokens import TokenBatch
from scgalore.data.vocab import GeneVocab
from scgalore.nn.cpu import kernels_in_words
from scgalore.objectives import MaskedExpression
from scgalore.optim import build_optimizer

if TYPE_CHECKING:
    from scgalore.nn import SCGPTNetwork

STATE: dict[str, Any] = {}
AUTO = "auto"


def kernels() -> dict[str, str]:
    """Whose kernels compute on this machine, by the arithmetic."""
    return {str(dtype).removeprefix("torch."): kernels_in_words(dtype) for dtype in (torch.float32, torch.bfloat16)}


def peak(dtype: str) -> float:
    """FLOP/s of a plain matrix multiplication."""
    return matmul_peak(getattr(torch, dtype))


def vocabulary(folder: str) -> int:
    """Read the vocabulary alone."""
    return len(GeneVocab.from_file(Path(folder) / "vocab.json"))


def load(folder: str) -> list[str]:
    """Load vocabulary and weights; names of tensors that stayed random."""
    STATE["model"] = sg.model.SCGPT.from_pretrained(folder)
    report = STATE["model"].load_report
    return [] if report is None else list(report.random)


def open_cells(path: str) -> None:
    """Read cells."""
    STATE["adata"] = ad.read_h5ad(path)


def embed(max_length: int, precision: str, kernels: str = AUTO) -> None:
    """Embed the cells with the loaded network."""
    adata = STATE["adata"]
    with sg.settings.override(cpu_kernels=kernels):
        sg.tl.embed(adata, STATE["model"], max_length=max_length, precision=precision)
    STATE["embedding"] = adata.obsm["X_scGPT"]


def tokenise(max_length: int) -> None:
    """Check cells, match genes, count tokens."""
    STATE["cells"] = STATE["model"].cells(STATE["adata"], max_length=max_length)


def run(precision: str, kernels: str = AUTO) -> None:
    """Run the network over cells made ready by :func:`tokenise`."""
    with sg.settings.override(cpu_kernels=kernels):
        STATE["embedding"] = STATE["model"].run(STATE["cells"], precision=precision).embedding


def end_to_end(path: str, folder: str, max_length: int, precision: str, kernels: str = AUTO) -> None:
    """``sg.tl.embed``, from files to embeddings."""
    adata = ad.read_h5ad(path)
    with sg.settings.override(cpu_kernels=kernels):
        sg.tl.embed(adata, folder, max_length=max_length, precision=precision)
    STATE["embedding"] = adata.obsm["X_scGPT"]


def save_embedding(path: str) -> None:
    """Write the last embeddings."""
    np.save(path, STATE["embedding"])


def write_tokens(path: str, max_length: int, n_cells: int) -> None:
    """Write the tokens of some cells, padded, for :func:`encode` of either side."""
    cells = STATE["model"].cells(STATE["adata"], max_length=max_length)
    batch = cells.batch(BatchRequest(np.arange(n_cells)))
    np.savez(path, genes=batch.genes.numpy(), values=batch.values.numpy(), padding=batch.padding.numpy())


def encode(path: str, out: str) -> None:
    """Embed cells that are tokens already."""
    batch = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    with torch.inference_mode():
        encoded = STATE["model"].network.encode(batch["genes"], batch["values"], batch["padding"], cell_only=True)
    np.save(out, encoded.cell.numpy())


def prepare_training(batch: str, lr: float) -> None:
    """Take a batch and the same optimizer, as scgalore builds it."""
    arrays = {name: torch.from_numpy(array) for name, array in np.load(batch).items()}
    n_cells = len(arrays["genes"])
    nothing = {"cells": torch.arange(n_cells), "keys": torch.zeros(n_cells, dtype=torch.int64)}
    STATE["batch"] = {
        "genes": arrays["genes"],
        "values": arrays["values"],
        "padding": torch.zeros_like(arrays["masked"]),
        **nothing,
    }
    STATE["targets"] = {"expression": arrays["targets"], "masked": arrays["masked"]}
    STATE["optimizer"] = build_optimizer("adamw", STATE["model"].network, lr=lr, weight_decay=0.0)


def loss_of(n_cells: int | None, precision: str) -> torch.Tensor:
    """Masked squared error of both heads."""
    tensors, targets = (
        {name: tensor[:n_cells] for name, tensor in STATE[part].items()} for part in ("batch", "targets")
    )
    batch = TokenBatch(**tensors, targets=targets, padded=False)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
        return MaskedExpression()(STATE["model"].network, batch).total


def evaluate(n_cells: int) -> float:
    """Loss without dropout."""
    STATE["model"].network.eval()
    with torch.no_grad():
        return float(loss_of(n_cells, "32-true"))


def _training(*, recompute: bool) -> SCGPTNetwork:
    network: SCGPTNetwork = STATE["model"].network.train()
    network.recompute = recompute
    return network


def saved_bytes(n_cells: int, precision: str, recompute: bool = False, kernels: str = AUTO) -> int:  # noqa: FBT001, FBT002 (from JSON)
    """Bytes kept for the backward pass."""
    network = _training(recompute=recompute)
    with sg.settings.override(cpu_kernels=kernels):
        return saved_for_backward(lambda: loss_of(n_cells, precision), storages_of(network))


def step(n_cells: int, precision: str, recompute: bool = False, kernels: str = AUTO) -> float:  # noqa: FBT001, FBT002 (from JSON)
    """One step of training."""
    network = _training(recompute=recompute)
    STATE["optimizer"].zero_grad()
    with sg.settings.override(cpu_kernels=kernels):
        loss = loss_of(n_cells, precision)
        loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    STATE["optimizer"].step()
    return loss.item()


if __name__ == "__main__":
    sg.settings.progress = False
    handlers = (
        kernels,
        peak,
        vocabulary,
        load,
        open_cells,
        embed,
        tokenise,
        run,
        end_to_end,
        save_embedding,
        write_tokens,
        encode,
        prepare_training,
        evaluate,
        saved_bytes,
        step,
    )
    serve({handler.__name__: handler for handler in handlers})
