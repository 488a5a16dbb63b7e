"""What an optimizer keeps, counted rather than computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.optim import Optimizer


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of memory that an optimizer's state keeps alive.

    Counts storages, each once: a view of a large tensor counts in full, since the large tensor stays in memory (and in
    the checkpoint) as long as the view does. Tensors inside lists, dictionaries and objects of the state are found too.

    Parameters
    ----------
    optimizer
        Any torch optimizer; before its first step most have no state yet.

    Returns
    -------
    The number of bytes, weights and gradients not included.
    """
    storages = {}
    for tensor in _tensors(optimizer.state, set()):
        storage = tensor.untyped_storage()
        storages[tensor.device, storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        # The keys of a state are the parameters themselves: not state.
        for item in value.values():
            yield from _tensors(item, seen)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _tensors(item, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from _tensors(vars(value), seen)
