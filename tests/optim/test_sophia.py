import copy
import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from scgalore.errors import OptionError
from scgalore.optim import SophiaG, sample_classes, sample_values, sophia

SHAPES = [(3, 4), (5,), (2, 3, 2), (4, 4)]
N_DRAWS = 3000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_params(dtype: torch.dtype = torch.float64, seed: int = 0) -> list[nn.Parameter]:
    source = generator(seed)
    return [nn.Parameter(torch.randn(shape, dtype=torch.float64, generator=source).to(dtype)) for shape in SHAPES]


def set_grads(params: list[nn.Parameter], seed: int) -> None:
    source = generator(seed)
    for param in params:
        param.grad = torch.randn(param.shape, dtype=torch.float64, generator=source).to(param.dtype)


def linear_loss(params: list[nn.Parameter], seed: int) -> Tensor:
    """Loss whose gradients are known: random constants."""
    source = generator(seed)
    factors = [torch.randn(param.shape, dtype=torch.float64, generator=source).to(param.dtype) for param in params]
    return torch.stack([(param * factor).sum() for param, factor in zip(params, factors, strict=True)]).sum()


def run(optimizer: SophiaG, params: list[nn.Parameter], steps: range) -> None:
    for number in steps:
        if optimizer.needs_curvature():
            optimizer.update_curvature(linear_loss(params, 1000 + number), n_terms=7)
        set_grads(params, number)
        optimizer.step()


