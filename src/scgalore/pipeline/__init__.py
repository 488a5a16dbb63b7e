"""From a file of cells to a report, in one folder that says how it was made."""

from typing import TYPE_CHECKING, Any

from scgalore.pipeline.config import RunConfig

if TYPE_CHECKING:
    from scgalore.pipeline.runner import run

__all__ = ["RunConfig", "run"]


def __getattr__(name: str) -> Any:
    # The command line reads RunConfig for its help, and must not wait for torch to do so (PEP 562).
    if name == "run":
        from scgalore.pipeline.runner import run

        return run
    msg = f"module 'scgalore.pipeline' has no attribute {name!r}"
    raise AttributeError(msg)
