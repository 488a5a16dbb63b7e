import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.optim.problems import equal_weights, make_network, make_optimizer, train
from torch import Tensor, nn

from scgalore.optim import GaLoreAdamW, state_bytes
from scgalore.optim.projector import PROJ_TYPES, ProjType
from scgalore.optim.subspace import BASIS_METHODS


@pytest.fixture(autouse=True)
def _same_numbers_each_time() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("proj_type", PROJ_TYPES)
@pytest.mark.parametrize("basis", BASIS_METHODS)
def test_state_is_tensors_and_numbers_and_no_larger_than_needed(proj_type: ProjType, basis: Any) -> None:
    weight = nn.Parameter(torch.randn(32, 16))
    group = {"params": [weight], "rank": 3, "proj_type": proj_type}
    optimizer = GaLoreAdamW([group], basis=basis, lazy=True)
    weight.grad = torch.randn(32, 16)
    optimizer.step()
    state = optimizer.state[weight]
    assert all(isinstance(value, int | float | Tensor) for value in state.values())
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    assert all(tensor.is_contiguous() for tensor in tensors)
    assert state["basis"].shape[0] == 3
    assert state_bytes(optimizer) == sum(4 * tensor.numel() for tensor in tensors)


@pytest.mark.parametrize("stop", [0, 1, 7, 10])
def test_training_may_stop_and_resume_at_any_step(stop: int) -> None:
    straight = make_network()
    train(straight, make_optimizer(straight), range(17))

    first = make_network()
    optimizer = make_optimizer(first)
    train(first, optimizer, range(stop))
    file = io.BytesIO()
    torch.save({"network": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    second = make_network()
    second.load_state_dict(saved["network"])
    # Options come from the checkpoint, not from the new optimizer.
    resumed = make_optimizer(second, seed=5, basis="svd")
    resumed.load_state_dict(saved["optimizer"])
    train(second, resumed, range(stop, 17))
    assert equal_weights(second, straight)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_continue_alike_and_apart(duplicate: Callable[[Any], Any]) -> None:
    network = make_network()
    optimizer = make_optimizer(network)
    train(network, optimizer, range(7))
    other_network, other = duplicate((network, optimizer))
    train(network, optimizer, range(7, 15))
    train(other_network, other, range(7, 15))
    assert equal_weights(network, other_network)


def test_loaded_state_shares_nothing_with_its_source() -> None:
    a, b = make_network(), make_network()
    source, target = make_optimizer(a), make_optimizer(b)
    train(a, source, range(6))
    target.load_state_dict(source.state_dict())
    before = copy.deepcopy(source.state_dict()["state"])
    train(b, target, range(6, 14))
    after = source.state_dict()["state"]
    for index, state in before.items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(after[index][key]))


def assert_equal_states(a: GaLoreAdamW, b: GaLoreAdamW) -> None:
    for one, other in zip(a.state.values(), b.state.values(), strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            torch.testing.assert_close(torch.as_tensor(value), torch.as_tensor(other[key]), rtol=0, atol=0)


def test_state_comes_back_unchanged_from_a_bfloat16_model() -> None:
    network, half, back = make_network(), make_network(torch.bfloat16), make_network()
    source, middle, target = make_optimizer(network), make_optimizer(half), make_optimizer(back)
    train(network, source, range(6))
    middle.load_state_dict(source.state_dict())
    assert_equal_states(middle, source)
    target.load_state_dict(middle.state_dict())
    assert_equal_states(target, source)
    back.load_state_dict(network.state_dict())
    for model, optimizer in ((network, source), (back, target), (half, middle)):
        train(model, optimizer, range(6, 12))
    assert equal_weights(network, back)
    kept = {value.dtype for state in middle.state.values() for value in state.values() if torch.is_tensor(value)}
    assert kept == {torch.float32}


def test_state_widens_with_a_float64_model() -> None:
    network, wide = make_network(), make_network(torch.float64)
    source, target = make_optimizer(network), make_optimizer(wide)
    train(network, source, range(6))
    wide.load_state_dict(network.state_dict())
    target.load_state_dict(source.state_dict())
    train(network, source, range(6, 8))
    train(wide, target, range(6, 8))
    for narrow, param in zip(network.parameters(), wide.parameters(), strict=True):
        torch.testing.assert_close(param, narrow.double(), rtol=0, atol=1e-4)


def test_model_may_change_its_precision_under_the_optimizer() -> None:
    network = make_network()
    optimizer = make_optimizer(network)
    losses = []
    for number, dtype in enumerate((torch.float32, torch.bfloat16, torch.float32)):
        network.to(dtype)
        losses += train(network, optimizer, range(7 * number, 7 * number + 7))
    assert torch.tensor(losses).isfinite().all()
    assert {state["step"] for state in optimizer.state.values() if "basis" in state} == {21}


def test_state_moves_to_the_device_of_the_model() -> None:
    network, elsewhere = make_network(), make_network().to("meta")
    source, target = make_optimizer(network), make_optimizer(elsewhere)
    train(network, source, range(6))
    target.load_state_dict(source.state_dict())
    for param, state in target.state.items():
        assert {value.device for key, value in state.items() if torch.is_tensor(value) and key != "step"} == {
            param.device
        }
    shapes = [[torch.as_tensor(value).shape for value in state.values()] for state in source.state.values()]
    assert [[torch.as_tensor(value).shape for value in state.values()] for state in target.state.values()] == shapes


def test_state_of_torchs_adamw_can_be_taken_over() -> None:
    a, b = make_network(), make_network()
    adamw = torch.optim.AdamW(a.parameters(), lr=1e-2, fused=True)
    ours = GaLoreAdamW(b.parameters(), lr=1e-2)
    train(a, adamw, range(4))
    b.load_state_dict(a.state_dict())
    ours.load_state_dict(adamw.state_dict())
    train(a, adamw, range(4, 8))
    train(b, ours, range(4, 8))
    assert equal_weights(a, b)
