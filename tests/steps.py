"""Whether an objective is called by a run, rather than by the estimate of its memory, which traces a step before it."""

from typing import Any

from torch._subclasses.fake_tensor import is_fake


def is_step(network: Any, batch: Any) -> bool:
    """Whether this is a step of training."""
    return network.training and not is_fake(batch.genes)
