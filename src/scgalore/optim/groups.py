"""Which parameters are projected, and a table that says so."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from scgalore.errors import OptionError
from scgalore.optim.checks import check_projection, plain_number
from scgalore.optim.projector import ProjType, state_numel
from scgalore.optim.subspace import PROJECTION_DEFAULTS, is_projected, state_dtype

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

# Query, key and value in one weight, as flash-attention and torch.nn.MultiheadAttention name it: three bases, since the
# largest of the three gradients would take a common one for itself.
PACKED_QKV = ("Wqkv.weight", "in_proj_weight")


def param_groups(
    module: nn.Module,
    *,
    rank: int | Literal["auto"] | None = "auto",
    update_proj_gap: int = 20,
    scale: float | Literal["auto"] = "auto",
    proj_type: ProjType = "std",
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Sort the trainable parameters of a module into groups for :class:`~scgalore.optim.GaLoreAdamW`.

    Projected are the 2-D weights of linear and attention layers whose smaller side is above the rank; embeddings,
    norms, biases and heads with a smaller side get AdamW. Weight decay is for matrices only: in an embedding it would
    shrink the genes that a batch does not contain.

    Parameters
    ----------
    module
        Any network. Parameters with ``requires_grad=False`` are left out, a shared parameter appears once.
    rank
        Rank of the projection; ``"auto"`` is a quarter of the network's width (the smaller side that most of its matrix
        entries have), where GaLore's quality was measured to be near AdamW's. ``None`` projects nothing.
    update_proj_gap
        Steps between refreshes of a basis.
    scale
        Factor on projected updates; ``"auto"`` gives them the size of AdamW's at the same learning rate.
    proj_type
        Side to project: ``"std"``, ``"reverse_std"``, ``"left"``, ``"right"`` or ``"full"``.
    weight_decay
        Decoupled weight decay of the matrices.

    Returns
    -------
    Groups named ``galore``, ``galore-qkv``, ``adamw``, ``adamw-no-decay``, empty ones left out, each with ``params``,
    ``param_names`` and its options. Any torch optimizer takes them.
    """
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    named = [(name, param) for name, param in module.named_parameters() if param.requires_grad]
    if not named:
        msg = f"{type(module).__name__} has no parameter with requires_grad=True; unfreeze what is to be trained."
        raise OptionError(msg)
    matrices = {name for name, param in named if param.ndim >= 2 and id(param) not in embeddings}
    if rank == "auto":
        rank = _quarter_width([param for name, param in named if name in matrices and param.ndim == 2])
    shared = {"rank": rank, "update_proj_gap": update_proj_gap, "scale": scale, "proj_type": proj_type}
    shared = {key: plain_number(value) for key, value in shared.items()}
    if rank is not None:
        check_projection({"split": 1, **shared})
    options: dict[str, dict[str, Any]] = {
        "galore": {**shared, "split": 1, "weight_decay": weight_decay},
        "galore-qkv": {**shared, "split": 3, "weight_decay": weight_decay},
        "adamw": {"weight_decay": weight_decay},
        "adamw-no-decay": {"weight_decay": 0.0},
    }
    members: dict[str, list[tuple[str, Tensor]]] = {key: [] for key in options}
    for name, param in named:
        # Projected: 2-D weights of linear and attention layers with min(dim) > rank, packed q/k/v block by block.
        # AdamW: embeddings, norms, biases, and heads with a dimension <= rank.
        key = "adamw" if name in matrices else "adamw-no-decay"
        if name in matrices:
            wanted = "galore-qkv" if name.endswith(PACKED_QKV) and param.shape[0] % 3 == 0 else "galore"
            key = wanted if is_projected(param, options[wanted]) else key
        members[key].append((name, param))
    return [
        {"name": key, "params": [p for _, p in found], "param_names": [n for n, _ in found], **options[key]}
        for key, found in members.items()
        if found
    ]


def _quarter_width(matrices: Iterable[Tensor]) -> int | None:
    entries: Counter[int] = Counter()
    for matrix in matrices:
        entries[min(matrix.shape)] += matrix.numel()
    return max(1, entries.most_common(1)[0][0] // 4) if entries else None


def describe_groups(groups: Iterable[Mapping[str, Any]]) -> str:
    """Table of what is projected: name, shape, rank and bytes of optimizer state, with AdamW's beside it.

    Parameters
    ----------
    groups
        Result of :func:`param_groups`, or the ``param_groups`` of an optimizer.

    Returns
    -------
    One line a parameter, one line a group with its counts, and the total.
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
            lines.append(_row(f"  {name}", shape, rank if projected else "-", _size(before), _size(after)))
            counts = [a + b for a, b in zip(counts, (1, param.numel(), before, after), strict=True)]
        title = f"{group.get('name', f'group {number}')}: {counts[0]} tensors, {counts[1]:,} parameters"
        lines.append(_row(title, "", "", _size(counts[2]), _size(counts[3])))
        total = [a + b for a, b in zip(total, counts, strict=True)]
    lines.append(_row(f"total: {total[0]} tensors, {total[1]:,} parameters", "", "", _size(total[2]), _size(total[3])))
    return "\n".join(lines)


def _cost(param: Tensor, group: Mapping[str, Any]) -> tuple[bool, int, int]:
    width = state_dtype(param.dtype).itemsize
    before = 2 * param.numel() * width
    group = PROJECTION_DEFAULTS | dict(group)
    if not is_projected(param, group):
        return False, before, before
    split = group["split"]
    numel = split * state_numel(param.shape[0] // split, param.shape[1], group["rank"], group["proj_type"])
    return True, before, numel * width


def _row(name: str, shape: str, rank: str, before: str, after: str) -> str:
    return f"{name:<56} {shape:>14} {rank:>8} {before:>12} {after:>12}".rstrip()


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.2f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.2f} kB"
