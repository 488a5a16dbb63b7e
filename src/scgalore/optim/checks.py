"""Options of a parameter group, checked before any step is taken."""

from __future__ import annotations

import difflib
import math
from typing import TYPE_CHECKING, Any

from scgalore.errors import OptionError
from scgalore.optim.projector import PROJ_TYPES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def closest(word: Any, choices: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` when a choice is close to the word, else nothing."""
    close = difflib.get_close_matches(str(word), list(choices), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def check_group(group: Mapping[str, Any]) -> None:
    """Raise :class:`~scgalore.errors.OptionError` for the first option of a group outside its range."""
    for key in ("lr", "eps", "weight_decay"):
        _require(_number(group[key], 0.0), key, group[key], "a number >= 0")
    betas = group["betas"]
    fine = len(betas) == 2 and all(0.0 <= beta < 1.0 for beta in betas)
    _require(fine, "betas", betas, "two numbers in [0, 1)")
    _choice("basis", group["basis"], ("warm", "svd"))
    _choice("moments", group["moments"], ("rotate", "keep", "reset"))
    _require(_whole(group["seed"], 0), "seed", group["seed"], "a whole number >= 0")
    if group.get("rank") is None:
        return
    for key in ("rank", "update_proj_gap", "split"):
        _require(_whole(group[key], 1), key, group[key], "a whole number >= 1")
    scale = group["scale"]
    fine = scale == "auto" or (not isinstance(scale, str) and _number(scale, 0.0))
    _require(fine, "scale", scale, "'auto' or a number >= 0")
    _choice("proj_type", group["proj_type"], PROJ_TYPES)
    for param in group["params"]:
        if param.ndim == 2 and param.shape[0] % group["split"]:
            msg = f"split={group['split']} does not divide the {param.shape[0]} rows of a weight {tuple(param.shape)}."
            raise OptionError(msg)


def _require(fine: bool, key: str, value: Any, expected: str) -> None:  # noqa: FBT001
    if not fine:
        msg = f"{key}={value!r}: expected {expected}."
        raise OptionError(msg)


def _choice(key: str, value: Any, choices: Iterable[str]) -> None:
    hint = closest(value, choices)
    _require(value in choices, key, value, f"one of {', '.join(map(repr, choices))}.{hint}".removesuffix("."))


def _number(value: Any, least: float) -> bool:
    return not isinstance(value, bool | str) and math.isfinite(value) and value >= least


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
