"""Run a training plan under scvi-tools' ``TrainRunner``, with checkpoints that resume bit for bit."""

from __future__ import annotations

import logging
import math
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from scvi.train import TrainRunner

from scgalore import _logging as logg
from scgalore._progress import is_shown
from scgalore.errors import DataError, OptionError
from scgalore.nn.adapter import SCGPTModule
from scgalore.optim import state_bytes
from scgalore.train.callbacks import BestWeights, History
from scgalore.train.datamodule import TokenDataModule
from scgalore.train.plan import GaLoreTrainingPlan

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lightning.pytorch import Trainer

    from scgalore._typing import PathLike
    from scgalore.data.cells import TokenCells
    from scgalore.data.split import Split
    from scgalore.nn import SCGPTNetwork
    from scgalore.objectives import Objective
    from scgalore.train.config import TrainConfig

__all__ = ["TrainResult", "fit", "last_checkpoint"]

CHECKPOINT = "last"


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves besides the weights.

    Attributes
    ----------
    history
        One row an epoch: ``lr``, ``seconds``, ``train_loss`` and, with validation cells, ``validation_loss`` and more.
    best_epoch
        Epoch whose weights were kept; the last one when there are no validation cells.
    optimizer_bytes
        Bytes of optimizer state at the end, counted from its storages.
    """

    history: pd.DataFrame
    best_epoch: int
    optimizer_bytes: int


class _Trainee:
    """The attributes that ``TrainRunner`` reads and sets on a scvi model."""

    def __init__(self, module: SCGPTModule) -> None:
        self.module = module
        self.is_trained_ = False
        self.history_: dict[str, pd.DataFrame] = {}

    def to_device(self, device: torch.device) -> None:
        self.module.to(device)


def last_checkpoint(folder: PathLike) -> Path:
    """Path of the checkpoint that a run in ``folder`` writes after each epoch."""
    return Path(folder) / f"{CHECKPOINT}.ckpt"


def fit(
    network: SCGPTNetwork,
    cells: TokenCells,
    split: Split,
    objective: Objective,
    config: TrainConfig,
    *,
    checkpoint_dir: PathLike | None = None,
    resume: bool = False,
    identity: Mapping[str, str | int | float] | None = None,
) -> TrainResult:
    """Train a network in place.

    Parameters
    ----------
    network
        Trained in place; it ends with the weights of the best epoch.
    cells, split, objective, config
        What to train on, for what, and how.
    checkpoint_dir
        Folder that gets ``last.ckpt`` after each epoch: weights, optimizer, schedule, history and best weights.
    resume
        Whether to continue from that file if it exists.
    identity
        What makes this run this run; resuming another one is refused.

    Raises
    ------
    OptionError
        If the folder holds a checkpoint and ``resume`` is off, or holds the checkpoint of another run.
    DataError
        If the loss became NaN or infinite.
    """
    checkpoint = _checkpoint_to_resume(checkpoint_dir, resume=resume)
    network.train()  # Lightning keeps the mode it finds, and dropout with it
    history, best = History(), BestWeights(objective.monitor)
    plan = GaLoreTrainingPlan(SCGPTModule(network, objective), config, identity)
    data = TokenDataModule(cells, split, objective, batch_size=config.batch_size, seed=config.seed)
    with _quiet_lightning(), torch.random.fork_rng():
        torch.manual_seed(config.seed)
        runner = TrainRunner(
            _Trainee(plan.module),
            plan,
            data,
            max_epochs=config.max_epochs,
            accelerator=config.accelerator,
            devices=config.devices,
            ckpt_path=checkpoint,
            callbacks=[history, best],
            **_trainer_options(config, validate=data.n_val > 0, monitor=objective.monitor),
        )
        if checkpoint_dir is not None:
            # Appended here, last, so that it saves what the other callbacks have just noted; asked for through its
            # arguments, scvi's trainer would add a second callback of its own that drops the optimizer's state.
            runner.trainer.callbacks.append(_checkpoint_callback(checkpoint_dir))
        runner()
    table = pd.DataFrame(history.rows).astype({"epoch": int}).set_index("epoch")
    _refuse_diverged(table)
    best_epoch = best.epoch if best.epoch >= 0 else int(table.index[-1])
    return TrainResult(table, best_epoch, _optimizer_bytes(runner.trainer))


def _trainer_options(config: TrainConfig, *, validate: bool, monitor: str) -> dict[str, Any]:
    return {
        "precision": config.precision,
        "gradient_clip_val": None if math.isinf(config.clip_norm) else config.clip_norm,
        "accumulate_grad_batches": config.accumulate,
        "check_val_every_n_epoch": 1,
        "early_stopping": validate and config.patience is not None,
        "early_stopping_monitor": monitor,
        "early_stopping_patience": config.patience,
        "enable_progress_bar": is_shown(),
        "simple_progress_bar": False,
        "use_distributed_sampler": False,
        # scvi's default flips cuDNN's benchmark mode for the whole process, which makes runs irreproducible.
        "benchmark": False,
    }


def _checkpoint_to_resume(folder: PathLike | None, *, resume: bool) -> Path | None:
    if folder is None:
        if resume:
            msg = "resume=True needs checkpoint_dir, the folder of the interrupted run."
            raise OptionError(msg)
        return None
    path = last_checkpoint(folder)
    if not path.exists():
        if resume:
            logg.info(f"no checkpoint in {folder} yet: starting from the beginning")
        return None
    if not resume:
        msg = f"{path} exists. Pass resume=True to continue that run, or another checkpoint_dir to start a new one."
        raise OptionError(msg)
    return path


def _checkpoint_callback(folder: PathLike) -> ModelCheckpoint:
    return ModelCheckpoint(
        dirpath=folder,
        filename=CHECKPOINT,
        every_n_epochs=1,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )


def _refuse_diverged(history: pd.DataFrame) -> None:
    losses = history.filter(regex="_loss$")
    if not losses.map(pd.notna).all(axis=None) or losses.isin([float("inf")]).any(axis=None):
        epoch = int(losses.index[(losses.isna() | losses.isin([float("inf")])).any(axis=1)][0])
        msg = f"The loss became NaN or infinite in epoch {epoch}. Lower lr, or train with precision='32-true'."
        raise DataError(msg)


def _optimizer_bytes(trainer: Trainer) -> int:
    return sum(state_bytes(optimizer) for optimizer in trainer.optimizers)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's advice that does not concern users of this package, and only while it trains."""
    names = ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.WARNING)
        with warnings.catch_warnings():
            for message in (".*does not have many workers.*", ".*Checkpoint directory .* exists.*", ".*LeafSpec.*"):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
