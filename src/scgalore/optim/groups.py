"""Selects the parameters to project, and shows them in a table."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

from torch import nn

from scgalore._words import format_bytes
from scgalore.errors import OptionError
from scgalore.optim.checks import check_projection, check_settings, check_whole, closest, plain_number
from scgalore.optim.expected import galore_bytes
from scgalore.optim.memory import adamw_bytes
from scgalore.optim.subspace import PROJECTION_DEFAULTS, is_projected

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from scgalore.optim.projector import ProjType

# Names of packed query, key and value weights in flash-attention and torch.nn.MultiheadAttention: three bases, since
# the largest of the three gradients would dominate a common one.
PACKED_QKV = ("Wqkv.weight", "in_proj_weight")

_OVERRIDABLE = ("rank", "update_proj_gap", "scale", "proj_type", "weight_decay")
_KINDS = ("galore", "galore-qkv", "galore-no-decay", "adamw", "adamw-no-decay")


class _Weight(NamedTuple):
    param: Tensor
    names: list[str]  # several if it is shared
    is_matrix: bool  # with at least two dimensions, and not a lookup table
    split: int


def param_groups(
    module: nn.Module,
    *,
    rank: int | Literal["auto"] | None = "auto",
    update_proj_gap: int = 20,
    scale: float | Literal["auto"] = "auto",
    proj_type: ProjType = "std",
    least_side: int | Literal["auto"] = 0,
    weight_decay: float = 0.0,
    overrides: Mapping[str, Mapping[str, Any] | None] | None = None,
) -> list[dict[str, Any]]:
    """Sort the trainable parameters of a module into groups for :class:`~scgalore.optim.GaLoreAdamW`.

    The 2-D weights of linear and attention layers whose smaller side exceeds the rank are projected; embeddings, norms,
    biases and heads with a smaller side get AdamW. Weight decay is applied to matrices only: in an embedding it would
    shrink the genes that a batch does not contain.

    Parameters
    ----------
    module
        Any network. Parameters with ``requires_grad=False`` are omitted, and a shared parameter appears once.
    rank
        Rank of the projection; ``"auto"`` is a quarter of the network's width (the smaller side of most of its matrix
        elements), at which GaLore's quality was measured to be close to AdamW's. ``None`` projects nothing.
    update_proj_gap
        Steps between refreshes of a basis.
    scale
        Factor on projected updates; ``"auto"`` gives them the size of AdamW's at the same learning rate.
    proj_type
        Side to project: ``"std"``, ``"reverse_std"``, ``"left"``, ``"right"`` or ``"full"``.
    least_side
        Matrices whose smaller side is at most this get AdamW regardless of the rank, unless an override sets their rank;
        at small ranks, this keeps heads with few classes from being projected. ``"auto"`` is a quarter of the network's
        width.
    weight_decay
        Decoupled weight decay of the matrices.
    overrides
        Exceptions: patterns of parameter names (``*``, ``?``, ``[...]``), each with the options for these parameters,
        among ``rank``, ``update_proj_gap``, ``scale``, ``proj_type`` and ``weight_decay``. The first pattern that matches
        a name is used. A ``rank`` projects any 2-D parameter, including embeddings; ``{"rank": None}`` or ``None``
        selects AdamW.

    Returns
    -------
    Groups named ``galore``, ``galore-qkv``, ``adamw``, ``adamw-no-decay``, and, for parameters with overrides,
    ``galore (pattern)`` and so on; empty groups are omitted. Each has ``params``, ``param_names`` and its options. Any
    PyTorch optimizer accepts them.

    Raises
    ------
    OptionError
        If no parameter is trainable, an option is out of range, or an override matches no parameter or has no effect.

    Examples
    --------
    >>> import torch
    >>> import scgalore as sg
    >>> network = torch.nn.Sequential(torch.nn.Embedding(100, 64), torch.nn.Linear(64, 64), torch.nn.Linear(64, 3))
    >>> groups = sg.optim.param_groups(network, rank=16, overrides={"0.weight": {"rank": 8}, "2.*": None})
    >>> [group["name"] for group in groups]
    ['galore', 'galore-no-decay (0.weight)', 'adamw', 'adamw-no-decay']
    """
    weights = _trainable(module)
    if rank == "auto":
        rank = _quarter_width(weights)
    if least_side == "auto":
        least_side = _quarter_width(weights) or 0
    check_whole({"least_side": least_side}, "least_side", 0)
    shared = {"rank": rank, "update_proj_gap": update_proj_gap, "scale": scale, "proj_type": proj_type}
    shared = {key: plain_number(value) for key, value in shared.items()}
    if rank is not None:
        check_projection({"split": 1, **shared})
    owns = _check_overrides(overrides or {}, module, weights, shared)
    groups: dict[str, dict[str, Any]] = {}
    for weight in weights:
        pattern = next((pattern for pattern in owns if _matches(weight.names, pattern)), "")
        own = owns.get(pattern, {})
        decay = weight_decay if weight.is_matrix else 0.0
        options = {**shared, "split": weight.split, "weight_decay": decay, **own}
        # Projected: 2-D weights of linear and attention layers with min(dim) > rank, packed q/k/v block by block.
        # AdamW: embeddings, norms, biases, and heads with a dimension <= rank or least_side.
        projected = is_projected(weight.param, options)
        if "rank" not in own:
            projected &= weight.is_matrix and is_projected(weight.param, {**options, "rank": least_side})
        kind = ("galore-qkv" if weight.split > 1 else "galore") if projected else "adamw"
        kind += "" if weight.is_matrix or "weight_decay" in own else "-no-decay"
        is_own = bool(own) if projected else "weight_decay" in own
        name = f"{kind} ({pattern})" if is_own else kind
        options = options if projected else {"weight_decay": options["weight_decay"]}
        group = groups.setdefault(name, {"name": name, "params": [], "param_names": [], **options})
        group["params"].append(weight.param)
        group["param_names"].append(weight.names[0])
    return sorted(groups.values(), key=lambda group: (_KINDS.index(group["name"].split()[0]), "(" in group["name"]))


def named_after(groups: Iterable[dict[str, Any]], method: str) -> list[dict[str, Any]]:
    """Groups whose names begin with another method than ``galore``, such as ``muon-qkv``."""
    return [{**group, "name": group["name"].replace("galore", method, 1)} for group in groups]


def _trainable(module: nn.Module) -> list[_Weight]:
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    names: defaultdict[Tensor, list[str]] = defaultdict(list)
    for name, param in module.named_parameters(remove_duplicate=False):
        if param.requires_grad:
            names[param].append(name)
    if not names:
        msg = f"{type(module).__name__} has no parameters with requires_grad=True; unfreeze the parameters to train."
        raise OptionError(msg)
    weights = []
    for weight, its_names in names.items():
        is_matrix = weight.ndim >= 2 and id(weight) not in tables
        packed = is_matrix and weight.shape[0] % 3 == 0 and any(name.endswith(PACKED_QKV) for name in its_names)
        weights.append(_Weight(weight, its_names, is_matrix, split=3 if packed else 1))
    return weights


def _quarter_width(weights: Iterable[_Weight]) -> int | None:
    entries: Counter[int] = Counter()
    for param, _, is_matrix, _ in weights:
        if is_matrix and param.ndim == 2:
            entries[min(param.shape)] += param.numel()
    return max(1, entries.most_common(1)[0][0] // 4) if entries else None


def _matches(names: Iterable[str], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def _check_overrides(
    overrides: Mapping[str, Mapping[str, Any] | None],
    module: nn.Module,
    weights: list[_Weight],
    shared: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """Check that overrides are valid and each applies to a parameter, and return options by pattern."""
    checked = {}
    left = weights
    for pattern, options in overrides.items():
        own = _own_options(pattern, options, shared)
        reached = [weight for weight in left if _matches(weight.names, pattern)]
        left = [weight for weight in left if not _matches(weight.names, pattern)]
        if not reached:
            _refuse_unreached(pattern, module)
        rank = own.get("rank", shared["rank"])
        can_project = any(w.param.ndim == 2 and (w.is_matrix or "rank" in own) for w in reached) and rank is not None
        if own.keys() - {"weight_decay"} and not can_project and own.get("rank", 0) is not None:
            msg = (
                f"overrides[{pattern!r}] sets {', '.join(own)}, but nothing it matches is projected, such as "
                f"{reached[0].names[0]!r}; give a rank, and match weights with rows and columns."
            )
            raise OptionError(msg)
        checked[pattern] = own
    return checked


def _own_options(pattern: str, options: Mapping[str, Any] | None, shared: Mapping[str, Any]) -> dict[str, Any]:
    where = f"overrides[{pattern!r}]"
    if options is None:
        return {"rank": None}
    if not isinstance(options, Mapping) or not options:
        msg = f"{where} is {options!r}; expected options such as {{'rank': 64}}, or None for AdamW."
        raise OptionError(msg)
    for key in options:
        if key not in _OVERRIDABLE:
            msg = f"{where} has no option {key!r}; choose from {', '.join(_OVERRIDABLE)}.{closest(key, _OVERRIDABLE)}"
            raise OptionError(msg)
    own = {key: plain_number(value) for key, value in options.items()}
    merged = {"split": 1, **shared, **own}
    try:
        check_settings(own)
        check_projection(merged if merged["rank"] is not None else {**merged, "rank": 1})
    except OptionError as error:
        msg = f"{where}: {error}"
        raise OptionError(msg) from None
    return own


def _refuse_unreached(pattern: str, module: nn.Module) -> NoReturn:
    trained = {name: param.requires_grad for name, param in module.named_parameters(remove_duplicate=False)}
    matched = [name for name in trained if fnmatchcase(name, pattern)]
    if any(trained[name] for name in matched):
        msg = f"overrides[{pattern!r}] comes after patterns that match all of its parameters; put it before them."
    elif matched:
        msg = (
            f"overrides[{pattern!r}] matches only frozen parameters, such as {matched[0]!r}; unfreeze them or drop it."
        )
    else:
        near = get_close_matches(pattern, [name for name in trained if trained[name]], n=1, cutoff=0.0)[0]
        msg = f"overrides[{pattern!r}] matches no parameter of {type(module).__name__}; the closest is {near!r}."
    raise OptionError(msg)


def describe_groups(groups: Iterable[Mapping[str, Any]]) -> str:
    """Table of parameters: name, shape, rank and bytes of optimizer state, compared with AdamW's.

    Parameters
    ----------
    groups
        Result of :func:`param_groups`, or the ``param_groups`` of an optimizer.

    Returns
    -------
    One line per parameter, one line per group with its counts, and the total. The bytes are those of the state of
    :class:`~scgalore.optim.GaLoreAdamW` after its first step, as :func:`~scgalore.optim.memory_report` measures them.
    """
    lines = [_row("parameter", "shape", "rank", "AdamW state", "this state")]
    total = [0, 0, 0, 0]
    for number, group in enumerate(groups):
        names = group.get("param_names") or [f"param {i}" for i in range(len(group["params"]))]
        counts = [0, 0, 0, 0]
        for name, param in zip(names, group["params"], strict=True):
            projected, before, after = _cost(param, group)
            rank = f"{group['split']} x {group['rank']}" if projected and group["split"] > 1 else str(group.get("rank"))
            shape = " x ".join(map(str, param.shape)) or "scalar"
            lines.append(
                _row(f"  {name}", shape, rank if projected else "-", format_bytes(before), format_bytes(after))
            )
            counts = [a + b for a, b in zip(counts, (1, param.numel(), before, after), strict=True)]
        title = f"{group.get('name', f'group {number}')}: {counts[0]} tensors, {counts[1]:,} parameters"
        lines.append(_row(title, "", "", format_bytes(counts[2]), format_bytes(counts[3])))
        total = [a + b for a, b in zip(total, counts, strict=True)]
    lines.append(
        _row(
            f"total: {total[0]} tensors, {total[1]:,} parameters",
            "",
            "",
            format_bytes(total[2]),
            format_bytes(total[3]),
        )
    )
    return "\n".join(lines)


def _cost(param: Tensor, group: Mapping[str, Any]) -> tuple[bool, int, int]:
    projected = is_projected(param, PROJECTION_DEFAULTS | dict(group))
    return projected, adamw_bytes(param), galore_bytes(param, group)


def _row(name: str, shape: str, rank: str, before: str, after: str) -> str:
    return f"{name:<56} {shape:>14} {rank:>8} {before:>12} {after:>12}".rstrip()
