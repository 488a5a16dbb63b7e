"""Checks weights for NaN and infinity when they are read."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from scgalore._json import named
from scgalore.errors import WeightsError

__all__ = ["is_finite", "refuse_not_finite", "tensors_in"]


def is_finite(tensor: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether all values are finite, also after conversion to another dtype.

    Parameters
    ----------
    tensor
        Of any dtype.
    dtype
        Dtype it will be converted to.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # One pass without a copy; minimum and maximum are NaN if any value is.
    low, high = (float(end) for end in torch.aminmax(tensor.detach()))
    most = torch.finfo(dtype if dtype is not None and dtype.is_floating_point else tensor.dtype).max
    return -most <= low and high <= most


def refuse_not_finite(
    tensors: Mapping[str, Tensor], *, where: Any, dtypes: Mapping[str, torch.dtype] | None = None
) -> None:
    """Raise :class:`~scgalore.errors.WeightsError` if there is NaN or infinity in any tensor.

    Parameters
    ----------
    tensors
        Tensors by name, for the message.
    where
        Source of the tensors, for the message.
    dtypes
        Dtype each will be converted to.
    """
    dtypes = dtypes or {}
    bad = {name: tensor for name, tensor in tensors.items() if not is_finite(tensor, dtypes.get(name))}
    if not bad:
        return
    counts = []
    for name, tensor in list(bad.items())[:4]:
        n_nan = int(tensor.isnan().sum())
        n_infinite = int((~torch.isfinite(tensor.to(dtypes.get(name, tensor.dtype)))).sum()) - n_nan
        parts = [f"{n:,} {what}" for n, what in ((n_nan, "NaN"), (n_infinite, "infinite")) if n]
        counts.append(f"{named(name)} ({' and '.join(parts)} of {tensor.numel():,} values)")
    more = f" and {len(bad) - 4} more tensors" if len(bad) > 4 else ""
    msg = (
        f"{where} holds values that are not finite: {', '.join(counts)}{more}. The run that wrote them diverged or left the "
        "range of its precision: take weights of an earlier epoch, or train again with a lower lr or precision='32-true'."
    )
    raise WeightsError(msg)


def tensors_in(content: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors of nested dicts, lists and tuples, with their places."""
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from tensors_in(value, f"{name}.{key}" if name else str(key))
    elif isinstance(content, list | tuple):
        for number, value in enumerate(content):
            yield from tensors_in(value, f"{name}.{number}")
