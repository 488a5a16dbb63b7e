import torch
from torch import nn

from scgalore.optim.kernels import adamw_update_, step_device

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}


def test_equals_torchs_adamw_for_any_layout_of_the_gradient() -> None:
    param = nn.Parameter(torch.randn(5, 7))
    reference = torch.optim.AdamW([param], **SETTINGS)  # type: ignore[arg-type]
    mine = param.detach().clone()
    state = {"exp_avg": torch.zeros(5, 7), "exp_avg_sq": torch.zeros(5, 7), "step": torch.zeros(())}
    for _ in range(5):
        grad = torch.randn(7, 5).T
        param.grad = grad.contiguous()
        reference.step()
        adamw_update_([mine], [grad], [state], [state["step"]], **SETTINGS)  # type: ignore[arg-type]
    torch.testing.assert_close(mine, param.detach(), rtol=0, atol=1e-6)
    assert state["step"] == 5


def test_nothing_to_do_is_fine() -> None:
    adamw_update_([], [], [], [], **SETTINGS)  # type: ignore[arg-type]


def test_counters_stay_where_the_kernel_needs_them() -> None:
    assert step_device(torch.zeros(1)).type == "cpu"
    assert step_device(torch.zeros(1, device="meta")).type == "cpu"
