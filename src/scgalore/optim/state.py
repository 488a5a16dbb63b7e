"""Loading of optimizer state in its own precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from scgalore.optim.kernels import step_device
from scgalore.optim.needs import TrainingNeeds
from scgalore.optim.subspace import state_dtype


class OwnPrecision(TrainingNeeds, Optimizer):
    """An optimizer whose state keeps its precision when loaded: float32, also for weights in half precision."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load copies of the tensors of a state, in the precision of the state instead of that of the parameters."""
        # PyTorch converts every state tensor to the parameter's dtype, which rounds float32 moments of bfloat16 weights, and
        # shares tensors that need no conversion. This hook is the last one, so it receives the final dictionary.
        seen: dict[str, Any] = {}
        handle = self.register_load_state_dict_pre_hook(lambda _, loaded: seen.update(loaded))
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        params = [param for group in self.param_groups for param in group["params"]]
        saved_ids = [index for group in seen["param_groups"] for index in group["params"]]
        for index, param in zip(saved_ids, params, strict=True):
            if index in seen["state"]:
                self.state[param] = {key: _own(key, value, param) for key, value in seen["state"][index].items()}


def _own(key: str, value: Any, param: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    if key == "step":
        return value.to(device=step_device(param), dtype=torch.float32, copy=True)
    dtype = state_dtype(param.dtype) if value.is_floating_point() else value.dtype
    return value.to(device=param.device, dtype=dtype, copy=True)
