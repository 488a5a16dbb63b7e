"""Memory of a fine-tuning call, and savings by each setting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from scgalore._docs import shared_parameters
from scgalore._settings import settings
from scgalore.errors import OptionError
from scgalore.model.cell_model import CellModel
from scgalore.model.families import FAMILIES, load
from scgalore.nn import NetworkConfig
from scgalore.nn.blank import on_meta_device
from scgalore.tasks.registry import DEFAULT, TASKS, task_named
from scgalore.train.config import DEFAULT_BATCH_SIZE, TrainConfig
from scgalore.train.estimate import MemoryEstimate, estimate_training
from scgalore.train.trace import on_meta
from scgalore.weights import get_entry, list_weights

if TYPE_CHECKING:
    from scgalore._typing import PathLike
    from scgalore.nn import CellNetwork
    from scgalore.objectives import Objective

__all__ = ["estimate_memory", "savings"]

MAPS_AT_ONCE = 3
"""Number of score maps per block while attention is computed without a fused kernel."""


@shared_parameters
def estimate_memory(
    model: PathLike | CellModel | NetworkConfig = "scgpt",
    *,
    genes_per_cell: int,
    batch_size: int = DEFAULT_BATCH_SIZE,
    task: str | None = None,
    n_vars: int | None = None,
    optimizer: str = "galore",
    precision: str = "32-true",
    gradient_checkpointing: bool = False,
    **options: Any,
) -> MemoryEstimate:
    """Estimate the memory of :func:`scgalore.tl.finetune` before training.

    Does not load weights or allocate memory, unless you pass a folder or a model. Parameters, gradients and
    optimizer state are exact. Activations and working memory are traced in one step on tensors without data;
    they were verified against autograd and the memory of processes on CPUs, but not on a GPU.

    Parameters
    ----------
    {model}
        Or a configuration such as :class:`scgalore.nn.SCGPTConfig`.
    genes_per_cell
        Number of genes of the longest cell that become tokens: the expressed ones, or those that a perturbation model
        reads. A network that reads all of its genes, such as scBERT, uses these instead.
    batch_size
        Number of cells per batch.
    task
        Entry of :data:`scgalore.tasks.TASKS`; by default the task whose sizes are given, such as ``n_classes``, else
        masked expression.
    n_vars
        Number of genes of the data in the model's vocabulary, whose embeddings are trained with ``embedding="rows"``;
        by default ``genes_per_cell``.
    optimizer
        Entry of :data:`scgalore.optim.OPTIMIZERS`.
    precision
        ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
    gradient_checkpointing
        Whether blocks are recomputed in the backward pass.
    **options
        Sizes of the task's heads: ``n_classes``. Other fields of :class:`~scgalore.train.TrainConfig`, such as
        ``accelerator="cuda"``, ``embedding``, ``adapter``, ``per_layer_update`` or ``max_length``.

    Returns
    -------
    The estimate: bytes by component, their ``peak``, and settings that would reduce it. Its ``str()`` is a table.

    Raises
    ------
    OptionError
        If an option does not exist or has a value out of range, or the sizes of the model are unknown without its
        files.

    See Also
    --------
    scgalore.model.savings : Memory as memory-saving settings are added.
    scgalore.pl.memory : Draw the memory of a run by component.
    scgalore.train.estimate_training : Estimate the memory of training any network.

    Examples
    --------
    >>> import scgalore as sg
    >>> estimate = sg.estimate_memory("scgpt", genes_per_cell=1200, batch_size=8, accelerator="cuda")
    >>> options = {"gradient_checkpointing": True, "accelerator": "cuda"}
    >>> less = sg.estimate_memory("scgpt", genes_per_cell=1200, batch_size=8, **options)
    >>> less.peak < estimate.peak / 3
    True
    """
    names = {option.name for one in TASKS.values() for option in one.sizes}
    sizes = {name: options.pop(name) for name in names & options.keys()}
    network, objective = _trained_for(model, task, sizes)
    n_genes, n_cells = _count("genes_per_cell", genes_per_cell), _count("batch_size", batch_size)
    family = next((family for family in FAMILIES.values() if family.config is type(network.config)), None)
    if family is not None and family.tokenizer(network.config, max_length=None, seed=0).every_gene:
        n_genes = network.config.max_length - 1
    config = TrainConfig.from_options(
        **{
            "accelerator": settings.accelerator,
            **options,
            "batch_size": n_cells,
            "optimizer": optimizer,
            "precision": precision,
            "gradient_checkpointing": gradient_checkpointing,
        }
    )
    n_tokens = n_genes + 1
    if config.max_length is not None:
        n_tokens = min(n_tokens, config.max_length)
    if config.batch_tokens is not None:
        n_cells = min(n_cells, max(1, config.batch_tokens // n_tokens))
    n_processes = config.devices if isinstance(config.devices, int) and config.devices > 0 else 1
    return estimate_training(
        network,
        objective,
        config,
        n_cells=n_cells,
        n_tokens=n_tokens,
        n_rows=max(n_genes, n_genes if n_vars is None else _count("n_vars", n_vars)) + 2,
        n_processes=n_processes * config.num_nodes,
    )


@shared_parameters
def savings(
    model: PathLike | CellModel | NetworkConfig = "scgpt",
    *,
    genes_per_cell: int,
    batch_size: int = DEFAULT_BATCH_SIZE,
    fewer_genes: int | None = None,
    naive: bool = False,
    **options: Any,
) -> pd.DataFrame:
    """Memory of a run as memory-saving settings are added one by one.

    Starts with AdamW in float32 on the whole gene embedding. Each row keeps the settings of those before it:
    the rows of the genes in the data, GaLore, bfloat16, gradient checkpointing, updates in the backward pass, fewer
    genes.

    Parameters
    ----------
    {model}
        Or a configuration such as :class:`scgalore.nn.SCGPTConfig`.
    genes_per_cell, batch_size
        As for :func:`estimate_memory`.
    fewer_genes
        Number of genes in the last row; by default half of ``genes_per_cell``.
    naive
        Whether to add a first row for attention that stores its probabilities, as in networks without a fused kernel.
        This row is computed by a formula and is not an available setting.
    **options
        Other parameters of :func:`estimate_memory`.

    Returns
    -------
    One row per setting, with the bytes of each component and their ``peak``, for :func:`scgalore.pl.memory`.

    See Also
    --------
    scgalore.estimate_memory : Estimate the memory of fine-tuning.
    scgalore.pl.memory : Draw the memory of a run by component.

    Examples
    --------
    >>> import scgalore as sg
    >>> table = sg.model.savings("scgpt", genes_per_cell=3000, batch_size=8, accelerator="cuda")
    >>> bool((table["peak"].diff().dropna() <= 0).all())
    True
    """
    turned: dict[str, Any] = {"optimizer": "adamw", "embedding": "full", "clip_norm": float("inf")}
    genes = {"genes_per_cell": genes_per_cell, "n_vars": options.pop("n_vars", None) or genes_per_cell}
    fewer = max(1, genes_per_cell // 2) if fewer_genes is None else fewer_genes
    steps: list[tuple[str, dict[str, Any]]] = [
        ("AdamW, float32, whole table", {}),
        ("rows of the genes in the data", {"embedding": "rows"}),
        ("GaLore", {"optimizer": "galore"}),
        ("bfloat16", {"precision": "bf16-mixed"}),
        ("gradient checkpointing", {"gradient_checkpointing": True}),
        ("update in the backward pass", {"per_layer_update": True}),
        (f"{fewer:,} genes per cell", {"genes_per_cell": fewer}),
    ]
    rows: dict[str, MemoryEstimate] = {}
    for name, change in steps:
        turned |= change
        rows[name] = estimate_memory(model, batch_size=batch_size, **{**genes, **options, **turned})
    if naive:
        first = next(iter(rows))
        maps = _materialised(rows[first], _network_of(model).config, genes_per_cell + 1, batch_size)
        rows = {"attention maps kept (formula)": maps, **rows}
    table = pd.DataFrame({name: {**row.parts(), "peak": row.peak} for name, row in rows.items()})
    return table.T.rename_axis("setting")


def _materialised(estimate: MemoryEstimate, sizes: Any, n_tokens: int, n_cells: int) -> MemoryEstimate:
    """Estimate with one map of attention probabilities stored per block, in float32."""
    one = 4 * n_cells * sizes.n_heads * n_tokens**2
    kept, workspace = estimate.activations + sizes.n_layers * one, estimate.workspace + MAPS_AT_ONCE * one
    return replace(estimate, activations=kept, workspace=workspace, weigh=tuple)


def _trained_for(
    model: PathLike | CellModel | NetworkConfig, task: str | None, sizes: dict[str, Any]
) -> tuple[CellNetwork, Objective]:
    """The network to train, on the meta device, and its objective."""
    given = {name: value for name, value in sizes.items() if value is not None}
    owners = [one for one in TASKS.values() if given.keys() & {option.name for option in one.sizes}]
    chosen = task_named(task) if task is not None else (owners or [TASKS[DEFAULT]])[0]
    own = {option.name: option for option in chosen.sizes}
    for name, value in given.items():
        if name not in own:
            msg = f"{name}={value!r} is for task={owners[0].name!r}, not for task={task!r}. Omit one of them."
            raise OptionError(msg)
        own[name].check(value)
    with on_meta_device():
        network = chosen.network_for(on_meta(_network_of(model)))
        objective = chosen.objective_for(network, given)
        if objective.heads:
            network.put_heads(network.fresh_heads(objective.heads))
    return network, objective


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < 1:
        msg = f"{name}={value!r}: it must be a whole number, at least 1."
        raise OptionError(msg)
    return int(value)


def _network_of(model: PathLike | CellModel | NetworkConfig) -> CellNetwork:
    """A network of these sizes; on the meta device if its files are not needed."""
    if isinstance(model, CellModel):
        return model.network
    if isinstance(model, NetworkConfig):
        (family,) = (family for family in FAMILIES.values() if type(model) is family.config)
        with on_meta_device():
            return family.network(model)
    if not isinstance(model, str) or model not in list_weights():
        return load(model).network
    for family in FAMILIES.values():
        if model in family.sizes:
            return _network_of(family.sizes[model])
    entry = get_entry(model)
    folder = settings.cachedir / model
    if not entry.bundled and not all((Path(folder) / file.name).exists() for file in entry.files):
        first = "Pass" if entry.refusal else f"Call sg.weights.fetch_weights({model!r}), or pass"
        msg = f"The sizes of {model!r} are unknown before its files are downloaded. {first} a folder, a model or a configuration."
        raise OptionError(msg)
    return load(model).network
