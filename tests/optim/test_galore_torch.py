import copy
import io
import pickle
from typing import Any

import pytest
import torch
from galore_torch import GaLoreAdamW as Package
from tests.optim.runs import make_network, train
from torch import Tensor, nn

from scgalore.optim import build_optimizer, param_groups, state_bytes
from scgalore.optim.galore_torch import GaLoreTorchAdamW, package_groups
from scgalore.optim.projector import PROJ_TYPES, ProjType


def make_groups(network: nn.Module, proj_type: ProjType = "std", scale: Any = "auto") -> list[dict[str, Any]]:
    groups = param_groups(network, rank=8, update_proj_gap=3, proj_type=proj_type, scale=scale, weight_decay=0.1)
    return package_groups(groups)


def make_pair(dtype: torch.dtype = torch.float32, proj_type: ProjType = "std") -> tuple[nn.Module, GaLoreTorchAdamW]:
    network = make_network(dtype)
    return network, GaLoreTorchAdamW(make_groups(network, proj_type), lr=1e-2)


def equal_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def reloaded(content: Any) -> Any:
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("proj_type", PROJ_TYPES)
def test_trains_as_the_package_does_bit_for_bit(proj_type: ProjType) -> None:
    plain, ours = make_network(), make_network()
    package = Package(make_groups(plain, proj_type), lr=1e-2, no_deprecation_warning=True)
    optimizer = GaLoreTorchAdamW(make_groups(ours, proj_type), lr=1e-2)
    train(plain, package, range(10))
    train(ours, optimizer, range(5))
    # Also after a checkpoint between two refreshes.
    weights, state = reloaded([ours.state_dict(), optimizer.state_dict()])
    ours, optimizer = make_pair(proj_type=proj_type)
    ours.load_state_dict(weights)
    optimizer.load_state_dict(state)
    train(ours, optimizer, range(5, 10))
    assert equal_weights(plain, ours)


def test_a_checkpoint_holds_the_basis_alone_and_memory_what_the_package_keeps() -> None:
    network, plain = make_network(), make_network()
    # One group of one 192 x 64 weight, so that its number in the state is known.
    packed: dict[str, Any] = {"rank": 8, "update_proj_gap": 3, "scale": 1.0, "proj_type": "std"}
    optimizer = GaLoreTorchAdamW([{"params": [network.get_parameter("Wqkv.weight")], **packed}])
    package = Package([{"params": [plain.get_parameter("Wqkv.weight")], **packed}], no_deprecation_warning=True)
    train(network, optimizer, range(4))
    train(plain, package, range(4))
    assert state_bytes(optimizer) == state_bytes(package) == 4 * (64 * 64 + 2 * 192 * 8)
    basis = reloaded(optimizer.state_dict())["state"][0]["projector"]["basis"]
    assert basis.untyped_storage().nbytes() == 4 * 8 * 64


def test_reading_the_state_leaves_the_optimizer_as_it_is() -> None:
    network, optimizer = make_pair()
    other, second = make_pair()
    train(network, optimizer, range(4))
    train(other, second, range(4))
    optimizer.state_dict()
    train(network, optimizer, range(4, 8))
    train(other, second, range(4, 8))
    assert equal_weights(network, other)


@pytest.mark.parametrize("of_package", [False, True])
def test_loading_shares_no_basis_with_the_source(of_package: bool) -> None:
    network, optimizer = make_pair()
    source: Any = optimizer
    if of_package:
        source = Package(make_groups(network), lr=1e-2, no_deprecation_warning=True)
    train(network, source, range(4))
    other, loaded = make_pair()
    other.load_state_dict(copy.deepcopy(network.state_dict()))
    state = source.state_dict()
    loaded.load_state_dict(state)
    for param, twin in zip(network.parameters(), other.parameters(), strict=True):
        if "projector" in source.state[param]:
            old, new = source.state[param]["projector"], loaded.state[twin]["projector"]
            assert old is not new
            assert torch.equal(old.ortho_matrix, new.ortho_matrix)
            assert old.ortho_matrix.data_ptr() != new.ortho_matrix.data_ptr()


def test_state_follows_the_precision_of_the_weights() -> None:
    network, optimizer = make_pair(proj_type="full")
    train(network, optimizer, range(4))
    other, loaded = make_pair(torch.bfloat16, "full")
    loaded.load_state_dict(reloaded(optimizer.state_dict()))
    bases = loaded.state[other.get_parameter("Wqkv.weight")]["projector"].ortho_matrix
    assert [basis.dtype for basis in bases] == [torch.bfloat16] * 2


