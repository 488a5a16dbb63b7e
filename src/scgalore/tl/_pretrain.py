"""Pre-train on collections of files."""

from __future__ import annotations

from copy import copy, deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from scgalore import _logging as logg
from scgalore._docs import shared_parameters
from scgalore._options import options_of
from scgalore._rng import seed_from
from scgalore._settings import settings
from scgalore._words import duration
from scgalore._world import is_first_process
from scgalore.data.opening import stream
from scgalore.data.vocab import SPECIALS, GeneVocab
from scgalore.errors import OptionError
from scgalore.genes.identifiers import symbols
from scgalore.model.distributed import by_first
from scgalore.model.families import FAMILIES
from scgalore.nn.base import NetworkConfig
from scgalore.tasks.expression import Expression
from scgalore.tasks.registry import resolve_call
from scgalore.tl._declared import with_options_of
from scgalore.tl._fitted import free_folder, kept_loss
from scgalore.tl._pretraining import BUDGETS, PretrainingOptions
from scgalore.tl._shared import as_model
from scgalore.train.curriculum import batch_plan
from scgalore.train.estimate import estimate_training
from scgalore.train.processes import training_processes
from scgalore.train.steps import settle_steps

if TYPE_CHECKING:
    from scgalore._typing import PathLike, Rng
    from scgalore.data.streaming import TokenStream
    from scgalore.model import CellModel
    from scgalore.tasks.base import Prepared
    from scgalore.train.config import Accelerator, Precision, TrainConfig
    from scgalore.train.estimate import MemoryEstimate
    from scgalore.train.loggers import Loggers

TIMED = 10
"""Steps of each of two short epochs; the second one is timed."""


@shared_parameters
@with_options_of(PretrainingOptions, after="model")
def pretrain(
    sources: Any,
    model: PathLike | CellModel | NetworkConfig = "scgpt-mini",
    *,
    validation: Any = None,
    steps_per_epoch: int = 500,
    batch_size: int = 32,
    max_length: int | None = None,
    optimizer: str = "adamw",
    lr: float | None = None,
    patience: int | None = None,
    precision: Precision = "32-true",
    accelerator: Accelerator | None = None,
    checkpoint_dir: PathLike | None = None,
    resume: bool = False,
    save_dir: PathLike | None = None,
    logger: Loggers = None,
    rng: Rng = 0,
    **options: Any,
) -> CellModel:
    """Pre-train a model on a collection of files, or continue pre-training one :cite:p:`Cui2024`.

    Genes of each cell are masked and predicted; no labels are needed. Cells are streamed from disk, so the files may
    contain any number of them. An epoch is ``steps_per_epoch`` steps: after each, held-out cells are scored, a
    checkpoint is written, and a line shows the losses, the throughput and the remaining time. The weights of the epoch
    with the best score are kept.

    Parameters
    ----------
    sources
        Paths of ``.h5ad`` files or ``.zarr`` folders, folders of them, AnnData objects, a list of these, or a dict of
        named lists; see :func:`scgalore.data.stream`.
    model
        Name in the registry of weights, folder of a checkpoint, or a model, which is then trained in place.
        Or a configuration, such as ``sg.model.scgpt_config(d_model=256, n_layers=6)``, for random weights and a
        vocabulary of the genes in the files.
    {options}
    validation
        Validation cells, in the same form as ``sources``. By default some cells are held out.
    steps_per_epoch
        Maximum number of steps between checkpoints, and thus the steps that a killed run loses at most, unless
        ``checkpoint_every`` is shorter. All epochs are equally long, so a run may take a few steps more than its
        budget.
    batch_size
        Maximum number of cells per batch.
    max_length
        Maximum number of tokens per cell; the genes of longer cells are sampled again in each pass. By default the
        length the weights were trained with.
    optimizer
        Entry of :data:`scgalore.optim.OPTIMIZERS`.
    lr, patience, precision, accelerator
        As for :func:`scgalore.tl.finetune`.
    checkpoint_dir, resume
        As for :func:`scgalore.tl.finetune`. A resumed run keeps its number of steps; another budget,
        ``steps_per_epoch`` or ``keep_best`` raises an error.
    save_dir
        New folder to save the model to.
    logger
        As for :func:`scgalore.tl.finetune`.
    {rng}
    **options
        Further fields of :class:`~scgalore.train.TrainConfig`, such as ``lr_schedule``, ``warmup``, ``accumulate``,
        ``checkpoint_every``, ``devices``, ``shard_optimizer`` or ``num_workers``. How
        several processes train together: :doc:`/distributed`.

    Returns
    -------
    The model. Its ``history`` has one row per epoch.

    Raises
    ------
    DataError, MissingKeyError
        If a file cannot be read or used.
    OptionError
        If an option does not exist, is out of range, or conflicts with others. All three errors are raised before
        training, and nothing is written.

    See Also
    --------
    scgalore.tl.finetune : Fine-tune a model on your cells.
    scgalore.model.scgpt_config : Configuration of a new scGPT network.
    scgalore.data.stream : Stream batches of tokens from many files.
    scgalore.pipeline.pretrain : Pre-train from files to a report.

    Examples
    --------
    >>> import scanpy as sc, scgalore as sg
    >>> adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    >>> model = sg.tl.pretrain(adata, "scgpt-mini", max_steps=4, steps_per_epoch=2)
    >>> len(model.history)
    2
    """
    folder = None if save_dir is None else free_folder(save_dir)
    run = PretrainingRun.of(
        sources,
        model,
        validation=validation,
        steps_per_epoch=steps_per_epoch,
        batch_size=batch_size,
        max_length=max_length,
        optimizer=optimizer,
        lr=lr,
        patience=patience,
        precision=precision,
        accelerator=accelerator,
        rng=rng,
        **options,
    )
    with logg.step(f"pre-training {run.model.provenance['name']} on {run.training.n_obs:,} cells"):
        logg.result(
            f"    {len(run.model.vocab):,} genes in the vocabulary, {0 if run.held is None else run.held.n_obs:,} validation cells"
        )
        run.train(checkpoint_dir=checkpoint_dir, resume=resume, logger=logger)
        logg.result(f"    {kept_loss(run.model)}")
        if folder is not None:
            by_first(partial(run.model.save, folder))
            logg.result(f"    saved to {folder}")
    return run.model


