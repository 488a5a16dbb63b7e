from pathlib import Path

import pytest
from anndata import AnnData

from scgalore.data.vocab import GeneVocab
from scgalore.model import SCGPT
from scgalore.nn import SCGPTConfig


@pytest.fixture(scope="package")
def tiny_model(_pbmc_once: AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small network with random weights that knows all but five of pbmc68k's genes."""
    vocab = GeneVocab.from_genes(sorted(_pbmc_once.var_names)[5:])
    config = SCGPTConfig(n_tokens=len(vocab), pad_id=vocab.pad_id, d_model=16, n_heads=2, d_hid=16, n_layers=1)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    SCGPT.from_config(config, vocab).save(folder)
    return folder
