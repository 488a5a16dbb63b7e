from collections.abc import Callable

import numpy as np
import pytest
import torch
from anndata import AnnData
from scvi.module.base import BaseModuleClass, LossOutput

from scgalore.data.tokens import TokenBatch
from scgalore.model import SCGPT
from scgalore.nn.adapter import SCGPTModule
from scgalore.objectives import Classification, MaskedExpression


@pytest.fixture
def model(few: AnnData, make_model: Callable[..., SCGPT]) -> SCGPT:
    made = make_model(few.var_names)
    made.network.put_heads(made.network.fresh_heads({"classes": 3}))
    return made


@pytest.fixture
def batch(few: AnnData, model: SCGPT) -> TokenBatch:
    tokenizer = model.cells(few).tokenizer
    ragged = tokenizer.encode(model.cells(few).matrix.rows(np.arange(6)), np.arange(6))
    return tokenizer.pad(ragged).with_targets(labels=torch.tensor([0, 1, 2, 0, 1, 2]))


def test_is_a_module_of_scvi_around_the_network(model: SCGPT) -> None:
    module = SCGPTModule(model.network, Classification(3))
    assert isinstance(module, BaseModuleClass)
    assert [id(p) for p in module.parameters()] == [id(p) for p in model.network.parameters()]


def test_forward_gives_scvis_triple_with_the_objectives_loss(model: SCGPT, batch: TokenBatch) -> None:
    objective = MaskedExpression()
    corrupted = objective.corrupt(batch, seed=0, draw=0)
    module = SCGPTModule(model.network, objective).eval()
    inference, generative, output = module(corrupted, loss_kwargs={"kl_weight": 1.0})
    expected = objective(model.network, corrupted)
    assert isinstance(output, LossOutput)
    assert (inference, generative) == ({}, {})
    assert output.loss == expected.total
    assert output.n_obs_minibatch == 6
    assert set(output.extra_metrics) == {"mse", "mse_from_cell"}


def test_loss_trains_every_encoder_parameter(model: SCGPT, batch: TokenBatch) -> None:
    module = SCGPTModule(model.network, Classification(3))
    module.loss(batch).loss.backward()
    trained = {name for name, p in model.network.named_parameters() if p.grad is not None}
    encoders = ("encoder.", "value_encoder.", "transformer_encoder.", "cls_decoder.")
    assert trained == {name for name, _ in model.network.named_parameters() if name.startswith(encoders)}