class TestStep:
    def test_equals_the_formulas_in_numpy(self) -> None:
        lr, beta1, beta2, eps, decay, rho, every, n_terms = 0.1, 0.9, 0.8, 1e-3, 0.3, 0.02, 3, 7
        params = make_params()
        weights = [param.detach().numpy().copy() for param in params]
        momenta = [np.zeros_like(weight) for weight in weights]
        curvatures = [np.zeros_like(weight) for weight in weights]
        options: dict[str, Any] = {"lr": lr, "betas": (beta1, beta2), "eps": eps, "weight_decay": decay, "rho": rho}
        run(SophiaG(params, **options, curvature_every=every), params, range(8))
        n_clipped = n_entries = 0
        for number in range(8):
            draw, estimate = generator(number), generator(1000 + number)
            for i, shape in enumerate(SHAPES):
                if number % every == 0:
                    hat = torch.randn(shape, dtype=torch.float64, generator=estimate).numpy()
                    curvatures[i] = beta2 * curvatures[i] + (1 - beta2) * n_terms * hat * hat
                grad = torch.randn(shape, dtype=torch.float64, generator=draw).numpy()
                momenta[i] = beta1 * momenta[i] + (1 - beta1) * grad
                ratio = momenta[i] / np.maximum(rho * curvatures[i], eps)
                weights[i] = weights[i] * (1 - lr * decay) - lr * np.clip(ratio, -1, 1)
                n_clipped += int((abs(ratio) > 1).sum())
                n_entries += ratio.size
        assert 0.1 < n_clipped / n_entries < 0.95, "both sides of the clip are to be seen"
        for param, weight in zip(params, weights, strict=True):
            np.testing.assert_allclose(param.detach().numpy(), weight, rtol=1e-12, atol=1e-14)

    def test_chunks_do_not_show(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole, chunked = make_params(), make_params()
        run(SophiaG(whole, weight_decay=0.1), whole, range(4))
        monkeypatch.setattr(sophia, "_CHUNK", 13)
        run(SophiaG(chunked, weight_decay=0.1), chunked, range(4))
        assert all(torch.equal(a, b) for a, b in zip(whole, chunked, strict=True))

    @settings(max_examples=30)
    @given(st.floats(-30, 12), st.floats(-12, 8), st.booleans())
    def test_no_coordinate_moves_further_than_the_learning_rate(
        self, grad: float, curvature: float, has_curvature: bool
    ) -> None:
        params = make_params(torch.float32)
        optimizer = SophiaG(params, lr=0.5)
        if has_curvature:
            optimizer.update_curvature(10**curvature * linear_loss(params, 3), n_terms=5)
        before = [param.detach().clone() for param in params]
        for seed in range(3):
            set_grads(params, seed)
            for param in params:
                assert param.grad is not None
                param.grad *= 10**grad
                param.grad.flatten()[0] = 0.0
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                optimizer.step()
        moved = torch.cat([(a - b).flatten() for a, b in zip(params, before, strict=True)])
        assert moved.isfinite().all()
        assert moved.abs().max() <= 3 * 0.5 * (1 + 1e-5)

    def test_steps_without_curvature_are_signs_and_said_once(self) -> None:
        params = make_params()
        before = [param.detach().clone() for param in params]
        optimizer = SophiaG(params, lr=0.5)
        set_grads(params, 0)
        with pytest.warns(RuntimeWarning, match="has no estimate of the curvature.*update_curvature") as caught:
            optimizer.step()
        with warnings.catch_warnings(action="error"):
            optimizer.step()
        assert Path(caught[0].filename).name == Path(__file__).name
        for param, old in zip(params, before, strict=True):
            assert param.grad is not None
            torch.testing.assert_close(param.detach(), old - 2 * 0.5 * param.grad.sign())

    def test_bad_gradients_leave_their_weight_alone_and_train_the_others(self) -> None:
        params = make_params()
        optimizer = SophiaG(params, lr=0.1, weight_decay=0.1)
        run(optimizer, params, range(3))
        before = copy.deepcopy((params, optimizer.state_dict()["state"]))
        set_grads(params, 5)
        for number, value in ((1, float("nan")), (3, float("inf"))):
            grad = params[number].grad
            assert grad is not None
            grad.flatten()[2] = value
        with pytest.warns(RuntimeWarning, match="NaN or infinity in a gradient"):
            optimizer.step()
        with warnings.catch_warnings(action="error"):
            optimizer.step()
        for number, (param, old) in enumerate(zip(params, before[0], strict=True)):
            untouched = number in (1, 3)
            assert torch.equal(param, old) == untouched
            assert torch.equal(optimizer.state[param]["exp_avg"], before[1][number]["exp_avg"]) == untouched
            assert param.isfinite().all()

    def test_closure_runs_with_gradients(self) -> None:
        params = make_params()
        optimizer = SophiaG(params, lr=0.1)
        optimizer.update_curvature(linear_loss(params, 0), n_terms=3)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = linear_loss(params, 1)
            loss.backward()
            return loss

        before = closure().item()
        assert optimizer.step(closure).item() == before
        assert closure().item() < before

    def test_sparse_gradients_are_refused(self) -> None:
        table = nn.Embedding(6, 4, sparse=True)
        optimizer = SophiaG(table.parameters())
        with pytest.raises(RuntimeError, match="sparse=False"):
            optimizer.update_curvature(table(torch.tensor([1])).sum(), n_terms=1)
        table(torch.tensor([1])).sum().backward()
        with pytest.raises(RuntimeError, match="sparse=False"):
            optimizer.step()


class TestCurvature:
    def test_is_due_before_the_first_step_and_then_at_intervals(self) -> None:
        params = make_params()
        optimizer = SophiaG(params, curvature_every=3)
        due = []
        for number in range(8):
            due.append(optimizer.needs_curvature())
            if due[-1]:
                optimizer.update_curvature(linear_loss(params, number), n_terms=1)
                assert not optimizer.needs_curvature()
            set_grads(params, number)
            optimizer.step()
            # A step that trains nothing brings no estimate nearer.
            optimizer.zero_grad()
            optimizer.step()
        assert due == [True, False, False, True, False, False, True, False]

    def test_gradients_are_left_alone_and_unused_parameters_have_none(self) -> None:
        params = make_params()
        optimizer = SophiaG(params, betas=(0.9, 0.5))
        set_grads(params, 0)
        grads = [param.grad.clone() for param in params if param.grad is not None]
        optimizer.update_curvature(linear_loss(params, 1), n_terms=1)
        first = [optimizer.state[param]["hessian"].clone() for param in params]
        optimizer.update_curvature(linear_loss(params[:2], 1), n_terms=1)
        second = [optimizer.state[param]["hessian"] for param in params]
        assert all(
            param.grad is not None and torch.equal(param.grad, g) for param, g in zip(params, grads, strict=True)
        )
        for number in range(4):
            torch.testing.assert_close(second[number], first[number] * (1.5 if number < 2 else 0.5))

    def test_frozen_parameters_are_left_out(self) -> None:
        params = make_params()
        optimizer = SophiaG(params)
        params[0].requires_grad_(False)
        optimizer.update_curvature(linear_loss(params, 0), n_terms=1)
        assert params[0] not in optimizer.state
        assert params[1] in optimizer.state

    def test_an_estimate_that_is_not_finite_changes_nothing_and_stays_due(self) -> None:
        params = make_params()
        optimizer = SophiaG(params, curvature_every=1)
        run(optimizer, params, range(2))
        before = copy.deepcopy(optimizer.state_dict()["state"])
        with pytest.warns(RuntimeWarning, match="NaN or infinity in an estimate"):
            optimizer.update_curvature(float("nan") * linear_loss(params, 0), n_terms=1)
        with warnings.catch_warnings(action="error"):
            optimizer.update_curvature(float("inf") * linear_loss(params, 0), n_terms=1)
        assert optimizer.needs_curvature()
        state = optimizer.state_dict()["state"]
        assert all(torch.equal(state[i]["hessian"], before[i]["hessian"]) for i in range(len(SHAPES)))

    def test_one_gradient_shared_by_two_parameters_counts_for_each(self) -> None:
        a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        optimizer = SophiaG([a, b], betas=(0.9, 0.0))
        optimizer.update_curvature(3 * (a + b).sum(), n_terms=2)
        for param in (a, b):
            torch.testing.assert_close(optimizer.state[param]["hessian"], torch.full((3,), 18.0))

    @pytest.mark.parametrize(
        ("loss", "n_terms", "message"),
        [
            (torch.ones((), requires_grad=True).expand(2), 3, "2 entries"),
            (torch.ones(()), 3, "requires_grad=False"),
            (torch.ones((), requires_grad=True) * 1, 0, "n_terms=0"),
        ],
    )
    def test_what_is_no_mean_loss_is_refused(self, loss: Tensor, n_terms: int, message: str) -> None:
        with pytest.raises(OptionError, match=message):
            SophiaG(make_params()).update_curvature(loss, n_terms)


class TestEstimate:
    """Averaged over many draws, the estimate is the Gauss-Newton diagonal of the mean loss."""

    def averaged(self, model: nn.Module, draw: Any, n_terms: int) -> tuple[Tensor, Tensor]:
        weight = next(model.parameters())
        # Without memory the curvature is the last estimate.
        optimizer = SophiaG([weight], betas=(0.9, 0.0))
        source = generator(1)
        estimates = []
        for _ in range(N_DRAWS):
            optimizer.update_curvature(draw(source), n_terms)
            estimates.append(optimizer.state[weight]["hessian"].clone())
        all_of_them = torch.stack(estimates)
        return all_of_them.mean(dim=0), all_of_them.std(dim=0) / N_DRAWS**0.5

    def test_of_a_softmax_regression(self) -> None:
        inputs = torch.randn(11, 3, dtype=torch.float64, generator=generator(2))
        model = nn.Linear(3, 4, bias=False, dtype=torch.float64)
        nn.init.normal_(model.weight, generator=generator(3))
        mean, error = self.averaged(
            model, lambda source: F.cross_entropy(model(inputs), sample_classes(model(inputs), source)), len(inputs)
        )
        p = model(inputs).softmax(dim=1).detach()
        # d2 loss / d W_cj^2 = mean of p_c (1 - p_c) x_j^2; the loss is convex in the logits, so this is the Hessian, too.
        exact = (p * (1 - p)).T @ inputs.square() / len(inputs)
        assert ((mean - exact).abs() < 5 * error).all()
        assert (5 * error < exact).all(), "the test is too coarse to see anything"

    def test_of_a_linear_regression(self) -> None:
        inputs = torch.randn(9, 3, dtype=torch.float64, generator=generator(2))
        model = nn.Linear(3, 2, bias=False, dtype=torch.float64)
        nn.init.normal_(model.weight, generator=generator(3))
        # The mean runs over cells and outputs.
        mean, error = self.averaged(
            model, lambda source: F.mse_loss(model(inputs), sample_values(model(inputs), source)), 2 * len(inputs)
        )
        exact = (2 * inputs.square().sum(dim=0) / (2 * len(inputs))).expand(2, 3)
        hessian = torch.func.hessian(lambda w: F.mse_loss(inputs @ w.T, torch.zeros(9, 2, dtype=torch.float64)))(
            model.weight.detach()
        )
        torch.testing.assert_close(hessian.reshape(6, 6).diagonal().reshape(2, 3), exact)
        assert ((mean - exact).abs() < 5 * error).all()
        assert (5 * error < exact).all(), "the test is too coarse to see anything"


class TestDraws:
    def test_classes_follow_the_softmax(self) -> None:
        logits = torch.tensor([[0.0, 1.0, -2.0, 0.5], [3.0, 0.0, 0.0, -torch.inf]])
        n = 40_000
        drawn = sample_classes(logits.expand(n, 2, 4), generator())
        assert drawn.shape == (n, 2)
        assert drawn.dtype == torch.int64
        share = F.one_hot(drawn, 4).double().mean(dim=0)
        p = logits.double().softmax(dim=1)
        assert ((share - p).abs() <= 5 * (p * (1 - p) / n).sqrt()).all()

    def test_rows_are_drawn_independently(self) -> None:
        first, second = sample_classes(torch.zeros(20_000, 2, 2), generator()).double().unbind(dim=1)
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / 20_000**0.5

    def test_values_have_variance_one_half_about_the_prediction(self) -> None:
        n = 40_000
        prediction = torch.linspace(-3, 3, n)
        noise = (sample_values(prediction, generator()) - prediction).double()
        assert abs(noise.mean()) < 5 * (0.5 / n) ** 0.5
        # The variance of a sample variance of Gaussians is 2 sigma^4 / n.
        assert abs(noise.var() - 0.5) < 5 * (2 * 0.25 / n) ** 0.5
        # The fourth moment of a Gaussian is 3 sigma^4, its eighth 105 sigma^8.
        assert abs((noise**4).mean() - 0.75) < 5 * ((105 - 9) / 16 / n) ** 0.5

    @pytest.mark.parametrize("draw", [sample_classes, sample_values])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_the_seed_decides_and_no_gradient_flows(self, draw: Any, dtype: torch.dtype) -> None:
        outputs = torch.randn(6, 5, generator=generator(4)).to(dtype).requires_grad_()
        drawn = [draw(outputs, generator(seed)) for seed in (1, 1, 2)]
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])
        assert not drawn[0].requires_grad
        if draw is sample_values:
            assert drawn[0].dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)

    def test_the_generator_moves_on(self) -> None:
        source = generator()
        prediction = torch.zeros(8)
        assert not torch.equal(sample_values(prediction, source), sample_values(prediction, source))


