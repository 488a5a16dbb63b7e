"""Run networks on fake tensors of a device that is no CPU; in a process of its own, since it tells torch of that device.

A build of torch for CPUs cannot index fake tensors of ``cuda``, nor make a graph of them. It can of a device that is registered
from Python, and the networks do on it what they do on a GPU: they ask whether a device is a CPU.
"""

import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from scgalore.data.tokens import TokenBatch
from scgalore.nn import CellEncoder, CellNetwork, SCBERTConfig, SCBERTNetwork, SCGPTConfig, SCGPTNetwork
from scgalore.nn.layout import Packed
from scgalore.objectives import GenerativeExpression, MaskedClasses, MaskedExpression

NAME = "elsewhere"
N_TOKENS, PAD, WIDTH = 20, 17, 16
LENGTHS = [5, 4, 2]
SIZES: dict[str, Any] = {
    "n_tokens": N_TOKENS,
    "pad_id": PAD,
    "d_model": WIDTH,
    "n_heads": 2,
    "n_layers": 2,
    "d_hid": 24,
}


class Backend(_DummyBackendModule):
    """What torch asks a backend for where autocast is turned off."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def there(mode: FakeTensorMode, network: CellNetwork) -> CellNetwork:
    """Put fake tensors of the device in place of a network's."""
    device = torch.device(NAME, 0)
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                fake = FakeTensor(mode, torch.empty_like(weight, device="meta"), device)
                module._parameters[name] = torch.nn.Parameter(fake)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = FakeTensor(mode, torch.empty_like(buffer, device="meta"), device)
    return network


def training_batch() -> TokenBatch:
    genes = torch.zeros(3, 9, dtype=torch.int64)
    number = torch.zeros(3, dtype=torch.int64)
    padding = torch.zeros(3, 9, dtype=torch.bool)
    return TokenBatch(genes, torch.zeros(3, 9), padding, cells=number, keys=number, padded=True)


def scgpt(mode: FakeTensorMode) -> None:
    """A step with gradients, all decoders and padding."""
    network = there(mode, SCGPTNetwork(SCGPTConfig(**SIZES))).train()
    batch = MaskedExpression().example(training_batch()).to(NAME)
    step(network, MaskedExpression()(network, batch).total)
    encoded = network.encode(batch.genes, batch.values, batch.padding)
    assert_there(encoded.hidden, (3, 9, WIDTH))
    assert_there(encoded.cell, (3, WIDTH))


def generative(mode: FakeTensorMode) -> None:
    """Tokens that only attend."""
    network = there(mode, SCGPTNetwork(SCGPTConfig(generative=True, **SIZES))).train()
    objective = GenerativeExpression(from_cell_prompt=True)
    step(network, objective(network, objective.example(training_batch()).to(NAME)).total)


def scbert(mode: FakeTensorMode) -> None:
    """Attention by random features."""
    sizes = {**SIZES, "d_head": 8, "n_features": 12}
    network = there(mode, SCBERTNetwork(SCBERTConfig(**sizes))).train()
    objective = MaskedClasses(6.0)
    step(network, objective(network, objective.example(training_batch()).to(NAME)).total)


def embedding(mode: FakeTensorMode) -> None:
    """Cells without padding, in float32 and bfloat16: all of them in one call of attention."""
    network = SCGPTNetwork(SCGPTConfig(**SIZES)).eval()
    there(mode, network)
    calls = []

    def attend(self: Packed, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, n_heads: int) -> torch.Tensor:
        # Which kernel of torch takes jagged tensors depends on CUDA alone.
        calls.append((len(q), len(k), str(self.offsets.device)))
        assert q.device == k.device == v.device == self.offsets.device
        return q

    with mock.patch.object(Packed, "attend_jagged", attend):
        for dtype in (torch.float32, torch.bfloat16):
            encode = CellEncoder(network, torch.arange(N_TOKENS, device=NAME), levels=range(-2, 51), dtype=dtype)
            genes, values = torch.zeros(11, dtype=torch.int64, device=NAME), torch.zeros(11, device=NAME)
            assert_there(encode(genes, values, LENGTHS), (3, WIDTH))
            assert_there(encode.states(genes, values, LENGTHS), (11, WIDTH))
    device = f"{NAME}:0"
    # In the last block <cls> may be the only query.
    assert calls[0] == calls[2] == calls[3] == (11, 11, device), calls
    assert {device} == {where for *_, where in calls}


def step(network: CellNetwork, loss: torch.Tensor) -> None:
    assert_there(loss, ())
    loss.backward()
    found = [weight.grad for weight in network.parameters() if weight.grad is not None]
    assert len(found) > len(LENGTHS)
    assert all(grad.device.type == NAME for grad in found)


def assert_there(tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    assert (tensor.device.type, tuple(tensor.shape)) == (NAME, shape), (tensor.device, tensor.shape)


CASES: dict[str, Callable[[FakeTensorMode], None]] = {
    case.__name__: case for case in (scgpt, generative, scbert, embedding)
}

if __name__ == "__main__":
    _setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    for name in sys.argv[1:]:
        with FakeTensorMode() as mode:
            CASES[name](mode)
        print(name)
