import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData

from scgalore.data.cells import TokenCells
from scgalore.data.split import Split, random_split
from scgalore.model import SCGPT
from scgalore.model.identity import run_identity
from scgalore.objectives import Classification, MaskedExpression, Objective
from scgalore.train import TrainConfig

Identity = dict[str, Any]


def cells_of(adata: AnnData, model: SCGPT, **options: Any) -> TokenCells:
    codes = adata.obs["bulk_labels"].cat.codes.to_numpy(np.int64)
    return model.cells(adata, **options).with_targets(labels=codes)


def identity(
    cells: TokenCells,
    model: SCGPT,
    *,
    split: Split | None = None,
    objective: Objective | None = None,
    **options: Any,
) -> Identity:
    config = TrainConfig(**options)
    return run_identity(
        cells, split or random_split(cells.n_obs), objective or Classification(3), config, model.network
    )


def changed(one: Identity, other: Identity) -> set[str]:
    return {key for key in {**one, **other} if one.get(key) != other.get(key)}


@pytest.fixture
def base(few: AnnData, model: SCGPT) -> Identity:
    return identity(cells_of(few, model), model)


def test_is_flat_plain_and_repeatable(few: AnnData, model: SCGPT, base: Identity) -> None:
    assert json.loads(json.dumps(base)) == base
    assert identity(cells_of(few, model), model) == base


def test_is_that_of_the_data_whatever_holds_it(few: AnnData, model: SCGPT, base: Identity) -> None:
    few.layers["dense"] = few.X.toarray().astype(np.float64)
    shuffled = few[:, np.random.default_rng(0).permutation(few.n_vars)].copy()
    assert identity(cells_of(shuffled, model, layer="dense"), model) == base


def test_place_of_the_computation_is_free(few: AnnData, model: SCGPT, base: Identity) -> None:
    assert identity(cells_of(few, model), model, accelerator="cpu", devices=1) == base


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"lr": 1.0}, "lr"),
        ({"seed": 1}, "seed"),
        ({"patience": 1}, "patience"),
        ({"optimizer_options": {"rank": 2}}, "optimizer_options"),
        ({"objective": Classification(3, label_smoothing=0.1)}, "objective"),
        ({"objective": MaskedExpression()}, "objective"),
        ({"split": random_split(90, seed=1)}, "split"),
    ],
)
def test_setting_is_named(few: AnnData, model: SCGPT, base: Identity, options: dict[str, Any], name: str) -> None:
    assert changed(identity(cells_of(few, model), model, **options), base) == {name}


def test_expression_labels_and_tokens_are_named(few: AnnData, model: SCGPT, base: Identity) -> None:
    assert changed(identity(cells_of(few, model, max_length=20), model), base) == {"tokens"}
    other = few.copy()
    other.X.data[3] += 1
    assert changed(identity(cells_of(other, model), model), base) == {"expression"}
    cells = cells_of(few, model)
    assert changed(identity(cells.with_targets(labels=cells.targets["labels"][::-1]), model), base) == {"labels"}
    assert changed(identity(cells.with_ranks(np.arange(few.n_vars)), model), base) == {"ranking of genes"}


def test_weights_are_named_also_those_numpy_has_no_type_for(
    few: AnnData, make_model: Callable[..., SCGPT], base: Identity
) -> None:
    other = make_model(few.var_names, rng=1)
    assert changed(identity(cells_of(few, other), other), base) == {"initial weights"}
    other.network.to(torch.bfloat16)
    assert changed(identity(cells_of(few, other), other), base) == {"initial weights"}


def test_weights_are_the_same_in_memory_and_in_a_folder(
    few: AnnData, model: SCGPT, make_model: Callable[..., SCGPT], tmp_path: Path
) -> None:
    expected = model.embedding_identity
    model.put_heads({"classes": 3}, seed=0)
    model.save(tmp_path / "model")
    assert model.embedding_identity == SCGPT.load(tmp_path / "model").embedding_identity == expected
    assert make_model(few.var_names, rng=1).embedding_identity != expected
    assert make_model(few.var_names[::-1]).embedding_identity != expected
