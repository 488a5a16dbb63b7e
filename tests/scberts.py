"""What the original scBERT computed, files in its layout, and small models of the family."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scgalore.data.vocab import GeneVocab
from scgalore.model import SCBERT
from scgalore.nn import SCBERTConfig
from scgalore.weights.scbert import SPECIALS

FOLDER = Path(__file__).parent / "data" / "scbert"
FILE = FOLDER / "panglao_pretrain_small.pth"
GENES = [f"GENE{number}" for number in range(60)]

SIZES: dict[str, Any] = {"d_model": 32, "d_head": 16, "n_heads": 2, "n_layers": 2, "d_hid": 64, "n_features": 24}
"""A small network."""


def original() -> Mapping[str, np.ndarray[Any, Any]]:
    """Arrays of the original program."""
    return np.load(FOLDER / "scbert.npz")


def original_folder(tmp_path: Path) -> Path:
    """Folder with the original's small file and names for its genes."""
    folder = tmp_path / "original"
    folder.mkdir()
    (folder / "panglao_pretrain.pth").write_bytes(FILE.read_bytes())
    (folder / "vocab.json").write_text(json.dumps({gene: row for row, gene in enumerate(GENES)}))
    return folder


def stored(path: Path = FILE) -> dict[str, Tensor]:
    """Tensors of a file in the original's layout, as they are there."""
    return torch.load(path, weights_only=True)["model_state_dict"]


def full_size_file(path: Path, *, seed: int = 0) -> None:
    """Write a file with random numbers in the layout of the released one: its 91 tensors, and Adam's state after a step."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.1

    state = {"token_emb.weight": random(7, 200)}
    table = torch.randn(16907, 200, generator=generator, dtype=torch.float64)
    table[-1] = 0
    state["pos_emb.emb.weight"] = table
    state["performer.calls_since_last_redraw"] = torch.tensor(417)
    for number in range(6):
        attention, feed_forward = (f"performer.net.layers.{number}.{part}." for part in (0, 1))
        state |= {f"{attention}norm.weight": 1 + random(200), f"{attention}norm.bias": random(200)}
        state[f"{attention}fn.fast_attention.projection_matrix"] = torch.randn(266, 64, generator=generator)
        state |= {f"{attention}fn.to_{part}.weight": random(640, 200) for part in "qkv"}
        state |= {f"{attention}fn.to_out.weight": random(200, 640), f"{attention}fn.to_out.bias": random(200)}
        state |= {f"{feed_forward}norm.weight": 1 + random(200), f"{feed_forward}norm.bias": random(200)}
        state |= {f"{feed_forward}fn.fn.w1.weight": random(800, 200), f"{feed_forward}fn.fn.w1.bias": random(800)}
        state |= {f"{feed_forward}fn.fn.w2.weight": random(200, 800), f"{feed_forward}fn.fn.w2.bias": random(200)}
    state |= {"norm.weight": 1 + random(200), "norm.bias": random(200)}
    state |= {"to_out.weight": random(7, 200), "to_out.bias": random(7)}
    assert len(state) == 91
    moments = {
        number: {"step": torch.tensor(1.0), "exp_avg": random(3), "exp_avg_sq": random(3)} for number in range(88)
    }
    content = {
        "epoch": 5,
        "model_state_dict": state,
        "optimizer_state_dict": {"state": moments, "param_groups": [{"lr": 1e-4, "params": list(moments)}]},
        "scheduler_state_dict": {"T_0": 15},
        "losses": 0.3,
    }
    torch.save(content, path)


def small_model(genes: Iterable[str], *, rng: int = 0, **config: Any) -> SCBERT:
    """A model with random weights."""
    vocab = GeneVocab.from_genes(genes, SPECIALS)
    sizes = {**SIZES, "max_length": len(vocab) - 1, **config}
    return SCBERT.from_config(SCBERTConfig(n_tokens=len(vocab), pad_id=vocab.pad_id, **sizes), vocab, rng=rng)
