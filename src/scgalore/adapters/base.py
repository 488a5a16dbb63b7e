"""Base class of adapters, selection of their layers, and freezing of other parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from scgalore.adapters.checks import TARGETS, check_values
from scgalore.errors import OptionError, WeightsError
from scgalore.nn.cpu.linear import Linear
from scgalore.nn.scgpt import PackedLinear, SplitLinear

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MARK = "_adapter"

# Both read the raw weights of their inner layers, the latter only in evaluation mode.
_READS_WEIGHTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


class Adapter(ABC):
    """Small trainable tensors on linear layers of a module, instead of the layers' own weights.

    Attach before creating an optimizer: packed query, key and value layers are split in three, which creates new
    parameters. The base class finds, checks and splits the layers; a subclass wraps the layers ``layer_names``.

    Parameters
    ----------
    name
        Key in :data:`~scgalore.adapters.ADAPTERS`.
    module
        The network, modified in place.
    options
        All options of this adapter; ``rank`` and ``targets`` are used here.

    Attributes
    ----------
    layer_names
        Names of the linear layers to wrap, those of packed layers ending in ``.q``, ``.k`` and ``.v``.

    Raises
    ------
    OptionError
        If the module already has an adapter, or an option is out of range or matches no layer. The module is then
        unchanged.
    """

    def __init__(self, name: str, module: nn.Module, options: Mapping[str, Any]) -> None:
        self.name = name
        self.options = check_values(options)
        _refuse_adapted(module)
        targets = target_layers(module, self.options["targets"])
        _check_rank(targets, self.options["rank"])
        self._module: nn.Module | None = module
        self._required = {key: param.requires_grad for key, param in module.named_parameters()}
        self._packed = [key for key, layer in targets.items() if is_packed(key, layer)]
        self.layer_names: list[str] = []
        for key in targets:
            if key in self._packed:
                split_packed(module, key)
                self.layer_names += [f"{key}.{part}" for part in "qkv"]
            else:
                self.layer_names.append(key)
        vars(module)[MARK] = self  # on the module, so that a deep copy has its own adapter

    @property
    def module(self) -> nn.Module:
        """The network that this adapter is attached to."""
        if self._module is None:
            msg = f"This {self.name!r} adapter was detached. Attach a new one with attach_adapter."
            raise OptionError(msg)
        return self._module

    @abstractmethod
    def own_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the adapter, parameters and others, without copying, by name relative to the module."""

    def tensors(self) -> dict[str, Tensor]:
        """Copy the adapter's own tensors to the CPU, as stored in an adapter-only file."""
        return {key: tensor.detach().cpu().contiguous().clone() for key, tensor in self.own_tensors().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the result of :meth:`tensors` of another adapter with the same options.

        Raises
        ------
        WeightsError
            If names or shapes differ from those of :meth:`tensors`; nothing is loaded then.
        """
        own = self.own_tensors()
        check_tensors(own, tensors, what=f"the {self.name!r} adapter with options {self.options}")
        with torch.no_grad():
            for key, tensor in own.items():
                tensor.copy_(tensors[key])

    def parameters(self) -> list[nn.Parameter]:
        """Return the adapter's own trainable tensors."""
        return [tensor for tensor in self.own_tensors().values() if isinstance(tensor, nn.Parameter)]

    def after_step(self) -> None:  # noqa: B027 -- most adapters have nothing to do
        """Hook that training calls after each optimizer step."""

    @abstractmethod
    def merge(self) -> None:
        """Merge the adapter into the weights, without changing outputs; a second call does nothing."""

    @abstractmethod
    def unmerge(self) -> None:
        """Undo :meth:`merge`, without changing outputs; a second call does nothing."""

    @abstractmethod
    def unwrap(self) -> None:
        """Replace the layers ``layer_names`` by plain linear layers; called by :meth:`detach` after merging."""

    def detach(self) -> None:
        """Merge, and restore the module's layers, names and ``requires_grad``; the adapter cannot be used afterwards."""
        module = self.module
        self.merge()
        self.unwrap()
        for key in self._packed:
            join_packed(module, key)
        for key, param in module.named_parameters():
            param.requires_grad = self._required.get(key, param.requires_grad)
        del vars(module)[MARK]
        self._module = None


def attached(module: nn.Module) -> Adapter | None:
    """Adapter attached to a module, or ``None``."""
    return vars(module).get(MARK)


def _refuse_adapted(module: nn.Module) -> None:
    for key, part in module.named_modules():
        if MARK in vars(part):
            where = f"its submodule {key!r}" if key else "it"
            msg = (
                f"{type(module).__name__}: {where} already has the adapter {vars(part)[MARK].name!r}. "
                "Call detach() of that adapter before attaching another."
            )
            raise OptionError(msg)


def target_layers(module: nn.Module, targets: str | Sequence[str]) -> dict[str, nn.Linear]:
    """Linear layers of a module to adapt, by name.

    Parameters
    ----------
    module
        Any network.
    targets
        A key of :data:`TARGETS`, or one or more patterns of module names such as ``"*.linear1"``.

    Raises
    ------
    OptionError
        If a pattern matches no linear layer, or matches one inside a :class:`torch.nn.MultiheadAttention` or
        :class:`torch.nn.TransformerEncoderLayer`, which read raw weights, so the adapter would silently have no effect.
        Also if a weight is shared with another module, which would not be adapted.
    """
    named = TARGETS.get(targets) if isinstance(targets, str) else None
    patterns = named or ((targets,) if isinstance(targets, str) else tuple(targets))
    hits: dict[str, set[str]] = {pattern: set() for pattern in patterns}
    found: dict[str, nn.Linear] = {}
    for key, part in module.named_modules():
        matching = [pattern for pattern in patterns if key and fnmatchcase(key, pattern)]
        if matching and isinstance(part, nn.Linear | nn.MultiheadAttention):
            _refuse_raw_readers(module, key)
        if matching and isinstance(part, nn.Linear):
            found[key] = part
            for pattern in matching:
                hits[pattern].add(key)
    idle = patterns if not found else [] if named else [pattern for pattern in patterns if not hits[pattern]]
    if idle:
        linear = [key for key, part in module.named_modules() if isinstance(part, nn.Linear)]
        msg = (
            f"targets={targets!r}: no linear layer of {type(module).__name__} matches {' or '.join(map(repr, idle))}. "
            f"Use one of {', '.join(map(repr, TARGETS))} or patterns of its linear layers: {', '.join(linear[:8])} ..."
        )
        raise OptionError(msg)
    _refuse_shared(module, found)
    return found


def _refuse_raw_readers(module: nn.Module, name: str) -> None:
    steps = name.split(".")
    for n in range(len(steps), -1, -1):  # report the innermost
        outer = module.get_submodule(".".join(steps[:n]))
        if isinstance(outer, _READS_WEIGHTS):
            msg = (
                f"{name!r} is part of a torch.nn.{type(outer).__name__}, which reads raw weights instead of calling its "
                "layers, so an adapter would silently have no effect. Choose other targets, or a network whose attention "
                "calls its layers, such as SCGPTNetwork."
            )
            raise OptionError(msg)


def _refuse_shared(module: nn.Module, layers: Mapping[str, nn.Linear]) -> None:
    places: dict[int, list[str]] = {}
    for key, param in module.named_parameters(remove_duplicate=False):
        places.setdefault(id(param), []).append(key)
    for layer in layers.values():
        if len(shared := places[id(layer.weight)]) > 1:
            msg = f"{' and '.join(shared)} share one tensor; an adapter would change only one of them. Exclude them from targets."
            raise OptionError(msg)


def freeze_others(
    module: nn.Module,
    adapter_params: Iterable[nn.Parameter],
    others: str,
    *,
    adapted: Iterable[Tensor],
) -> None:
    """Freeze the weights that an adapter replaces and, optionally, the rest of the pre-trained network.

    Nothing is unfrozen: parameters that did not require gradients are unchanged.

    Parameters
    ----------
    module
        The network with the adapter in place.
    adapter_params
        The adapter's own parameters, which are trained.
    others
        ``"freeze"``: everything except the adapter and the heads is frozen. ``"train"``: only the ``adapted`` weights
        are frozen; their biases are trained.
    adapted
        Weights that the adapter replaces.

    Notes
    -----
    Heads are all modules outside the network's :attr:`~scgalore.nn.CellNetwork.body`. In a module without this
    attribute, the children that contain adapter parameters are the body.
    """
    own = {id(param) for param in adapter_params}
    for param in adapted:
        param.requires_grad = False
    if others == "train":
        return
    children = dict(module.named_children())
    body = [children[key] for key in getattr(type(module), "body", ()) if key in children]
    body = body or [part for part in children.values() if any(id(param) in own for param in part.parameters())]
    for part in body:
        for param in part.parameters():
            param.requires_grad = id(param) in own


def is_packed(name: str, layer: nn.Module) -> bool:
    """Whether a layer computes queries, keys and values with one matrix."""
    if type(layer) is PackedLinear:
        return True
    called = name.rpartition(".")[2] == "Wqkv"
    return called and type(layer) is nn.Linear and layer.out_features == 3 * layer.in_features


def split_packed(module: nn.Module, name: str) -> SplitLinear:
    """Replace a packed layer by a :class:`~scgalore.nn.scgpt.SplitLinear` with the same values.

    A shared A matrix would be dominated by the one with the largest gradient.
    """
    packed = cast("nn.Linear", module.get_submodule(name))
    weights = packed.weight.chunk(3)
    biases = [None] * 3 if packed.bias is None else packed.bias.chunk(3)
    kind = Linear if isinstance(packed, Linear) else nn.Linear
    q, k, v = (_linear(kind, w, b, like=packed) for w, b in zip(weights, biases, strict=True))
    split = SplitLinear(q, k, v).train(packed.training)
    split.packed_type = type(packed)  # type: ignore[assignment]
    set_submodule(module, name, split)
    return split


def join_packed(module: nn.Module, name: str) -> nn.Linear:
    """Undo :func:`split_packed`, with the current values."""
    split = cast("SplitLinear", module.get_submodule(name))
    parts = [cast("nn.Linear", part) for part in (split.q, split.k, split.v)]
    weight = torch.cat([part.weight for part in parts])
    bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
    packed = _linear(cast("type[nn.Linear]", split.packed_type), weight, bias, like=parts[0]).train(split.training)
    set_submodule(module, name, packed)
    return packed


def _linear(kind: type[nn.Linear], weight: Tensor, bias: Tensor | None, *, like: nn.Linear) -> nn.Linear:
    # On the meta device, the global generator is not used.
    layer = kind(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=like.weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=like.bias.requires_grad)
    return layer


def set_submodule(module: nn.Module, name: str, part: nn.Module) -> None:
    """Replace the submodule of this name."""
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, part)


def check_tensors(own: Mapping[str, Tensor], given: Mapping[str, Tensor], *, what: str) -> None:
    """Raise :class:`~scgalore.errors.WeightsError` if names or shapes differ."""
    missing, foreign = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if missing or foreign:
        msg = f"Tensors do not match {what}: {len(missing)} missing {missing[:3]}, {len(foreign)} unexpected {foreign[:3]}."
        raise WeightsError(msg)
    for key, tensor in own.items():
        if tensor.shape != given[key].shape:
            msg = f"Tensors do not match {what}: {key} has shape {tuple(given[key].shape)}, expected {tuple(tensor.shape)}."
            raise WeightsError(msg)


def _check_rank(layers: Mapping[str, nn.Linear], rank: int) -> None:
    for key, layer in layers.items():
        rows = layer.out_features // 3 if is_packed(key, layer) else layer.out_features
        if rank > min(rows, layer.in_features):
            msg = f"rank={rank} is larger than the full rank of {key} ({rows} x {layer.in_features}). Choose a smaller rank."
            raise OptionError(msg)
