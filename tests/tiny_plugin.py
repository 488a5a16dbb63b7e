"""Models small enough to train in a second, and real cells to train them on."""

import pickle
import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData

from scgalore.data.vocab import GeneVocab
from scgalore.model import SCGPT
from scgalore.nn import SCGPTConfig

TINY = {"d_model": 16, "n_heads": 2, "d_hid": 32, "n_layers": 2, "dropout": 0.1, "max_length": 64}


def tiny_model(genes: Iterable[str], *, rng: int = 0, **config: Any) -> SCGPT:
    """Make a model with random weights."""
    vocab = GeneVocab.from_genes(genes)
    return SCGPT.from_config(
        SCGPTConfig(n_tokens=len(vocab), pad_id=vocab.pad_id, **{**TINY, **config}), vocab, rng=rng
    )


def few_cells(adata: AnnData, *, n_obs: int = 90, n_vars: int = 150) -> AnnData:
    """Take some cells of the three most frequent labels and some genes."""
    frequent = adata.obs["bulk_labels"].value_counts().index[:3]
    rows = np.flatnonzero(adata.obs["bulk_labels"].isin(frequent))[:n_obs]
    few = adata[rows, :n_vars].copy()
    few.obs["bulk_labels"] = few.obs["bulk_labels"].cat.remove_unused_categories()
    return few


@pytest.fixture(scope="session")
def make_model() -> Callable[..., SCGPT]:
    """Give the function that makes a model for some genes."""
    return tiny_model


@pytest.fixture(scope="session")
def _few_once(_pbmc_once: AnnData) -> AnnData:
    return few_cells(_pbmc_once)


@pytest.fixture
def few(_few_once: AnnData) -> AnnData:
    """90 cells of three labels x 150 genes."""
    return _few_once.copy()


@pytest.fixture
def model(few: AnnData) -> SCGPT:
    """Random weights for the genes of ``few``."""
    return tiny_model(few.var_names)


def _random_states() -> tuple[object, ...]:
    state = pickle.dumps(np.random.get_state())  # noqa: NPY002 -- the state that must not change
    return state, torch.random.get_rng_state().tolist(), random.getstate()


@pytest.fixture
def random_states() -> Callable[[], tuple[object, ...]]:
    """Give the function that takes a picture of the states of all global generators."""
    return _random_states


@pytest.fixture
def in_empty_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Work in an empty folder; the function says whether it has stayed empty."""
    folder = tmp_path_factory.mktemp("cwd")
    monkeypatch.chdir(folder)

    def check() -> None:
        assert list(folder.iterdir()) == []

    return check
