"""Traces a training step on fake tensors: memory kept by autograd, memory of the step, and weights with gradients.

The network and the objective run as they are, on fake tensors (:class:`torch._subclasses.FakeTensorMode`), which have
shapes and types alone. A new head, objective or network therefore needs no formula here.

A build of torch for CPUs cannot make a graph of CUDA tensors. A GPU is traced with fake tensors of a CPU, without our
kernels for CPUs, and with what CUDA does otherwise in a step put in their place (:class:`_AsOnGPU`).
"""

from __future__ import annotations

import copy
import math
import weakref
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import _engine_run_backward, saved_tensors_hooks
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from scgalore.data.tokens import TokenBatch
from scgalore.nn.cpu.traced import traced

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

    from torch.autograd.graph import Node

    from scgalore.nn import CellNetwork
    from scgalore.objectives import Objective

__all__ = ["Shape", "Trace", "on_meta", "trace_step", "unreached"]

HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}

# Autocast of CUDA gives these float32 (torch's documentation of torch.amp), that of CPUs does not.
_WIDE_ON_GPU = frozenset(
    "binary_cross_entropy_with_logits cosine_embedding_loss cosine_similarity cross_entropy cumprod cumsum exp expm1 "  # noqa: SIM905
    "group_norm kl_div l1_loss layer_norm log log10 log1p log2 log_softmax mse_loss nll_loss norm normalize pow __pow__ "
    "prod reciprocal rsqrt smooth_l1_loss softmax softmin softplus sum".split()
)
_DEVICE_OF = torch.ops.prim.device.default
_MOST_TRACES = 256
# Sizes at which a step is measured that cannot be traced: two numbers of cells, three lengths.
_CELLS, _LENGTHS = (2, 3), (16, 32, 48)


@dataclass(frozen=True)
class Shape:
    """Sizes of a batch and how it is computed.

    Attributes
    ----------
    n_cells, n_tokens
        Cells, and tokens of the longest one, ``<cls>`` included.
    precision
        As ``precision`` of :class:`~scgalore.train.TrainConfig`.
    gpu
        Whether a GPU computes, rather than a CPU.
    """

    n_cells: int
    n_tokens: int
    precision: str = "32-true"
    gpu: bool = False

    def batch(self, objective: Objective) -> TokenBatch:
        """Make the batch, of zeros. Single cells are not padded."""
        shape = (self.n_cells, self.n_tokens)
        genes, values, padding = (
            torch.zeros(shape, dtype=dtype, device="cpu") for dtype in (torch.int64, torch.float32, torch.bool)
        )
        number = genes.new_zeros(self.n_cells)
        return objective.example(TokenBatch(genes, values, padding, cells=number, keys=number, padded=self.n_cells > 1))


@dataclass(frozen=True)
class Trace:
    """Memory of a step.

    Attributes
    ----------
    saved
        Bytes of each storage that autograd keeps for the backward pass, weights excluded.
    transient
        Maximum of all other memory during the step in bytes, including the batch, without weights and their gradients.
    reached
        Names of the trainable parameters that the loss depends on.
    """

    saved: tuple[int, ...]
    transient: int
    reached: frozenset[str]

    @property
    def kept(self) -> int:
        """Bytes that autograd keeps."""
        return sum(self.saved)


def trace_step(network: CellNetwork, objective: Objective, shape: Shape) -> Trace:
    """Trace a forward and a backward pass.

    Parameters
    ----------
    network
        As it will be trained, on any device, also the meta device: only shapes and types are read.
    objective
        What it is trained for.
    shape
        Of the batch.

    Returns
    -------
    The trace; that of a network of the same parts and sizes is not made again. Where an operation needs numbers, such
    as a selection by a mask, a step is measured on zeros at a few small sizes and extrapolated: bytes are affine in the
    number of cells, and polynomials of second degree in their length.
    """
    key = (_parts(network), type(objective), _plain(objective), shape)
    if key not in _TRACES:
        if len(_TRACES) >= _MOST_TRACES:
            _TRACES.clear()
        try:
            _TRACES[key] = _Step(network, objective, shape, fake=True).run()
        except (RuntimeError, NotImplementedError):
            _TRACES[key] = _measured(network, objective, shape)
    return _TRACES[key]


