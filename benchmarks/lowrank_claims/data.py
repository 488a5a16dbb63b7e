"""Characters, digits and cells, each in three parts: to train on, to choose the learning rate on, and to report.

The parts hang on nothing but the data: every arm and every seed is measured on the same held-out samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

    from scgalore.data.cells import TokenCells
    from scgalore.data.split import Split
    from scgalore.model import SCGPT

Part = Literal["train", "validation", "test"]
PLAYS = ("coriolanus", "richard_iii")
SIDE = 8  # pixels of an edge of scikit-learn's digits
_TEXTS = Path(__file__).parent / "texts"
_SECTIONS = (
    20  # each gives 8 tenths to training and one to either held-out part, so that all parts cover the whole text
)


def alphabet() -> list[str]:
    """Characters of both plays, sorted."""
    return sorted(set("".join(_read(play) for play in PLAYS)))


@cache
def characters(plays: tuple[str, ...]) -> dict[Part, tuple[Tensor, ...]]:
    """Stretches of consecutive character ids, int64 ``(n,)`` each, by part."""
    code = {character: i for i, character in enumerate(alphabet())}
    parts: dict[Part, list[Tensor]] = {"train": [], "validation": [], "test": []}
    for play in plays:
        ids = torch.tensor([code[character] for character in _read(play)])
        for section in ids.tensor_split(_SECTIONS):
            tenth = len(section) // 10
            pieces = section.split([len(section) - 2 * tenth, tenth, tenth])
            for stretches, piece in zip(parts.values(), pieces, strict=True):
                stretches.append(piece)
    return {part: tuple(stretches) for part, stretches in parts.items()}


@dataclass(frozen=True)
class Images:
    """Images, float32 ``(n, 8, 8)`` in [0, 1], and their classes, int64 ``(n,)``."""

    images: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.classes)

    def take(self, rows: Tensor) -> Images:
        """Some of them."""
        return Images(self.images[rows], self.classes[rows])


@cache
def digits(classes: tuple[int, ...]) -> dict[Part, Images]:
    """scikit-learn's digits of some classes, renumbered from 0: 45 % to train on, 15 % and 40 % held out."""
    from sklearn.datasets import load_digits

    everything = load_digits()
    rows = np.flatnonzero(np.isin(everything.target, classes))
    rows = np.random.default_rng(0).permutation(rows)
    images = torch.from_numpy(everything.images[rows]).float() / 16
    codes = torch.from_numpy(np.searchsorted(classes, everything.target[rows]))
    n_train, n_validation = round(0.45 * len(rows)), round(0.15 * len(rows))
    bounds = {"train": (0, n_train), "validation": (n_train, n_train + n_validation)}
    bounds["test"] = (n_train + n_validation, len(rows))
    return {part: Images(images[slice(*bound)], codes[slice(*bound)]) for part, bound in bounds.items()}  # type: ignore[misc]


def few_of_each(images: Images, n: int, generator: torch.Generator) -> Images:
    """``n`` images of each class, drawn at random."""
    order = torch.randperm(len(images), generator=generator)
    rows = [order[images.classes[order] == code][:n] for code in images.classes.unique()]
    return images.take(torch.cat(rows))


@cache
def blood_cells(max_length: int) -> tuple[SCGPT, TokenCells, Split]:
    """The bundled scgpt-mini, and scanpy's 700 blood cells with their ten labels: half to train on."""
    import scanpy as sc

    import scgalore as sg
    from scgalore.data.labels import encode_labels
    from scgalore.data.split import random_split

    with sg.settings.override(verbosity=1):
        model = sg.model.SCGPT.from_pretrained("scgpt-mini")
        reduced = sc.datasets.pbmc68k_reduced()
        adata = reduced.raw.to_adata()
        adata.obs = reduced.obs.copy()
        codes, _ = encode_labels(adata, "bulk_labels")
        cells = model.cells(adata, max_length=max_length).with_targets(labels=codes)
    split = random_split(cells.n_obs, validation_size=0.15, test_size=0.35, strata=codes)
    return model, cells, split


def _read(play: str) -> str:
    return (_TEXTS / f"{play}.txt").read_text(encoding="ascii")
