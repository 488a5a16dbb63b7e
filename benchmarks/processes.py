"""One of the processes of ``two_processes.py``: embed, train 20 steps, and write what came out, by rank.

Started by torchrun, also where there is one process: ``python -m torch.distributed.run --nproc_per_node=2 -m
benchmarks.processes FOLDER N_EMBED N_STEPS CELLS_A_STEP``.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import scanpy as sc
import torch
from anndata import AnnData
from benchmarks.fitting import fit

import scgalore as sg
from scgalore.data.split import Split
from scgalore.train import TrainConfig


def main(folder: Path, n_embed: int, n_steps: int, cells_a_step: int) -> None:
    """Do both and write ``RANK.json`` and ``RANK.npz``."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    pbmc = sc.datasets.pbmc68k_reduced().raw.to_adata()
    rows = np.random.default_rng(0).integers(0, pbmc.n_obs, max(n_embed, n_steps * cells_a_step))
    adata = AnnData(pbmc.X[rows], var=pbmc.var[[]])
    model = sg.model.SCGPT.from_pretrained("scgpt-mini")
    cells = model.cells(adata[:n_embed].copy())
    model.run(model.cells(adata[:64].copy()))  # starts the process group and what is loaded on first use
    begin = time.perf_counter()
    embedding = model.run(cells).embedding
    embed_s = time.perf_counter() - begin

    n_train = n_steps * cells_a_step
    config = TrainConfig(
        max_epochs=1, batch_size=cells_a_step // size, optimizer="adamw", accelerator="cpu", devices=size
    )
    nothing = np.empty(0, dtype=np.int64)
    begin = time.perf_counter()
    fit(model, model.cells(adata[:n_train].copy()), Split(np.arange(n_train), nothing, nothing), config)
    train_s = time.perf_counter() - begin

    weights = {name: tensor.numpy() for name, tensor in model.network.state_dict().items()}
    digest = hashlib.sha256(b"".join(array.tobytes() for array in weights.values())).hexdigest()
    np.savez(folder / f"{rank}.npz", embedding=embedding, **weights)
    found = {
        "embed_s": embed_s,
        "train_s": train_s,
        "weights": digest,
        "embedding": hashlib.sha256(embedding.tobytes()).hexdigest(),
    }
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    sg.settings.progress = False
    main(Path(sys.argv[1]), *(int(argument) for argument in sys.argv[2:5]))
