"""Which weights an objective reaches."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.autograd.graph import Node

__all__ = ["unreached"]


def unreached(loss: Tensor, module: nn.Module) -> list[str]:
    """Names of the trainable parameters that a loss does not depend on, such as heads of other tasks.

    Read from the graph of the loss; nothing is differentiated.

    Parameters
    ----------
    loss
        Computed with gradients enabled.
    module
        What it was computed with.
    """
    found: set[int] = set()
    seen: set[Node] = set()
    nodes = [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            found.add(id(leaf))
        nodes += [following for following, _ in node.next_functions]
    return [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in found]
