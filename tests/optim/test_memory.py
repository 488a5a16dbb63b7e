import io
import zipfile
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from scgalore._words import format_bytes
from scgalore.optim import OPTIMIZERS, GaLoreAdamW, build_optimizer, param_groups, state_bytes
from scgalore.optim.memory import MemoryRow, memory_report


class Holder:
    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = [matrix]


def with_state(**state: Any) -> torch.optim.Optimizer:
    param = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([param], lr=0.1)
    optimizer.state[param] = state
    return optimizer


def test_no_state_is_no_bytes() -> None:
    assert state_bytes(torch.optim.AdamW([nn.Parameter(torch.zeros(3))])) == 0


def test_adamw_keeps_two_moments_and_a_counter() -> None:
    param = nn.Parameter(torch.zeros(10, 7))
    optimizer = torch.optim.AdamW([param])
    param.grad = torch.ones(10, 7)
    optimizer.step()
    assert state_bytes(optimizer) == 2 * 70 * 4 + 4


def test_view_counts_as_what_it_keeps_alive() -> None:
    large = torch.zeros(100, 100)
    assert state_bytes(with_state(basis=large[:, :3])) == 40_000
    assert state_bytes(with_state(basis=large[:, :3].clone())) == 1_200


def test_shared_storage_counts_once() -> None:
    large = torch.zeros(100)
    assert state_bytes(with_state(a=large[:50], b=large[50:], c=[large])) == 400


def test_tensors_inside_containers_and_objects_are_found() -> None:
    a, b, c = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    cyclic: list[Any] = [c]
    cyclic.append(cyclic)
    assert state_bytes(with_state(object=Holder(a), nested={"x": (b,)}, cyclic=cyclic, number=3, text="x")) == 24


# ---- report ----------------------------------------------------------------------------------------------------------


