"""Pipeline from a file of cells to a report, in one folder with everything needed to reproduce it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scgalore.pipeline.config import RunConfig

if TYPE_CHECKING:
    from scgalore.pipeline.pretrain_config import PretrainConfig
    from scgalore.pipeline.pretraining import pretrain
    from scgalore.pipeline.runner import run

__all__ = ["PretrainConfig", "RunConfig", "pretrain", "run"]

_WHERE = {"PretrainConfig": "pretrain_config", "pretrain": "pretraining", "run": "runner"}


def __getattr__(name: str) -> Any:
    # The help of the command line uses RunConfig and must not import torch (PEP 562).
    if name in _WHERE:
        return getattr(import_module(f"scgalore.pipeline.{_WHERE[name]}"), name)
    msg = f"module 'scgalore.pipeline' has no attribute {name!r}"
    raise AttributeError(msg)
