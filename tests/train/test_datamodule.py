import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from tests.flagged import OF_CELL, flagged_cells, flagged_split, tensor_of
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from scgalore.data.batches import BatchPlan
from scgalore.data.cells import TokenCells
from scgalore.data.source import CellSource
from scgalore.data.split import Split, random_split
from scgalore.data.tokens import TokenBatch
from scgalore.model import SCGPT
from scgalore.objectives import Classification, MaskedExpression, Objective, Perturbation
from scgalore.train import CellDataModule
from scgalore.train.steps import Share


@pytest.fixture
def cells(few: AnnData, model: SCGPT) -> TokenCells:
    labels = few.obs["bulk_labels"].cat.codes.to_numpy(np.int64)
    return model.cells(few, max_length=30).with_targets(labels=labels)


def module_of(
    source: CellSource, split: Split, objective: Objective, plan: BatchPlan, **options: Any
) -> CellDataModule:
    """Training and validation cells of a split."""
    parts = source.training_batches(split.train, plan), source.validation_batches(split.validation, plan)
    return CellDataModule(*parts, objective, **options)


@pytest.fixture
def make(cells: TokenCells) -> Callable[..., CellDataModule]:
    def module(objective=None, *, batch_size=16, validation_size=0.2, **options) -> CellDataModule:
        split = random_split(cells.n_obs, validation_size=validation_size, test_size=0.1)
        return module_of(cells, split, objective or Classification(3), BatchPlan(batch_size, **options))

    return module


def rows(batches: list[TokenBatch]) -> list[int]:
    return torch.cat([batch.cells for batch in batches]).tolist()


def test_each_part_is_served_once_an_epoch(make: Callable[..., CellDataModule]) -> None:
    data = make()
    train, validation = list(data.train_dataloader()), list(data.val_dataloader())
    assert sorted(rows(train)) == data.train_idx.tolist()
    assert sorted(rows(validation)) == data.val_idx.tolist()
    assert [len(batch) for batch in validation] == [16, 2]
    assert (data.n_train, data.n_val) == (63, 18)


def test_labels_belong_to_their_cells(make: Callable[..., CellDataModule], few: AnnData) -> None:
    codes = few.obs["bulk_labels"].cat.codes.to_numpy()
    for batch in make().train_dataloader():
        assert batch.targets["labels"].tolist() == codes[batch.cells.numpy()].tolist()


def test_epoch_changes_order_samples_and_masks(make: Callable[..., CellDataModule]) -> None:
    data = make(MaskedExpression())
    by_epoch = []
    for epoch in (0, 1, 0):
        data.training.set_epoch(epoch)
        batches = list(data.train_dataloader())
        cell = int(data.train_idx[0])
        batch = next(batch for batch in batches if cell in batch.cells)
        i = batch.cells.tolist().index(cell)
        by_epoch.append((rows(batches), batch.genes[i].tolist(), batch.targets["masked"][i].tolist()))
    assert by_epoch[0] == by_epoch[2]
    assert all(a != b for a, b in zip(by_epoch[0], by_epoch[1], strict=True))


def test_validation_never_changes(make: Callable[..., CellDataModule]) -> None:
    data = make(MaskedExpression())
    before = list(data.val_dataloader())
    data.training.set_epoch(7)
    for one, other in zip(before, data.val_dataloader(), strict=True):
        assert torch.equal(one.values, other.values)
        assert torch.equal(one.genes, other.genes)


def test_masks_of_a_cell_do_not_depend_on_its_batch(make: Callable[..., CellDataModule]) -> None:
    def masked(batch_size: int) -> dict[int, list[int]]:
        data = make(MaskedExpression(), batch_size=batch_size)
        return {
            int(row): batch.genes[i][batch.targets["masked"][i]].tolist()
            for batch in data.train_dataloader()
            for i, row in enumerate(batch.cells)
        }

    assert masked(3) == masked(20)


def test_without_validation_cells_there_is_no_loader(make: Callable[..., CellDataModule]) -> None:
    assert make(validation_size=0.0).val_dataloader() == []


def test_cells_can_be_sent_to_workers_that_are_not_forked(make: Callable[..., CellDataModule]) -> None:
    check_sent(make())


def check_sent(data: CellDataModule) -> None:
    """A dataset as a worker gets it where processes are not forked makes the same batches."""
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert isinstance(loader, DataLoader)
        sent, collate = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn)))
        for request in list(loader.sampler)[:3]:
            one, other = loader.collate_fn(loader.dataset[request]), collate(sent[request])
            assert torch.equal(one.cells, other.cells)
            assert torch.equal(one.genes, other.genes)
            assert torch.equal(one.values, other.values)


class TestMaxLength:
    """Training cells are sampled, validation cells are not."""

    def test_parts(self, make: Callable[..., CellDataModule], cells: TokenCells) -> None:
        data = make(max_length=12)
        assert {batch.genes.shape[1] for batch in data.train_dataloader()} == {12}
        loader = data.val_dataloader()
        assert isinstance(loader, DataLoader)
        assert max(batch.genes.shape[1] for batch in loader) == cells.lengths.max() > 12

    def test_sample_belongs_to_cell_and_epoch(self, make: Callable[..., CellDataModule]) -> None:
        def genes(epoch: int, batch_size: int) -> dict[int, list[int]]:
            data = make(max_length=12, batch_size=batch_size)
            data.training.set_epoch(epoch)
            return {
                int(row): batch.genes[i].tolist()
                for batch in data.train_dataloader()
                for i, row in enumerate(batch.cells)
            }

        first, same, later = genes(0, 3), genes(0, 50), genes(1, 3)
        assert first == same
        assert all(first[row] != later[row] for row in first)

    def test_longer_than_the_model_reads_changes_nothing(
        self, make: Callable[..., CellDataModule], cells: TokenCells
    ) -> None:
        longest = max(batch.genes.shape[1] for batch in make(max_length=10_000).train_dataloader())
        assert longest == cells.lengths.max()


