"""Times of kernels on this machine, measured once and stored in the cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import torch
import torch.nn.functional as F

from scgalore import __version__
from scgalore._settings import settings
from scgalore.nn.cpu.blockwise import attend_in_blocks
from scgalore.nn.cpu.onednn import is_available, product

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

__all__ = ["CASES", "LONG", "WIDE", "Case", "faster_than_torch", "layer_gain"]

WIDE = 2**16
"""Minimum number of elements of a large weight."""

LONG = 512
"""Number of tokens above which a cell is large."""

MARGIN = 1.1
"""Minimum speed of a kernel relative to PyTorch's to be chosen, so that the choice does not depend on measurement noise."""

REPEATS = 4
ROWS, WIDTHS = 1024, {False: (192, 64), True: (512, 512)}
CELLS, TOKENS = {False: 4, True: 1}, {False: 128, True: 640}
HEADS, HEAD_WIDTH = 4, 64


class Case(NamedTuple):
    """Operation that a kernel is selected for.

    Attributes
    ----------
    part
        ``"product"`` or ``"attention"``.
    large
        Whether the weight has at least :data:`WIDE` elements, or cells have more than :data:`LONG` tokens.
    backward
        Whether gradients are computed as well.
    """

    part: str
    large: bool
    backward: bool

    @property
    def name(self) -> str:
        """Description of the case."""
        return f"{'large' if self.large else 'small'} {self.part}{', backward' if self.backward else ''}"


CASES: dict[torch.dtype, tuple[Case, ...]] = {
    torch.float32: tuple(Case("product", large, backward) for large in (False, True) for backward in (False, True)),
    # PyTorch multiplies bfloat16 with oneDNN as well; only the overhead of the forward pass is smaller here.
    torch.bfloat16: (
        *(Case("product", large, False) for large in (False, True)),  # noqa: FBT003
        *(Case("attention", large, backward) for large in (False, True) for backward in (False, True)),
    ),
}
"""Cases to choose kernels for. Attention in float32 uses PyTorch's: no other kernel was faster in both passes on any processor."""


def faster_than_torch(dtype: torch.dtype) -> frozenset[Case]:
    """Cases in which the kernel of this package is faster by :data:`MARGIN`, from stored or new measurements on this machine.

    Parameters
    ----------
    dtype
        One of :data:`CASES`.
    """
    if not is_available():
        return frozenset()
    kept = _kept(_name(dtype), partial(_measure, dtype))
    return frozenset(case for case in CASES[dtype] if kept.get(case.name, 0.0) >= MARGIN)


def layer_gain(own: Mapping[torch.dtype, frozenset[Case]]) -> float:
    """Speed of a layer in bfloat16 relative to float32, in the forward pass.

    Parameters
    ----------
    own
        Cases that use the kernel of this package.
    """
    names = sorted(f"{_name(dtype)} {case.name}" for dtype, cases in own.items() for case in cases)
    digest = hashlib.sha256("; ".join(names).encode()).hexdigest()[:8]
    return _kept(f"gain-of-bfloat16-{digest}", lambda: {"gain": _gain(own)})["gain"]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _measure(dtype: torch.dtype) -> dict[str, float]:
    """Speed of the kernel of this package relative to PyTorch's, for each case."""
    ratios: dict[str, float] = {}
    for case in CASES[dtype]:
        # The forward pass before a backward pass is that of the cases without one.
        forward = ratios.get(case._replace(backward=False).name, 0.0) >= MARGIN
        torchs, ours = _seconds(
            [_call(case, dtype, own=own, forward=forward or not case.backward) for own in (False, True)]
        )
        ratios[case.name] = torchs / ours
    return ratios


def _gain(own: Mapping[torch.dtype, frozenset[Case]]) -> float:
    """Speed of a layer with six products of 512 x 512 per token, and attention with eight heads."""
    times = []
    for part in ("product", "attention"):
        case = Case(part, large=True, backward=False)
        times.append(_seconds([_call(case, dtype, own=case in own[dtype]) for dtype in CASES]))
    products, attention = times
    n_products, n_attentions = 6 * TOKENS[True] / ROWS, 8 / HEADS
    wide, narrow = (n_products * a + n_attentions * b for a, b in zip(products, attention, strict=True))
    return wide / narrow


