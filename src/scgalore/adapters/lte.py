"""LoRA-the-Explorer as an adapter: layers, merging and saving."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from scgalore.adapters.base import Adapter, freeze_others, set_submodule, target_layers
from scgalore.adapters.checks import check_values
from scgalore.adapters.lte_linear import LTELinear
from scgalore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def attach_lte(
    module: nn.Module,
    *,
    n_heads: int = 4,
    rank: int = 8,
    alpha: float = 32.0,
    merge_every: int = 10,
    targets: str | Sequence[str] = "attention",
    others: str = "train",
    seed: int = 0,
) -> LTE:
    """Train linear layers by parallel low-rank heads, each on its shard of the batch (LoRA-the-Explorer).

    Merging adds low-rank updates to a high-rank update so that, unlike in LoRA, the change of a weight is not limited
    to the rank of a head. Attach before creating the optimizer and call :meth:`LTE.after_step` after each of its steps.

    Parameters
    ----------
    module
        The network, modified in place. In training, dimension 0 of the layers' inputs must be the batch.
    n_heads
        Number of heads; a batch should contain at least as many cells, preferably several per head.
    rank
        Rank of each head.
    alpha
        Size of the updates: ``B A`` of a head is multiplied by ``alpha / rank``. With Adam this is equivalent to a
        factor on the learning rate.
    merge_every
        Number of optimizer steps between merges.
    targets
        ``"attention"``, ``"mlp"``, ``"all"`` or patterns of module names.
    others
        ``"train"`` trains all other weights of the network, ``"freeze"`` only its heads.
    seed
        Seed of the initial factors.

    Returns
    -------
    The adapter.

    Raises
    ------
    OptionError
        If an option is out of range or matches no layer, or a weight is neither float32 nor float64.

    Notes
    -----
    Huh et al. 2024, arXiv 2402.16828, the variant without resets; optimizer state is kept across merges. A layer of
    ``o x i`` weights gets ``n_heads * rank * (i + o)`` trainable numbers and as many fixed ones (the factors
    at the last merge), and optimizer state for the former.
    """
    options = {
        "n_heads": n_heads,
        "rank": rank,
        "alpha": alpha,
        "merge_every": merge_every,
        "targets": targets,
        "others": others,
        "seed": seed,
    }
    return LTE(module, options)


class LTE(Adapter):
    """The adapter of :func:`attach_lte`.

    Parameters
    ----------
    module
        The network, changed in place.
    options
        All options of :func:`attach_lte`.

    Notes
    -----
    :meth:`tensors` are only the factors: the merges telescope, so that the weights after a merge are those before the
    first step plus ``alpha / rank`` times the mean of ``B_n A_n`` over heads.
    """

    def __init__(self, module: nn.Module, options: Mapping[str, Any]) -> None:
        options = check_values(options)
        _refuse_narrow(target_layers(module, options["targets"]))
        super().__init__("lte", module, options)
        generator = torch.Generator().manual_seed(options["seed"])
        shape = {key: options[key] for key in ("n_heads", "rank", "alpha")}
        for key in self.layer_names:
            base = cast("nn.Linear", module.get_submodule(key))
            set_submodule(module, key, LTELinear(base, **shape, generator=generator).train(base.training))
        adapted = [cast("nn.Parameter", layer.base.weight) for layer in self.layers.values()]
        freeze_others(module, self.parameters(), options["others"], adapted=adapted)

    @property
    def layers(self) -> dict[str, LTELinear]:
        """The adapted layers by name."""
        return {key: cast("LTELinear", self.module.get_submodule(key)) for key in self.layer_names}

    def own_tensors(self) -> dict[str, Tensor]:
        """Return the factors of all heads by name, without copying."""
        return {f"{key}.{name}": getattr(layer, name) for key, layer in self.layers.items() for name in ("A", "B")}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the factors of another adapter and apply its merges to the weights."""
        super().load_tensors(tensors)
        self.merge()

    def after_step(self) -> None:
        """Count an optimizer step, and merge every ``merge_every`` steps."""
        layers = list(self.layers.values())
        for layer in layers:
            layer.n_steps += 1
        # The counts are equal; reading all would synchronise the GPU for every layer.
        if int(layers[0].n_steps) % self.options["merge_every"] == 0:
            self.merge()

    def merge(self) -> None:
        """Add the mean over heads of their updates since the last merge to the weights."""
        for layer in self.layers.values():
            layer.merge()

    def unmerge(self) -> None:
        """Subtract all merged updates, which restores the original weights up to rounding.

        Evaluation then applies the full heads. Continue training after :meth:`merge`, or after the next merge that is
        due: until then a head does not see the updates of the others.
        """
        for layer in self.layers.values():
            layer.unmerge()

    def unwrap(self) -> None:
        """Restore the plain linear layers."""
        for key, layer in self.layers.items():
            set_submodule(self.module, key, layer.base)


def _refuse_narrow(layers: Mapping[str, nn.Linear]) -> None:
    for key, layer in layers.items():
        if layer.weight.dtype not in (torch.float32, torch.float64):
            msg = (
                f"{key}.weight is {layer.weight.dtype}, in which small merges would be lost by rounding. "
                "Convert the network with .float() and train in mixed precision."
            )
            raise OptionError(msg)