class TestState:
    def test_is_float32_for_half_precision_and_stays_so(self) -> None:
        params = make_params(torch.bfloat16)
        optimizer = SophiaG(params, lr=0.05, betas=(0.9, 0.9))
        run(optimizer, params, range(5))
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        others = make_params(torch.bfloat16)
        loaded = SophiaG(others)
        loaded.load_state_dict(torch.load(file, weights_only=True))
        for param, other in zip(params, others, strict=True):
            for key in ("exp_avg", "hessian"):
                assert loaded.state[other][key].dtype == torch.float32
                assert torch.equal(loaded.state[other][key], optimizer.state[param][key])

    def test_loading_copies(self) -> None:
        params, others = make_params(), make_params()
        optimizer, loaded = SophiaG(params), SophiaG(others)
        run(optimizer, params, range(3))
        before = copy.deepcopy(optimizer.state_dict())
        loaded.load_state_dict(optimizer.state_dict())
        run(loaded, others, range(3, 12))
        state = optimizer.state_dict()["state"]
        assert all(torch.equal(state[i][key], before["state"][i][key]) for i in state for key in state[i])

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
    def test_copies_and_pickles_train_on_alike(self, duplicate: Any) -> None:
        params = make_params()
        optimizer = SophiaG(params, lr=0.01, curvature_every=2)
        run(optimizer, params, range(3))
        others, other = duplicate((params, optimizer))
        run(optimizer, params, range(3, 8))
        run(other, others, range(3, 8))
        assert all(torch.equal(a, b) for a, b in zip(params, others, strict=True))

    def test_numbers_of_numpy_do_not_reach_a_checkpoint(self) -> None:
        groups = [{"params": make_params(), "lr": np.float64(0.1), "rho": np.float32(0.5)}]
        file = io.BytesIO()
        torch.save(SophiaG(groups, betas=(np.float64(0.5), np.float64(0.5))).state_dict(), file)
        file.seek(0)
        assert torch.load(file, weights_only=True)["param_groups"][0]["rho"] == 0.5


@pytest.mark.parametrize(
    "options",
    [{"rho": 0.0}, {"rho": float("inf")}, {"rho": "a"}, {"eps": 0.0}, {"betas": (1.0, 0.9)}, {"lr": -1.0}]
    + [{"curvature_every": value} for value in (0, 1.5, True)],
)
def test_values_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        SophiaG(make_params(), **options)
    if "curvature_every" not in options:
        optimizer = SophiaG(make_params())
        with pytest.raises(OptionError):
            optimizer.add_param_group({"params": make_params(), **options})
        assert len(optimizer.param_groups) == 1


def _estimate_on_rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    params = make_params()
    optimizer = SophiaG(params, betas=(0.9, 0.0))
    optimizer.update_curvature(linear_loss(params, rank), n_terms=3)
    torch.save([optimizer.state[param]["hessian"] for param in params], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_share_the_average_of_their_estimates(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_estimate_on_rank, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = []
    for rank in (0, 1):
        params = make_params()
        optimizer = SophiaG(params, betas=(0.9, 0.0))
        optimizer.update_curvature(linear_loss(params, rank), n_terms=3)
        alone.append([optimizer.state[param]["hessian"] for param in params])
    for a, b, x, y in zip(first, second, *alone, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, (x + y) / 2)
