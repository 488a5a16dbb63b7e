"""Selection of CPU kernels, PyTorch's or those of this package, by settings or by measurements on this machine."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from scgalore._settings import settings
from scgalore.nn.cpu.measure import CASES, Case, faster_than_torch, layer_gain
from scgalore.nn.cpu.onednn import is_available
from scgalore.nn.cpu.traced import as_elsewhere

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

__all__ = ["differentiates", "gain_of_bfloat16", "kernels", "kernels_in_words", "takes", "using_kernels"]

# A choice holds until the process ends, so that repeated calls are bit-identical.
_measured: dict[torch.dtype, frozenset[Case]] = {}
_gains: dict[tuple[frozenset[Case], ...], float] = {}
_mode: str | None = None  # of a resumed run, instead of the setting


def takes(part: str, x: Tensor, *, large: bool = False, backward: bool = False) -> bool:
    """Whether to use the kernel of this package instead of PyTorch's.

    Parameters
    ----------
    part
        ``"product"``, ``"attention"`` or ``"dropout"``. Dropout is not measured, since its random numbers must not depend on the processor.
    x
        An input of the layer.
    large, backward
        As for :class:`~scgalore.nn.cpu.measure.Case`.
    """
    return x.device.type == "cpu" and _chosen(part, x.dtype, large, backward)


def differentiates(*tensors: Tensor | None) -> bool:
    """Whether an operation on these tensors needs a backward pass."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _chosen(part: str, dtype: torch.dtype, large: bool, backward: bool) -> bool:  # noqa: FBT001
    mode = "torch" if as_elsewhere() else _mode or settings.cpu_kernels
    if mode == "torch" or part == "dropout":
        return mode != "torch"
    case = Case(part, large, backward)
    if case not in CASES.get(dtype, ()):
        return False
    return is_available() if mode == "onednn" else case in _faster(dtype)


# torch.compile calls it once and compiles the chosen kernel, as with torch.compiler.assume_constant_result, which would
# import the compiler.
_chosen._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _faster(dtype: torch.dtype) -> frozenset[Case]:
    if dtype not in _measured:
        _measured[dtype] = faster_than_torch(dtype)
    return _measured[dtype]


def kernels_in_words(dtype: torch.dtype) -> str:
    """Kernels of this package used with a dtype, such as ``"onednn: large product"``, or ``"torch"``, as text.

    Parameters
    ----------
    dtype
        Dtype of the computation.
    """
    own = _own(dtype)
    return f"onednn: {'; '.join(case.name for case in CASES[dtype] if case in own)}" if own else "torch"


def gain_of_bfloat16() -> float:
    """Speed of a layer in bfloat16 relative to float32 on this machine, in the forward pass, with the selected kernels."""
    own = {dtype: _own(dtype) for dtype in CASES}
    key = tuple(own.values())
    if key not in _gains:
        _gains[key] = layer_gain(own)
    return _gains[key]


def _own(dtype: torch.dtype) -> frozenset[Case]:
    cases = CASES.get(dtype, ())
    return frozenset(case for case in cases if _chosen(case.part, dtype, case.large, case.backward))


def kernels(*, complete: bool = False) -> dict[str, Any]:
    """Selected kernels as plain values, for :func:`using_kernels`.

    Parameters
    ----------
    complete
        Whether to also select kernels that were not needed yet.
    """
    if complete:
        for dtype in CASES:
            _faster(dtype)
    faster = {str(dtype): sorted(case.name for case in cases) for dtype, cases in _measured.items()}
    return {"mode": _mode or settings.cpu_kernels, "faster": faster}


@contextmanager
def using_kernels(chosen: Mapping[str, Any] | None) -> Iterator[None]:
    """Use the kernels of a resumed run or of another process; ``None`` changes nothing.

    Parameters
    ----------
    chosen
        Result of :func:`kernels`; unknown names are replaced by PyTorch's kernels.
    """
    global _mode
    if chosen is None:
        yield
        return
    before = _mode, dict(_measured)
    _mode = str(chosen["mode"])
    for dtype, cases in CASES.items():
        if (names := chosen["faster"].get(str(dtype))) is not None:
            _measured[dtype] = frozenset(case for case in cases if case.name in names and is_available())
    try:
        yield
    finally:
        _mode = before[0]
        _measured.clear()
        _measured.update(before[1])
