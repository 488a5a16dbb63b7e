"""Dry run: describe a run without executing it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scgalore.model.memory import estimate_memory
from scgalore.pipeline.checks import at_most_genes, complete_config, expected_epochs
from scgalore.pipeline.folder import FILES, RunFolder
from scgalore.tasks.registry import task_named
from scgalore.train.config import TrainConfig

if TYPE_CHECKING:
    from scgalore.pipeline.config import RunConfig
    from scgalore.train.memory import MemoryEstimate

__all__ = ["plan"]


def plan(config: RunConfig, *, force: bool = False, resume: bool = False) -> str:
    """Check a run and describe it. Registered weights are not loaded, and no expression is read.

    Parameters
    ----------
    config, force, resume
        As for :func:`scgalore.pipeline.run`.
    """
    folder = RunFolder(Path(config.out))
    folder.check(force=force, resume=resume)
    settled, file = complete_config(config)
    epochs = settled.training.get("max_epochs") or f"about {expected_epochs(settled, file)}"
    chosen = {
        name: value
        for name, value in {**settled.flat(), "max_epochs": epochs}.items()
        if value not in (None, [], {}, False)
    }
    width = max(map(len, chosen))
    most = settled.max_cells if isinstance(settled.max_cells, str) else f"at most {settled.max_cells:,}"
    genes = at_most_genes(settled, file)
    assert settled.task is not None
    goal = task_named(settled.task).goal(settled.arguments)
    return "\n".join(
        [
            f"{file.path} has {len(file.obs):,} cells and {len(file.var):,} genes; {most} cells would be used.",
            f"The run would train {goal}, and write {', '.join(FILES)}, figures and checkpoints to {folder.path}.",
            "",
            *(f"{name:<{width}}  {value}" for name, value in chosen.items()),
            "",
            f"Training (upper bound, for cells that express all of {genes:,} genes):",
            str(_estimate(settled, genes)),
            "",
            "Nothing was written.",
        ]
    )


def _estimate(config: RunConfig, genes: int) -> MemoryEstimate:
    options = {name: value for name, value in config.training.items() if name not in ("max_epochs", "curriculum")}
    if options["batch_size"] == "auto":
        options["batch_size"] = TrainConfig.batch_size
    return estimate_memory(config.model, genes_per_cell=genes, task=config.task, **options)