def test_closures_run_with_gradients_and_hooks_once() -> None:
    # The package's own class, once built, wraps its step() in hooks, too.
    Package(make_groups(make_network()), lr=1e-2, no_deprecation_warning=True)
    network, optimizer = make_pair()
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = network(torch.arange(12).reshape(2, 6)).square().mean()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert loss.requires_grad
    assert calls == ["before", "after"]
    other, second = make_pair()
    other(torch.arange(12).reshape(2, 6)).square().mean().backward()
    second.step()
    assert equal_weights(network, other)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_and_pickles_train_on_alike_and_save_safely(duplicate: Any) -> None:
    network, optimizer = make_pair()
    train(network, optimizer, range(4))
    other, second = duplicate((network, optimizer))
    train(network, optimizer, range(4, 8))
    train(other, second, range(4, 8))
    assert equal_weights(network, other)
    assert reloaded(second.state_dict())["state"].keys() == optimizer.state_dict()["state"].keys()


class TestGroups:
    def test_packed_weights_are_projected_as_one_matrix(self) -> None:
        network, optimizer = make_pair()
        train(network, optimizer, range(1))
        state = optimizer.state[network.get_parameter("Wqkv.weight")]
        assert state["exp_avg"].shape == (192, 8)
        assert state["projector"].ortho_matrix.shape == (8, 64)
        assert not any("split" in group for group in optimizer.param_groups)

    @pytest.mark.parametrize(
        ("proj_type", "scales"),
        [
            # sqrt(n / r) of the side that is projected, of weights 192 x 64, 64 x 64, 128 x 64, 64 x 128
            ("std", {8**0.5}),
            ("reverse_std", {24**0.5, 8**0.5, 16**0.5}),
            ("full", {(24 * 8) ** 0.5, 8.0, (16 * 8) ** 0.5}),
        ],
    )
    def test_auto_scale_is_a_number_for_each_shape(self, proj_type: ProjType, scales: set[float]) -> None:
        groups = [group for group in make_groups(make_network(), proj_type) if "rank" in group]
        assert all(len({param.shape for param in group["params"]}) == 1 for group in groups)
        assert {round(group["scale"], 9) for group in groups} == {round(scale, 9) for scale in scales}
        assert all({"rank", "update_proj_gap", "scale", "proj_type"} <= group.keys() for group in groups)

    def test_every_parameter_is_in_one_group_under_its_name(self) -> None:
        network = make_network()
        named = [
            pair for group in make_groups(network) for pair in zip(group["param_names"], group["params"], strict=True)
        ]
        assert len(named) == len(list(network.parameters()))
        assert all(network.get_parameter(name) is param for name, param in named)

    def test_a_number_stays_what_it_is_and_no_rank_projects_nothing(self) -> None:
        groups = make_groups(make_network(), scale=0.25)
        assert {group["scale"] for group in groups if "rank" in group} == {0.25}
        network = make_network()
        optimizer = build_optimizer("galore-torch", network, rank=None)
        train(network, optimizer, range(2))
        assert not any("projector" in state for state in optimizer.state.values())

    def test_the_learning_rate_means_what_it_means_for_ours(self) -> None:
        torch.manual_seed(0)
        ours = nn.Sequential(nn.Linear(48, 64), nn.Tanh(), nn.Linear(64, 40))
        start, theirs = copy.deepcopy(ours), copy.deepcopy(ours)
        options: dict[str, Any] = {"rank": 8, "lr": 1e-3, "eps": 1e-6}
        reference = build_optimizer("galore-torch", theirs, **options)
        optimizer = build_optimizer("galore", ours, **options, basis="svd", moments="keep", stagger=False)
        inputs = torch.randn(32, 48, generator=torch.Generator().manual_seed(1))
        for _ in range(5):
            for network, its_optimizer in ((ours, optimizer), (theirs, reference)):
                its_optimizer.zero_grad()
                network(inputs).square().mean().backward()
                its_optimizer.step()
        for name in ("0.weight", "2.weight"):
            mine, its, was = (network.get_parameter(name).detach() for network in (ours, theirs, start))
            assert (mine - its).norm() < 1e-2 * (mine - was).norm()
