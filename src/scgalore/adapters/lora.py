"""Low-rank adaptation (LoRA), with DoRA and PiSSA, using the layers of peft.

Sources: LoRA, Hu et al. 2021, arXiv 2106.09685; DoRA, Liu et al. 2024, arXiv 2402.09353; PiSSA, Meng et al. 2024,
arXiv 2404.02948.
"""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from scgalore.adapters.base import Adapter, freeze_others, set_submodule, target_layers
from scgalore.adapters.checks import check_values, require_package
from scgalore.errors import OptionError
from scgalore.optim.packages import quiet_import

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_KEY = "default"  # peft's name of the one adapter of a layer


class LoRAAdapter(Adapter):
    """Each layer computes ``x W' + (alpha / rank) x A' B'`` with W frozen; see :func:`attach_lora`.

    While merged, a copy of the original weights is kept, so that :meth:`unmerge` restores them exactly.
    """

    def __init__(self, module: nn.Module, options: Mapping[str, Any]) -> None:
        options = check_values(options)
        _import_peft()
        if options["variant"] == "pissa":
            _refuse_double(target_layers(module, options["targets"]))
        super().__init__("lora", module, options)
        self._kept: dict[str, Tensor] = {}
        required = [(param, param.requires_grad) for param in module.parameters()]
        self._inject()
        for param, flag in required:
            param.requires_grad = flag
        for layer in self._layers().values():
            # On a network in evaluation mode, peft leaves its dropout in training mode.
            layer.train(layer.get_base_layer().training)
        self._initial = self._products_at_start()
        adapted = [layer.get_base_layer().weight for layer in self._layers().values()]
        freeze_others(module, self.parameters(), self.options["others"], adapted=adapted)

    def _inject(self) -> None:
        peft = _import_peft()
        config = peft.LoraConfig(
            r=self.options["rank"],
            lora_alpha=self.options["alpha"],
            lora_dropout=self.options["dropout"],
            # peft matches a regular expression in full, but names in a list also as suffixes of others.
            target_modules="|".join(map(re.escape, self.layer_names)),
            use_dora=self.options["variant"] == "dora",
            init_lora_weights="pissa" if self.options["variant"] == "pissa" else True,
        )
        # The factors are drawn on the CPU, regardless of the device. torch.manual_seed would also seed all GPUs.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.options["seed"])
            peft.inject_adapter_in_model(config, self.module)

    def _layers(self) -> dict[str, Any]:
        return {name: self.module.get_submodule(name) for name in self.layer_names}

    def _products_at_start(self) -> dict[str, Tensor]:
        # PiSSA moves the top of W into A and B. Loading A and B on another copy of W requires the part that was moved,
        # and an SVD on another machine may differ if singular values are close.
        if self.options["variant"] != "pissa":
            return {}
        return {key: tensor.detach().clone() for key, tensor in self._factors().items()}

    def _factors(self) -> dict[str, Tensor]:
        factors: dict[str, Tensor] = {}
        for name, layer in self._layers().items():
            factors[f"{name}.lora_A"] = layer.lora_A[_KEY].weight  # (r, in)
            factors[f"{name}.lora_B"] = layer.lora_B[_KEY].weight  # (out, r)
            if self.options["variant"] == "dora":
                factors[f"{name}.magnitude"] = layer.lora_magnitude_vector[_KEY].weight  # (out,)
        return factors

    def own_tensors(self) -> dict[str, Tensor]:
        """A and B of each layer, magnitudes (DoRA), and A and B at the start (PiSSA)."""
        return self._factors() | {f"{key}_initial": tensor for key, tensor in self._initial.items()}

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """See :meth:`Adapter.load_tensors`; with PiSSA the frozen weights change as well."""
        was_merged = bool(self._kept)
        self.unmerge()
        before = self._taken_out()
        super().load_tensors(tensors)
        for name, after in self._taken_out().items():
            self.module.get_submodule(name).get_base_layer().weight.add_(before[name] - after)  # type: ignore[operator]
        if was_merged:
            self.merge()

    def _taken_out(self) -> dict[str, Tensor]:
        taken = {}
        for name, layer in self._layers().items() if self._initial else ():
            a, b = (self._initial[f"{name}.lora_{part}"] for part in "AB")
            taken[name] = (layer.scaling[_KEY] * b @ a).to(layer.get_base_layer().weight)
        return taken

    def after_step(self) -> None:
        """Raise an error if the adapter was merged during the step, and thus got no gradient."""
        if self._kept:
            msg = "The optimizer made a step while the adapter was merged, which has no effect. Call unmerge() before training."
            raise OptionError(msg)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the product to the weights, for inference; call :meth:`unmerge` before training or saving."""
        if self._kept:
            return
        for name, layer in self._layers().items():
            self._kept[name] = layer.get_base_layer().weight.detach().clone()
            layer.merge()

    @torch.no_grad()
    def unmerge(self) -> None:
        """Restore the exact weights before :meth:`merge`."""
        for name, layer in self._layers().items() if self._kept else ():
            layer.unmerge()
            layer.get_base_layer().weight.copy_(self._kept[name])
        self._kept = {}

    def unwrap(self) -> None:
        """Replace peft's layers by the plain layers inside."""
        for name, layer in self._layers().items():
            set_submodule(self.module, name, layer.get_base_layer())
        del self.module.peft_config
        self._kept, self._initial = {}, {}