@dataclass
class PretrainingRun:
    """A pre-training run with open files and checked options.

    Attributes
    ----------
    model
        Model to train.
    training, held
        Training cells, and validation cells if there are any.
    shown
        Validation cells with as many tokens as the model reads for embedding.
    prepared
        Prepared training data; the number of epochs is not yet set.
    options
        Requested options.
    cells_per_step
        Cells per optimizer step over all processes; with ``accumulate_tokens`` the expected number.
    n_processes
        Number of processes that train together.
    """

    model: CellModel
    training: TokenStream
    held: TokenStream | None
    shown: TokenStream | None
    prepared: Prepared
    options: PretrainingOptions
    cells_per_step: int
    n_processes: int

    @classmethod
    def of(
        cls,
        sources: Any,
        model: PathLike | CellModel | NetworkConfig,
        *,
        validation: Any,
        batch_size: int,
        max_length: int | None,
        rng: Rng,
        **options: Any,
    ) -> Self:
        """Open the files, check everything and prepare the run; parameters are those of :func:`pretrain`."""
        own = {option.name for option in options_of(PretrainingOptions)}
        asked = PretrainingOptions(**{name: options.pop(name) for name in own & options.keys()})
        if "max_epochs" in options:
            msg = f"max_epochs={options['max_epochs']!r}: pre-training has no epochs of all cells. Pass {', '.join(f'{name}=' for name in BUDGETS)}."
            raise OptionError(msg)
        seed = seed_from(rng)
        task, call = resolve_call(
            {**asked.of_task, **options},
            task=Expression.name,
            seed=seed,
            function=pretrain,
        )
        processes = training_processes(call.config)
        read = asked.of_stream
        fitted = _starting_model(model, sources, read, seed)
        task.require(fitted)
        tokens = fitted.tokenizer_config(max_length=max_length, rng=seed)
        made = {"config": tokens, "batch_size": batch_size, "rng": seed, **read}
        drawing: dict[str, Any] = {"shares": asked.shares, "weights_key": asked.weights_key, "weights": asked.weights}
        # Every process reads the same files; only the first logs what it finds.
        with settings.override(verbosity=settings.verbosity if is_first_process() else 0):
            training = stream(sources, fitted.vocab, **drawing, **made)
            held = None if validation is None else stream(validation, fitted.vocab, **made)
        twice = set() if held is None else {*held.files} & {*training.files}
        if paths := sorted(name for name in twice if Path(name).exists()):  # AnnData objects have no names
            msg = f"validation= contains {paths[0]}, which is also in the training data. Omit validation= to hold out some cells."
            raise OptionError(msg)
        if held is None and (n := min(asked.validation_cells, training.n_obs // 10)):
            training, held = training.split(n, max_cells=n)
        call = replace(call, validation=held)
        prepared = task.prepare(task.read(training, call), fitted, call)
        config = settle_steps(prepared.config, training, None)
        prepared = replace(prepared, config=config)
        shown = None if held is None else held.with_config(fitted.tokenizer_config(rng=seed))
        n_cells = batch_size * config.accumulate * processes.size
        return cls(fitted, training, held, shown, prepared, asked, n_cells, processes.size)

    def train(self, *, checkpoint_dir: PathLike | None, resume: bool, logger: Loggers) -> None:
        """Train; parameters are those of :func:`pretrain`."""
        from scgalore.train.checkpoint import saved_run  # imports Lightning

        config, begun = self.prepared.config, saved_run(checkpoint_dir, resume=resume)
        if begun is None:
            config = self.with_steps(self.steps())
        else:
            config = replace(config, max_epochs=begun.get("max_epochs"), steps_per_epoch=begun.get("steps_per_epoch"))
        # A run is identified by the requested value too; its actual epochs are those of the resumed run.
        asked = {name: getattr(self.options, name) for name in BUDGETS}
        asked["steps_per_epoch asked for"] = self.prepared.config.steps_per_epoch
        self.prepared = replace(self.prepared, config=config, identity={**self.prepared.identity, **asked})
        run: dict[str, Any] = {"checkpoint_dir": checkpoint_dir, "resume": resume, "logger": logger}
        self.model.fit(self.prepared, keep_best=self.options.keep_best, **run)

    def steps(self) -> int:
        """Number of optimizer steps in the budget."""
        asked = self.options
        if asked.max_steps is not None:
            return asked.max_steps
        if asked.max_cells is not None:
            return -(-asked.max_cells // self.cells_per_step)
        assert asked.max_hours is not None
        seconds = self.seconds_per_step()
        steps = max(1, int(asked.max_hours * 3600 / seconds))
        logg.info(
            f"    {seconds:.2f} s per step on this machine: {steps:,} steps in {duration(asked.max_hours * 3600)}"
        )
        return steps

    def seconds_per_step(self) -> float:
        """Time some steps on a copy of the network, including the proportional time of validation.

        With several processes, the time of the first one is used.
        """
        trial = copy(self.model)
        trial.network = deepcopy(self.model.network)
        network = None if self.prepared.network is None else deepcopy(self.prepared.network)
        config = replace(
            self.prepared.config, max_epochs=2, steps_per_epoch=TIMED, patience=None, checkpoint_every=None
        )
        with settings.override(verbosity=0):
            trial.fit(replace(self.prepared, network=network, config=config))
        last = trial.history.iloc[-1]
        step = self.cells_per_step / float(last["cells_per_second"])
        validation = max(0.0, float(last["seconds"]) - TIMED * step)
        return step + validation / (self.prepared.config.steps_per_epoch or TIMED)

    def memory(self) -> MemoryEstimate:
        """Estimate the memory of the run, with cells of maximum length."""
        config, source = self.prepared.config, self.training
        n_cells, n_tokens = source.largest_batch(None, batch_plan(replace(config, max_epochs=1), source, None))
        network = self.model.network if self.prepared.network is None else self.prepared.network
        n_rows, objective = len(source.tokens()), self.prepared.objective
        return estimate_training(network, objective, config, n_cells=n_cells, n_tokens=n_tokens, n_rows=n_rows)

    def with_steps(self, steps: int) -> TrainConfig:
        """Configuration with epochs of equal length for these steps, or a few more (fewer than the number of epochs)."""
        config = self.prepared.config
        assert config.steps_per_epoch is not None
        n_epochs = -(-steps // config.steps_per_epoch)
        return replace(config, steps_per_epoch=-(-steps // n_epochs), max_epochs=n_epochs)


def _starting_model(model: Any, sources: Any, read: dict[str, Any], seed: int) -> CellModel:
    if not isinstance(model, NetworkConfig):
        return as_model(model)
    known = GeneVocab.from_genes(sorted(symbols()))
    # A stream matches all kinds of gene names, so the genes it finds among all symbols are those of the files. Its
    # messages are logged later, when the files are opened for the model.
    with settings.override(verbosity=0):
        found = stream(sources, known, batch_size=1, **read).tokens()
    genes = [name for i in found if (name := known.tokens[i]) not in SPECIALS]
    logg.info(f"    vocabulary of {len(genes):,} genes made from the files")
    family = next(family for family in FAMILIES.values() if type(model) is family.config)
    vocab = GeneVocab.from_genes(genes, family.specials)
    config = model.replace(n_tokens=len(vocab), pad_id=vocab.pad_id)
    made: CellModel = family.model.from_config(config, vocab, rng=seed, family=family)
    return made