class TestPerturbations:
    def module(self, **options) -> CellDataModule:
        split = options.pop("split", flagged_split())
        cells = flagged_cells(n_genes=options.pop("n_genes", None))
        plan = BatchPlan(options.pop("batch_size", 4), options.pop("batch_tokens", None))
        return module_of(cells, split, Perturbation(), plan, **options)

    @pytest.mark.parametrize("options", [{}, {"n_genes": 4}, {"batch_tokens": 40}, {"batch_size": 100}])
    def test_training_sees_each_perturbed_training_cell_once_and_no_other(self, options) -> None:
        data = self.module(**options)
        batches = list(data.train_dataloader())
        expected = np.flatnonzero((OF_CELL >= 0) & (OF_CELL < 3))
        assert sorted(rows(batches)) == data.train_idx.tolist() == expected.tolist()
        assert data.n_train == len(expected)
        assert len(batches) == data.n_batches(0)

    def test_cells_of_the_test_part_are_not_seen_even_if_they_have_rows(self) -> None:
        split = flagged_split()
        moved = split.train[OF_CELL[split.train] == 1]
        test = np.sort(np.concatenate([split.test, moved]))
        data = self.module(split=Split(np.setdiff1d(split.train, moved), split.validation, test))
        batches: list[Any] = list(data.train_dataloader())
        seen = rows(batches)
        assert set(OF_CELL[seen]) == {0, 2}

    def test_validation_is_one_perturbation_a_batch(self) -> None:
        data = self.module()
        batches = list(data.val_dataloader())
        assert data.val_idx.tolist() == [3, 4]
        assert data.n_val == len(batches) == 2
        cells = flagged_cells()
        for row, batch in zip((3, 4), batches, strict=True):
            expected = cells.validation_batch(row)
            for name in ("genes", "values", "flags", "expression", "controls", "prior"):
                assert torch.equal(tensor_of(batch, name), tensor_of(expected, name))
            assert (OF_CELL[batch.cells] == -1).all()

    def test_epochs_change_order_and_partners_but_not_validation(self) -> None:
        data = self.module()
        seen, values, validated = [], [], []
        for epoch in (0, 1, 0):
            data.training.set_epoch(epoch)
            batches = list(data.train_dataloader())
            seen.append(rows(batches))
            values.append({int(c): batch.values[i].tolist() for batch in batches for i, c in enumerate(batch.cells)})
            loader = data.val_dataloader()
            assert isinstance(loader, DataLoader)
            validated.append([batch.values.tolist() for batch in loader])
        assert seen[0] == seen[2] != seen[1]
        assert values[0] == values[2]
        assert any(values[0][cell][:11] != values[1][cell][:11] for cell in values[0])
        assert validated[0] == validated[1] == validated[2]

    def test_workers_change_nothing(self) -> None:
        alone, helped = (list(self.module(num_workers=n).train_dataloader()) for n in (0, 2))
        for one, other in zip(alone, helped, strict=True):
            assert torch.equal(one.cells, other.cells)
            assert torch.equal(one.values, other.values)

    def test_can_be_sent_to_workers_that_are_not_forked(self) -> None:
        check_sent(self.module())

    def test_without_validation_perturbations_there_is_no_loader(self) -> None:
        split = flagged_split()
        controls = split.validation[OF_CELL[split.validation] < 0]
        assert len(controls) > 0
        perturbed = np.setdiff1d(split.validation, controls)
        data = self.module(split=Split(split.train, controls, np.sort(np.concatenate([split.test, perturbed]))))
        assert data.n_val == 0
        assert data.val_dataloader() == []

    def test_sample_is_a_training_cell(self) -> None:
        data = self.module()
        assert data.sample().cells.tolist() == data.train_idx[:1].tolist()


@pytest.mark.parametrize("shared", [False, True])
def test_every_tensor_of_a_batch_is_pinned_and_copied_to_a_gpu_without_waiting(
    make: Callable[..., CellDataModule], monkeypatch: pytest.MonkeyPatch, *, shared: bool
) -> None:
    data = make(MaskedExpression())
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, TokenBatch)
    batch = batch.with_conditions(flags=torch.zeros(1))
    whole = Share(batch, len(batch), 1.0, 1.0) if shared else batch
    tensors = [batch.genes, batch.values, batch.padding, batch.cells, batch.keys]
    tensors += [*batch.targets.values(), *batch.conditions.values()]
    pinned: list[torch.Tensor] = []
    copied: list[tuple[torch.Tensor, Any, bool]] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor)
        return tensor

    def copy(tensor: torch.Tensor, device: Any, *, non_blocking: bool = False) -> torch.Tensor:
        copied.append((tensor, device, non_blocking))
        return tensor

    # A build for CPUs can neither pin nor copy: what is asked of torch is recorded in place of it.
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", copy)
    ready = pin_memory(whole)
    moved = data.transfer_batch_to_device(ready, torch.device("cuda", 0), 0)
    assert type(moved) is type(whole)
    assert {id(tensor) for tensor in pinned} == {id(tensor) for tensor in tensors}
    assert {id(tensor) for tensor, *_ in copied} == {id(tensor) for tensor in tensors}
    assert all(device == torch.device("cuda", 0) and unwaited for _, device, unwaited in copied)
