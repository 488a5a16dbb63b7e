"""What a run would do, without doing it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scgalore.pipeline.checks import settle
from scgalore.pipeline.folder import FILES, RunFolder

if TYPE_CHECKING:
    from scgalore.pipeline.config import RunConfig

__all__ = ["plan"]


def plan(config: RunConfig, *, force: bool = False, resume: bool = False) -> str:
    """Check a run and describe it. Weights are not loaded, and no expression is read.

    Parameters
    ----------
    config, force, resume
        As for :func:`scgalore.pipeline.run`.
    """
    folder = RunFolder(Path(config.out))
    folder.check(force=force, resume=resume)
    settled, file = settle(config)
    chosen = {name: value for name, value in vars(settled).items() if value is not None and name != "train_options"}
    width = max(map(len, chosen))
    most = "all" if settled.max_cells is None else f"at most {settled.max_cells:,}"
    return "\n".join(
        [
            f"{file.path} has {len(file.obs):,} cells and {len(file.var):,} genes; {most} cells would be used.",
            f"The run would learn {settled.task} and write {', '.join(FILES)}, figures and checkpoints to {folder.path}.",
            "",
            *(f"{name:<{width}}  {value}" for name, value in chosen.items()),
            "",
            "Nothing was written.",
        ]
    )
