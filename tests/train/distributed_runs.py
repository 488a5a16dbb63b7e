"""What the processes do that ``test_distributed`` starts: train, and write down what each of them has at the end."""

import sys
from pathlib import Path
from typing import Any

import torch
from anndata import AnnData
from tests.steps import is_step
from torch import distributed

from scgalore.errors import DataError
from scgalore.model import SCGPT
from scgalore.objectives import Classification
from scgalore.optim import OPTIMIZERS
from scgalore.train import runner

RUN: dict[str, Any] = {"labels_key": "bulk_labels", "max_epochs": 4, "batch_size": 8, "lr": 2e-3, "rng": 1}
# Small steps of a smooth optimizer keep the rounding of another order of adding up from growing.
SMOOTH: dict[str, Any] = {"optimizer": "adamw", "optimizer_options": {"eps": 1e-3}}
STOPPING: dict[str, Any] = {
    **SMOOTH,
    "max_epochs": 30,
    "lr": 0.05,
    "warmup": 0.0,
    "patience": 2,
    "validation_size": 0.3,
}
SHARDED = [name for name, spec in OPTIMIZERS.items() if spec.shardable and name != "adamw-8bit"]

#: Name of each run, options of the network, options of the training.
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "galore": ({}, {}),
    "smooth": ({"dropout": 0.0}, SMOOTH),
    "galore_smooth": ({"dropout": 0.0}, {"optimizer_options": {"eps": 1e-3}}),
    "stopping": ({"dropout": 0.0}, STOPPING),
    "masked": ({"mvc": True}, {"labels_key": None, "max_length": 20}),
    "tokens": ({}, {"batch_tokens": 200, "batch_size": 1000, "accumulate": 2}),
    "steps_of_tokens": ({"dropout": 0.0}, {**SMOOTH, "labels_key": None, "accumulate_tokens": 1600}),
    "batch_norm": ({"batch_norm": "shared"}, {"validation_size": 0.0}),
    "lora": ({}, {"adapter": "lora"}),
    "lte": ({}, {"adapter": "lte", "adapter_options": {"merge_every": 3}}),
    "sophia": ({}, {"optimizer": "sophia"}),
    **{f"whole_{name}": ({}, {"optimizer": name}) for name in SHARDED},
    **{f"sharded_{name}": ({}, {"optimizer": name, "shard_optimizer": True}) for name in SHARDED},
}


def train(adata: AnnData, network: dict[str, Any], options: dict[str, Any]) -> SCGPT:
    """Train a tiny model from the same random weights."""
    from tests.tiny_plugin import tiny_model

    model = tiny_model(adata.var_names, **network)
    options = {**RUN, **options}
    if options["labels_key"] is not None:
        options.setdefault("prior", "none")  # with a linear model, the start is kept where no epoch helps
    model.train(adata, **options)
    return model


def result(model: SCGPT) -> dict[str, Any]:
    """What a run has left."""
    return {
        "weights": model.network.state_dict(),
        "history": model.history.reset_index().to_dict("list"),
        "training": model.result.summary(),
    }


class Stop(Exception):
    pass


def interrupted(adata: AnnData, folder: Path, options: dict[str, Any]) -> SCGPT:
    """Train until the ninth step fails, and go on from the checkpoint."""
    loss, left = Classification.__call__, [9]

    def counted(self: Any, network: Any, batch: Any) -> Any:
        left[0] -= is_step(network, batch)
        if left[0] == 0:
            raise Stop
        return loss(self, network, batch)

    Classification.__call__ = counted  # type: ignore[method-assign]
    try:
        train(adata, {}, {**options, "checkpoint_dir": folder})
    except Stop:
        distributed.barrier()
    finally:
        Classification.__call__ = loss  # type: ignore[method-assign]
    return train(adata, {}, {**options, "checkpoint_dir": folder, "resume": True})


def main(folder: Path, names: list[str]) -> None:
    """Do the runs of these names."""
    import scanpy as sc
    from tests.tiny_plugin import few_cells

    reduced = sc.datasets.pbmc68k_reduced()
    adata = reduced.raw.to_adata()
    adata.obs = reduced.obs.copy()
    adata = few_cells(adata)
    rank = -1
    for name in names or [*RUNS, "resumed_galore", "resumed_sharded_galore", "diverging"]:
        kind, _, rest = name.partition("_")
        if kind == "resumed":
            found = result(interrupted(adata, folder / f"{name}_checkpoints", RUNS[rest][1]))
        elif kind == "diverging":
            found = {"error": diverging(adata)}
        else:
            found = result(train(adata, *RUNS[name]))
        rank = distributed.get_rank()
        torch.save(found, folder / f"{name}-{rank}.pt")
    (folder / f"threads-{rank}").write_text(str(torch.get_num_threads()))
    distributed.destroy_process_group()


def diverging(adata: AnnData) -> str:
    """Message of a run in which one process alone meets NaN."""
    loss = Classification.__call__

    def bad(self: Any, network: Any, batch: Any) -> Any:
        measured = loss(self, network, batch)
        first = distributed.get_rank() == 0
        return measured if first else measured._replace(total=measured.total * float("nan"))

    Classification.__call__ = bad  # type: ignore[method-assign]
    try:
        train(adata, {}, {})
    except DataError as error:
        return str(error)
    finally:
        Classification.__call__ = loss  # type: ignore[method-assign]
    return ""


if __name__ == "__main__":
    assert runner
    main(Path(sys.argv[1]), sys.argv[2:])
