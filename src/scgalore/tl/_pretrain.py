"""Pre-training on collections of files."""

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
from scgalore.tl._fitted import free_folder
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
    from scgalore.train.config import TrainConfig
    from scgalore.train.estimate import MemoryEstimate
    from scgalore.train.loggers import Loggers

TIMED = 10
"""Steps of each of two short epochs, of which the second says how long a step takes."""


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
    checkpoint_dir: PathLike | None = None,
    resume: bool = False,
    save_dir: PathLike | None = None,
    logger: Loggers = None,
    rng: Rng = 0,
    **options: Any,
) -> CellModel:
    """Pre-train a model on a collection of files, or go on pre-training one :cite:p:`Cui2024`.

    Genes of each cell are hidden and predicted; no labels are needed. Cells are read while they are used, so the files may hold
    any number of them. An epoch is ``steps_per_epoch`` steps: after each, held-out cells are scored, a checkpoint is written, and
    a line shows the losses, the throughput and the time that is left. The weights of the epoch with the best score are kept.

    Parameters
    ----------
    sources
        Paths of ``.h5ad`` files or ``.zarr`` folders, folders of them, AnnData objects, a list of these, or a dict of named
        lists; see :func:`scgalore.data.stream`.
    model
        Name in the registry of weights, folder of a checkpoint, or a model, which is then trained in place: its training goes on.
        Or sizes, such as ``sg.model.scgpt_config(d_model=256, n_layers=6)``: random weights, and a vocabulary of the genes in the
        files.
    {options}
    validation
        Cells to choose the weights by, as ``sources``, in place of some that are held out.
    steps_per_epoch
        Most steps between checkpoints, which are also those that a killed run loses at most, unless ``checkpoint_every`` asks for more of
        them. All epochs are equally long, so a run may take a few steps more than its budget.
    batch_size
        Maximum number of cells per batch.
    max_length
        Maximum number of tokens per cell; longer cells are sampled anew in each pass. By default what the weights were trained with.
    optimizer
        Entry of :data:`scgalore.optim.OPTIMIZERS`.
    checkpoint_dir, resume
        As for :func:`scgalore.tl.finetune`. A run that is continued keeps the steps it was begun with, and another budget,
        ``steps_per_epoch`` or ``keep_best`` is refused.
    save_dir
        Folder that the model is saved to, made by this call.
    logger
        As for :func:`scgalore.tl.finetune`.
    {rng}
    **options
        Fields of :class:`~scgalore.train.TrainConfig`, such as ``lr``, ``lr_schedule``, ``warmup``, ``accumulate``, ``precision``,
        ``patience``, ``checkpoint_every``, ``devices``, ``shard_optimizer`` or ``num_workers``. How several processes train
        together: :doc:`/distributed`.

    Returns
    -------
    The model. Its ``history`` has a row for each epoch.

    Raises
    ------
    DataError, MissingKeyError
        If a file cannot be read or used.
    OptionError
        If an option does not exist, is out of range, or does not go with the others. In all three cases nothing was trained or
        written.

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
        rng=rng,
        **options,
    )
    with logg.step(f"pre-training {run.model.provenance['name']} on {run.training.n_obs:,} cells"):
        run.train(checkpoint_dir=checkpoint_dir, resume=resume, logger=logger)
        if folder is not None:
            by_first(partial(run.model.save, folder))
    return run.model


@dataclass
class PretrainingRun:
    """A pre-training run whose files were opened and whose options were checked.

    Attributes
    ----------
    model
        What is trained.
    training, held
        Cells to train on, and cells that choose the weights that are kept, if there are some.
    shown
        The latter with tokens of as many genes as the model reads when it embeds.
    prepared
        What the model is fitted to; its number of epochs is open.
    options
        What was asked for.
    cells_per_step
        Cells of a step of the optimizer, of all processes; with ``accumulate_tokens`` the expected number.
    n_processes
        How many processes train together.
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
            msg = f"max_epochs={options['max_epochs']!r}: pre-training counts its budget otherwise. Pass {', '.join(f'{name}=' for name in BUDGETS)}."
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
        # Every process looks at the same files; the first says what it finds.
        with settings.override(verbosity=settings.verbosity if is_first_process() else 0):
            training = stream(sources, fitted.vocab, **drawing, **made)
            held = None if validation is None else stream(validation, fitted.vocab, **made)
        twice = set() if held is None else {*held.files} & {*training.files}
        if paths := sorted(name for name in twice if Path(name).exists()):  # objects have no names of their own
            msg = f"validation= has {paths[0]}, which is trained on as well. Leave it out, so that some cells are held out."
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
        from scgalore.train.checkpoint import saved_run  # brings Lightning

        config, begun = self.prepared.config, saved_run(checkpoint_dir, resume=resume)
        if begun is None:
            config = self.with_steps(self.steps())
        else:
            config = replace(config, max_epochs=begun.get("max_epochs"), steps_per_epoch=begun.get("steps_per_epoch"))
        # What was asked for makes the run, and not the epochs alone: they are those of the run that is continued.
        asked = {name: getattr(self.options, name) for name in BUDGETS}
        asked["steps_per_epoch asked for"] = self.prepared.config.steps_per_epoch
        self.prepared = replace(self.prepared, config=config, identity={**self.prepared.identity, **asked})
        run: dict[str, Any] = {"checkpoint_dir": checkpoint_dir, "resume": resume, "logger": logger}
        self.model.fit(self.prepared, keep_best=self.options.keep_best, **run)

    def steps(self) -> int:
        """Steps of the optimizer that the budget is worth."""
        asked = self.options
        if asked.max_steps is not None:
            return asked.max_steps
        if asked.max_cells is not None:
            return -(-asked.max_cells // self.cells_per_step)
        assert asked.max_hours is not None
        seconds = self.seconds_per_step()
        steps = max(1, int(asked.max_hours * 3600 / seconds))
        logg.info(f"    a step takes {seconds:.2f} s here, so {duration(asked.max_hours * 3600)} are {steps:,} steps")
        return steps

    def seconds_per_step(self) -> float:
        """Time some steps on a copy of the network, each with its share of the validation after an epoch.

        Of several processes, the first one's clock counts.
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
        """What the run takes, with cells of the greatest length."""
        config, source = self.prepared.config, self.training
        n_cells, n_tokens = source.largest_batch(None, batch_plan(replace(config, max_epochs=1), source, None))
        network = self.model.network if self.prepared.network is None else self.prepared.network
        n_rows, objective = len(source.tokens()), self.prepared.objective
        return estimate_training(network, objective, config, n_cells=n_cells, n_tokens=n_tokens, n_rows=n_rows)

    def with_steps(self, steps: int) -> TrainConfig:
        """The configuration with epochs of equal length that take these steps, or a few more: fewer than there are epochs."""
        config = self.prepared.config
        assert config.steps_per_epoch is not None
        n_epochs = -(-steps // config.steps_per_epoch)
        return replace(config, steps_per_epoch=-(-steps // n_epochs), max_epochs=n_epochs)


def _starting_model(model: Any, sources: Any, read: dict[str, Any], seed: int) -> CellModel:
    if not isinstance(model, NetworkConfig):
        return as_model(model)
    known = GeneVocab.from_genes(sorted(symbols()))
    # A stream matches names of every kind, so the genes that it finds among all symbols are those of the files. What it says of them
    # is said when they are looked at for the model.
    with settings.override(verbosity=0):
        found = stream(sources, known, batch_size=1, **read).tokens()
    genes = [name for i in found if (name := known.tokens[i]) not in SPECIALS]
    logg.info(f"    a vocabulary of {len(genes):,} genes was made from the files")
    family = next(family for family in FAMILIES.values() if type(model) is family.config)
    vocab = GeneVocab.from_genes(genes, family.specials)
    config = model.replace(n_tokens=len(vocab), pad_id=vocab.pad_id)
    made: CellModel = family.model.from_config(config, vocab, rng=seed, family=family)
    return made
