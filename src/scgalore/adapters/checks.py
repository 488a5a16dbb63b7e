"""Checks of adapter options before anything is attached."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from scgalore.errors import OptionError
from scgalore.optim.checks import closest, plain_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

# Names of the layers of scGPT and scBERT.
_ATTENTION = ("*layers.*.Wqkv", "*layers.*.out_proj", "*layers.*.to_[qkv]", "*layers.*.to_out")
_MLP = ("*layers.*.linear[12]", "*layers.*.w[12]")

TARGETS: dict[str, tuple[str, ...]] = {"attention": _ATTENTION, "mlp": _MLP, "all": _ATTENTION + _MLP}
"""Patterns of module names for each keyword of ``targets=``."""

VARIANTS = ("lora", "dora", "pissa")


def _is_whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_targets(value: Any) -> bool:
    if isinstance(value, str):
        return value in TARGETS or any(sign in value for sign in "*?[.")
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(word, str) and word for word in value)


_CHECKS: dict[str, tuple[Callable[[Any], bool], str, Iterable[str]]] = {
    "rank": (_is_whole(1), "a whole number >= 1", ()),
    "n_heads": (_is_whole(1), "a whole number >= 1", ()),
    "merge_every": (_is_whole(1), "a whole number >= 1", ()),
    "seed": (_is_whole(0), "a whole number >= 0", ()),
    "alpha": (lambda value: _is_real(value) and value > 0, "a number > 0", ()),
    "dropout": (lambda value: _is_real(value) and 0 <= value < 1, "a number in [0, 1)", ()),
    "targets": (_is_targets, f"one of {', '.join(map(repr, TARGETS))} or patterns such as '*.linear1'", TARGETS),
    "others": (("freeze", "train").__contains__, "'freeze' or 'train'", ("freeze", "train")),
    "variant": (VARIANTS.__contains__, f"one of {', '.join(map(repr, VARIANTS))}", VARIANTS),
}


def check_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Convert options to built-in types; raises :class:`~scgalore.errors.OptionError` if one is out of range."""
    plain = {key: plain_number(value) for key, value in options.items()}
    for key, value in plain.items():
        is_valid, expected, words = _CHECKS[key]
        if not is_valid(value):
            msg = f"{key}={value!r}: expected {expected}.{closest(value, words)}"
            raise OptionError(msg)
    return plain


def require_package(package: str, *, extra: str) -> None:
    """Raise :class:`~scgalore.errors.OptionError` if a package is not installed, without importing it."""
    if find_spec(package) is None:
        msg = f'This adapter needs the package {package}, which is not installed. Run: pip install "scgalore[{extra}]"'
        raise OptionError(msg)
