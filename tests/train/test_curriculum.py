"""A curriculum over genes: one network and one optimizer see a longer prefix of one ranking in each phase."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from tests.bitwise import differences
from tests.flagged import flag_network, flagged_cells, flagged_split
from tests.prepared import prepared
from torch._subclasses.fake_tensor import is_fake

from scgalore.data.batches import Phase
from scgalore.data.cells import TokenCells
from scgalore.data.sampler import BatchRequest
from scgalore.data.split import random_split
from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.model import SCGPT
from scgalore.objectives import Classification, MaskedExpression, Perturbation
from scgalore.train import TrainConfig, fit
from scgalore.train.config import DEFAULT_GENES, check_curriculum
from scgalore.train.curriculum import batch_caps, plan_phases, rewarmed

CLASSES = ("a", "b", "c")

numbers = st.lists(st.integers(1, 5000), min_size=1, max_size=6, unique=True).map(sorted)


class TestCheck:
    @pytest.mark.parametrize("nothing", [None, False])
    def test_none(self, nothing: Any) -> None:
        assert check_curriculum(nothing, 10) is None

    def test_true_is_the_default(self) -> None:
        epochs = check_curriculum(True, 30)
        assert epochs is not None
        assert tuple(epochs) == DEFAULT_GENES
        assert list(epochs.values()) == [7, 7, 8, 8]

    @given(numbers, st.integers(0, 30))
    def test_epochs_are_shared_out_evenly_and_the_last_phases_get_more(self, genes: list[int], more: int) -> None:
        epochs = list((check_curriculum(genes, len(genes) + more) or {}).values())
        assert sum(epochs) == len(genes) + more
        assert max(epochs) - min(epochs) <= 1
        assert epochs == sorted(epochs)

    @given(numbers, st.integers(0, 30))
    def test_what_it_says_can_be_said_again(self, genes: list[int], more: int) -> None:
        epochs = check_curriculum(genes, len(genes) + more)
        assert check_curriculum(epochs, len(genes) + more) == epochs

    @pytest.mark.parametrize(
        ("curriculum", "message"),
        [
            pytest.param("500", "expected True, increasing numbers", id="text"),
            pytest.param(500, "expected True, increasing numbers", id="number"),
            pytest.param([], "expected True, increasing numbers", id="empty"),
            pytest.param([500, 500], "increase from phase to phase", id="same_twice"),
            pytest.param([1200, 500], "increase from phase to phase", id="falling"),
            pytest.param([0, 500], "at least 1", id="zero"),
            pytest.param([5.5], "must be integers", id="fraction"),
            pytest.param([True, 500], "must be integers", id="boolean"),
            pytest.param({500: 3, 1200: 4}, "add up to max_epochs=10", id="epochs_that_do_not_add_up"),
            pytest.param({500: 0, 1200: 10}, "at least 1 and add up", id="phase_without_epoch"),
            pytest.param(list(range(1, 12)), "11 phases, but max_epochs=10", id="more_phases_than_epochs"),
        ],
    )
    def test_refuses(self, curriculum: Any, message: str) -> None:
        with pytest.raises(OptionError, match=message):
            TrainConfig(curriculum=curriculum, max_epochs=10)

    def test_default_needs_four_epochs(self) -> None:
        with pytest.raises(OptionError, match="curriculum=True has 4 phases, but max_epochs=3"):
            TrainConfig(curriculum=True, max_epochs=3)


class TestPhases:
    def test_without_a_curriculum_there_is_one_of_all_genes(self) -> None:
        assert plan_phases(TrainConfig(max_epochs=7)) == (Phase(0, 7),)

    def test_follow_each_other(self) -> None:
        config = TrainConfig(curriculum={5: 2, 9: 3, 20: 1}, max_epochs=6)
        assert plan_phases(config, 30) == (Phase(0, 2, 5), Phase(2, 5, 9), Phase(5, 6, 20))

    def test_of_as_many_genes_as_are_ranked_admits_all_and_is_the_last(self) -> None:
        config = TrainConfig(curriculum={5: 2, 9: 3, 20: 1}, max_epochs=6)
        assert plan_phases(config, 9) == (Phase(0, 2, 5), Phase(2, 6))
        assert plan_phases(config, 3) == (Phase(0, 6),)


class TestBatchCaps:
    lengths = np.array([10, 20, 31])

    def test_without_a_curriculum_are_those_of_the_settings(self) -> None:
        assert batch_caps(TrainConfig(batch_size=8, batch_tokens=99), self.lengths) == (8, 99)

    def test_tokens_of_a_batch_are_those_of_cells_of_average_length(self) -> None:
        config = TrainConfig(curriculum=[5, 9], batch_size=8)
        assert batch_caps(config, self.lengths) == (None, 163)

    def test_a_cap_that_was_asked_for_stays(self) -> None:
        config = TrainConfig(curriculum=[5, 9], batch_size=8, batch_tokens=99)
        assert batch_caps(config, self.lengths) == (None, 99)


class TestRewarmed:
    def test_rises_after_each_switch_and_only_there(self) -> None:
        factors = [rewarmed(step, {10: 20, 30: 10}, 0.2) for step in range(40)]
        assert factors[:10] == [1.0] * 10
        assert factors[10:15] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
        assert factors[29:33] == pytest.approx([1.0, 0.5, 1.0, 1.0])

    def test_takes_no_more_than_a_hundred_steps(self) -> None:
        factors = np.array([rewarmed(step, {0: 10_000}, 0.5) for step in range(200)])
        assert np.flatnonzero(factors < 1).tolist() == list(range(99))


@pytest.fixture
def ranked(few: AnnData, model: SCGPT) -> TokenCells:
    """Cells whose genes are ranked by mean expression."""
    codes = few.obs["bulk_labels"].cat.codes.to_numpy(np.int64)
    return model.cells(few).with_targets(labels=codes).with_ranks(by_mean(few))


def by_mean(adata: AnnData) -> np.ndarray:
    means = np.asarray(adata.X.mean(axis=0)).ravel()
    ranks = np.full(adata.n_vars, np.nan)
    ranks[np.argsort(-means)] = np.arange(adata.n_vars)
    ranks[means == 0] = np.nan
    return ranks


class Watched:
    """An objective that remembers the genes, validation or not, of every batch, and the network it came with."""

    def __init__(self, objective: Any) -> None:
        self.objective = objective
        self.seen: list[tuple[bool, set[int], int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)

    def __call__(self, network: Any, batch: Any) -> Any:
        if not is_fake(batch.genes):  # the estimate of memory
            self.seen.append((network.training, set(batch.genes.unique().tolist()), int(batch.genes.numel())))
        return self.objective(network, batch)


class TestRun:
    curriculum = {20: 2, 50: 1, 10_000: 2}

    def run(self, cells: TokenCells, split: Any, model: SCGPT, objective: Any, **options: Any) -> Watched:
        watched = Watched(objective)
        config = TrainConfig(curriculum=self.curriculum, max_epochs=5, batch_size=8, **options)
        model.fit(prepared(cells, split, config, classes=CLASSES if objective.heads else (), objective=watched))
        return watched

    @pytest.mark.parametrize("objective", [Classification(3), MaskedExpression()], ids=["classes", "expression"])
    def test_phases_show_prefixes_of_the_ranking_and_validation_shows_all(
        self, ranked: TokenCells, model: SCGPT, objective: Any, split_of_few: Any
    ) -> None:
        watched = self.run(ranked, split_of_few, model, objective)
        special = {ranked.tokenizer.cls_id, ranked.tokenizer.pad_id}
        assert ranked.ranked is not None
        prefixes = [set(ranked.ranked[:20].tolist()), set(ranked.ranked[:50].tolist())]
        genes = [shown - special for training, shown, _ in watched.seen if training]
        validated = [shown - special for training, shown, _ in watched.seen if not training]
        in_phase = [
            [shown for shown in genes if shown <= prefixes[0]],
            [shown for shown in genes if shown <= prefixes[1] and not shown <= prefixes[0]],
            [shown for shown in genes if not shown <= prefixes[1]],
        ]
        assert set().union(*in_phase[0]) == prefixes[0]
        assert set().union(*in_phase[1]) == prefixes[1]
        assert genes == [shown for phase in in_phase for shown in phase]  # in this order
        whole = set(ranked.batch(BatchRequest(split_of_few.validation)).genes.unique().tolist()) - special
        assert whole - prefixes[1]
        per_epoch = len(validated) // 5
        assert all(set().union(*validated[i * per_epoch : (i + 1) * per_epoch]) == whole for i in range(5))

    def test_batches_have_about_as_many_tokens_in_every_phase(
        self, ranked: TokenCells, model: SCGPT, split_of_few: Any
    ) -> None:
        watched = self.run(ranked, split_of_few, model, Classification(3))
        cap = int(np.ceil(8 * ranked.lengths[split_of_few.train].mean()))
        sizes = [n for training, _, n in watched.seen if training]
        assert max(sizes) <= cap
        # Remainders of windows apart, batches are full.
        assert np.median(sizes) > 0.6 * cap

    def test_history_says_how_many_genes(self, ranked: TokenCells, model: SCGPT, split_of_few: Any) -> None:
        self.run(ranked, split_of_few, model, Classification(3))
        n_all = int((ranked.tokenizer.token_ids >= 0).sum())
        assert model.history["n_genes"].tolist() == [20, 20, 50, n_all, n_all]

    def test_steps_are_counted_over_all_phases(self, ranked: TokenCells, model: SCGPT, split_of_few: Any) -> None:
        watched = self.run(ranked, split_of_few, model, Classification(3))
        assert model.result.steps == sum(training for training, *_ in watched.seen)

    def test_one_phase_of_all_genes_with_the_same_caps_is_no_curriculum(
        self, few: AnnData, ranked: TokenCells, make_model: Callable[..., SCGPT], split_of_few: Any
    ) -> None:
        caps: dict[str, Any] = {"max_epochs": 2, "batch_size": 1000, "batch_tokens": 300}
        fitted = []
        for curriculum in (None, [10_000]):
            one = make_model(few.var_names)
            config = TrainConfig(curriculum=curriculum, **caps)
            one.fit(prepared(ranked, split_of_few, config, classes=CLASSES))
            fitted.append(one)
        assert differences(fitted[0].network.state_dict(), fitted[1].network.state_dict()) == []

    @pytest.mark.parametrize(("last", "warned"), [(50, True), (10_000, False)])
    def test_genes_that_training_never_shows_are_warned_of(
        self,
        ranked: TokenCells,
        model: SCGPT,
        split_of_few: Any,
        caplog: pytest.LogCaptureFixture,
        last: int,
        warned: bool,
    ) -> None:
        config = TrainConfig(curriculum=[20, last], max_epochs=2)
        with caplog.at_level("WARNING", logger="scgalore"):
            model.fit(prepared(ranked, split_of_few, config, classes=CLASSES))
        assert ("trains on 50 of" in caplog.text) is warned

    def test_patience_counts_epochs_of_the_last_phase(
        self, ranked: TokenCells, model: SCGPT, split_of_few: Any
    ) -> None:
        config = TrainConfig(curriculum={20: 6, 10_000: 6}, max_epochs=12, patience=1, lr=0.5, optimizer="adamw")
        model.fit(prepared(ranked, split_of_few, config, classes=CLASSES))
        assert len(model.history) > 6

    def test_galore_finds_new_subspaces_at_a_switch(
        self, ranked: TokenCells, model: SCGPT, split_of_few: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from scgalore.optim import GaLoreAdamW

        called: list[int] = []
        refresh = GaLoreAdamW.refresh

        def counted(self: GaLoreAdamW) -> None:
            called.append(max(state["step"] for state in self.state.values() if "refresh_at" in state))
            refresh(self)

        monkeypatch.setattr(GaLoreAdamW, "refresh", counted)
        watched = self.run(ranked, split_of_few, model, Classification(3), optimizer_options={"rank": 4})
        assert len(called) == 2
        assert 0 < called[0] < called[1] < sum(training for training, *_ in watched.seen)


@pytest.mark.parametrize(
    ("options", "epoch"),
    [
        pytest.param({"labels_key": "bulk_labels"}, 2, id="classes-at_a_switch"),
        pytest.param({"labels_key": None}, 3, id="masked_expression-inside_phase_3"),
        pytest.param(
            {"labels_key": None, "optimizer": "adamw", "max_length": 40}, 2, id="adamw_of_sampled_cells-at_a_switch"
        ),
    ],
)
def test_run_that_was_interrupted_in_any_phase_ends_as_the_whole_run(
    few: AnnData,
    make_model: Callable[..., SCGPT],
    tmp_path: Path,
    options: dict[str, Any],
    epoch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few.var["selected_rank"] = by_mean(few)
    run = {
        "curriculum": {20: 1, 50: 2, 100: 2, 150: 1},
        "max_epochs": 6,
        "batch_size": 16,
        "lr": 2e-3,
        "validation_size": 0.2,
        **options,
    }
    whole = make_model(few.var_names)
    whole.train(few, **run)
    from scgalore.train.callbacks import History

    finished = History.on_train_epoch_start

    def stop(self: History, trainer: Any, plan: Any) -> None:
        if trainer.current_epoch == epoch + 1:
            raise ZeroDivisionError
        finished(self, trainer, plan)

    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_epoch_start", stop)
        with pytest.raises(ZeroDivisionError):
            make_model(few.var_names).train(few, **run, checkpoint_dir=tmp_path)
    resumed = make_model(few.var_names)
    resumed.train(few, **run, checkpoint_dir=tmp_path, resume=True)
    assert differences(resumed.network.state_dict(), whole.network.state_dict()) == []
    pd.testing.assert_frame_equal(
        resumed.history.drop(columns="seconds"), whole.history.drop(columns="seconds"), check_exact=True
    )


def test_another_ranking_or_curriculum_is_another_run(
    few: AnnData, make_model: Callable[..., SCGPT], tmp_path: Path
) -> None:
    few.var["selected_rank"] = by_mean(few)
    run: dict[str, Any] = {"curriculum": [20, 150], "max_epochs": 2, "checkpoint_dir": tmp_path}
    make_model(few.var_names).train(few, **run)
    with pytest.raises(OptionError, match="curriculum was"):
        make_model(few.var_names).train(few, **{**run, "curriculum": [30, 150]}, resume=True)
    few.var["selected_rank"] = by_mean(few)[::-1]
    with pytest.raises(OptionError, match="other ranking of genes"):
        make_model(few.var_names).train(few, **run, resume=True)


class TestRefusals:
    def test_genes_without_ranks(self, few: AnnData, model: SCGPT, split_of_few: Any) -> None:
        with pytest.raises(MissingKeyError, match=r"No column 'mine_rank'.*sg\.tl\.select_genes\(adata"):
            model.train(few, curriculum=[20, 50], genes_key="mine")
        few.var["mine_rank"] = np.nan
        with pytest.raises(DataError, match="has no ranks"):
            model.train(few, curriculum=[20, 50], genes_key="mine")
        with pytest.raises(OptionError, match="requires a ranking of the genes"):
            model.fit(prepared(model.cells(few), split_of_few, TrainConfig(curriculum=[20, 50])))

    def test_phase_that_leaves_no_cell(self, few: AnnData, model: SCGPT) -> None:
        never = np.asarray(few.X.sum(axis=0)).ravel().argmin()
        few.X = few.X @ sp.diags((np.arange(few.n_vars) != never).astype(np.float32)).tocsr()
        few.var["selected_rank"] = np.where(np.arange(few.n_vars) == never, 0, np.arange(few.n_vars) + 1)
        before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
        with pytest.raises(DataError, match="first 1 genes of the curriculum"):
            model.train(few, curriculum=[1, 50])
        assert differences(before, model.network.state_dict()) == []


class TestPerturbations:
    def run(self, curriculum: Any, **options: Any) -> tuple[Watched, Any]:
        cells = flagged_cells().with_ranks(np.arange(12.0))
        network = flag_network()
        watched = Watched(Perturbation())
        config = TrainConfig(curriculum=curriculum, max_epochs=4, batch_size=4, **options)
        result = fit(network, cells, flagged_split(), watched, config)
        return watched, result

    def test_training_shows_a_prefix_and_what_is_perturbed_in_its_cells(self) -> None:
        watched, result = self.run({3: 2, 12: 2})
        cells = flagged_cells().with_ranks(np.arange(12.0))
        assert cells.ranked is not None
        special = {cells.tokenizer.cls_id, cells.tokenizer.pad_id}
        perturbed = set(np.concatenate([of_row.tokens for of_row in cells.targets]).tolist())
        shown = [genes - special for training, genes, _ in watched.seen if training]
        n_first = sum(genes <= set(cells.ranked[:3].tolist()) | perturbed for genes in shown)
        assert 0 < n_first < len(shown)
        measured = set(cells.tokenizer.token_ids[cells.tokenizer.columns].tolist())
        assert all(measured <= genes for training, genes, _ in watched.seen if not training)
        assert result.history["n_genes"].tolist() == [3, 3, 10, 10]

    def test_gradients_are_finite_where_only_perturbed_genes_are_left(self) -> None:
        _, result = self.run({1: 2, 12: 2})
        assert np.isfinite(result.history["train_loss"]).all()
        assert torch.isfinite(torch.tensor(result.history["validation_loss"].to_numpy())).all()


@pytest.fixture
def split_of_few(few: AnnData) -> Any:
    return random_split(few.n_obs, validation_size=0.2, test_size=0.1)
