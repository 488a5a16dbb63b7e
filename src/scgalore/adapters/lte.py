"""LoRA-the-Explorer as an adapter: which layers, when to merge, what to save."""

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

    Merging sums up updates of low rank to one of high rank, so that, unlike LoRA, the change of a weight is not bound
    to the rank of a head. Attach before the optimizer is built and call :meth:`LTE.after_step` after each of its steps.

    Parameters
    ----------
    module
        The network, changed in place. In training, dimension 0 of what the layers see must be the batch.
    n_heads
        Number of heads; a batch should hold at least as many cells, better several for each head.
    rank
        Rank of each head.
    alpha
        Size of the updates: ``B A`` of a head is multiplied by ``alpha / rank``. With Adam this factor acts like one on the
        learning rate.
    merge_every
        Optimizer steps between merges.
    targets
        ``"attention"``, ``"mlp"``, ``"all"`` or patterns of module names.
    others
        ``"train"`` trains the rest of the network in full, ``"freeze"`` only its heads.
    seed
        Seed of the first factors.

    Returns
    -------
    The adapter.

    Raises
    ------
    OptionError
        If an option is outside its range or fits no layer, or a weight is neither float32 nor float64.

    Notes
    -----
    Huh et al. 2024, arXiv 2402.16828, the variant without resets; optimizer state is kept across merges. A layer of
    ``o x i`` weights gets ``n_heads * rank * (i + o)`` trainable numbers and as many that are not trained (the factors
    at the last merge), and the optimizer's state for the former.
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
        Those of :func:`attach_lte`, all of them.

    Notes
    -----
    :meth:`tensors` are the factors alone: the merges telescope, so that the weights after a merge are those before the
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
        """Give the live factors of all heads by name."""
        return {f"{key}.{name}": getattr(layer, name) for key, layer in self.layers.items() for name in ("A", "B")}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the factors of another adapter and put the weights where its merges took them."""
        super().load_tensors(tensors)
        self.merge()

    def after_step(self) -> None:
        """Count a step of the optimizer, and merge when it is time."""
        layers = list(self.layers.values())
        for layer in layers:
            layer.n_steps += 1
        # The counts are equal; reading each would make a GPU wait for every layer.
        if int(layers[0].n_steps) % self.options["merge_every"] == 0:
            self.merge()

    def merge(self) -> None:
        """Add the mean over heads of what they have learnt since the last merge to the weights."""
        for layer in self.layers.values():
            layer.merge()

    def unmerge(self) -> None:
        """Take out of the weights all that was ever merged: the weights of before, up to rounding.

        Evaluation applies the heads in full then. Training goes on after a :meth:`merge`, or after the next that is due:
        until then a head would not see what the others have learnt.
        """
        for layer in self.layers.values():
            layer.unmerge()

    def unwrap(self) -> None:
        """Put the plain linear layers back."""
        for key, layer in self.layers.items():
            set_submodule(self.module, key, layer.base)


def _refuse_narrow(layers: Mapping[str, nn.Linear]) -> None:
    for key, layer in layers.items():
        if layer.weight.dtype not in (torch.float32, torch.float64):
            msg = (
                f"{key}.weight is {layer.weight.dtype}, in which small merges would round away; "
                "convert the network with .float() and train in mixed precision."
            )
            raise OptionError(msg)
