"""Run a training plan under scvi-tools' ``TrainRunner``, with checkpoints that resume bit for bit."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from scvi.train import TrainRunner, _trainrunner
from torch import distributed

from scgalore import _logging as logg
from scgalore.errors import OptionError
from scgalore.nn.adapter import SCGPTModule
from scgalore.optim import state_bytes
from scgalore.train.budget import has_converged
from scgalore.train.callbacks import (
    BestWeights,
    History,
    SameBuffers,
    SameKernels,
    ShowProgress,
    StopEarly,
    UpdateInBackward,
)
from scgalore.train.checkpoint import Checkpoints, WholeFiles, checkpoint_to_resume
from scgalore.train.config import ALL, TrainConfig
from scgalore.train.curriculum import batch_plan
from scgalore.train.datamodule import CellDataModule
from scgalore.train.divergence import SoundWeights
from scgalore.train.kept import KeptModels
from scgalore.train.loggers import Loggers, LogSteps, loggers_of
from scgalore.train.modes import compiled, deterministic, dropping, recomputing
from scgalore.train.plan import ObjectiveTrainingPlan
from scgalore.train.processes import training_processes
from scgalore.train.result import TrainResult
from scgalore.train.trace import unreached

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.loggers import Logger

    from scgalore._typing import PathLike
    from scgalore.adapters import Adapter
    from scgalore.data.batches import BatchPlan, Phase
    from scgalore.data.source import CellSource
    from scgalore.data.split import Split
    from scgalore.nn import CellNetwork
    from scgalore.objectives import Objective
    from scgalore.train.kept import Keeping
    from scgalore.train.processes import Processes

__all__ = ["fit"]

NOT_CONVERGED = "training had not converged: the validation score was still improving in the last epoch"

IDLE_ADVICE = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*across ranks is zero.*",
    ".*LeafSpec.*",
    # The data module begins with the batch that is next.
    ".*ended before the epoch ended.*",
    ".*IterableDataset. has .__len__. defined.*",  # workers of a stream share its buffers out
    ".*early_stopping was automatically disabled.*",  # scvi's own, which is not used
    ".*callbacks used to create the checkpoint.*",  # patience may be given up when a run is continued
)


class _Trainee:
    """The attributes that ``TrainRunner`` reads and sets on a scvi model."""

    def __init__(self, module: SCGPTModule) -> None:
        self.module = module
        self.is_trained_ = False
        self.history_: dict[str, pd.DataFrame] = {}

    def to_device(self, device: torch.device) -> None:
        # scvi names the first device to every process, and whoever trains moves the network back anyway.
        if not (distributed.is_available() and distributed.is_initialized()):
            self.module.to(device)


def fit(
    network: CellNetwork,
    source: CellSource,
    split: Split | None,
    objective: Objective,
    config: TrainConfig,
    *,
    validation: CellSource | None = None,
    adapter: Adapter | None = None,
    checkpoint_dir: PathLike | None = None,
    resume: bool = False,
    identity: Mapping[str, Any] | None = None,
    logger: Loggers = None,
    keeping: Keeping | None = None,
) -> TrainResult:
    """Train a network in place.

    Parameters
    ----------
    network
        Trained in place; has the weights of the best epoch afterwards.
    source
        Cells to train on.
    split
        Training, validation and test cells; ``None`` trains on all cells. A stream has none.
    objective, config
        Objective and settings of the training.
    validation
        Cells of any kind used for validation; ``None`` uses the validation cells of the split.
    adapter
        Attached to the network, if any.
    checkpoint_dir
        Folder for ``last.ckpt``, written after each epoch and optionally within epochs: weights, optimizer, schedule,
        history and best weights.
    resume
        Whether to resume from that file if it exists; for more epochs than at its start, see
        ``scgalore.train.extension``.
    identity
        Identity of the run; resuming another run raises an error.
    logger
        Additional loggers, as for :func:`scgalore.tl.finetune`.
    keeping
        Options for keeping models of the best epochs in the checkpoint folder.

    Raises
    ------
    OptionError
        If the folder contains a checkpoint and ``resume`` is off, or the checkpoint of another run, if ``patience`` is
        set without validation cells, if the source does not support an option, or if options do not support the number
        of processes.
    DataError
        If the loss or a weight became NaN or infinite.
    DiskError
        If a checkpoint cannot be written; the previous one is kept.
    WeightsError
        If the checkpoint is damaged.
    """
    processes = training_processes(config)
    if config.checkpoint_every is not None and checkpoint_dir is None:
        msg = f"checkpoint_every={config.checkpoint_every!r} requires checkpoint_dir=, the folder for checkpoints."
        raise OptionError(msg)
    if keeping is not None and checkpoint_dir is None:
        msg = f"keep_best={keeping.n} requires checkpoint_dir=, the folder for models."
        raise OptionError(msg)
    identity = dict(identity or {})
    loggers = loggers_of(logger, checkpoint_dir)
    checkpoint = checkpoint_to_resume(checkpoint_dir, resume=resume, identity=identity)
    _refuse_limits(source, config)
    batches = batch_plan(config, source, None if split is None else split.train)
    _check_curriculum(source, config, batches.phases)
    network.train()  # Lightning keeps the mode it finds, and dropout with it
    plan = ObjectiveTrainingPlan(
        SCGPTModule(network, objective), config, identity, adapter=adapter, phases=batches.phases
    )
    data = _data_module(source, split, validation, objective, config, batches)
    if config.patience is not None:
        _require_validation(data, "patience requires validation cells", "patience=None")
    if keeping is not None:
        _require_validation(data, f"keep_best={keeping.n} requires validation cells", "keep_best=None")
    history = History(
        processes.size, n_genes=_genes_by_epoch(source, batches.phases), throughput=source.lengths is None
    )
    best = BestWeights(objective.monitor, start=objective.start_score)
    callbacks = _callbacks(config, history, best, first_epoch=batches.phases[-1].start)
    callbacks += [LogSteps()] if loggers else []
    same_kernels = SameKernels()
    callbacks.append(same_kernels)
    with ExitStack() as run:
        for context in (_quiet_lightning(), _quiet_scvi(), _interruptible(), torch.random.fork_rng()):
            run.enter_context(context)
        torch.manual_seed(config.seed)
        network.seed = config.seed
        options = _trainer_options(config, loggers, reload=data.training.reload)
        if processes.size > 1:
            callbacks.insert(0, SameBuffers())
            options |= _process_options(config, processes, plan, data)
            options["logger"] = loggers or False  # scvi's own would write a history into the working folder
        run.enter_context(dropping(network, p=config.dropout))
        run.enter_context(recomputing(network, wanted=config.gradient_checkpointing))
        run.enter_context(compiled(network, wanted=config.compile))
        run.enter_context(deterministic(wanted=config.deterministic))
        runner = TrainRunner(
            _Trainee(plan.module),
            plan,
            data,
            max_epochs=config.max_epochs,
            accelerator=config.accelerator,
            devices=processes.devices,
            ckpt_path=checkpoint,
            callbacks=callbacks,
            **options,
        )
        if keeping is not None and checkpoint_dir is not None:
            so_far = partial(_so_far, history, runner.trainer, config, split)
            runner.trainer.callbacks.append(KeptModels(checkpoint_dir, keeping, objective.monitor, so_far))
        if checkpoint_dir is not None:
            # Appended here, last, so that it saves what the other callbacks have just noted; asked for through its
            # arguments, scvi's trainer would add a second callback of its own that drops the optimizer's state.
            runner.trainer.callbacks.append(Checkpoints(checkpoint_dir, config.checkpoint_every))
        runner()
    table = history.table()
    best_epoch = best.epoch if best.weights else int(table.index[-1])
    assert isinstance(config.batch_size, int)
    converged = None
    if best.weights and best_epoch >= 0:  # otherwise nothing tells, or the start was the best
        start = [objective.start_score] if math.isfinite(objective.start_score) else []
        converged = has_converged([*start, *table[objective.monitor]])
        if converged is False and config.steps_per_epoch is None:  # where it is, a budget was given on purpose
            logg.warning(f"{NOT_CONVERGED}. Pass max_epochs={2 * len(table)}, or a higher lr=.")
    return TrainResult(
        history=table,
        best_epoch=best_epoch,
        optimizer_bytes=_optimizer_bytes(runner.trainer),
        steps=runner.trainer.global_step,
        split=split,
        batch_size=config.batch_size if source.lengths is not None else source.largest_batch(None, batches)[0],
        accumulate=config.accumulate,
        max_epochs=config.max_epochs,
        patience=config.patience,
        converged=converged,
        cpu_kernels=same_kernels.in_words,
    )


def _so_far(history: History, trainer: Trainer, config: TrainConfig, split: Split | None) -> TrainResult:
    """Result of training so far, after an epoch."""
    table = history.table()
    return TrainResult(
        history=table,
        best_epoch=int(table.index[-1]),
        steps=trainer.global_step,
        split=split,
        accumulate=config.accumulate,
        max_epochs=config.max_epochs,
        patience=config.patience,
    )


def _refuse_limits(source: CellSource, config: TrainConfig) -> None:
    """Raise an error for options that the source does not support, unless they have their default values."""
    defaults = TrainConfig()
    for name, why in source.limits.items():
        if getattr(config, name) != getattr(defaults, name):
            msg = f"{name}={getattr(config, name)!r}: {why}"
            raise OptionError(msg)


def _check_curriculum(source: CellSource, config: TrainConfig, phases: tuple[Phase, ...]) -> None:
    """Log the phases of a curriculum; raise an error without a ranking."""
    if config.curriculum is None:
        return
    assert isinstance(config.curriculum, Mapping)  # a configuration turns every form into one
    if source.ranked is None:
        msg = "curriculum= requires a ranking of the genes. Call sg.tl.select_genes(adata) first."
        raise OptionError(msg)
    said = [f"{_shown_genes(source, phase)} ({phase.stop - phase.start})" for phase in phases]
    beyond = [f"{n:,}" for n in config.curriculum if source.n_matched < n < ALL]
    more = f"; phases with {' or '.join(beyond)} genes use all genes" if beyond else ""
    logg.info(f"    curriculum, genes (epochs): {', '.join(said)}{more}")
    if phases[-1].n_genes is not None:
        logg.warning(
            f"the last phase of the curriculum trains on {phases[-1].n_genes:,} of {source.n_matched:,} genes, but validation and "
            "predictions use all of them. Use more genes in the last phase, or pass adata[:, adata.var['selected']]."
        )


def _shown_genes(source: CellSource, phase: Phase) -> str:
    return f"all {source.n_matched:,}" if phase.n_genes is None else f"{phase.n_genes:,}"


def _genes_by_epoch(source: CellSource, phases: tuple[Phase, ...]) -> list[int]:
    """Number of training genes in each epoch; empty if it is always all genes."""
    if all(phase.n_genes is None for phase in phases):
        return []
    return [phase.n_genes or source.n_matched for phase in phases for _ in range(phase.start, phase.stop)]


def _callbacks(config: TrainConfig, history: History, best: BestWeights, *, first_epoch: int) -> list[Callback]:
    callbacks: list[Callback] = [history, SoundWeights(), best]
    if config.patience is not None:
        callbacks.append(StopEarly(best.monitor, patience=config.patience, start=best.best, first_epoch=first_epoch))
    if config.per_layer_update:
        callbacks.append(UpdateInBackward())
    return [*callbacks, ShowProgress()]


def _data_module(
    source: CellSource,
    split: Split | None,
    validation: CellSource | None,
    objective: Objective,
    config: TrainConfig,
    batches: BatchPlan,
) -> CellDataModule:
    training = source.training_batches(None if split is None else split.train, batches)
    held = None
    if validation is not None:
        held = validation.validation_batches(None, batches)
    elif split is not None:
        held = source.validation_batches(split.validation, batches)
    return CellDataModule(
        training,
        held,
        objective,
        seed=config.seed,
        num_workers=config.num_workers,
        pin_memory=config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available(),
        test_idx=None if split is None else split.test,
        accumulate=config.accumulate,
        accumulate_tokens=config.accumulate_tokens,
    )


def _trainer_options(config: TrainConfig, loggers: list[Logger], *, reload: bool) -> dict[str, Any]:
    return {
        "logger": loggers or None,  # scvi's own then, in memory
        "precision": config.precision,
        "gradient_clip_val": None if math.isinf(config.clip_norm) else config.clip_norm,
        "check_val_every_n_epoch": 1,
        "enable_progress_bar": False,  # ShowProgress is one of the callbacks
        "use_distributed_sampler": False,
        "reload_dataloaders_every_n_epochs": int(reload),
        # scvi's default flips cuDNN's benchmark mode for the whole process.
        "benchmark": None,
        "plugins": [WholeFiles()],
    }


def _process_options(
    config: TrainConfig, processes: Processes, plan: ObjectiveTrainingPlan, data: CellDataModule
) -> dict[str, Any]:
    search = config.strategy == "ddp_find_unused_parameters_true"
    if not search:
        idle = _unreached(plan, data)
        search = config.strategy == "auto" and bool(idle)
        if idle and not search:
            msg = (
                f"strategy='ddp' requires that the loss depends on every trainable weight, but {len(idle)} are unused, such as "
                f"{idle[0]}. Set strategy='auto'."
            )
            raise OptionError(msg)
    return {
        "num_nodes": processes.num_nodes,
        "strategy": DDPStrategy(find_unused_parameters=search),
    }


def _unreached(plan: ObjectiveTrainingPlan, data: CellDataModule) -> list[str]:
    batch = data.sample()
    plan.eval()  # batch norms keep their statistics
    try:
        _, _, output = plan(batch)
    finally:
        plan.train()
    return unreached(output.loss, plan)


def _require_validation(data: CellDataModule, why: str, instead: str) -> None:
    if data.n_val == 0:
        msg = f"{why}, but there are none. Set validation_size (validation_cells for pre-training, validation= for a stream) or {instead}."
        raise OptionError(msg)


def _optimizer_bytes(trainer: Trainer) -> int:
    n_bytes = torch.tensor(sum(map(state_bytes, trainer.optimizers)), device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(n_bytes, reduce_op="max"))


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Suppress Lightning messages that are irrelevant to users of this package, only during training."""
    names = (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.pytorch.accelerators.cuda",
        "lightning.fabric.utilities.distributed",
    )
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.WARNING)
        with warnings.catch_warnings():
            for message in IDLE_ADVICE:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def _quiet_scvi() -> Iterator[None]:
    """Prevent scvi from printing an error that is raised anyway."""
    module: Any = _trainrunner
    module.print = lambda *_: None
    try:
        yield
    finally:
        del module.print


@contextmanager
def _interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt for Ctrl-C, which Lightning converts to an exit of the program."""
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise
