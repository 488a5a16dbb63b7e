"""Run a training plan under scvi-tools' ``TrainRunner``, with checkpoints that resume bit for bit."""

from __future__ import annotations

import logging
import math
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.strategies import DDPStrategy
from scvi.train import TrainRunner
from torch import distributed

from scgalore import _logging as logg
from scgalore._progress import is_shown
from scgalore.data.cells import TokenCells
from scgalore.data.perturbations import PerturbationCells
from scgalore.data.streaming import TokenStream
from scgalore.errors import OptionError
from scgalore.nn.adapter import SCGPTModule
from scgalore.optim import state_bytes
from scgalore.train.callbacks import BestWeights, History, ProgressBar, SameBuffers, StopEarly, UpdateInBackward
from scgalore.train.checkpoint import WholeFiles, checkpoint_callback, checkpoint_to_resume
from scgalore.train.curriculum import batch_caps, plan_phases
from scgalore.train.datamodule import BatchDataModule, PerturbationDataModule, StreamDataModule, TokenDataModule
from scgalore.train.modes import compiled, deterministic, dropping, recomputing
from scgalore.train.plan import GaLoreTrainingPlan
from scgalore.train.processes import training_processes
from scgalore.train.trace import unreached

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lightning.pytorch import Callback, Trainer

    from scgalore._typing import PathLike
    from scgalore.adapters import Adapter
    from scgalore.data.split import Split
    from scgalore.nn import SCGPTNetwork
    from scgalore.objectives import Objective
    from scgalore.train.config import TrainConfig
    from scgalore.train.curriculum import Phase
    from scgalore.train.processes import Processes

__all__ = ["TrainResult", "fit"]

IDLE_ADVICE = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*Checkpoint directory .* exists.*",
    ".*The dirpath has changed.*",
    ".*across ranks is zero.*",
    ".*LeafSpec.*",
    # A checkpoint is of the end of an epoch, but with a cap on tokens its steps are no multiple of the next one's.
    ".*ended before the epoch ended.*",
    ".*IterableDataset. has .__len__. defined.*",  # workers of a stream share its buffers out
    ".*early_stopping was automatically disabled.*",  # scvi's own, which is not used
)


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves besides the weights.

    Attributes
    ----------
    history
        One row an epoch: ``lr``, ``seconds``, ``train_loss`` and, with validation cells, ``validation_loss`` and more.
    best_epoch
        Epoch whose weights were kept; the last one when there are no validation cells, -1 where no epoch did better than
        the weights training started from.
    optimizer_bytes
        Bytes of optimizer state at the end, counted from its storages; with several processes, of the one that keeps most.
    steps
        Steps that the optimizer took, those before an interruption included.
    """

    history: pd.DataFrame
    best_epoch: int
    optimizer_bytes: int
    steps: int


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
    network: SCGPTNetwork,
    cells: TokenCells | TokenStream | PerturbationCells,
    split: Split | None,
    objective: Objective,
    config: TrainConfig,
    *,
    validation: TokenCells | None = None,
    adapter: Adapter | None = None,
    checkpoint_dir: PathLike | None = None,
    resume: bool = False,
    identity: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train a network in place.

    Parameters
    ----------
    network
        Trained in place; it ends with the weights of the best epoch.
    cells
        What to train on.
    split
        Parts of the cells; a stream has none.
    objective, config
        What to train for, and how.
    validation
        Cells to validate a stream on.
    adapter
        Attached to the network, if any.
    checkpoint_dir
        Folder that gets ``last.ckpt`` after each epoch: weights, optimizer, schedule, history and best weights.
    resume
        Whether to continue from that file if it exists.
    identity
        What makes this run this run; resuming another one is refused.

    Raises
    ------
    OptionError
        If the folder holds a checkpoint and ``resume`` is off, or holds the checkpoint of another run, if ``patience``
        is set and there are no validation cells, or if options do not go with the processes there are.
    DataError
        If the loss became NaN or infinite.
    WeightsError
        If the checkpoint is damaged.
    """
    processes = training_processes(config)
    identity = dict(identity or {})
    checkpoint = checkpoint_to_resume(checkpoint_dir, resume=resume, identity=identity)
    phases = _phases(cells, config)
    network.train()  # Lightning keeps the mode it finds, and dropout with it
    plan = GaLoreTrainingPlan(SCGPTModule(network, objective), config, identity, adapter=adapter, phases=phases)
    data = _data_module(cells, split, validation, objective, config, phases)
    if config.patience is not None:
        _require_validation(data)
    history = History(processes.size, n_genes=_genes_by_epoch(cells, phases))
    best = BestWeights(objective.monitor, start=objective.start_score)
    callbacks = _callbacks(config, history, best, first_epoch=phases[-1].start)
    with ExitStack() as run:
        for context in (_quiet_lightning(), _interruptible(), torch.random.fork_rng()):
            run.enter_context(context)
        torch.manual_seed(config.seed)
        options = _trainer_options(config, streams=split is None)
        if processes.size > 1:
            callbacks.insert(0, SameBuffers())
            options |= _process_options(config, processes, plan, data)
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
        if checkpoint_dir is not None:
            # Appended here, last, so that it saves what the other callbacks have just noted; asked for through its
            # arguments, scvi's trainer would add a second callback of its own that drops the optimizer's state.
            runner.trainer.callbacks.append(checkpoint_callback(checkpoint_dir))
        runner()
    table = pd.DataFrame(history.rows).astype({"epoch": int}).set_index("epoch")
    best_epoch = best.epoch if best.weights else int(table.index[-1])
    return TrainResult(table, best_epoch, _optimizer_bytes(runner.trainer), runner.trainer.global_step)