_TRACES: dict[Any, Trace] = {}


def on_meta(network: CellNetwork) -> CellNetwork:
    """Copy a network without its numbers."""
    memo: dict[int, Any] = {}
    for weight in network.parameters():
        memo[id(weight)] = nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=weight.requires_grad)
    for buffer in network.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(network, memo)


def unreached(loss: Tensor, module: nn.Module) -> list[str]:
    """Names of the trainable parameters that a loss does not depend on, such as heads of other tasks.

    Read from the graph of the loss; nothing is differentiated.

    Parameters
    ----------
    loss
        Computed with gradients enabled.
    module
        What it was computed with.
    """
    found = _leaves(loss)
    return [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in found]


def _leaves(loss: Tensor) -> set[int]:
    """Identities of the tensors that a loss can be differentiated with respect to."""
    found: set[int] = set()
    seen: set[Node] = set()
    nodes = [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            found.add(id(leaf))
        nodes += [following for following, _ in node.next_functions]
    return found


class _Step(nn.Module):
    """A step on tensors of zeros, or of shapes alone, in place of a network's own."""

    def __init__(self, network: CellNetwork, objective: Objective, shape: Shape, *, fake: bool) -> None:
        super().__init__()
        self.network, self.objective, self.shape = network, objective, shape
        self.mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else None
        self.live = _Live()
        self.saved: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def run(self) -> Trace:
        """Trace the step."""
        tensors = {name: self._like(tensor) for name, tensor in _tensors(self)}
        self.live.leave_out([*tensors.values(), *(t.grad for t in tensors.values() if t.grad is not None)])
        with ExitStack() as stack:
            for context in self._contexts():
                stack.enter_context(context)
            return functional_call(self, tensors, (tensors,))

    def forward(self, tensors: dict[str, Tensor]) -> Trace:
        """Both passes, with the tensors in their places: checkpointing needs them in the backward pass too."""
        batch = self.shape.batch(self.objective)
        dtype = HALF.get(self.shape.precision)
        with (
            saved_tensors_hooks(self._note, lambda tensor: tensor),
            torch.autocast("cpu", dtype=dtype, enabled=dtype is not None),
        ):
            loss = self.objective(self.network, batch).total
        # What was kept for something that is no part of the loss is free again.
        saved = tuple(storage.nbytes() for ref in self.saved.values() if (storage := ref()) is not None)
        found = _leaves(loss)
        if loss.requires_grad:
            # What loss.backward() ends in; itself it would leave _AsOnGPU, which a block that is computed again needs.
            last = torch.ones_like(loss)
            how = {"keep_graph": False, "create_graph": False, "inputs": ()}
            _engine_run_backward((loss,), (last,), **how, allow_unreachable=True, accumulate_grad=True)
        reached = frozenset(name.removeprefix("network.") for name, tensor in tensors.items() if id(tensor) in found)
        return Trace(saved, self.live.peak - sum(saved), reached)

    def _contexts(self) -> Iterator[AbstractContextManager[Any]]:
        as_on_gpu = self.shape.gpu and self.mode is not None
        yield torch.random.fork_rng(devices=[])
        yield torch.enable_grad()
        yield traced(kernels=not as_on_gpu)
        yield nullcontext() if self.mode is None else self.mode
        yield self.live
        yield _AsOnGPU() if as_on_gpu else nullcontext()

    def _like(self, tensor: Tensor) -> Tensor:
        """A tensor in place of one of the network's, with its gradient: a step before has left one."""
        made, grad = self._empty(tensor), self._empty(tensor)
        if tensor.requires_grad:
            made.requires_grad_().grad = grad
        return made

    def _empty(self, tensor: Tensor) -> Tensor:
        if self.mode is None:
            return torch.zeros_like(tensor, device="cpu", requires_grad=False)
        return FakeTensor(self.mode, torch.empty_like(tensor, device="meta", requires_grad=False), torch.device("cpu"))

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.live.left_out:
            self.saved[storage._cdata] = weakref.ref(storage)
        return tensor


class _Live(TorchDispatchMode):
    """Counts the bytes of all storages that exist, but for those that are left out.

    Attributes
    ----------
    peak
        Most of them so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.left_out: set[int] = set()
        self._known: dict[int, weakref.ref[Any]] = {}

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """Do not count these."""
        self.left_out |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE_OF:  # fake tensors ask for it more often than for anything else
            return args[0].fake_device
        out = func(*args, **(kwargs or {}))
        for made in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(made, Tensor):
                self._count(made.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.left_out or key in self._known:
            return
        self._known[key] = weakref.ref(storage, partial(self._forget, key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int, _: Any) -> None:
        del self._known[key]
        self.now -= size


class _AsOnGPU(TorchFunctionMode):
    """Differences between CUDA and CPU that affect the memory of a step.

    Attention by the flash or the memory-efficient kernel, dropout that keeps one byte a value, and float32 where CUDA's
    autocast has it. Calls from inside a function of torch, such as ``F.multi_head_attention_forward``, are not seen.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _attend_on_gpu(*args, **kwargs)
        if func is F.dropout:
            return _drop_on_gpu(*args[:3], **kwargs)
        if getattr(func, "__name__", "") in _WIDE_ON_GPU and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(_widened, (args, kwargs))
        return func(*args, **kwargs)


def _attend_on_gpu(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        q, k, v = (x.to(torch.get_autocast_dtype("cpu")) for x in (q, k, v))
    if attn_mask is None and q.dtype != torch.float32:
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, **options)[0]
    # Booleans become numbers in each call.
    bias = None if attn_mask is None else attn_mask.to(q.dtype).expand(*q.shape[:-1], k.shape[-2])
    options["compute_log_sumexp"] = True
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, **options)[0]