def trained(network: nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for param in network.parameters():
        if param.requires_grad:
            param.grad = torch.randn_like(param)
    optimizer.step()
    return optimizer


def saved_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in the file that torch.save() writes."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    with zipfile.ZipFile(file) as archive:
        return sum(entry.file_size for entry in archive.infolist() if "/data/" in entry.filename)


def make_network() -> nn.Sequential:
    network = nn.Sequential(nn.Embedding(50, 32), nn.Linear(32, 96), nn.Linear(96, 64), nn.LayerNorm(64))
    network[2].bias.requires_grad_(False)
    return network


def test_report_states_the_sizes_computed_by_hand() -> None:
    network = make_network()
    optimizer = trained(network, GaLoreAdamW(param_groups(network, rank=8, overrides={"0.weight": {"rank": 4}})))
    report = memory_report(network, optimizer)
    first, second = 96 * 32, 64 * 96
    # "std": the basis lies on the shorter side, the moments keep the longer one.
    state = 4 * (8 * 32 + 2 * 8 * 96 + 8 * 64 + 2 * 8 * 96)
    table = 4 * (4 * 32 + 2 * 4 * 50)
    vectors = 96 + 64 + 64
    n = first + second
    assert report.rows == (
        MemoryRow("galore", 2, n, weights=4 * n, gradients=4 * n, state=state, adamw_state=8 * n + 8),
        MemoryRow("galore-no-decay (0.weight)", 1, 1600, 6400, 6400, table, 12804),
        MemoryRow("adamw-no-decay", 3, vectors, 4 * vectors, 4 * vectors, 8 * vectors + 12, 8 * vectors + 12),
        MemoryRow("frozen", 1, 64, weights=256),
    )
    assert report.total == MemoryRow(
        "total",
        n_tensors=7,
        n_parameters=n + 1600 + vectors + 64,
        weights=4 * (n + 1600 + vectors + 64),
        gradients=4 * (n + 1600 + vectors),
        state=state + table + 8 * vectors + 12,
        adamw_state=8 * (n + 1600 + vectors) + 24,
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_in_the_report_is_what_a_checkpoint_holds(name: str) -> None:
    if name == "adamw-8bit":
        pytest.importorskip("bitsandbytes")
    network = make_network()
    optimizer = trained(network, build_optimizer(name, network))
    report = memory_report(network, optimizer)
    assert report.total.state == state_bytes(optimizer)
    if name != "galore-torch":  # its live state keeps views that its checkpoint does not
        assert report.total.state == saved_bytes(optimizer)


def test_galore_torch_keeps_more_than_its_numbers() -> None:
    from galore_torch import GaLoreAdamW as Reference

    network = nn.Linear(64, 64, bias=False)
    group = {"params": network.parameters(), "rank": 4, "update_proj_gap": 10, "scale": 1.0, "proj_type": "std"}
    optimizer = trained(network, Reference([group], no_deprecation_warning=True))
    state = optimizer.state[network.weight]
    basis = state["projector"].ortho_matrix
    needed = 4 * (basis.numel() + state["exp_avg"].numel() + state["exp_avg_sq"].numel())
    kept = memory_report(network, optimizer).total.state
    assert kept == needed + 4 * 64 * (64 - 4)
    assert kept == saved_bytes(optimizer)


def test_adamw_beside_itself_is_equal() -> None:
    network = make_network()
    report = memory_report(network, trained(network, torch.optim.AdamW(param_groups(network, rank=None))))
    assert all(row.state == row.adamw_state for row in report.rows)


def test_nothing_is_there_before_the_first_step() -> None:
    network = make_network()
    total = memory_report(network, GaLoreAdamW(param_groups(network))).total
    assert (total.gradients, total.state) == (0, 0)
    assert total.weights == sum(4 * param.numel() for param in network.parameters())


def test_half_precision_weights_have_state_in_float32() -> None:
    network = nn.Linear(16, 16, bias=False).bfloat16()
    total = memory_report(network, trained(network, GaLoreAdamW(param_groups(network, rank=None)))).total
    assert (total.weights, total.gradients, total.state, total.adamw_state) == (512, 512, 2052, 2052)


def test_storages_shared_between_parameters_and_gradients_count_once() -> None:
    flat, flat_grad = torch.zeros(300), torch.zeros(200)
    network = nn.ParameterList([flat[:100].view(10, 10), flat[100:200]])
    for number, param in enumerate(network):
        param.grad = flat_grad[100 * number : 100 * number + 100].view_as(param)
    optimizer = torch.optim.SGD([{"params": [network[0]]}, {"params": [network[1]]}], lr=0.1)
    optimizer.state[torch.zeros(1)] = {"buffer": torch.zeros(5), "same": flat}
    rows = memory_report(network, optimizer).rows
    assert [row.name for row in rows] == ["group 0", "group 1", "other"]
    assert [row.weights for row in rows] == [1200, 0, 0]
    assert [row.gradients for row in rows] == [800, 0, 0]
    assert [row.state for row in rows] == [0, 0, 20]


def test_parameter_tied_in_the_module_counts_once() -> None:
    network = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
    network[1].weight = network[0].weight
    total = memory_report(network, torch.optim.SGD(network.parameters(), lr=0.1)).total
    assert (total.n_tensors, total.weights) == (1, 160)


def test_sparse_gradients_count_with_their_indices() -> None:
    network = nn.Embedding(10, 4, sparse=True)
    network(torch.tensor([1, 2, 2])).sum().backward()
    report = memory_report(network, torch.optim.SparseAdam(network.parameters()))
    assert report.total.gradients == 3 * 8 + 3 * 4 * 4


def test_wrapper_tensors_count_with_their_parts() -> None:
    two = TwoTensor(torch.zeros(4), torch.zeros(4))
    assert state_bytes(with_state(moment=two)) == 32


def test_table_reads_well() -> None:
    network = make_network()
    report = memory_report(network, trained(network, GaLoreAdamW(param_groups(network, rank=8))))
    lines = str(report).splitlines()
    assert lines[0].split() == ["tensors", "parameters", "weights", "gradients", "state", "AdamW's", "ratio"]
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split()[:3] == ["galore", "2", "9,216"]
    assert lines[-2].split() == ["frozen", "1", "64", "0.26", "kB", *["0.00", "kB"] * 3, "-"]
    total = report.total
    assert lines[-1].split()[-1] == f"{100 * total.state / total.adamw_state:.1f}%"


@given(n_bytes=st.integers(0, 10**12))
def test_sizes_are_written_in_decimal_units(n_bytes: int) -> None:
    number, unit = format_bytes(n_bytes).split()
    size = {"kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
    assert float(number) * size == pytest.approx(n_bytes, abs=0.006 * size)