def _phases(cells: TokenCells | TokenStream | PerturbationCells, config: TrainConfig) -> tuple[Phase, ...]:
    """Phases of the curriculum; one of all epochs without."""
    if config.curriculum is None:
        return plan_phases(config)
    if isinstance(cells, TokenStream):
        msg = "curriculum= needs cells in one AnnData; a stream makes its own batches."
        raise OptionError(msg)
    if cells.ranked is None:
        msg = "curriculum= needs a ranking of the genes. Call sg.tl.select_genes(adata) first."
        raise OptionError(msg)
    phases = plan_phases(config, len(cells.ranked))
    said = [f"{'all' if phase.n_genes is None else phase.n_genes} ({phase.stop - phase.start})" for phase in phases]
    logg.info(f"    curriculum, genes (epochs): {', '.join(said)}")
    if phases[-1].n_genes is not None:
        logg.warning(
            f"the last phase of the curriculum trains on {phases[-1].n_genes:,} of {_n_known(cells):,} genes, and validation and "
            "all that follows use the others as well. End with more genes, or pass adata[:, adata.var['selected']]."
        )
    return phases


def _genes_by_epoch(cells: TokenCells | TokenStream | PerturbationCells, phases: tuple[Phase, ...]) -> list[int]:
    """How many genes training shows in each epoch; nothing where that is always all."""
    if isinstance(cells, TokenStream) or all(phase.n_genes is None for phase in phases):
        return []
    return [phase.n_genes or _n_known(cells) for phase in phases for _ in range(phase.start, phase.stop)]


def _n_known(cells: TokenCells | PerturbationCells) -> int:
    return int((cells.tokenizer.token_ids >= 0).sum())


def _callbacks(config: TrainConfig, history: History, best: BestWeights, *, first_epoch: int) -> list[Callback]:
    callbacks: list[Callback] = [history, best]
    if config.patience is not None:
        callbacks.append(StopEarly(best.monitor, patience=config.patience, start=best.best, first_epoch=first_epoch))
    if config.per_layer_update:
        callbacks.append(UpdateInBackward())
    if is_shown():
        callbacks.append(ProgressBar())
    return callbacks


