"""Fine-tune single-cell foundation models on the hardware you have, from a scanpy script."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scgalore import (
        adapters,
        data,
        datasets,
        errors,
        genes,
        get,
        mapping,
        model,
        nn,
        objectives,
        optim,
        perturb,
        pipeline,
        pl,
        pp,
        tasks,
        tl,
        train,
        weights,
    )
    from scgalore._settings import settings
    from scgalore.model.memory import estimate_memory

__version__ = version("scgalore")

_ROOMS = (
    "adapters",
    "data",
    "datasets",
    "errors",
    "genes",
    "get",
    "mapping",
    "model",
    "nn",
    "objectives",
    "optim",
    "perturb",
    "pipeline",
    "pl",
    "pp",
    "tasks",
    "tl",
    "train",
    "weights",
)

__all__ = [
    "__version__",
    "adapters",
    "data",
    "datasets",
    "errors",
    "estimate_memory",
    "genes",
    "get",
    "mapping",
    "model",
    "nn",
    "objectives",
    "optim",
    "perturb",
    "pipeline",
    "pl",
    "pp",
    "settings",
    "tasks",
    "tl",
    "train",
    "weights",
]


def __getattr__(name: str) -> Any:
    # Subpackages load on first use (PEP 562): torch, scanpy and scvi take seconds, and a script may need only one of
    # them.
    if name in _ROOMS:
        return import_module(f"scgalore.{name}")
    if name == "estimate_memory":
        return import_module("scgalore.model.memory").estimate_memory
    if name == "settings":
        return import_module("scgalore._settings").settings
    msg = f"module 'scgalore' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted(__all__)
