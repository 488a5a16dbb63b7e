"""The adapters that ``adapter="..."`` can name.

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
        What the user writes.
    attach
        Puts the adapter on a module; its keywords are the options.
    lr_factor
        What an optimizer's default learning rate is multiplied by.
    trains
        What is trained, in a sentence.
    state_bytes
        State bytes of the optimizer, in words.
    source
        Where the defaults come from.
    package
        Package it needs, from the extra of the adapter's name.
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
        """Every option the adapter takes, with its default."""
        parameters = inspect.signature(self.attach).parameters.values()
        return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}


ADAPTERS: dict[str, AdapterSpec] = {
    "lora": AdapterSpec(
        name="lora",
        attach=attach_lora,
        lr_factor=10.0,
        trains="Two thin matrices for each adapted layer, query, key and value apart, and the heads.",
        state_bytes="The optimizer's, for the thin matrices and the heads; none for what is frozen.",
        source=(
            "alpha, all layers and ten times the learning rate: Schulman et al. 2025, 'LoRA Without Regret'. Factors of "
            "their own for query, key and value did better than common ones on a small scGPT-shaped network."
        ),
        package="peft",
    ),
    "lte": AdapterSpec(
        name="lte",
        attach=attach_lte,
        lr_factor=1.0,
        trains="Parallel thin matrices for each adapted layer, merged into it as training goes, and the rest in full.",
        state_bytes="The optimizer's, for the thin matrices of all heads and for the rest; none for the adapted weights.",
        source=(
            "Huh et al. 2024, arXiv 2402.16828. The learning rate is the optimizer's own, since the rest of the network "
            "trains with it; at 2e-3 alpha / rank = 4 did best of 1 to 64 on a small scGPT (masked expression, AdamW), and "
            "16 was worse than frozen attention. Merging every 10 steps cost little against every step, every 50 more. One "
            "or two splits each."
        ),
    ),
}


def check_adapter(name: str, options: Mapping[str, Any]) -> AdapterSpec:
    """Entry of the registry of this name, once it is certain that it takes these options.

    Parameters
    ----------
    name
        A key of :data:`ADAPTERS`.
    options
        Options of this adapter. Whether ``targets`` and ``rank`` fit a network is known once there is one.

    Raises
    ------
    OptionError
        For an unknown name or option, a value outside its range, or a package that is not installed.
    """
    if name not in ADAPTERS:
        msg = f"adapter={name!r} is not known; choose one of {', '.join(ADAPTERS)}.{closest(name, ADAPTERS)}"
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
    """Put an adapter of the registry on a module, in place.

    Parameters
    ----------
    name
        A key of :data:`ADAPTERS`.
    module
        The network; build the optimizer afterwards.
    options
        Options of this adapter, such as ``rank``.

    Returns
    -------
    The adapter, whose :meth:`~scgalore.adapters.Adapter.detach` gives the module its own structure back.
    """
    return check_adapter(name, options).attach(module, **options)
