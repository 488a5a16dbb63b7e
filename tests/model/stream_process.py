"""What each of the processes does that ``test_streams`` starts: train on a stream of files."""

import sys
from pathlib import Path

import torch
from tests.tiny_plugin import tiny_model

from scgalore._settings import settings
from scgalore.data import stream
from scgalore.model.distributed import process_group


def main(folder: Path) -> None:
    """Train for two epochs and keep weights, history and the number of cells of an epoch."""
    settings.verbosity = 0
    names = (folder / "genes.txt").read_text().split()
    model = tiny_model(names)
    paths = sorted(folder.glob("*.h5ad"))
    batches = stream(paths, model.vocab, config=model.tokenizer_config(), batch_size=8, block_size=5, buffer_size=16)
    model.train(batches, max_epochs=2, accelerator="cpu", rng=0)
    in_order = stream(paths, model.vocab, config=model.tokenizer_config(), buffer_size=16, batch_size=8, shuffle=False)
    embedding = model.run(in_order).embedding  # each a part, and all of them get all of it
    with process_group() as world:
        n_cells = sum(len(batch) for batch in batches)
        torch.save(
            {
                "weights": model.network.state_dict(),
                "losses": model.history["train_loss"].tolist(),
                "n_cells": n_cells,
                "embedding": torch.from_numpy(embedding),
            },
            folder / f"{world.rank}.pt",
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
