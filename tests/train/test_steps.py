from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import scgalore as sg
from scgalore.data.tokens import TokenBatch
from scgalore.errors import OptionError
from scgalore.model import SCGPT
from scgalore.objectives import MaskedExpression
from scgalore.train import TrainConfig
from scgalore.train.steps import Share, Steps, settle_steps

OBJECTIVE = MaskedExpression(mask_ratio=0.5)


def batch_of(lengths: list[int]) -> TokenBatch:
    """Cells of these lengths, padded, with half of their genes masked."""
    padding = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    genes = torch.arange(max(lengths)).expand(len(lengths), -1)
    keys = torch.arange(len(lengths))
    batch = TokenBatch(genes=genes, values=(~padding).float(), padding=padding, keys=keys, cells=keys)
    return OBJECTIVE.corrupt(batch, seed=0, draw=0)


def loader(batches: list[TokenBatch]) -> DataLoader[Any]:
    return DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]


def by_step(steps: Steps) -> list[list[Share]]:
    found: list[list[Share]] = [[]]
    for share in steps:
        found[-1].append(share)
        if share.ends:
            found.append([])
    assert found.pop() == []  # the last batch of an epoch ends a step
    return found


LENGTHS = st.lists(st.lists(st.integers(2, 30), min_size=1, max_size=4), min_size=1, max_size=25)


class TestSteps:
    @given(LENGTHS, st.integers(1, 5))
    def test_have_some_batches_that_weigh_as_what_they_predict(self, lengths: list[list[int]], n: int) -> None:
        batches = [batch_of(one) for one in lengths]
        steps = by_step(Steps(loader(batches), OBJECTIVE, batches=n))
        assert [len(step) for step in steps[:-1]] == [n] * (len(steps) - 1)
        assert [id(share.batch) for step in steps for share in step] == [id(batch) for batch in batches]
        for step in steps:
            predicted = [int(share.batch.targets["masked"].sum()) for share in step]
            assert [share.weight for share in step] == predicted
            assert {share.whole for share in step} == {sum(predicted)}

    @given(LENGTHS, st.integers(10, 300))
    def test_have_about_as_many_tokens_as_were_asked_for(self, lengths: list[list[int]], tokens: int) -> None:
        steps = by_step(Steps(loader([batch_of(one) for one in lengths]), OBJECTIVE, tokens=tokens))
        for step in steps[:-1]:
            of_batches = [share.batch.n_tokens for share in step]
            assert abs(sum(of_batches) - tokens) <= max(of_batches[-1] / 2, sum(of_batches) - tokens)
            assert sum(of_batches[:-1]) < tokens
            if len(step) > 1:
                assert sum(of_batches) - tokens <= of_batches[-1] / 2 + max(of_batches) / 2

    @given(LENGTHS, st.integers(10, 300))
    def test_end_where_they_ended_if_one_begins_after_a_step(self, lengths: list[list[int]], tokens: int) -> None:
        batches = [batch_of(one) for one in lengths]
        sizes = [len(step) for step in by_step(Steps(loader(batches), OBJECTIVE, tokens=tokens))]
        for number in range(len(sizes)):
            later = by_step(Steps(loader(batches[sum(sizes[:number]) :]), OBJECTIVE, tokens=tokens))
            assert [len(step) for step in later] == sizes[number:]

    def test_of_several_processes_end_together(self) -> None:
        """The other process has twice as much in each batch."""
        batches = [batch_of([10])] * 6
        alone = by_step(Steps(loader(batches), OBJECTIVE, tokens=60))
        both = by_step(Steps(loader(batches), OBJECTIVE, tokens=60, sum_over=lambda xs: [3 * x for x in xs]))
        assert ([len(step) for step in alone], [len(step) for step in both]) == ([6], [2, 2, 2])
        assert {share.whole / share.weight for step in both for share in step} == {6.0}

    def test_leave_out_what_a_process_repeats(self) -> None:
        batch = batch_of([10])
        (step,) = by_step(Steps(loader([Share(batch, 1, 1, 1), Share(batch, 0, 0, 1)]), OBJECTIVE, batches=2))  # type: ignore[list-item]
        assert [(share.n, share.weight) for share in step] == [(1, 4), (0, 0)]


class TestSettled:
    def test_batches_are_counted_from_what_cells_have(self, few: AnnData, model: SCGPT) -> None:
        cells = model.cells(few)
        rows = np.arange(60)
        mean = cells.lengths[rows].mean() * 10
        config = TrainConfig(batch_size=10, accumulate_tokens=int(5 * mean), max_epochs=1)
        assert settle_steps(config, cells, rows).accumulate == 5

    def test_a_number_that_is_settled_stays(self, few: AnnData, model: SCGPT) -> None:
        config = TrainConfig(batch_size=10, accumulate_tokens=10**6, accumulate=3, max_epochs=1)
        assert settle_steps(config, model.cells(few), None) == config

    def test_a_number_of_batches_as_well_is_refused(self, few: AnnData, model: SCGPT) -> None:
        with pytest.raises(OptionError, match="accumulate=2 and accumulate_tokens=5000: "):
            sg.tl.finetune(few, model, labels_key="bulk_labels", accumulate=2, accumulate_tokens=5000)
        assert not model.is_trained

    def test_fewer_tokens_than_a_batch_has_are_refused(self, few: AnnData, model: SCGPT) -> None:
        with pytest.raises(OptionError, match=r"accumulate_tokens=100: .* about [0-9,]+ tokens.* smaller batch_size"):
            model.train(few, batch_size=16, accumulate_tokens=100, max_epochs=1)
        assert not model.is_trained


@dataclass
class Spy:
    """Tokens of each step, as the optimizer took them."""

    steps: list[int]
    now: int = 0


def test_steps_of_a_run_have_the_tokens(
    few: AnnData, make_model: Callable[..., SCGPT], monkeypatch: pytest.MonkeyPatch
) -> None:
    from scgalore.train.plan import ObjectiveTrainingPlan

    measure, step = ObjectiveTrainingPlan.training_step, ObjectiveTrainingPlan.optimizer_step
    spy = Spy([])

    def measured(self: Any, batch: Any, batch_idx: int) -> Any:
        spy.now += batch.batch.n_tokens
        return measure(self, batch, batch_idx)

    def stepped(self: Any, *args: Any, **kwargs: Any) -> None:
        step(self, *args, **kwargs)
        spy.steps.append(spy.now)
        spy.now = 0

    monkeypatch.setattr(ObjectiveTrainingPlan, "training_step", measured)
    monkeypatch.setattr(ObjectiveTrainingPlan, "optimizer_step", stepped)
    model = make_model(few.var_names)
    model.train(few, batch_size=4, accumulate_tokens=1200, max_epochs=2, accelerator="cpu")
    whole = [n for n in spy.steps if n > 600]  # the last of an epoch has what is left
    assert len(whole) >= len(spy.steps) - 2
    assert np.mean(whole) == pytest.approx(1200, rel=0.1)
    assert model.result.steps == len(spy.steps)
    assert all(param.grad is None for param in model.network.parameters())