def _drop_on_gpu(input: Tensor, p: float = 0.5, training: bool = True, **_: Any) -> Tensor:  # noqa: FBT001, FBT002
    return torch.native_dropout(input, p, train=True)[0] if training and p > 0 else input


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF.values() else value


def _measured(network: CellNetwork, objective: Objective, shape: Shape) -> Trace:
    """Trace with numbers at small sizes, and extrapolate."""
    cells = (1,) if shape.n_cells == 1 else _CELLS
    saved = transient = 0.0
    for n_cells in cells:
        for n_tokens in _LENGTHS:
            small = replace(shape, n_cells=n_cells, n_tokens=n_tokens)
            trace = _Step(network, objective, small, fake=False).run()
            share = _weight(shape.n_cells, n_cells, cells) * _weight(shape.n_tokens, n_tokens, _LENGTHS)
            saved += share * trace.kept
            transient += share * trace.transient
    return Trace((round(saved),), max(0, round(transient)), trace.reached)


def _weight(x: int, at: int, others: tuple[int, ...]) -> float:
    """Lagrange's polynomial: the share of the value at one place in that at ``x``."""
    return math.prod((x - other) / (at - other) for other in others if other != at)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _parts(network: nn.Module) -> tuple[Any, ...]:
    """What a network is made of, as far as a step depends on it."""
    modules = tuple((name, type(part), part.training, _plain(part)) for name, part in network.named_modules())
    shapes = tuple((name, t.shape, t.dtype, t.requires_grad) for name, t in _tensors(network))
    return modules, shapes


def _plain(thing: Any) -> str:
    """Attributes of an object, but for modules, tensors and what has no value to compare by."""
    return repr({name: value for name, value in vars(thing).items() if _compares(value)})


def _compares(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | tuple | torch.dtype | None) or is_dataclass(value)