def _call(case: Case, dtype: torch.dtype, *, own: bool, forward: bool = True) -> Callable[[], object]:
    """Function that computes one case with the kernel of this package or PyTorch's."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    kernel = _kernel(case.part, own=own, forward=forward)
    if case.part == "product":
        d_out, d_in = WIDTHS[case.large]
        inputs = [draw(ROWS, d_in), draw(d_out, d_in), draw(d_out)]
    else:
        # In the layout of a layer: queries, keys and values next to each other, tokens before heads.
        packed = draw(CELLS[case.large], TOKENS[case.large], 3, HEADS, HEAD_WIDTH)
        inputs = [part.transpose(1, 2) for part in packed.unbind(2)]
    if not case.backward:
        return lambda: _without_gradients(kernel, inputs)
    for tensor in inputs:
        tensor.requires_grad_()
    pull = torch.ones_like(kernel(*inputs))
    return lambda: torch.autograd.grad(kernel(*inputs), inputs, pull)


def _kernel(part: str, *, own: bool, forward: bool) -> Callable[..., Tensor]:
    if part == "product":
        return product if own else F.linear
    return partial(attend_in_blocks, forward=forward) if own else F.scaled_dot_product_attention


@torch.no_grad()
def _without_gradients(kernel: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Tensor:
    return kernel(*inputs)


def _seconds(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Minimum CPU time of each function, measured in turn; other processes can only increase it."""
    for call in calls:
        call()
    least = [float("inf")] * len(calls)
    for _ in range(REPEATS):
        for number, call in enumerate(calls):
            begin = time.process_time()
            call()
            least[number] = min(least[number], time.process_time() - begin)
    return [max(seconds, 1e-9) for seconds in least]


def _kept(name: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Measurements from the cache folder, or new ones, which are written there.

    If several processes measure at the same time, all use the results of the first one that writes. If nothing can be
    written, each process uses its own.
    """
    path = _path(name)
    found = _read(path)
    if found is None:
        # In a separate thread, gradient mode, autocast, hooks and dispatch modes of the caller are not active.
        with ThreadPoolExecutor(1) as thread:
            found = thread.submit(measure).result()
        _write_first(path, {"machine": _machine(), "ratios": found})
        found = _read(path) or found
    return found


def _path(name: str) -> Path:
    digest = hashlib.sha256(json.dumps(_machine(), sort_keys=True).encode()).hexdigest()[:16]
    return settings.cachedir / "cpu_kernels" / f"{name}-{digest}.json"


def _read(path: Path) -> dict[str, float] | None:
    try:
        ratios = json.loads(path.read_text(encoding="utf-8"))["ratios"]
        return {str(name): float(ratio) for name, ratio in ratios.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write_first(path: Path, content: dict[str, Any]) -> None:
    """Write a complete file, unless a valid one exists by now."""
    draft = path.with_name(f".{uuid4().hex[:8]}.draft")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            if path.exists() and _read(path) is None:
                draft.replace(path)
            else:
                os.link(draft, path)  # fails if the file exists, unlike a rename
        finally:
            draft.unlink(missing_ok=True)


def _machine() -> dict[str, Any]:
    """What times depend on: processor, instruction sets, number of threads, and versions of the kernels."""
    return {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "limits": {name: os.environ[name] for name in _LIMITS if name in os.environ},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "scgalore": __version__,
    }


_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY")


def _processor() -> str:
    with suppress(OSError):
        about = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        lines = dict(re.findall(r"^(model name|flags)\s*:\s*(.*)$", about, flags=re.MULTILINE))
        vectors = sorted(flag for flag in lines.get("flags", "").split() if flag.startswith(("avx", "amx", "fma")))
        return " ".join([lines.get("model name", platform.processor()), *vectors])
    return f"{platform.machine()} {platform.processor()}"
