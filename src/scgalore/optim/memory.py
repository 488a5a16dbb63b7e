"""Measures the memory of weights, gradients and optimizer state."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scgalore._html import html_table
from scgalore._words import format_bytes
from scgalore.optim.subspace import state_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn
    from torch.optim import Optimizer

COLUMNS = ("", "tensors", "parameters", "weights", "gradients", "state", "AdamW's", "ratio")


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of memory that an optimizer's state occupies.

    Counts storages, each once: a view of a large tensor counts in full, since the large tensor stays in memory (and in
    the checkpoint) as long as the view does. Tensors inside lists, dictionaries and objects of the state are found too.

    Parameters
    ----------
    optimizer
        Any torch optimizer; before its first step most have no state yet.

    Returns
    -------
    Number of bytes, without weights and gradients.
    """
    return _live_bytes(optimizer.state, set())


@dataclass(frozen=True)
class MemoryRow:
    """One line of a :class:`MemoryReport`.

    Attributes
    ----------
    name
        The parameter group; ``frozen`` for parameters in no group, ``other`` for state that belongs to no parameter.
    n_tensors
        Number of parameter tensors.
    n_parameters
        Number of their elements.
    weights
        Bytes of the parameters.
    gradients
        Bytes of their existing gradients.
    state
        Bytes of the optimizer's state.
    adamw_state
        Bytes of AdamW's state: two moments in float32 (float64 for float64 weights) and a counter for each tensor.
    """

    name: str
    n_tensors: int = 0
    n_parameters: int = 0
    weights: int = 0
    gradients: int = 0
    state: int = 0
    adamw_state: int = 0


@dataclass(frozen=True)
class MemoryReport:
    """Bytes of weights, gradients and optimizer state; shown as a table when printed or in a notebook.

    Attributes
    ----------
    rows
        One :class:`MemoryRow` for each parameter group, then the remaining parameters and state.
    total
        Sum of the rows.
    """

    rows: tuple[MemoryRow, ...]
    total: MemoryRow

    def __str__(self) -> str:
        table = [COLUMNS, *self._cells()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = []
        for name, *cells in table:
            right = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
            lines.append("  ".join((f"{name:<{widths[0]}}", *right)))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return html_table(COLUMNS, self._cells())

    def _cells(self) -> list[tuple[str, ...]]:
        table = []
        for row in (*self.rows, self.total):
            ratio = f"{row.state / row.adamw_state:.1%}" if row.adamw_state else "-"
            sizes = [format_bytes(size) for size in (row.weights, row.gradients, row.state, row.adamw_state)]
            table.append((row.name, f"{row.n_tensors:,}", f"{row.n_parameters:,}", *sizes, ratio))
        return table


def memory_report(module: nn.Module, optimizer: Optimizer) -> MemoryReport:
    """Bytes of weights, gradients and optimizer state that are in memory now, by parameter group.

    Counts storages as :func:`state_bytes` does, each once in the whole report. Call it after a step: before the first
    one most optimizers have no state, and after ``zero_grad()`` there are no gradients. Activations and buffers are not
    counted.

    Parameters
    ----------
    module
        The trained network; its parameters that are in no group are the row ``frozen``.
    optimizer
        Any torch optimizer.

    Returns
    -------
    The rows and their total, with the bytes of AdamW's state for comparison.

    Examples
    --------
    >>> import torch
    >>> import scgalore as sg
    >>> network = torch.nn.Linear(64, 64)
    >>> optimizer = sg.optim.build_optimizer("galore", network, rank=8)
    >>> network(torch.randn(2, 64)).sum().backward()
    >>> optimizer.step()
    >>> report = sg.optim.memory_report(network, optimizer)
    >>> report.total.state, report.total.adamw_state
    (6660, 33288)
    """
    seen: set[tuple[torch.device, int]] = set()
    grouped = [param for group in optimizer.param_groups for param in group["params"]]
    rows = [
        _row(group.get("name", f"group {number}"), group["params"], optimizer, seen)
        for number, group in enumerate(optimizer.param_groups)
    ]
    known = {id(param) for param in grouped}
    if frozen := [param for param in module.parameters() if id(param) not in known]:
        rows.append(_row("frozen", frozen, None, seen))
    if other := _live_bytes(optimizer.state, seen):
        rows.append(MemoryRow("other", state=other))
    sums = (sum(column) for column in zip(*(astuple(row)[1:] for row in rows), strict=True))
    return MemoryReport(tuple(rows), MemoryRow("total", *sums))


def adamw_bytes(param: Tensor) -> int:
    """Bytes of AdamW's state of a parameter: two moments and a counter in float32."""
    return 2 * param.numel() * state_dtype(param.dtype).itemsize + torch.float32.itemsize


def _row(
    name: str, params: Sequence[Tensor], optimizer: Optimizer | None, seen: set[tuple[torch.device, int]]
) -> MemoryRow:
    states = [optimizer.state[param] for param in params if param in optimizer.state] if optimizer else []
    return MemoryRow(
        name,
        n_tensors=len(params),
        n_parameters=sum(param.numel() for param in params),
        weights=_live_bytes(params, seen),
        gradients=_live_bytes([param.grad for param in params], seen),
        state=_live_bytes(states, seen),
        adamw_state=sum(map(adamw_bytes, params)) if optimizer else 0,
    )


def _live_bytes(value: Any, seen: set[tuple[torch.device, int]]) -> int:
    """Bytes of the storages in a value that were not counted before."""
    total = 0
    for tensor in _tensors(value, set()):
        storage = tensor.untyped_storage()
        if storage.nbytes() and (key := (tensor.device, storage.data_ptr())) not in seen:
            seen.add(key)
            total += storage.nbytes()
    return total


def _tensors(value: Any, visited: set[int]) -> Iterator[Tensor]:
    if id(value) in visited:
        return
    visited.add(id(value))
    if isinstance(value, Tensor):
        yield from _with_storage(value)
    elif isinstance(value, dict):
        # The keys of a state are the parameters, which are not state.
        for item in value.values():
            yield from _tensors(item, visited)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _tensors(item, visited)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from _tensors(vars(value), visited)


def _with_storage(tensor: Tensor) -> Iterator[Tensor]:
    # Sparse tensors and wrappers (quantised moments, sharded weights) have no storage of their own.
    if tensor.layout == torch.sparse_coo:
        yield from (tensor._indices(), tensor._values())
    elif hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _with_storage(getattr(tensor, name))
    else:
        yield tensor
