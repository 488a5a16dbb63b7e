"""SophiaG: momentum divided by the curvature of the loss, each coordinate of the step clipped.

The method is that of Liu et al., "Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training"
(ICLR 2024), with the Gauss-Newton-Bartlett estimate of the curvature.
"""

from __future__ import annotations

import math
import warnings
from itertools import compress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from scgalore.errors import OptionError
from scgalore.optim.checks import check_settings, plain_number
from scgalore.optim.state import OwnPrecision
from scgalore.optim.subspace import state_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# Elements updated together, so that on a CPU they stay in the cache between passes: a step was 2.7 times faster than with
# passes over all 21 million parameters of a network.
_CHUNK = 2**20


class SophiaG(OwnPrecision):
    r"""Sophia with the Gauss-Newton-Bartlett estimate of the diagonal curvature.

    .. math::
        W &\leftarrow (1 - \eta\lambda) W \\
        M &\leftarrow \beta_1 M + (1 - \beta_1) G \\
        W &\leftarrow W - \eta \cdot \mathrm{clip}\bigl(M / \max(\rho H, \epsilon), 1\bigr)

    Every ``curvature_every`` steps, the first before the first step, the training loop draws labels from the model
    itself and passes the loss at these labels: :math:`H \leftarrow \beta_2 H + (1 - \beta_2) \, n \, \hat G^2`.

    The factor n, the number of terms that the mean loss runs over, is what makes the estimate one of the curvature of
    the mean loss: the terms are independent given the inputs and have gradients :math:`g_i` of mean zero at labels of
    the model, so :math:`E[n \hat G^2] = n \sum_i E[g_i^2] / n^2 = \frac{1}{n} \sum_i E[g_i^2]`, the Gauss-Newton
    diagonal. The authors' code leaves n out of the average and multiplies by it in the step, which is the same.

    No coordinate of a step is larger than ``lr``. Without an estimate, a step is ``lr`` times the sign of the momentum,
    with one warning. Gradients that are not finite do not change their weight and momentum; estimates that are not
    finite are discarded and remain due. Both cause one warning.

    Parameters
    ----------
    params
        Parameters or parameter groups, e.g. from :func:`~scgalore.optim.param_groups` with ``rank=None``.
    lr
        Learning rate: the largest step of a coordinate.
    betas
        Decay rates of the momentum and of the curvature.
    eps
        Minimum of the scaled curvature, for coordinates without curvature.
    weight_decay
        Decoupled weight decay.
    rho
        Factor of the curvature; larger values clip fewer coordinates.
    curvature_every
        Steps between two estimates of the curvature.

    Notes
    -----
    The state of a parameter is ``exp_avg`` and ``hessian``, tensors of its shape (float32 also for bfloat16 weights);
    how many steps are left until the next estimate is a number in the groups. In a process group of
    ``torch.distributed`` the estimate is averaged over its ranks, as gradients are, so all of them must call
    :meth:`update_curvature` together.

    Examples
    --------
    >>> import torch
    >>> import scgalore as sg
    >>> network = torch.nn.Linear(8, 3)
    >>> optimizer = sg.optim.SophiaG(network.parameters(), lr=1e-3)
    >>> generator = torch.Generator().manual_seed(0)
    >>> inputs, labels = torch.randn(16, 8), torch.randint(3, (16,))
    >>> if optimizer.needs_curvature():
    ...     logits = network(inputs)
    ...     drawn = sg.optim.sample_classes(logits, generator)
    ...     optimizer.update_curvature(torch.nn.functional.cross_entropy(logits, drawn), n_terms=16)
    >>> torch.nn.functional.cross_entropy(network(inputs), labels).backward()
    >>> optimizer.step()
    """

    shardable = False  # an estimate is of the curvature of all parameters
    per_layer = False  # steps until the next estimate are counted for all parameters together

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.965, 0.99),
        eps: float = 1e-12,
        weight_decay: float = 0.0,
        *,
        rho: float = 0.04,
        curvature_every: int = 10,
    ) -> None:
        if isinstance(curvature_every, bool) or not isinstance(curvature_every, int) or curvature_every < 1:
            msg = f"curvature_every={curvature_every!r}: expected a whole number >= 1."
            raise OptionError(msg)
        self.curvature_every = curvature_every
        self._warned: set[str] = set()
        defaults: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "rho": rho}
        super().__init__(params, defaults | {"until_curvature": 0})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_warned", set())
        # A state saved by another optimizer lacks our keys.
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)

    def __getstate__(self) -> dict[str, Any]:
        # torch's keeps the defaults, the state and the groups alone.
        return {**super().__getstate__(), "curvature_every": self.curvature_every}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters."""
        super().add_param_group(param_group)
        # A checkpoint with NumPy's numbers in it does not load with weights_only=True.
        param_group |= {key: plain_number(value) for key, value in param_group.items() if key != "params"}
        try:
            _check_group(param_group)
        except OptionError:
            self.param_groups.pop()
            raise

    def needs_curvature(self) -> bool:
        """Whether :meth:`update_curvature` is due before the coming step."""
        return bool(self.param_groups[0]["until_curvature"] <= 0)

    def update_curvature(self, loss: Tensor, n_terms: int) -> None:
        """Add a new estimate of the curvature to the average; gradients in ``.grad`` are not changed.

        Parameters
        ----------
        loss
            Mean negative log-likelihood at labels drawn from the model itself, see :func:`sample_classes` and
            :func:`sample_values`; a scalar, not scaled for mixed precision.
        n_terms
            Number of terms in the mean.

        Raises
        ------
        OptionError
            If the loss is not a scalar with a gradient or the number of terms is not positive.
        """
        if loss.numel() != 1 or not loss.requires_grad:
            msg = (
                f"loss has {loss.numel()} entries and requires_grad={loss.requires_grad}: pass the mean loss at drawn "
                "labels, computed with gradients enabled."
            )
            raise OptionError(msg)
        if not n_terms >= 1:
            msg = f"n_terms={n_terms!r}: expected the number of terms of the mean loss, at least 1."
            raise OptionError(msg)
        pairs = [(group, p) for group in self.param_groups for p in group["params"] if p.requires_grad]
        # Parameters that the loss does not depend on have no curvature.
        grads = torch.autograd.grad(loss, [p for _, p in pairs], allow_unused=True, materialize_grads=True)
        _refuse_sparse(grads)
        with torch.no_grad():
            squares = [g.to(state_dtype(g.dtype)).square().mul_(n_terms) for g in grads]
            _average_over_ranks(squares)
            if not all(_all_finite(squares)):
                self._warn("found NaN or infinity in an estimate of the curvature, which was not updated", 3)
                return
            for (group, param), square in zip(pairs, squares, strict=True):
                self._state_of(param)["hessian"].lerp_(square, 1.0 - group["betas"][1])
        for group in self.param_groups:
            group["until_curvature"] = self.curvature_every

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters once.

        Parameters
        ----------
        closure
            Evaluates the model again, with gradients enabled, and returns the loss.

        Returns
        -------
        The loss of the closure, if one was given.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        trained = [(g, [p for p in g["params"] if p.grad is not None]) for g in self.param_groups]
        if not any(params for _, params in trained):
            return loss
        _refuse_sparse(_grad(param) for _, params in trained for param in params)
        if not self.state:
            # PyTorch wraps step() twice.
            self._warn(
                "has no estimate of the curvature, so each coordinate changes by lr: call update_curvature() when needs_curvature() is True",
                5,
            )
        for group, params in trained:
            for chunk in _chunks(params):
                self._update(group, chunk)
            group["until_curvature"] -= 1
        return loss

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        grads = [_grad(param).to(state_dtype(param.dtype)) for param in params]
        finite = _all_finite(grads)
        if not all(finite):
            self._warn("found NaN or infinity in a gradient and did not update the weight", 6)
            params, grads = list(compress(params, finite)), list(compress(grads, finite))
        if not params:
            return
        lr, (beta1, _) = float(group["lr"]), group["betas"]
        momenta = [self._state_of(param)["exp_avg"] for param in params]
        weights = [param.to(m.dtype) for param, m in zip(params, momenta, strict=True)]
        torch._foreach_lerp_(momenta, grads, 1.0 - beta1)
        updates = torch._foreach_mul([self.state[param]["hessian"] for param in params], group["rho"])
        torch._foreach_clamp_min_(updates, group["eps"])
        torch._foreach_reciprocal_(updates)
        torch._foreach_mul_(updates, momenta)
        torch._foreach_clamp_min_(updates, -1.0)
        torch._foreach_clamp_max_(updates, 1.0)
        torch._foreach_mul_(weights, 1.0 - lr * group["weight_decay"])
        torch._foreach_add_(weights, updates, alpha=-lr)
        for param, weight in zip(params, weights, strict=True):
            if weight is not param:
                param.copy_(weight)

    def _state_of(self, param: Tensor) -> dict[str, Tensor]:
        state = self.state[param]
        if not state:
            state["exp_avg"] = torch.zeros_like(param, dtype=state_dtype(param.dtype))
            state["hessian"] = torch.zeros_like(state["exp_avg"])
        return state

    def _warn(self, text: str, depth: int) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(f"SophiaG {text} (shown once).", RuntimeWarning, stacklevel=depth)


def sample_classes(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a class from each softmax.

    Parameters
    ----------
    logits
        Of shape ``(..., n_classes)``; no gradient flows through the draw.
    generator
        Random generator on any device; the same seed gives the same classes regardless of the device of the logits.

    Returns
    -------
    Class numbers (int64) of shape ``(...)``.
    """
    logits = logits.detach().to(state_dtype(logits.dtype))
    # The largest of logit + Gumbel noise is a draw from the softmax, and minus the log of an exponential is Gumbel.
    noise = torch.empty(logits.shape, dtype=logits.dtype, device=generator.device).exponential_(generator=generator)
    noise.clamp_min_(torch.finfo(noise.dtype).tiny)
    return (logits - noise.log_().to(logits.device)).argmax(dim=-1)


