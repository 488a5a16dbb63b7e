"""A user's script that asks for two devices, for ``test_distributed.py``; Lightning runs it once more as second process."""

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

if __name__ == "__main__":
    import scanpy as sc
    from tests.tiny_plugin import few_cells
    from tests.train.distributed_runs import result, train

    reduced = sc.datasets.pbmc68k_reduced()
    cells = reduced.raw.to_adata()
    cells.obs = reduced.obs.copy()
    folder = Path(sys.argv[1])
    os.chdir(folder)
    model = train(few_cells(cells), {}, {"devices": 2, "accelerator": "cpu", "checkpoint_dir": folder / "checkpoints"})
    torch.save(result(model), folder / f"{torch.distributed.get_rank()}.pt")
