"""Registry of adapters for ``adapter="..."``.

To add one, write a subclass of :class:`~scgalore.adapters.Adapter`, a function that attaches it, and an
:class:`AdapterSpec` in :data:`ADAPTERS`.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scgalore.adapters.checks import check_values, require_package
from scgalore.adapters.lora import attach_lora
from scgalore.adapters.lte import attach_lte
from scgalore.errors import OptionError
from scgalore.optim.checks import closest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from scgalore.adapters.base import Adapter


@dataclass(frozen=True)
class AdapterSpec:
    """One adapter of the registry.

    Attributes
    ----------
    name
        Value of ``adapter=``.
    attach
        Function that attaches the adapter to a module; its keywords are the options.
    lr_factor
        Factor for an optimizer's default learning rate.
    trains
        Description of the trained parameters.
    state_bytes
        Description of the optimizer state.
    source
        Source of the defaults.
    package
        Required package, from the extra with the adapter's name.
    """

    name: str
    attach: Callable[..., Adapter]
    lr_factor: float
    trains: str
    state_bytes: str
    source: str
    package: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """All options of the adapter, with defaults."""
        parameters = inspect.signature(self.attach).parameters.values()
        return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}


ADAPTERS: dict[str, AdapterSpec] = {
    "lora": AdapterSpec(
        name="lora",
        attach=attach_lora,
        lr_factor=10.0,
        trains="Two low-rank matrices per adapted layer (separate for query, key and value), and the heads.",
        state_bytes="That of the optimizer, for the low-rank matrices and the heads; none for frozen weights.",
        source=(
            "alpha, all layers and ten times the learning rate: Schulman et al. 2025, 'LoRA Without Regret'. Separate "
            "factors for query, key and value were better than shared ones on a small scGPT-shaped network."
        ),
        package="peft",
    ),
    "lte": AdapterSpec(
        name="lte",
        attach=attach_lte,
        lr_factor=1.0,
        trains="Parallel low-rank matrices per adapted layer, merged into it during training, and all other weights.",
        state_bytes="That of the optimizer, for the low-rank matrices of all heads and all other weights; none for the adapted weights.",
        source=(
            "Huh et al. 2024, arXiv 2402.16828. The learning rate is that of the optimizer, which also trains the rest of the network. "
            "At 2e-3, alpha / rank = 4 was the best of 1 to 64 on a small scGPT (masked expression, AdamW), and "
            "16 was worse than frozen attention. Merging every 10 steps was hardly worse than every step, every 50 steps was. One "
            "or two splits each."
        ),
    ),
}


def check_adapter(name: str, options: Mapping[str, Any]) -> AdapterSpec:
    """Return the registry entry with this name, after checking its options.

    Parameters
    ----------
    name
        A key of :data:`ADAPTERS`.
    options
        Options of this adapter. ``targets`` and ``rank`` are checked against the network later.

    Raises
    ------
    OptionError
        For an unknown name or option, a value outside its range, or a package that is not installed.
    """
    if name not in ADAPTERS:
        msg = f"adapter={name!r} does not exist; choose one of {', '.join(ADAPTERS)}.{closest(name, ADAPTERS)}"
        raise OptionError(msg)
    spec = ADAPTERS[name]
    known = spec.options
    for key in options:
        if key not in known:
            msg = f"adapter={name!r} has no option {key!r}; its options are {', '.join(known)}.{closest(key, known)}"
            raise OptionError(msg)
    check_values(options)
    if spec.package:
        require_package(spec.package, extra=spec.name)
    return spec


def attach_adapter(name: str, module: nn.Module, **options: Any) -> Adapter:
    """Attach an adapter of the registry to a module, in place.

    Parameters
    ----------
    name
        A key of :data:`ADAPTERS`.
    module
        The network; create the optimizer afterwards.
    options
        Options of this adapter, such as ``rank``.

    Returns
    -------
    The adapter, whose :meth:`~scgalore.adapters.Adapter.detach` restores the structure of the module.
    """
    return check_adapter(name, options).attach(module, **options)
