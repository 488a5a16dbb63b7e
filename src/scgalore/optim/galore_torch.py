"""The reference implementation of GaLore, with checkpoints that load safely.

Import this module only when the optimizer is built: the package imports transformers and bitsandbytes, which takes two to
three seconds.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from galore_torch import GaLoreAdamW
from galore_torch.galore_projector import GaLoreProjector
from torch import Tensor

from scgalore.optim.projector import PROJ_TYPES, Bases, auto_scale, sides_of
from scgalore.optim.subspace import PROJECTION_DEFAULTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

# Without the wrapper that runs the hooks of step(): they would run twice, for this class and for the package's.
_package_step = inspect.unwrap(GaLoreAdamW.step)


class GaLoreTorchAdamW(GaLoreAdamW):
    """:class:`galore_torch.GaLoreAdamW` 1.0 with a state of tensors and numbers; trained weights are bit-identical.

    It differs in ``state_dict()`` and ``load_state_dict()``, which convert the package's projector object to numbers and a
    copy of its basis and back, and in ``step(closure)``, which enables gradients for the closure.

    The limitations of the package remain; :class:`~scgalore.optim.GaLoreAdamW` has none of them:

    - the basis is computed by a full SVD in one of ``update_proj_gap`` steps, which takes many times longer than others;
    - moments keep their coordinates when the basis changes, so a run depends on the arbitrary signs of the SVD, and
      frequent refreshes degrade training;
    - in float32 the basis is a view that keeps the whole factor of the SVD in memory (but not in checkpoints);
    - a gradient with NaN or infinity raises :class:`torch.linalg.LinAlgError` at a refresh, and at other steps makes the
      moments NaN; an all-zero gradient at a refresh gives an arbitrary basis for ``update_proj_gap`` steps;
    - moments of bfloat16 weights are bfloat16;
    - packed q/k/v weights are projected as one matrix; other weights are updated without a fused kernel.

    Parameters
    ----------
    params
        Parameters or groups, e.g. from :func:`package_groups`.
    options
        Options of the package's class: ``lr``, ``betas``, ``eps`` (added outside the bias correction), ``weight_decay``,
        ``correct_bias``.
    """

    def __init__(self, params: Iterable[Any], **options: Any) -> None:
        super().__init__(params, no_deprecation_warning=True, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters once, with the loss of the closure if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        _package_step(self)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """State of tensors and numbers, which ``torch.load(weights_only=True)`` reads."""
        return _with_plain_projectors(super().state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this class or of the package's own."""
        super().load_state_dict(_with_plain_projectors(state_dict))
        for state in self.state.values():
            if "projector" in state:
                state["projector"] = _projector(state["projector"])


def package_groups(groups: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Turn groups of :func:`~scgalore.optim.param_groups` into groups that galore-torch understands.

    Parameters
    ----------
    groups
        Groups; those with a ``rank`` have all four keys of a projection.

    Returns
    -------
    The groups without ``split``. Groups with ``scale="auto"``, which the package does not support, are divided into one
    group per shape, with the number that gives steps the size of AdamW's.
    """
    return [plain for group in groups for plain in _package_groups(group)]


def _package_groups(group: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    kept = {key: value for key, value in group.items() if key != "split"}
    if kept.get("rank") is None:
        # The package projects all parameters in a group with this key.
        yield {key: value for key, value in kept.items() if key not in ("rank", *PROJECTION_DEFAULTS)}
    elif kept["scale"] != "auto":
        yield kept
    else:
        by_shape: dict[tuple[int, ...], list[tuple[str, Tensor]]] = defaultdict(list)
        for name, param in zip(group["param_names"], group["params"], strict=True):
            by_shape[tuple(param.shape)].append((name, param))
        for (m, n), members in by_shape.items():
            names, params = zip(*members, strict=True)
            scale = _scale(m, n, kept["rank"], kept["proj_type"])
            yield {**kept, "params": list(params), "param_names": list(names), "scale": scale}


def _scale(m: int, n: int, rank: int, proj_type: Any) -> float:
    left, right = sides_of(m, n, proj_type)
    shapes = torch.empty((rank, m), device="meta"), torch.empty((rank, n), device="meta")
    return auto_scale(m, n, Bases(shapes[0] if left else None, shapes[1] if right else None))


def _with_plain_projectors(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    state = {
        index: {**entry, "projector": _plain(entry["projector"])} if "projector" in entry else entry
        for index, entry in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


def _plain(projector: GaLoreProjector | dict[str, Any]) -> dict[str, Any]:
    if isinstance(projector, dict):
        return projector
    bases = projector.ortho_matrix
    return {
        "rank": projector.rank,
        "update_proj_gap": projector.update_proj_gap,
        "scale": projector.scale,
        # A number, since PyTorch's load_state_dict treats a string as a collection.
        "proj_type": PROJ_TYPES.index(projector.proj_type),
        # The package's basis is a view of a matrix many times as large, all of which would be saved.
        "basis": [basis.clone() for basis in bases] if isinstance(bases, list) else bases.clone(),
    }


def _projector(plain: Mapping[str, Any]) -> GaLoreProjector:
    options = {key: plain[key] for key in ("rank", "update_proj_gap", "scale")}
    projector = GaLoreProjector(**options, proj_type=PROJ_TYPES[plain["proj_type"]])
    projector.ortho_matrix = plain["basis"]
    return projector