def _data_module(
    cells: TokenCells | TokenStream | PerturbationCells,
    split: Split | None,
    validation: TokenCells | None,
    objective: Objective,
    config: TrainConfig,
    phases: tuple[Phase, ...],
) -> BatchDataModule:
    how: dict[str, Any] = {
        "seed": config.seed,
        "num_workers": config.num_workers,
        "pin_memory": config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available(),
    }
    assert isinstance(config.batch_size, int), "settled before"
    if isinstance(cells, TokenStream):
        for name in ("batch_tokens", "max_length"):
            if getattr(config, name) is not None:
                msg = (
                    f"{name}={getattr(config, name)}: a stream makes its own batches. Say it where the stream is made."
                )
                raise OptionError(msg)
        return StreamDataModule(cells, validation, objective, batch_size=config.batch_size, **how)
    assert split is not None
    lengths = cells.lengths[split.train]
    if isinstance(cells, TokenCells) and config.max_length is not None:
        how["max_length"] = config.max_length
        lengths = np.minimum(lengths, config.max_length)
    how["batch_size"], how["batch_tokens"] = batch_caps(config, lengths)
    if isinstance(cells, PerturbationCells):
        return PerturbationDataModule(cells, split, objective, phases=phases, **how)
    return TokenDataModule(cells, split, objective, phases=phases, **how)


def _trainer_options(config: TrainConfig, *, streams: bool) -> dict[str, Any]:
    return {
        "precision": config.precision,
        "gradient_clip_val": None if math.isinf(config.clip_norm) else config.clip_norm,
        "accumulate_grad_batches": config.accumulate,
        "check_val_every_n_epoch": 1,
        "enable_progress_bar": is_shown(),
        "simple_progress_bar": False,
        "use_distributed_sampler": False,
        # Lightning counts batches when it asks for the loader and drops those beyond: epochs differ with a cap on tokens.
        # A stream has to be told of each epoch.
        "reload_dataloaders_every_n_epochs": int(
            streams or config.batch_tokens is not None or config.curriculum is not None
        ),
        # scvi's default flips cuDNN's benchmark mode for the whole process.
        "benchmark": None,
        "plugins": [WholeFiles()],
    }


def _process_options(
    config: TrainConfig, processes: Processes, plan: GaLoreTrainingPlan, data: BatchDataModule
) -> dict[str, Any]:
    search = config.strategy == "ddp_find_unused_parameters_true"
    if not search:
        idle = _unreached(plan, data)
        search = config.strategy == "auto" and bool(idle)
        if idle and not search:
            msg = (
                f"strategy='ddp' needs every trainable weight in every loss, and {len(idle)} are not in this one, such as "
                f"{idle[0]}. Set strategy='auto'."
            )
            raise OptionError(msg)
    return {
        "num_nodes": processes.num_nodes,
        "strategy": DDPStrategy(find_unused_parameters=search),
        # scvi's own would write a history into the working folder.
        "logger": False,
    }


def _unreached(plan: GaLoreTrainingPlan, data: BatchDataModule) -> list[str]:
    batch = data.sample()
    plan.eval()  # batch norms keep their statistics
    try:
        _, _, output = plan(batch)
    finally:
        plan.train()
    return unreached(output.loss, plan)


def _require_validation(data: BatchDataModule) -> None:
    if data.n_val == 0:
        msg = "patience needs validation cells to stop early by, and the split has none. Set validation_size, or patience=None."
        raise OptionError(msg)


def _optimizer_bytes(trainer: Trainer) -> int:
    n_bytes = torch.tensor(sum(map(state_bytes, trainer.optimizers)), device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(n_bytes, reduce_op="max"))


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's advice that does not concern users of this package, and only while it trains."""
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
def _interruptible() -> Iterator[None]:
    """Give Ctrl-C back its meaning: Lightning turns it into an exit of the whole program."""
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise
