"""Everything that can be found wrong before cells are read, and every choice that was left to the run."""

from __future__ import annotations

from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scgalore import __version__
from scgalore import _logging as logg
from scgalore.adapters import ADAPTERS
from scgalore.data.split import random_split
from scgalore.errors import DataError, DownloadError, OptionError
from scgalore.optim import OPTIMIZERS
from scgalore.perturb.labels.conditions import Conditions
from scgalore.pipeline.cells import CellFile, data_digest
from scgalore.pipeline.config import TRAINING, RunConfig
from scgalore.tl._finetune_screen import SCREEN_DEFAULTS, SPLIT
from scgalore.train.config import DEFAULT_GENES, TrainConfig
from scgalore.train.processes import training_processes
from scgalore.weights import list_weights, resolve_model_folder

if TYPE_CHECKING:
    from scgalore.model import SCGPT

__all__ = ["at_most_genes", "load_model", "settle", "with_genes"]

GENES = 3000


def settle(config: RunConfig) -> tuple[RunConfig, CellFile]:
    """Check a configuration against its file, and make every choice in it.

    Parameters
    ----------
    config
        As the user gave it, or from a ``config.json``.

    Returns
    -------
    The configuration, complete but for what :func:`with_genes` decides, and what was read of the file: its tables.

    Raises
    ------
    OptionError, DataError, MissingKeyError
        If the run cannot be made. Nothing has been written.
    """
    training = _training(config)
    file = CellFile.of(Path(config.data))
    _check_file(config, file)
    perturbed = _perturbations(config, file)
    if config.genes is not None and config.genes > len(file.var):
        msg = f"genes={config.genes}: {file.path} has {len(file.var):,}. Ask for fewer, or leave genes out."
        raise OptionError(msg)
    if config.phases is not None and config.genes is not None and max(config.phases) > config.genes:
        msg = f"phases={list(config.phases)} go beyond genes={config.genes}. Select more, or end the phases there."
        raise OptionError(msg)
    settled = replace(
        config,
        **perturbed,
        **_sizes(config),
        **{name: getattr(training, theirs) for name, theirs in TRAINING.items()},
        model=_model_name(config.model),
        gene_strategy=config.gene_strategy or ("perturbation" if config.task == "perturbation" else "biological"),
        train_options=_further(training),
        version=__version__,
        data_sha256=_digest(config),
    )
    if config.version not in (None, __version__):
        logg.warning(
            f"The configuration is of version {config.version}, and this is {__version__}: numbers may differ."
        )
    return settled, file


def at_most_genes(config: RunConfig, file: CellFile) -> int:
    """How many genes would be selected if training cells expressed all of them."""
    return config.genes or min(GENES, len(file.var))


def with_genes(config: RunConfig, n_expressed: int) -> RunConfig:
    """Decide how many genes are selected, and the phases, where that was left to the run.

    Parameters
    ----------
    config
        From :func:`settle`.
    n_expressed
        Genes that a training cell expresses: no others can be ranked.
    """
    genes = config.genes or min(GENES, n_expressed)
    if config.strategy == "plain":
        return replace(config, genes=genes)
    epochs = config.epochs
    assert epochs is not None
    # Each phase needs an epoch.
    phases = (*(n for n in DEFAULT_GENES if n < genes), genes)[-epochs:]
    return replace(config, genes=genes, phases=config.phases or phases)


def load_model(name: str) -> SCGPT:
    """Load weights, with a way out for who has no network."""
    from scgalore.model import SCGPT

    try:
        return SCGPT.from_pretrained(name)
    except DownloadError as error:
        msg = f"{error}\nWithout a network, start from the small weights that come with scgalore: --model scgpt-mini"
        raise DownloadError(msg) from error


def _training(config: RunConfig) -> TrainConfig:
    options = {**(SCREEN_DEFAULTS if config.task == "perturbation" else {}), **config.train_config()}
    if config.strategy == "progressive" and config.phases is not None:
        options["curriculum"] = list(config.phases)  # so that phases and epochs are held against each other
    training = TrainConfig.from_call(options, seed=config.seed, function=RunConfig)
    if training_processes(training).size > 1:
        msg = "A run is made by one process. Leave out devices=, num_nodes= and the launcher; sg.tl.finetune can use several."
        raise OptionError(msg)
    return training


def _further(training: TrainConfig) -> dict[str, Any]:
    options = {**training.to_dict(), "lr": training.peak_lr}
    options["optimizer_options"] = {**OPTIMIZERS[training.optimizer].options, **training.optimizer_options}
    if training.adapter is not None:
        options["adapter_options"] = {**ADAPTERS[training.adapter].options, **training.adapter_options}
    return {name: value for name, value in options.items() if name not in {*TRAINING.values(), "seed", "curriculum"}}


def _check_file(config: RunConfig, file: CellFile) -> None:
    for name in ("labels_key", "pert_key", "context_key", "batch_key", "split_key"):
        file.require("obs", name, getattr(config, name))
    file.require("var", "gene_symbols", config.gene_symbols)
    file.require("layers", "layer", config.layer)
    if not len(file.obs) or not len(file.var):
        msg = f"{file.path} is empty: {len(file.obs)} cells x {len(file.var)} genes."
        raise DataError(msg)
    key = config.labels_key or config.pert_key
    if key is not None and not file.obs[key].notna().any():
        msg = f"No cell of {file.path} has a value in obs[{key!r}]."
        raise DataError(msg)


def _perturbations(config: RunConfig, file: CellFile) -> dict[str, Any]:
    if config.pert_key is None:
        return {}
    labels = file.obs[config.pert_key].tolist()
    found = Conditions.from_labels(labels, control=config.control, separator=config.separator)
    # As sg.tl.finetune does: a split of perturbations that is there is meant.
    split_key = config.split_key or (SPLIT if SPLIT in file.obs else None)
    return {"control": found.control, "separator": found.separator, "split_key": split_key}


def _sizes(config: RunConfig) -> dict[str, Any]:
    if config.task == "perturbation" or config.split_key is not None:
        return {}
    defaults = signature(random_split).parameters
    names = ("validation_size", "test_size")
    given = {name: getattr(config, name) for name in names}
    return {name: defaults[name].default if value is None else value for name, value in given.items()}


def _model_name(name: str) -> str:
    """Name of registered weights, or the whole path of a folder, so that the run can be repeated from anywhere."""
    if name in list_weights():
        return name
    return str(resolve_model_folder(name)[0].absolute())


def _digest(config: RunConfig) -> str:
    found = data_digest(Path(config.data))
    if config.data_sha256 not in (None, found):
        msg = (
            f"{config.data} is not what the configuration was made with: its sha256 is {found}, and was {config.data_sha256}. "
            "Give the original file, or remove data_sha256 from the configuration."
        )
        raise DataError(msg)
    return found
