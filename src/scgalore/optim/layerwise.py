"""Update of each parameter during the backward pass, as soon as its gradient is complete.

The idea is that of LOMO (Lv et al., "Full Parameter Fine-tuning for Large Language Models with Limited Resources", ACL
2024), which GaLore's authors use as per-layer weight updates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch.distributed
from torch.autograd.graph import increment_version
from torch.nn.parallel import DistributedDataParallel

from scgalore.errors import OptionError
from scgalore.optim.needs import needs_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


class LayerwiseUpdate:
    """Step the optimizer during backward, parameter by parameter, so that at most one gradient exists at a time.

    Saves the memory of the gradients, which is as large as that of the weights. The trained weights are bit-identical to
    those of the usual ``optimizer.step()``; that call may remain in the loop and does nothing.

    Every backward pass is a step. This excludes anything that needs all gradients first, or those of several backward
    passes:

    - accumulation of gradients over batches: each batch would be a separate step;
    - clipping by the global norm, and any other use of ``.grad`` after the backward pass: gradients no longer exist;
    - a ``GradScaler``: the gradients are still scaled when they are used;
    - several processes whose gradients are averaged: the update comes before the average.

    The last one raises an error. The others cannot be detected and are the responsibility of the caller.

    Parameters
    ----------
    module
        The network. Each of its trainable parameters must be in the optimizer, since its gradient would remain otherwise.
    optimizer
        Any optimizer that updates every parameter separately and skips those without gradient. Hooks on its ``step`` run
        once for each parameter.

    Raises
    ------
    OptionError
        If the module is :class:`~torch.nn.parallel.DistributedDataParallel` or one of several processes, if its
        parameters are on several devices, if trainable ones are not in the optimizer, if gradients exist already, or if
        the optimizer counts its steps for all parameters together, as :class:`~scgalore.optim.SophiaG` does.

    Notes
    -----
    A parameter used several times in a forward pass is updated once, when its last use has been differentiated. A
    backward pass that still needs a weight after that, through a ``detach()`` of it, gets torch's error about an
    in-place operation. Activation checkpointing with ``use_reentrant=True`` gives a parameter shared between two
    segments two partial gradients; use ``use_reentrant=False``.

    Examples
    --------
    >>> import torch
    >>> import scgalore as sg
    >>> network = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 3))
    >>> optimizer = sg.optim.build_optimizer("galore", network)
    >>> with sg.optim.LayerwiseUpdate(network, optimizer):
    ...     for _ in range(3):
    ...         network(torch.randn(8, 32)).square().mean().backward()
    >>> [param.grad for param in network.parameters()]
    [None, None, None, None]
    """

    def __init__(self, module: nn.Module, optimizer: Optimizer) -> None:
        params = [param for group in optimizer.param_groups for param in group["params"]]
        _check_processes(module)
        _check_optimizer(optimizer)
        _check_parameters(module, params)
        self._optimizer = optimizer
        self._handles = [p.register_post_accumulate_grad_hook(self._update) for p in params if p.requires_grad]

    def remove(self) -> None:
        """Return to ordinary training; a second call has no effect."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _update(self, param: Tensor) -> None:
        groups = self._optimizer.param_groups
        if any(other.grad is not None and other is not param for group in groups for other in group["params"]):
            # Its gradient would be used again at every parameter that follows.
            msg = (
                "LayerwiseUpdate found the gradient of another parameter, which was unfrozen, added to the optimizer or "
                "given a gradient manually. Call remove() and zero_grad(), and create it again."
            )
            raise RuntimeError(msg)
        self._optimizer.step()
        param.grad = None
        # PyTorch's fused kernels do not mark weights as modified, so the backward pass would silently use the new values.
        increment_version(param)


def _check_processes(module: nn.Module) -> None:
    if any(isinstance(part, DistributedDataParallel) for part in module.modules()):
        msg = (
            "LayerwiseUpdate cannot be used with DistributedDataParallel, which averages gradients after it has used "
            "them: the processes would drift apart. Train in one process, or update after backward."
        )
        raise OptionError(msg)
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if distributed and (size := torch.distributed.get_world_size()) > 1:
        msg = (
            f"LayerwiseUpdate does not support several processes, found {size}: each would train on its own gradients. "
            "Train in one process, or update after backward."
        )
        raise OptionError(msg)


def _check_optimizer(optimizer: Optimizer) -> None:
    if not needs_of(optimizer).per_layer:
        msg = (
            f"{type(optimizer).__name__} counts its steps for all parameters together, and LayerwiseUpdate would take one "
            "for each parameter. Choose another optimizer, or update after backward."
        )
        raise OptionError(msg)


def _check_parameters(module: nn.Module, params: list[Tensor]) -> None:
    known = {id(param) for param in params}
    left_out = [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in known]
    if left_out:
        msg = (
            f"{len(left_out)} trainable parameters are not in the optimizer, such as {left_out[0]!r}; their gradients "
            "would stay. Build the optimizer on all of them, or set requires_grad=False."
        )
        raise OptionError(msg)
    if any(param.grad is not None for param in params):
        msg = (
            "Gradients are left over from an earlier backward pass; call optimizer.zero_grad() before LayerwiseUpdate."
        )
        raise OptionError(msg)
    devices = {str(param.device) for param in params}
    if len(devices) > 1:
        # Each device has its own backward thread.
        msg = f"The parameters are on {', '.join(sorted(devices))}; LayerwiseUpdate needs all of them on one device."
        raise OptionError(msg)
