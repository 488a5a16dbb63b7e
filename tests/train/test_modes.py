"""What a run changes for its duration."""

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from tests.bitwise import differences
from tests.steps import is_step

from scgalore.model import SCGPT
from scgalore.objectives import Classification
from scgalore.train.modes import compiled, deterministic, dropping, recomputing

RUN: dict[str, Any] = {
    "labels_key": "bulk_labels",
    "max_epochs": 2,
    "batch_size": 16,
    "lr": 2e-3,
    "rng": 1,
    "prior": "none",
}


@pytest.fixture
def make(few: AnnData, make_model: Callable[..., SCGPT]) -> Callable[..., SCGPT]:
    def trained(**options: Any) -> SCGPT:
        model = make_model(few.var_names)
        model.train(few, **{**RUN, **options})
        return model

    return trained


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool]]:
    """Whether blocks recompute and algorithms are deterministic, at each training step."""
    found: list[tuple[bool, bool]] = []
    loss = Classification.__call__

    def watched(self: Classification, network: Any, batch: Any) -> Any:
        recompute = getattr(network.transformer_encoder, "recompute", False)
        found.append((recompute, torch.are_deterministic_algorithms_enabled()))
        return loss(self, network, batch)

    monkeypatch.setattr(Classification, "__call__", watched)
    return found


class TestRunsAreTheSame:
    @pytest.mark.parametrize(
        "options",
        [
            pytest.param({"gradient_checkpointing": True}, id="gradient_checkpointing"),
            pytest.param({"deterministic": True}, id="deterministic"),
            pytest.param({"num_workers": 2}, id="workers"),
            pytest.param({"batch_tokens": 10**6}, id="cap_that_is_never_reached"),
        ],
    )
    def test_to_the_last_bit(self, make: Callable[..., SCGPT], options: dict[str, Any]) -> None:
        plain, other = make(), make(**options)
        assert differences(plain.network.state_dict(), other.network.state_dict()) == []
        assert plain.history["train_loss"].tolist() == other.history["train_loss"].tolist()

    def test_workers_know_the_epoch_of_batches_by_tokens(self, make: Callable[..., SCGPT]) -> None:
        options = {"batch_tokens": 300, "max_length": 30, "max_epochs": 3}
        alone, helped = make(**options), make(**options, num_workers=2)
        assert differences(alone.network.state_dict(), helped.network.state_dict()) == []


class TestSwitches:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, (False, False)),
            ({"gradient_checkpointing": True}, (True, False)),
            ({"deterministic": True}, (False, True)),
        ],
    )
    def test_hold_while_training(
        self,
        make: Callable[..., SCGPT],
        seen: list[tuple[bool, bool]],
        options: dict[str, Any],
        expected: tuple[bool, bool],
    ) -> None:
        model = make(**options)
        assert set(seen) == {expected}
        assert not getattr(model.network.transformer_encoder, "recompute", False)
        assert not torch.are_deterministic_algorithms_enabled()

    def test_are_put_back_when_a_run_fails(self, model: SCGPT) -> None:
        network = model.network
        names = list(network.state_dict())

        def fail() -> None:
            with (
                recomputing(network, wanted=True),
                deterministic(wanted=True),
                compiled(network, wanted=True),
            ):
                assert network.recompute
                assert all(block._compiled_call_impl is not None for block in network.transformer_encoder.layers)
                assert list(network.state_dict()) == names
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert not network.recompute
        assert not torch.are_deterministic_algorithms_enabled()
        assert all(block._compiled_call_impl is None for block in network.transformer_encoder.layers)


class TestDropout:
    def rates(self, network: torch.nn.Module) -> set[float]:
        return {module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)}

    @pytest.mark.parametrize(("p", "expected"), [(None, 0.1), (0.0, 0.0), (0.7, 0.7)])
    def test_holds_inside_and_is_put_back(self, model: SCGPT, p: float | None, expected: float) -> None:
        with dropping(model.network, p=p):
            assert self.rates(model.network) == {expected}
        assert self.rates(model.network) == {0.1}

    def test_layers_of_several_rates_get_their_own_back_when_a_run_fails(self, model: SCGPT) -> None:
        layers = [module for module in model.network.modules() if isinstance(module, torch.nn.Dropout)]
        assert len(layers) > 1
        layers[0].p = 0.4

        def fail() -> None:
            with dropping(model.network, p=0.0):
                assert self.rates(model.network) == {0.0}
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert layers[0].p == 0.4
        assert {layer.p for layer in layers[1:]} == {0.1}

    def test_a_run_drops_with_the_rate_it_is_given(
        self, make: Callable[..., SCGPT], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found: set[float] = set()
        loss = Classification.__call__

        def watched(objective: Classification, network: Any, batch: Any) -> Any:
            found.update(self.rates(network))
            return loss(objective, network, batch)

        monkeypatch.setattr(Classification, "__call__", watched)
        model = make(dropout=0.35, max_epochs=1)
        assert found == {0.35}
        assert self.rates(model.network) == {0.1}
        assert model.network.config.dropout == 0.1


def test_no_batch_of_any_epoch_is_lost(few: AnnData, model: SCGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    sizes: list[int] = []
    steps = [0] * 8
    loss = Classification.__call__

    def watched(self: Classification, network: Any, batch: Any) -> Any:
        if is_step(network, batch):
            steps[len(rows) // few.n_obs] += 1
            rows.extend(batch.cells.tolist())
            sizes.append(batch.genes.numel())
        return loss(self, network, batch)

    monkeypatch.setattr(Classification, "__call__", watched)
    options = {**RUN, "batch_size": 1000, "batch_tokens": 250, "max_epochs": 8}
    model.train(few, **options, validation_size=0.0)
    assert np.bincount(rows).tolist() == [8] * few.n_obs
    assert max(sizes) <= 250
    assert len(set(steps)) > 1  # epochs of several lengths
    # The rate after the last step is that of the end of the schedule.
    assert model.history["lr"].iloc[-1] == pytest.approx(0.01 * RUN["lr"], rel=0.02)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_run_has_the_losses_of_the_plain_one(make: Callable[..., SCGPT]) -> None:
    plain, fast = make(), make(compile=True)
    np.testing.assert_allclose(fast.history["train_loss"], plain.history["train_loss"], rtol=2e-2)
    assert list(plain.network.state_dict()) == list(fast.network.state_dict())
    assert all(block._compiled_call_impl is None for block in fast.network.transformer_encoder.layers)