def sample_values(prediction: Tensor, generator: torch.Generator) -> Tensor:
    r"""Draw the targets of a regression with squared error from the corresponding Gaussian.

    The mean of :math:`(f - y)^2` is, up to a constant, the mean negative log-likelihood of a Gaussian with variance
    1/2.

    Parameters
    ----------
    prediction
        Predicted values of any shape; no gradient flows through the draw.
    generator
        Random generator on any device; the same seed gives the same noise regardless of the device of the prediction.

    Returns
    -------
    Values of the same shape, float32 for predictions in half precision.
    """
    mean = prediction.detach().to(state_dtype(prediction.dtype))
    noise = torch.randn(mean.shape, dtype=mean.dtype, device=generator.device, generator=generator)
    return mean + math.sqrt(0.5) * noise.to(mean.device)


def _check_group(group: dict[str, Any]) -> None:
    check_settings(group)
    for key in ("eps", "rho"):
        # At 0 a coordinate with neither momentum nor curvature would become 0 / 0.
        value = group[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            msg = f"{key}={value!r}: expected a positive number."
            raise OptionError(msg)


def _grad(param: Tensor) -> Tensor:
    assert param.grad is not None
    return param.grad


def _refuse_sparse(grads: Iterable[Tensor]) -> None:
    if any(grad.is_sparse for grad in grads):
        msg = "SophiaG got a sparse gradient; build the embedding with sparse=False."
        raise RuntimeError(msg)


def _chunks(params: list[Tensor]) -> Iterator[list[Tensor]]:
    chunk: list[Tensor] = []
    n_entries = 0
    for param in params:
        chunk.append(param)
        n_entries += param.numel()
        if n_entries >= _CHUNK:
            yield chunk
            chunk, n_entries = [], 0
    if chunk:
        yield chunk


def _all_finite(tensors: list[Tensor]) -> list[bool]:
    # All are checked together, since each check waits for the GPU.
    norms = torch._foreach_norm(tensors)
    return torch.stack([norm.to(device=tensors[0].device, dtype=torch.float32) for norm in norms]).isfinite().tolist()


def _average_over_ranks(tensors: list[Tensor]) -> None:
    # torch.autograd.grad bypasses the hooks with which DistributedDataParallel averages gradients.
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    for tensor in tensors:
        distributed.all_reduce(tensor)
        tensor.div_(distributed.get_world_size())
