"""Checks before cells are read, and default choices of a run."""

from __future__ import annotations

from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scgalore import __version__
from scgalore import _logging as logg
from scgalore._keys import GeneKeys
from scgalore._options import options_of
from scgalore.adapters import ADAPTERS
from scgalore.data.resolve import CELLS
from scgalore.data.results import refuse_overwrite
from scgalore.data.split import random_split
from scgalore.errors import DataError, DownloadError, OptionError
from scgalore.model.families import known_keys
from scgalore.optim import OPTIMIZERS
from scgalore.pipeline.cells import CellFile, data_digest
from scgalore.pipeline.config import RunConfig, training_options
from scgalore.tasks.call import TrainingCall
from scgalore.tasks.registry import task_named
from scgalore.train.budget import open_epochs, settle_budget
from scgalore.train.config import DEFAULT_GENES, TrainConfig
from scgalore.train.processes import training_processes
from scgalore.weights import list_weights, resolve_model_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scgalore.model import CellModel

__all__ = [
    "OWN_SPLIT",
    "SELECTED",
    "at_most_genes",
    "cell_files",
    "expected_epochs",
    "load_model",
    "complete_config",
    "training_call",
    "with_cells",
]

GENES = 3000
SELECTED = GeneKeys().selected
"""Key of the gene selection written by a run."""
OWN_SPLIT = "run_split"
"""Column with the split written by a run."""


def complete_config(config: RunConfig) -> tuple[RunConfig, CellFile]:
    """Check a configuration against its file, and complete it with default choices.

    Parameters
    ----------
    config
        Configuration by the user, or from a ``config.json``.

    Returns
    -------
    The configuration, complete except for choices of :func:`with_cells`, and the tables of the file.

    Raises
    ------
    OptionError, DataError, MissingKeyError
        If the run cannot be made. Nothing has been written.
    """
    assert config.task is not None
    task = task_named(config.task)
    training = _training(config)
    file = CellFile.of(Path(config.data))
    _check_file(config, file)
    curriculum = config.training.get("curriculum")
    sizes = {}
    if task.splits_cells and config.split_key is None:
        defaults = signature(random_split).parameters
        sizes = {name: getattr(config, name) for name in ("validation_size", "test_size")}
        sizes = {name: defaults[name].default if size is None else size for name, size in sizes.items()}
    settled = config.changed(
        **task.infer_arguments(file.obs, file.genes(config.gene_symbols), config.arguments),
        **sizes,
        **_complete(training, curriculum),
        split_key=config.split_key or task.own_split_key(file, config.arguments),
        model=_model_name(config.model),
        gene_strategy=config.gene_strategy or task.gene_strategy,
        version=__version__,
        data_sha256=_digest(config),
    )
    if config.version not in (None, __version__):
        logg.warning(
            f"The configuration was written by version {config.version}, but this is {__version__}: results may differ."
        )
    return settled, file


def cell_files(config: RunConfig) -> dict[str, str]:
    """Files with additional cells in arguments of the task, by argument."""
    assert config.task is not None
    kinds = {option.name: option.kind for option in task_named(config.task).arguments}
    return {name: path for name, path in config.arguments.items() if kinds[name] is CELLS and path is not None}


def at_most_genes(config: RunConfig, file: CellFile) -> int:
    """Maximum number of selected genes, if training cells express all of them."""
    return min(config.n_genes or GENES, len(file.var))


def expected_epochs(config: RunConfig, file: CellFile) -> int:
    """Approximate number of epochs if ``max_epochs`` is not set, before cells are sampled and split."""
    n_obs = len(file.obs)
    if config.split_key is not None:
        share = float((file.obs[config.split_key] == "train").mean())
    else:
        share = 1 - (config.validation_size or 0) - (config.test_size or 0)
    n_cells = n_obs if isinstance(config.max_cells, str) else min(config.max_cells, n_obs)
    return open_epochs(round(share * n_cells), _training(config))


def with_cells(config: RunConfig, n_expressed: int, sizes: Mapping[str, int]) -> RunConfig:
    """Complete the configuration with the number of genes, the length of training, and the phases of a curriculum.

    Parameters
    ----------
    config
        From :func:`complete_config`.
    n_expressed
        Number of genes expressed in training cells, which can be ranked.
    sizes
        Number of cells in each split.
    """
    if config.n_genes is None:
        config = config.changed(n_genes=min(GENES, n_expressed))
    budget = settle_budget(_training(config), sizes["train"], validated=sizes["validation"] > 0)
    config = config.changed(max_epochs=budget.max_epochs, patience=budget.patience)
    if config.training.get("curriculum") is not True:
        return config
    assert config.n_genes is not None
    fewer = [n for n in DEFAULT_GENES if n < min(config.n_genes, n_expressed)]
    # Each phase needs an epoch; the last one uses all genes.
    return config.changed(curriculum=[*fewer, config.n_genes][-config.training["max_epochs"] :])


