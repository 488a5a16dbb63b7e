"""Optimizers for ``optimizer="..."``.

To add one, write its ``build`` and put an :class:`OptimizerSpec` into :data:`OPTIMIZERS`; it is then checked, built,
documented and tested like the others. A package that only one of them needs is imported when that one is built.
Optimizers that need more than ``step()`` inherit from :class:`~scgalore.optim.needs.TrainingNeeds`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from scgalore.errors import OptionError
from scgalore.optim import expected
from scgalore.optim.apollo import ApolloAdamW
from scgalore.optim.checks import check_settings, closest, plain_number
from scgalore.optim.galore import GaLoreAdamW
from scgalore.optim.groups import named_after, param_groups
from scgalore.optim.kernels import FUSED_DEVICES
from scgalore.optim.muon import MuonAdamW
from scgalore.optim.packages import require
from scgalore.optim.sophia import SophiaG

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from scgalore.optim.expected import Weights


@dataclass(frozen=True)
class OptimizerSpec:
    """One optimizer of the registry.

    Attributes
    ----------
    name
        Name passed by the user.
    build
        Function that creates the optimizer from a module and the keywords ``lr``, ``weight_decay`` and all ``options``.
    lr
        Default learning rate for fine-tuning.
    weight_decay
        Default weight decay.
    options
        All options of the optimizer with their defaults, as values of JSON.
    trains
        Description of the trained weights and of the state, in a sentence.
    state_bytes
        Description of the bytes of state per parameter.
    source
        Source of the defaults.
    count_state
        Function that computes the bytes of state after the first step from parameters, the settings of their groups and
        the options, without allocating memory. By default that of AdamW.
    count_work
        Function that computes the working memory of a step in bytes, likewise.
    needs_curvature
        Whether the training loop must supply estimates of the curvature, which requires an objective that can draw labels
        from the model.
    shardable
        Whether several processes can each keep the state of their share of the parameters.
    per_layer
        Whether it can update each parameter in the backward pass, as soon as its gradient is computed.
    """

    name: str
    build: Callable[..., Optimizer]
    lr: float
    weight_decay: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)
    trains: str = ""
    state_bytes: str = ""
    source: str = ""
    count_state: Callable[[Weights, Mapping[str, Any]], int] = expected.count_adamw
    count_work: Callable[[Weights, Mapping[str, Any]], int] = expected.work_of_one
    needs_curvature: bool = False
    shardable: bool = True
    per_layer: bool = True

    def counter(self, options: Mapping[str, Any]) -> Callable[[Tensor, Mapping[str, Any]], int]:
        """Function that computes the bytes of state of one parameter from it and its group.

        Parameters
        ----------
        options
            Options that differ from the defaults.
        """
        chosen = {**self.options, **options}
        return lambda param, group: self.count_state([(param, group)], chosen)


def build_galore(module: nn.Module, *, lr: float, weight_decay: float, **options: Any) -> Optimizer:
    """:class:`~scgalore.optim.GaLoreAdamW` on the groups of :func:`~scgalore.optim.param_groups`."""
    grouping = {key: options.pop(key) for key in _GROUPING}
    groups = param_groups(module, weight_decay=weight_decay, **grouping)
    return GaLoreAdamW(groups, lr=lr, weight_decay=weight_decay, **options)


def build_apollo(module: nn.Module, *, lr: float, weight_decay: float, **options: Any) -> Optimizer:
    """:class:`~scgalore.optim.ApolloAdamW` on the matrices that ``"galore"`` projects by default, for any rank.

    Otherwise, the last layer of a head would also be projected at rank 1, which increased the held-out loss by 9 % and
    7 % on two tasks.
    """
    grouping = {key: options.pop(key) for key in _GROUPING}
    groups = param_groups(module, weight_decay=weight_decay, least_side="auto", **grouping)
    groups = named_after(groups, "apollo")
    return ApolloAdamW(groups, lr=lr, weight_decay=weight_decay, **options)


def build_muon(
    module: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    overrides: Mapping[str, Mapping[str, Any] | None] | None,
    **options: Any,
) -> Optimizer:
    """:class:`~scgalore.optim.MuonAdamW` on the matrices that ``"galore"`` projects by default."""
    groups = named_after(param_groups(module, weight_decay=weight_decay, overrides=overrides), "muon")
    return MuonAdamW(groups, lr=lr, weight_decay=weight_decay, **options)


def build_galore_torch(module: nn.Module, *, lr: float, weight_decay: float, **options: Any) -> Optimizer:
    """:class:`~scgalore.optim.galore_torch.GaLoreTorchAdamW`, the reference package; its docstring lists the limitations."""
    require("galore_torch", install="galore-torch")
    from scgalore.optim.galore_torch import GaLoreTorchAdamW, package_groups

    grouping = {key: options.pop(key) for key in _GROUPING}
    groups = package_groups(param_groups(module, weight_decay=weight_decay, **grouping))
    return GaLoreTorchAdamW(groups, lr=lr, weight_decay=weight_decay, **options)


def build_adamw(module: nn.Module, *, lr: float, weight_decay: float, **options: Any) -> Optimizer:
    """:class:`torch.optim.AdamW`, fused where the device allows: eight times faster than its default on CPU."""
    groups = param_groups(module, rank=None, weight_decay=weight_decay)
    fused = all(param.device.type in FUSED_DEVICES for group in groups for param in group["params"])
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, fused=fused, **options)
    # A fused AdamW offers to unscale gradients itself, upon which Lightning refuses to clip them in mixed precision.
    optimizer._step_supports_amp_scaling = False
    return optimizer


def build_adafactor(
    module: nn.Module, *, lr: float, weight_decay: float, eps1: float | None, eps2: float, **options: Any
) -> Optimizer:
    """:class:`torch.optim.Adafactor`, where ``lr`` is the largest step relative to the size of the weight.

    Weight decay is ``lr * weight_decay`` per step, as for AdamW, so it is much stronger at this ``lr``.
    """
    groups = param_groups(module, rank=None, weight_decay=weight_decay)
    return torch.optim.Adafactor(groups, lr=lr, weight_decay=weight_decay, eps=(eps1, eps2), **options)


def build_sophia(module: nn.Module, *, lr: float, weight_decay: float, **options: Any) -> Optimizer:
    """:class:`~scgalore.optim.SophiaG`, which the training loop must supply with curvature."""
    return SophiaG(
        param_groups(module, rank=None, weight_decay=weight_decay), lr=lr, weight_decay=weight_decay, **options
    )


def build_adamw_8bit(
    module: nn.Module, *, lr: float, weight_decay: float, min_8bit_size: int, **options: Any
) -> Optimizer:
    """:class:`bitsandbytes.optim.AdamW8bit`, made for CUDA.

    It also runs on a CPU since bitsandbytes 0.50, where a step took 39 times as long as that of the fused AdamW (10.5
    million parameters, one thread). Resumed training is bit-identical there.
    """
    if isinstance(min_8bit_size, bool) or not isinstance(min_8bit_size, int) or min_8bit_size < 0:
        msg = f"min_8bit_size={min_8bit_size!r}: expected a whole number of entries, not negative."
        raise OptionError(msg)
    require("bitsandbytes", install='"scgalore[lowbit]"')
    from bitsandbytes.optim import AdamW8bit

    groups = param_groups(module, rank=None, weight_decay=weight_decay)
    return AdamW8bit(groups, lr=lr, weight_decay=weight_decay, min_8bit_size=min_8bit_size, **options)


_BETAS_EPS = {"betas": (0.9, 0.999), "eps": 1e-8}
_APOLLO = {"max_growth": 1.01, "seed": 0, **_BETAS_EPS}
_GROUPING = {"rank": "auto", "update_proj_gap": 20, "scale": "auto", "proj_type": "std", "overrides": None}

OPTIMIZERS: dict[str, OptimizerSpec] = {
    spec.name: spec
    for spec in (
        OptimizerSpec(
            name="galore",
            build=build_galore,
            count_state=expected.count_galore,
            count_work=expected.work_of_galore,
            lr=1e-4,
            options={
                **_GROUPING,
                "basis": "warm",
                "moments": "rotate",
                "stagger": True,
                "lazy": False,
                "seed": 0,
                **_BETAS_EPS,
            },
            trains="All parameters; moments of matrices in a low-rank subspace, AdamW for the rest.",
            state_bytes=(
                "4 r (2 max(m, n) + min(m, n)) for a projected m x n matrix (float32), so 3 for each parameter of a square "
                "one at r = n / 4; 8 for each of the others."
            ),
            source=(
                "lr, betas, eps as for adamw, since scale='auto' makes steps comparable. rank = width / 4 as in the GaLore "
                "paper's pre-training; on a small scGPT-shaped network it came within 1 % of AdamW's loss, rank 8 did not. "
                "On that network frequent refreshes helped once moments were rotated, hence every 20 steps and not 200."
            ),
        ),
        OptimizerSpec(
            name="galore-torch",
            build=build_galore_torch,
            count_state=expected.count_galore_torch,
            count_work=expected.work_of_one,
            lr=1e-4,
            options={**_GROUPING, "update_proj_gap": 200, **_BETAS_EPS, "eps": 1e-6},
            trains="All parameters, with the reference package galore-torch 1.0; packed q/k/v as one matrix.",
            state_bytes=(
                "As galore in a checkpoint. In memory, in float32, a basis keeps the whole factor of the SVD: 4 min(m, n)**2 "
                "in place of 4 r min(m, n), so 6 for each parameter of a square matrix at r = n / 4; 8 for each of the others."
            ),
            source=(
                "eps, update_proj_gap and proj_type are the package's; its moments do not survive frequent refreshes. rank, "
                "scale, lr and betas as for galore, so that lr means the same."
            ),
        ),
        OptimizerSpec(
            name="adamw",
            build=build_adamw,
            count_state=expected.count_adamw,
            count_work=expected.work_of_none,
            lr=1e-4,
            options=dict(_BETAS_EPS),
            trains="All parameters; two moments for each.",
            state_bytes="8 for each parameter (float32).",
            source="lr, eps and no weight decay as in the scGPT authors' fine-tuning; betas are torch's.",
        ),
        OptimizerSpec(
            name="apollo",
            build=build_apollo,
            count_state=expected.count_apollo,
            count_work=expected.work_of_apollo,
            lr=1e-4,
            options={**_GROUPING, "update_proj_gap": 200, "scale_type": "channel", **_APOLLO},
            trains="All parameters; matrices by their gradient, with a learning rate for each row or column; AdamW for the rest.",
            state_bytes=(
                "8 r max(m, n) for a projected m x n matrix (float32), so 2 for each parameter of a square one at r = n / 4; "
                "8 for each of the others."
            ),
            source=(
                "update_proj_gap and max_growth as in the paper (Zhu et al. 2025); lr, betas, eps as for adamw, since "
                "scale='auto' is the factor of the paper's theory, and makes steps comparable; rank as for galore."
            ),
        ),
        OptimizerSpec(
            name="apollo-mini",
            build=build_apollo,
            count_state=expected.count_apollo,
            count_work=expected.work_of_apollo,
            lr=1e-4,
            options={
                **_GROUPING,
                "rank": 1,
                "update_proj_gap": 200,
                "scale": 128**0.5,
                "scale_type": "tensor",
                **_APOLLO,
            },
            trains="All parameters; matrices by their gradient, with one learning rate for each of them; AdamW for the rest.",
            state_bytes="8 max(m, n) for an m x n matrix (float32), so next to nothing; 8 for each of the others.",
            source="rank, scale (the root of 128), update_proj_gap and max_growth as in the paper; the others as for apollo.",
        ),
        OptimizerSpec(
            name="muon",
            build=build_muon,
            count_state=expected.count_muon,
            count_work=expected.work_of_muon,
            lr=1e-4,
            options={"overrides": None, "momentum": 0.95, "nesterov": True, "ns_steps": 5, **_BETAS_EPS},
            trains="All parameters; one momentum for each of the matrices that galore projects, AdamW for the rest.",
            state_bytes="4 for each parameter of such a matrix (float32); 8 for each of the others.",
            source="momentum, nesterov and ns_steps are those of torch.optim.Muon; lr, betas, eps as for adamw, to whose size steps are brought.",
        ),
        OptimizerSpec(
            name="adafactor",
            build=build_adafactor,
            count_state=expected.count_adafactor,
            count_work=expected.work_of_one,
            lr=1e-2,
            options={"beta2_decay": -0.8, "eps1": None, "eps2": 1e-3, "d": 1.0},
            trains="All parameters; the second moment of a matrix as one row and one column, no first moment.",
            state_bytes="4 (m + n) for an m x n matrix (float32), so next to nothing; 4 for each entry of a vector.",
            source=(
                "All are torch's, after Shazeer and Stern 2018. In single runs of scgpt-mini on scanpy's pbmc68k cells lr 1e-2 "
                "was better than 3e-3 and 3e-2: validation loss 0.75, AdamW at its best 0.78."
            ),
        ),
        OptimizerSpec(
            name="sophia",
            build=build_sophia,
            count_state=expected.count_sophia,
            count_work=expected.work_of_sophia,
            needs_curvature=True,
            shardable=SophiaG.shardable,
            per_layer=SophiaG.per_layer,
            lr=3e-5,
            options={"rho": 0.04, "curvature_every": 10, "betas": (0.965, 0.99), "eps": 1e-12},
            trains="All parameters; a momentum and a curvature for each, the latter from an additional backward pass every few steps.",
            state_bytes="8 for each parameter (float32).",
            source=(
                "rho, curvature_every and betas as in the paper (Liu et al. 2024) and its code; eps is the paper's. lr is a "
                "third of adamw's: in single runs of scgpt-mini on scanpy's pbmc68k cells 3e-4 was its best (validation loss "
                "0.89), AdamW's 1e-3 (0.78). A rho from 0.15 to 4 did no better."
            ),
        ),
        OptimizerSpec(
            name="adamw-8bit",
            build=build_adamw_8bit,
            count_state=expected.count_adamw_8bit,
            count_work=expected.work_of_none,
            lr=1e-4,
            options={"min_8bit_size": 4096, **_BETAS_EPS},
            trains="All parameters, with bitsandbytes on CUDA; two moments for each, in 8 bits and blocks of 256.",
            state_bytes="2 1/32 for each parameter of a tensor with at least min_8bit_size entries; 8 for each of the others.",
            source="min_8bit_size is the package's; the others as for adamw.",
        ),
    )
}


def build_optimizer(
    name: str,
    module: nn.Module,
    *,
    lr: float | None = None,
    weight_decay: float | None = None,
    **options: Any,
) -> Optimizer:
    """Build an optimizer of the registry for a module.

    Parameters
    ----------
    name
        A key of :data:`OPTIMIZERS`.
    module
        The network to train.
    lr
        Learning rate; ``None`` uses the default of the optimizer.
    weight_decay
        Weight decay; ``None`` uses the default of the optimizer.
    options
        Options of this optimizer, e.g. ``rank`` for ``"galore"``.

    Returns
    -------
    The optimizer, on the parameters of the module that require gradients.

    Raises
    ------
    OptionError
        If the name or an option does not exist, a value is out of range, or a package is missing.
    """
    spec = check_options(name, options)
    chosen = {**spec.options, **options}
    chosen["lr"] = spec.lr if lr is None else lr
    chosen["weight_decay"] = spec.weight_decay if weight_decay is None else weight_decay
    check_settings(chosen)
    try:
        return spec.build(module, **{key: plain_number(value) for key, value in chosen.items()})
    except OptionError:
        raise
    except (TypeError, ValueError) as error:
        # PyTorch and other packages check their own options.
        msg = f"optimizer={name!r}: {error}"
        raise OptionError(msg) from error


def check_options(name: str, options: Mapping[str, Any]) -> OptimizerSpec:
    """Check the options of an optimizer, and return its entry in the registry.

    Parameters
    ----------
    name
        A key of :data:`OPTIMIZERS`.
    options
        Options of this optimizer; learning rate and weight decay are not among them.

    Returns
    -------
    The entry, from which an optimizer can be built later.
    """
    if name not in OPTIMIZERS:
        msg = f"Unknown optimizer={name!r}; choose from {', '.join(OPTIMIZERS)}.{closest(name, OPTIMIZERS)}"
        raise OptionError(msg)
    spec = OPTIMIZERS[name]
    for key in options:
        if key not in spec.options:
            known = ", ".join(("lr", "weight_decay", *spec.options))
            msg = f"optimizer={name!r} has no option {key!r}; its options are {known}.{closest(key, spec.options)}"
            raise OptionError(msg)
    check_settings(options)
    return spec


def first_with(capability: str) -> str:
    """Name of the first optimizer with a capability, to suggest in messages.

    Parameters
    ----------
    capability
        Attribute of an :class:`OptimizerSpec`: ``"shardable"`` or ``"per_layer"``.
    """
    return next(name for name, spec in OPTIMIZERS.items() if getattr(spec, capability))
