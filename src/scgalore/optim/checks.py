"""Checks of the options of parameter groups, before the first step."""

from __future__ import annotations

import difflib
import math
import numbers
from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor

from scgalore.errors import OptionError
from scgalore.optim.projector import PROJ_TYPES
from scgalore.optim.subspace import BASIS_METHODS, MOMENTS, SCALE_TYPES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def closest(word: Any, choices: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` if a choice is similar to the word, else an empty text."""
    close = difflib.get_close_matches(str(word), list(choices), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def plain_number(value: Any) -> Any:
    """Convert numbers of other packages to int or float; other values are returned unchanged."""
    if isinstance(value, tuple | list):
        return type(value)(map(plain_number, value))
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def check_settings(options: Mapping[str, Any]) -> None:
    """Raise :class:`~scgalore.errors.OptionError` for the first of Adam's settings, if given, that is out of range."""
    for key in ("lr", "eps", "weight_decay"):
        if key in options and not _is_number(options[key]):
            _refuse(key, options[key], "a number >= 0")
    betas = options.get("betas", (0.0, 0.0))
    if not (isinstance(betas, tuple | list) and len(betas) == 2 and all(_is_number(b) and b < 1 for b in betas)):
        _refuse("betas", betas, "two numbers in [0, 1)")


def check_galore_group(group: Mapping[str, Any]) -> None:
    """Raise :class:`~scgalore.errors.OptionError` for the first option of a GaLoreAdamW group that is out of range."""
    check_settings(group)
    _check_choice("basis", group["basis"], BASIS_METHODS)
    _check_choice("moments", group["moments"], MOMENTS)
    _check_flags(group, "stagger", "lazy")
    check_whole(group, "seed", 0)
    _check_matrices(group)


def check_apollo_group(group: Mapping[str, Any]) -> None:
    """Raise :class:`~scgalore.errors.OptionError` for the first option of an ApolloAdamW group that is out of range."""
    check_settings(group)
    _check_choice("scale_type", group["scale_type"], SCALE_TYPES)
    if group["max_growth"] is not None and not (_is_number(group["max_growth"]) and group["max_growth"] >= 1):
        _refuse("max_growth", group["max_growth"], "a number >= 1, or None for no limit")
    check_whole(group, "seed", 0)
    _check_matrices(group)
    if group.get("rank") is not None and group["proj_type"] == "full":
        _refuse("proj_type", "full", "one side, since the other's channels are scaled: 'std', for example")


def check_muon_group(group: Mapping[str, Any]) -> None:
    """Raise :class:`~scgalore.errors.OptionError` for the first option of a MuonAdamW group that is out of range."""
    check_settings(group)
    if not (_is_number(group["momentum"]) and group["momentum"] < 1):
        _refuse("momentum", group["momentum"], "a number in [0, 1)")
    _check_flags(group, "nesterov")
    check_whole(group, "ns_steps", 1)
    if group["ns_steps"] >= 100:
        _refuse("ns_steps", group["ns_steps"], "fewer than 100")
    _check_matrices(group)


def _check_matrices(group: Mapping[str, Any]) -> None:
    if group.get("rank") is None:
        return
    check_projection(group)
    for param in group["params"]:
        if param.ndim == 2 and param.shape[0] % group["split"]:
            msg = f"split={group['split']} does not divide the {param.shape[0]} rows of a weight {tuple(param.shape)}."
            raise OptionError(msg)


def check_projection(options: Mapping[str, Any]) -> None:
    """Raise :class:`~scgalore.errors.OptionError` for the first option of a projection that is out of range."""
    for key in ("rank", "update_proj_gap", "split"):
        check_whole(options, key, 1)
    if options["scale"] != "auto" and not _is_number(options["scale"]):
        _refuse("scale", options["scale"], "'auto' or a number >= 0")
    _check_choice("proj_type", options["proj_type"], PROJ_TYPES)


def check_whole(options: Mapping[str, Any], key: str, least: int) -> None:
    """Raise :class:`~scgalore.errors.OptionError` unless an option is a whole number of at least the minimum."""
    value = options[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        _refuse(key, value, f"a whole number >= {least}")


def _check_choice(key: str, value: Any, choices: Iterable[str]) -> None:
    if value not in choices:
        _refuse(key, value, f"one of {', '.join(map(repr, choices))}", closest(value, choices))


def _check_flags(options: Mapping[str, Any], *keys: str) -> None:
    for key in keys:
        if not isinstance(options[key], bool):
            _refuse(key, options[key], "True or False")


def _refuse(key: str, value: Any, expected: str, hint: str = "") -> NoReturn:
    msg = f"{key}={value!r}: expected {expected}.{hint}"
    raise OptionError(msg)


def _is_number(value: Any) -> bool:
    # A learning rate may be a tensor of one number.
    is_real = isinstance(value, numbers.Real | Tensor) and not isinstance(value, bool)
    return is_real and math.isfinite(value) and bool(value >= 0)