def attach_lora(
    module: nn.Module,
    *,
    rank: int = 8,
    alpha: float = 32,
    dropout: float = 0.0,
    targets: str | Sequence[str] = "all",
    others: Literal["freeze", "train"] = "freeze",
    variant: Literal["lora", "dora", "pissa"] = "lora",
    seed: int = 0,
) -> LoRAAdapter:
    """Train low-rank updates of linear layers instead of the layers themselves.

    Packed query, key and value layers are split, so that each of the three has its own factors. Attach before creating
    the optimizer.

    Parameters
    ----------
    module
        The network, modified in place until :meth:`Adapter.detach`.
    rank
        Rank r of the updates: ``r (in + out)`` trainable numbers for a layer ``in x out``.
    alpha
        The product of the factors is multiplied by ``alpha / rank``, so that the optimal learning rate hardly depends
        on the rank.
    dropout
        Dropout on the input of the factors, in training.
    targets
        ``"attention"``, ``"mlp"``, ``"all"``, or patterns of module names.
    others
        ``"freeze"``: only the adapter and the heads are trained. ``"train"``: everything except the adapted weights is
        trained.
    variant
        ``"lora"``; ``"dora"``, which also trains the norm of each row of the weight; ``"pissa"``, whose factors are
        initialised with the largest singular directions of the weight, which are subtracted from it, and whose file is
        twice as large.
    seed
        Seed of the initial A. Global random state is not changed.

    Raises
    ------
    OptionError
        If peft is missing, the module already has an adapter, or an option is out of range or matches no layer.
    """
    given = {"alpha": alpha, "dropout": dropout, "others": others, "rank": rank, "seed": seed}
    return LoRAAdapter(module, {**given, "targets": targets, "variant": variant})


def _import_peft() -> Any:
    # Imported only when an adapter is attached: it takes seconds and imports transformers and accelerate.
    require_package("peft", extra="lora")
    try:
        with quiet_import():
            return importlib.import_module("peft")
    except ImportError as error:
        msg = f'peft is installed but cannot be imported ({error}). Run: pip install --upgrade "scgalore[lora]"'
        raise OptionError(msg) from error


def _refuse_double(layers: Mapping[str, nn.Linear]) -> None:
    if double := [name for name, layer in layers.items() if layer.weight.dtype == torch.float64]:
        msg = f"variant='pissa' does not support float64 weights, such as {double[0]}. Call module.float() or choose 'lora'."
        raise OptionError(msg)
