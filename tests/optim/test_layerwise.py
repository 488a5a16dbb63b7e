import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scgalore.errors import OptionError
from scgalore.optim import OPTIMIZERS, build_optimizer
from scgalore.optim.layerwise import LayerwiseUpdate


class Network(nn.Module):
    """A table tied to the output, a layer used twice, a packed weight, and a head that gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.Wqkv = nn.Linear(16, 48)
        self.twice = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.output = nn.Linear(16, 30)
        self.output.weight = self.embedding.weight
        self.unused = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.Wqkv(self.embedding(tokens)).chunk(3, dim=-1)
        x = torch.relu(self.twice(q * k + v))
        return self.output(self.norm(self.twice(x)))


def make_network() -> Network:
    torch.manual_seed(0)
    return Network()


def loss_of(network: nn.Module, step: int) -> Tensor:
    tokens = torch.randint(30, (8, 5), generator=torch.Generator().manual_seed(step))
    return nn.functional.cross_entropy(network(tokens).flatten(0, 1), (tokens.flatten() + 1) % 30)


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        loss_of(network, step).backward()
        optimizer.step()
        optimizer.zero_grad()


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def build(name: str, network: nn.Module) -> torch.optim.Optimizer:
    if name == "adamw-8bit":
        pytest.importorskip("bitsandbytes")
    return build_optimizer(name, network, lr=1e-2, weight_decay=0.1)


def saved(optimizer: torch.optim.Optimizer) -> bytes:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    return file.getvalue()


@pytest.fixture(params=[name for name, spec in OPTIMIZERS.items() if spec.per_layer])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_weights_are_those_of_the_ordinary_step_bit_for_bit(name: str) -> None:
    ordinary, layerwise = make_network(), make_network()
    train(ordinary, build(name, ordinary), range(50))
    optimizer = build(name, layerwise)
    with LayerwiseUpdate(layerwise, optimizer):
        for step in range(50):
            loss_of(layerwise, step).backward()
    assert equal(ordinary, layerwise)
    assert not equal(ordinary, make_network())


def test_step_after_backward_is_a_no_op(name: str) -> None:
    network = make_network()
    optimizer = build(name, network)
    with LayerwiseUpdate(network, optimizer):
        loss_of(network, 0).backward()
        before = copy.deepcopy(network), saved(optimizer)
        for _ in range(3):
            optimizer.step()
    assert equal(network, before[0])
    assert saved(optimizer) == before[1]


def test_one_gradient_exists_at_a_time(name: str) -> None:
    network = make_network()
    optimizer = build(name, network)
    live: list[int] = []
    optimizer.register_step_pre_hook(lambda *_: live.append(sum(p.grad is not None for p in network.parameters())))
    with LayerwiseUpdate(network, optimizer):
        loss_of(network, 0).backward()
        assert live == [1] * (len(list(network.parameters())) - 2)  # the head gets none
        assert all(param.grad is None for param in network.parameters())


def test_closure_may_do_the_backward_pass(name: str) -> None:
    ordinary, layerwise = make_network(), make_network()
    train(ordinary, build(name, ordinary), range(5))
    optimizer = build(name, layerwise)

    def closure_of(step: int) -> Callable[[], Any]:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(layerwise, step)
            loss.backward()
            return loss

        return closure

    with LayerwiseUpdate(layerwise, optimizer):
        for step in range(5):
            optimizer.step(closure_of(step))
    assert equal(ordinary, layerwise)


def test_remove_restores_ordinary_training() -> None:
    ordinary, mixed = make_network(), make_network()
    optimizers = [build("galore", network) for network in (ordinary, mixed)]
    train(ordinary, optimizers[0], range(20))
    update = LayerwiseUpdate(mixed, optimizers[1])
    train(mixed, optimizers[1], range(10))
    update.remove()
    update.remove()
    before = copy.deepcopy(mixed)
    loss_of(mixed, 10).backward()
    assert equal(mixed, before)
    assert mixed.twice.weight.grad is not None
    optimizers[1].zero_grad()
    train(mixed, optimizers[1], range(10, 20))
    assert equal(ordinary, mixed)


def test_end_of_the_context_removes_the_hooks_after_an_error_too() -> None:
    network = make_network()
    optimizer = build("galore", network)
    with pytest.raises(ZeroDivisionError), LayerwiseUpdate(network, optimizer):
        raise ZeroDivisionError
    loss_of(network, 0).backward()
    assert network.twice.weight.grad is not None


def test_learning_rate_schedule_counts_batches() -> None:
    ordinary, layerwise = make_network(), make_network()
    for network, context in ((ordinary, None), (layerwise, LayerwiseUpdate)):
        optimizer = build("galore", network)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        update = context(network, optimizer) if context else None
        for step in range(6):
            train(network, optimizer, range(step, step + 1))
            schedule.step()
        if update is not None:
            update.remove()
    assert equal(ordinary, layerwise)


@pytest.mark.parametrize("name", ["galore", "adamw"])
def test_weight_that_backward_still_needs_is_an_error(name: str) -> None:
    early, late = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
    network = nn.Sequential(early, late)
    inputs = torch.randn(4, 16)
    with LayerwiseUpdate(network, build(name, network)):
        # The gradient of `late` is complete before the one of `early` is computed from its old value.
        loss = late(early(inputs) @ late.weight.detach()).sum()
        with pytest.raises(RuntimeError, match="inplace operation"):
            loss.backward()


# ---- what is excluded ------------------------------------------------------------------------------------------------


@pytest.fixture
def process_group(tmp_path: Any) -> Iterator[Callable[[int], None]]:
    def begin(size: int) -> None:
        if size == 1:
            store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
            torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        else:
            from torch.testing._internal.distributed.fake_pg import FakeStore

            torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)

    yield begin
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel_is_refused(process_group: Callable[[int], None]) -> None:
    process_group(1)
    network = make_network()
    optimizer = build("galore", network)
    wrapped = nn.parallel.DistributedDataParallel(network)
    for module in (wrapped, nn.Sequential(wrapped)):
        with pytest.raises(OptionError, match="DistributedDataParallel"):
            LayerwiseUpdate(module, optimizer)


def test_one_of_several_processes_is_refused(process_group: Callable[[int], None]) -> None:
    process_group(2)
    network = make_network()
    with pytest.raises(OptionError, match="several processes, found 2"):
        LayerwiseUpdate(network, build("galore", network))


def test_group_of_one_process_is_allowed(process_group: Callable[[int], None]) -> None:
    process_group(1)
    network = make_network()
    LayerwiseUpdate(network, build("galore", network)).remove()


def test_optimizer_that_counts_steps_for_all_parameters_is_refused() -> None:
    network = make_network()
    with pytest.raises(OptionError, match="SophiaG counts its steps"):
        LayerwiseUpdate(network, build("sophia", network))


def test_trainable_parameter_outside_the_optimizer_is_refused() -> None:
    network = make_network()
    network.twice.requires_grad_(requires_grad=False)
    optimizer = build("galore", network)
    LayerwiseUpdate(network, optimizer).remove()
    network.twice.requires_grad_(requires_grad=True)
    with pytest.raises(OptionError, match=r"2 trainable parameters.*'twice\.weight'"):
        LayerwiseUpdate(network, optimizer)


def test_gradients_left_over_are_refused() -> None:
    network = make_network()
    optimizer = build("galore", network)
    loss_of(network, 0).backward()
    with pytest.raises(OptionError, match="zero_grad"):
        LayerwiseUpdate(network, optimizer)


def test_several_devices_are_refused() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, device="meta"))
    with pytest.raises(OptionError, match="cpu, meta"):
        LayerwiseUpdate(network, torch.optim.SGD(network.parameters(), lr=0.1))


@pytest.mark.parametrize("how", ["unfrozen", "added", "given"])
def test_gradient_of_another_parameter_stops_training(how: str) -> None:
    network = make_network()
    late = network.unused.weight if how == "given" else network.twice.weight
    late.requires_grad_(how == "given")
    optimizer = build("galore", network)
    group = {"params": [late], "param_names": ["late"]}
    if how == "unfrozen":
        optimizer.add_param_group(group)
    with LayerwiseUpdate(network, optimizer):
        if how == "given":
            late.grad = torch.ones_like(late)
        late.requires_grad_(True)
        if how == "added":
            optimizer.add_param_group(group)
        with pytest.raises(RuntimeError, match="gradient of another parameter"):
            loss_of(network, 0).backward()