def training_call(config: RunConfig) -> TrainingCall:
    """The training call of a run.

    Parameters
    ----------
    config
        From :func:`complete_config`. The layer of its file is ``X`` of the cells that are read.
    """
    return TrainingCall(
        config.arguments,
        _training(config),
        dict(config.training),
        reading=config.reading,
        split_key=config.split_key,
        validation_size=config.validation_size or 0.0,
        test_size=config.test_size or 0.0,
    )


def load_model(name: str) -> CellModel:
    """Load weights; errors explain how to start without a network connection."""
    from scgalore.model import load

    try:
        return load(name)
    except DownloadError as error:
        msg = f"{error}\nWithout a network connection, use the small weights bundled with scgalore: --model scgpt-mini"
        raise DownloadError(msg) from error


def _training(config: RunConfig) -> TrainConfig:
    assert config.task is not None
    options = {**task_named(config.task).training, **config.training}
    if options.get("curriculum") is True:
        del options["curriculum"]  # its phases depend on the selected genes and are checked later
    training = TrainConfig.from_call(options, seed=config.rng, function=RunConfig)
    if training_processes(training).size > 1:
        msg = "A run uses a single process. Omit devices=, num_nodes= and the launcher; sg.tl.finetune can use several."
        raise OptionError(msg)
    return training


def _complete(training: TrainConfig, curriculum: Any) -> dict[str, Any]:
    options = {option.name: getattr(training, option.name) for option in training_options()}
    options["optimizer_options"] = {**OPTIMIZERS[training.optimizer].options, **training.optimizer_options}
    if training.adapter is not None:
        options["adapter_options"] = {**ADAPTERS[training.adapter].options, **training.adapter_options}
    return {**options, "lr": training.peak_lr, "curriculum": curriculum or None}


def _check_file(config: RunConfig, file: CellFile) -> None:
    assert config.task is not None
    task = task_named(config.task)
    given = config.flat()
    for option in (*task.arguments, *options_of(RunConfig)):
        if option.column is not None:
            file.require(option.column, option.name, given[option.name])
    _refuse_overwrite(config)
    if not len(file.obs) or not len(file.var):
        msg = f"{file.path} is empty: {len(file.obs)} cells x {len(file.var)} genes."
        raise DataError(msg)
    for path in cell_files(config).values():
        other = CellFile.of(Path(path))
        for slot in ("layer", "gene_symbols", "depth_key"):
            other.require({"layer": "layers", "gene_symbols": "var", "depth_key": "obs"}[slot], slot, given[slot])
    for option in task.arguments:
        key = given[option.name]
        if option.name == task.key and option.column == "obs" and key is not None and not file.obs[key].notna().any():
            msg = f"No cell of {file.path} has a value in obs[{key!r}]."
            raise DataError(msg)


def _refuse_overwrite(config: RunConfig) -> None:
    """Raise an error if the run would overwrite a column that it reads."""
    assert config.task is not None
    task, call, keys = task_named(config.task), training_call(config), known_keys(config.model, "finetune")
    reads = [*task.reads(call), ("obs", "batch_key=", config.batch_key)]
    split = () if config.split_key is not None else (OWN_SPLIT,)
    refuse_overwrite({**GeneKeys(SELECTED).slots, "obs": split}, reads)
    if keys is not None:
        refuse_overwrite(task.writes(keys, replace(call, split_key=config.split_key or OWN_SPLIT)), reads)


def _model_name(name: str) -> str:
    """Name of registered weights, address of a commit, or absolute path of a folder, so that the run can be repeated from any directory."""
    if name in list_weights():
        return name
    folder, entry = resolve_model_folder(name)
    return str(folder.absolute()) if entry is None else entry.name


def _digest(config: RunConfig) -> str:
    found = data_digest(Path(config.data))
    if config.data_sha256 not in (None, found):
        msg = (
            f"{config.data} is not the file of the configuration: its sha256 is {found}, expected {config.data_sha256}. "
            "Pass the original file, or remove data_sha256 from the configuration."
        )
        raise DataError(msg)
    return found
