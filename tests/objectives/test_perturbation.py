import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.flagged import OF_CELL, flag_network, flagged_cells

from scgalore.data.sampler import BatchRequest
from scgalore.data.tokens import TokenBatch
from scgalore.nn import SCGPTNetwork
from scgalore.objectives import Perturbation
from scgalore.objectives.perturbation import excess_error, pearson_of_means

CELLS = np.flatnonzero(OF_CELL >= 0)


def training_batch(*, prior: bool = True) -> TokenBatch:
    return flagged_cells(prior=prior).batch(BatchRequest(CELLS))


def output_of(network: SCGPTNetwork, batch: TokenBatch) -> np.ndarray:
    with torch.no_grad():
        encoded = network.encode(batch.genes, batch.values, batch.padding, flags=batch.conditions["flags"])
        return network.expression(encoded, batch.values)[0].double().numpy()


def arrays(batch: TokenBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Targets, controls, prior (0 without one) and where they count."""
    of = batch.targets
    parts = (of["expression"], of["controls"], of.get("prior", torch.zeros_like(of["expression"])))
    targets, controls, prior = (part.double().numpy() for part in parts)
    return targets, controls, prior, of["masked"].numpy()


class TestLoss:
    @pytest.mark.parametrize("prior", [True, False])
    @pytest.mark.parametrize("validating", [True, False])
    def test_is_the_squared_error_of_measured_genes(self, prior: bool, validating: bool) -> None:
        network = flag_network(dropout=0.0).train(not validating)
        batch = flagged_cells(prior=prior).validation_batch(2) if validating else training_batch(prior=prior)
        targets, controls, effect, counted = arrays(batch)
        prediction = output_of(network, batch) + (controls + effect if prior else 0)
        loss = Perturbation()(network, batch)
        expected = np.square(prediction - targets)[counted].mean()
        assert loss.total.item() == pytest.approx(expected, rel=1e-5)
        assert loss.parts["mse"].item() == pytest.approx(expected, rel=1e-5)
        assert loss.n == len(batch)
        assert loss.total.requires_grad
        assert not any(part.requires_grad for part in loss.parts.values())
        validated = {"score", "delta_error", "expression_error"} | ({"gain"} if prior else set())
        assert set(loss.parts) == {"mse"} | (validated if validating else set())

    def test_only_measured_positions_count(self) -> None:
        network, batch = flag_network().eval(), training_batch()
        truth, masked = batch.targets["expression"], batch.targets["masked"]
        elsewhere = batch.with_targets(expression=torch.where(masked, truth, torch.tensor(100.0)))
        assert Perturbation()(network, elsewhere).total == Perturbation()(network, batch).total
        counted = batch.with_targets(expression=torch.where(masked, torch.tensor(100.0), truth))
        assert Perturbation()(network, counted).total > 1000

    def test_a_network_at_zero_predicts_its_prior(self) -> None:
        network, batch = flag_network(at_zero=True), training_batch()
        targets, controls, prior, counted = arrays(batch)
        loss = Perturbation()(network.train(), batch)
        assert loss.total.item() == pytest.approx(np.square(controls + prior - targets)[counted].mean(), rel=1e-5)
        loss.total.backward()
        network.zero_grad()
        gradients = torch.autograd.grad(Perturbation()(network, batch).total, list(network.decoder.parameters()))
        assert any(bool(gradient.any()) for gradient in gradients)  # it can leave zero

    def test_flags_are_read(self) -> None:
        network, batch = flag_network(dropout=0.0).eval(), training_batch()
        unflagged = batch.with_conditions(flags=torch.zeros_like(batch.conditions["flags"]))
        assert Perturbation()(network, batch).total != Perturbation()(network, unflagged).total

    def test_it_can_be_learnt(self) -> None:
        network, batch = flag_network(at_zero=True, dropout=0.0).train(), training_batch()
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-2)
        losses = []
        for _ in range(25):
            optimizer.zero_grad()
            loss = Perturbation()(network, batch).total
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0]

    def test_batches_stay_as_they_are(self) -> None:
        batch = training_batch()
        assert Perturbation().corrupt(batch, seed=0, draw=0) is batch

    @pytest.mark.parametrize("name", ["expression", "masked", "controls"])
    def test_what_it_reads_is_needed(self, name: str) -> None:
        batch = training_batch()
        rest = {key: target for key, target in batch.targets.items() if key != name}
        with pytest.raises(ValueError, match="PerturbationCells"):
            Perturbation()(flag_network(), replace(batch, targets=rest))


class TestDeltaError:
    @pytest.mark.parametrize("prior", [True, False])
    @pytest.mark.parametrize("row", [0, 3, 4])
    def test_is_one_minus_the_correlation_of_mean_effects(self, prior: bool, row: int) -> None:
        network, batch = flag_network().eval(), flagged_cells(prior=prior).validation_batch(row)
        targets, controls, effect, counted = arrays(batch)
        prediction = output_of(network, batch) + (controls + effect if prior else 0)
        genes = counted[0]
        predicted = prediction[:, genes].mean(axis=0) - controls[0, genes]
        true = targets[0, genes] - controls[0, genes]
        expected = 1 - np.corrcoef(predicted, true)[0, 1]
        parts = Perturbation()(network, batch).parts
        assert parts["delta_error"].item() == pytest.approx(expected, rel=1e-4)
        assert abs(expected - 1) > 1e-3
        of_expression = 1 - np.corrcoef(prediction[:, genes].mean(axis=0), targets[0, genes])[0, 1]
        assert parts["expression_error"].item() == pytest.approx(of_expression, rel=1e-4)

    def test_of_a_perfect_prior_is_zero_and_of_its_opposite_two(self) -> None:
        network, batch = flag_network(at_zero=True).eval(), flagged_cells().validation_batch(1)
        effect = batch.targets["expression"] - batch.targets["controls"]
        for sign, expected in ((1, 0), (3, 0), (-1, 2)):
            loss = Perturbation()(network, batch.with_targets(prior=sign * effect))
            assert loss.parts["delta_error"].item() == pytest.approx(expected, abs=1e-5)

    @pytest.mark.parametrize("constant", [0.0, 0.3])
    def test_of_a_constant_effect_is_one(self, constant: float) -> None:
        network, batch = flag_network(at_zero=True).eval(), flagged_cells().validation_batch(1)
        loss = Perturbation()(network, batch.with_targets(prior=torch.full_like(batch.targets["prior"], constant)))
        assert loss.parts["delta_error"].item() == 1

    def test_without_a_true_effect_is_one(self) -> None:
        network, batch = flag_network().eval(), flagged_cells().validation_batch(1)
        assert (
            Perturbation()(network, batch.with_targets(expression=batch.targets["controls"]))
            .parts["delta_error"]
            .item()
            == 1
        )

    def test_takes_the_mean_over_cells_first(self) -> None:
        batch = flagged_cells().validation_batch(0)
        noise = torch.randn(batch.targets["expression"].shape, generator=torch.Generator().manual_seed(0))
        around = batch.targets["expression"] + noise - noise.mean(dim=0)
        for reference in (None, batch.targets["controls"]):
            assert pearson_of_means(around, batch.targets["expression"], batch, reference).item() == pytest.approx(
                1, abs=1e-5
            )


class TestScore:
    """What chooses the epoch: the direction of effects, and a fine for errors larger than the prior's."""

    def test_is_the_direction_alone_for_a_network_at_zero(self) -> None:
        parts = Perturbation()(flag_network(at_zero=True).eval(), flagged_cells().validation_batch(1)).parts
        assert parts["score"] == parts["delta_error"]

    def test_effects_of_the_right_direction_and_the_wrong_size_pay(self) -> None:
        batch = flagged_cells().validation_batch(1)
        true = batch.targets["expression"] - batch.targets["controls"]
        of_prior = (batch.targets["prior"] - true)[batch.targets["masked"]].square().sum()
        for size in (1.0, 3.0, 10.0):
            own = ((size - 1) * true)[batch.targets["masked"]].square().sum()
            expected = max(0.0, float(own / of_prior) - 1)
            assert excess_error(
                batch.targets["controls"] + size * true, batch.targets["expression"], batch
            ).item() == pytest.approx(expected, rel=1e-4)

    def test_gain_is_nothing_for_a_network_at_zero(self) -> None:
        parts = Perturbation()(flag_network(at_zero=True).eval(), flagged_cells().validation_batch(1)).parts
        assert parts["gain"].item() == pytest.approx(0, abs=1e-6)

    @pytest.mark.parametrize(
        ("gains", "is_better"),
        [
            ([0.3, 0.2, 0.25], True),
            ([0.9, -0.1, -0.1], False),
            ([-0.2, -0.2, -0.21], False),
            ([0.5], False),
            # Two perturbations that both gain are no rare chance; eight are.
            ([0.1, 0.2], False),
            ([0.1, 0.2, 0.1, 0.2], True),
            # Less than two standard errors are enough for many, and not for few.
            ([0.4, 0.0, 0.4, 0.0], False),
            ([0.4, 0.0, 0.4, 0.0] * 2, True),
        ],
    )
    def test_an_epoch_counts_if_its_gains_are_beyond_chance(self, gains: list[float], is_better: bool) -> None:
        start = 0.6
        parts = [{"score": torch.tensor(start - gain), "gain": torch.tensor(gain)} for gain in gains]
        choice = Perturbation(start).over_epoch(parts)["choice"]
        assert (choice < start) == is_better
        assert choice == (pytest.approx(start - np.mean(gains)) if is_better else start)

    @pytest.mark.parametrize(
        ("gains", "hopeless"),
        [([-0.2, -0.2, -0.21], True), ([-0.2, 0.1, -0.1], False), ([0.2, 0.2, 0.21], False), ([-0.5], False)],
    )
    def test_an_epoch_is_hopeless_if_its_losses_are_beyond_chance(self, gains: list[float], hopeless: bool) -> None:
        parts = [{"score": torch.tensor(0.6 - gain), "gain": torch.tensor(gain)} for gain in gains]
        assert Perturbation(0.6).over_epoch(parts)["hopeless"] == hopeless

    def test_without_a_prior_the_score_chooses(self) -> None:
        parts = [{"score": torch.tensor(0.25)}, {"score": torch.tensor(0.5)}]
        assert Perturbation().over_epoch(parts) == {"choice": 0.375}

    def test_there_is_no_fine_without_a_prior(self) -> None:
        batch = flagged_cells(prior=False).validation_batch(1)
        assert excess_error(batch.targets["expression"] + 100, batch.targets["expression"], batch) == 0


def test_start_score_counts_only_where_it_is_given() -> None:
    assert Perturbation().start_score == math.inf
    assert Perturbation(0.4).start_score == 0.4
    assert Perturbation().monitor == "validation_choice"


class TestOwnValues:
    """The loss at values drawn from the network itself, which estimates curvature for Sophia."""

    def test_estimate_the_curvature(self) -> None:
        network, batch = flag_network(dropout=0.0).eval(), training_batch()
        bias = network.decoder.bias_decoder.fc[-1].bias  # type: ignore[index]
        generator = torch.Generator().manual_seed(0)
        draws = []
        for _ in range(150):
            loss, n = Perturbation().self_sampled(network, batch, generator)
            assert n == int(batch.targets["masked"].sum())
            draws.append(n * torch.autograd.grad(loss, bias)[0].square().sum())
        estimates = torch.stack(draws)
        # The output's bias shifts every prediction by one: 2 is the second derivative of its squared error.
        assert abs(estimates.mean() - 2.0) < 5 * estimates.std() / len(draws) ** 0.5

    def test_hang_on_the_generator_alone(self) -> None:
        network, batch = flag_network().eval(), training_batch()
        losses = [
            Perturbation().self_sampled(network, batch, torch.Generator().manual_seed(seed))[0].item()
            for seed in (1, 1, 2)
        ]
        assert losses[0] == losses[1] != losses[2]
