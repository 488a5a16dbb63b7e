"""Training under scvi-tools. Importing this package does not load scvi; its parts do when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scgalore.train.config import TrainConfig

if TYPE_CHECKING:
    from scgalore.train.datamodule import CellDataModule
    from scgalore.train.estimate import MemoryEstimate, estimate_training
    from scgalore.train.plan import ObjectiveTrainingPlan
    from scgalore.train.result import TrainResult
    from scgalore.train.runner import fit

__all__ = [
    "CellDataModule",
    "MemoryEstimate",
    "ObjectiveTrainingPlan",
    "TrainConfig",
    "TrainResult",
    "estimate_training",
    "fit",
]

_HOMES = {
    "CellDataModule": "datamodule",
    "MemoryEstimate": "estimate",
    "ObjectiveTrainingPlan": "plan",
    "TrainResult": "result",
    "estimate_training": "estimate",
    "fit": "runner",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"scgalore.train.{_HOMES[name]}"), name)
    msg = f"module 'scgalore.train' has no attribute {name!r}"
    raise AttributeError(msg)
