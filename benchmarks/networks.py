"""The side of the benchmarks that run scGPT's network on tokens made up here: scaling, share of the peak, GPU."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
import torch
from anndata import AnnData
from benchmarks.harness import matmul_peak
from benchmarks.inputs import Size
from benchmarks.side import serve
from torch.profiler import ProfilerActivity, profile

import scgalore as sg
from scgalore.data.sampler import BatchRequest
from scgalore.data.vocab import SPECIALS, GeneVocab
from scgalore.nn.cpu.linear import linear
from scgalore.objectives import MaskedExpression
from scgalore.optim import build_optimizer
from scgalore.train.modes import compiled

STATE: dict[str, Any] = {}
RUN = ExitStack()


def peak(dtype: str, device: str = "cpu", size: int = 2048) -> float:
    """FLOP/s of a plain matrix multiplication."""
    return matmul_peak(getattr(torch, dtype), device=device, size=size)


def linear_peak(dtype: str, size: int = 2048) -> float:
    """FLOP/s of the multiplication that the network's layers use."""
    return matmul_peak(getattr(torch, dtype), size=size, multiply=linear)


def build(size: dict[str, int], device: str = "cpu") -> None:
    """Make a model with random weights."""
    made = Size(**size)
    vocab = GeneVocab.from_genes(f"GENE{number:05d}" for number in range(made.n_tokens - len(SPECIALS)))
    model = sg.model.SCGPT.from_config(made.config(vocab.pad_id), vocab)
    network = model.network.to(device)
    optimizer = build_optimizer("adamw", network, lr=1e-4, weight_decay=0.0)
    STATE.update(model=model, network=network, optimizer=optimizer, device=device)


def make_batch(n_cells: int, length: int) -> None:
    """Cells of exactly ``length`` tokens: ready for embedding, and as a batch of which 40 % is masked for training."""
    rng = np.random.default_rng(0)
    model = STATE["model"]
    genes = rng.choice(len(model.vocab) - len(SPECIALS), min(2 * length, 5_000), replace=False)
    counts = np.zeros((n_cells, len(genes)), dtype=np.float32)
    for row in counts:
        row[rng.choice(len(genes), length - 1, replace=False)] = rng.geometric(0.1, length - 1)
    names = [model.vocab.tokens[gene] for gene in genes]
    cells = model.cells(AnnData(sp.csr_matrix(counts), var=pd.DataFrame(index=names)), max_length=length)
    plain = cells.batch(BatchRequest(np.arange(n_cells)))
    STATE.update(cells=cells, masked=MaskedExpression().corrupt(plain, seed=0, draw=0).to(STATE["device"]))


def _finish() -> None:
    if STATE["device"] != "cpu":
        torch.cuda.synchronize()


def embed(precision: str) -> None:
    """Embed the cells in one batch, as ``sg.tl.embed`` does once the data are checked."""
    STATE["model"].run(
        STATE["cells"], batch_size=STATE["cells"].n_obs, precision=precision, accelerator=STATE["device"]
    )
    _finish()


def _loss(precision: str) -> torch.Tensor:
    with torch.autocast(STATE["device"], dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
        return MaskedExpression()(STATE["network"], STATE["masked"]).total


def compile_blocks() -> None:
    """Compile the network's blocks, as training with ``compile=True`` does, for all steps that follow."""
    RUN.enter_context(compiled(STATE["network"], wanted=True))


def step(precision: str, recompute: bool = False) -> float:  # noqa: FBT001, FBT002 (from JSON)
    """Training step."""
    network = STATE["network"].to(STATE["device"]).train()
    network.recompute = recompute
    STATE["optimizer"].zero_grad()
    loss = _loss(precision)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    STATE["optimizer"].step()
    return loss.item()


def costs(of: str, precision: str, n_top: int) -> list[dict[str, Any]]:
    """Operators with the most CPU time of their own in one call: name, calls, share of the total."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        if of == "embed":
            embed(precision)
        else:
            step(precision)
    events = sorted(profiler.key_averages(), key=lambda event: event.self_cpu_time_total, reverse=True)
    total = sum(event.self_cpu_time_total for event in events)
    return [
        {"operator": event.key, "calls": event.count, "share": event.self_cpu_time_total / total}
        for event in events[:n_top]
    ]


def device_memory(reset: bool) -> int:  # noqa: FBT001 (from JSON)
    """Most bytes that tensors took on the GPU since the last reset."""
    most = torch.cuda.max_memory_allocated()
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return most


def load_mini() -> None:
    """Load the network that ships with the package."""
    STATE["model"] = sg.model.SCGPT.from_pretrained("scgpt-mini")
    STATE["pbmc"] = sc.datasets.pbmc68k_reduced().raw.to_adata()[:, ::4].copy()


def embed_cells(n_cells: int, precision: str) -> dict[str, float]:
    """Embed cells of pbmc68k, drawn with replacement: seconds of checks and tokens, and of the network; tokens."""
    rows = np.random.default_rng(n_cells).integers(0, STATE["pbmc"].n_obs, n_cells)
    adata = AnnData(STATE["pbmc"].X[rows], var=STATE["pbmc"].var[[]])
    begin = time.perf_counter()
    cells = STATE["model"].cells(adata)
    ready = time.perf_counter()
    STATE["model"].run(cells, precision=precision)
    return {
        "cells_s": ready - begin,
        "run_s": time.perf_counter() - ready,
        "tokens": int(cells.lengths.sum()),
    }


if __name__ == "__main__":
    sg.settings.progress = False
    handlers = (
        peak,
        linear_peak,
        build,
        make_batch,
        compile_blocks,
        embed,
        step,
        costs,
        device_memory,
        load_mini,
        embed_cells,
    )
    serve({handler.__name__: handler for handler in handlers})
