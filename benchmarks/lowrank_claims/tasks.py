"""What the networks learn: next characters, digits, cell types and masked genes.

A task gives the network that training starts from, its batches, its loss, and its score on held-out samples. Fine-tuning
tasks start from a network that has learnt a related task; it is made once, and kept in a folder.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from benchmarks.lowrank_claims.data import PLAYS, SIDE, alphabet, blood_cells, characters, digits, few_of_each
from benchmarks.lowrank_claims.models import GPT, ViT

from scgalore.data.sampler import BatchRequest
from scgalore.objectives import Classification, MaskedExpression

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.lowrank_claims.data import Images, Part
    from torch import Tensor, nn

    from scgalore.data.tokens import TokenBatch

SIZES = {"d_model": 64, "n_heads": 4, "n_layers": 4}
EVALUATION_BATCH = 128


@dataclass(frozen=True)
class Task(ABC):
    """One thing to learn.

    Attributes
    ----------
    rest_lr
        Learning rate, the same in every arm, of parameters that are trained in addition to the arm's own weights: heads, and in training from
        random weights also embeddings, norms and biases.
    pretraining_steps
        Steps of the pre-training, where there is one.
    """

    rest_lr: float
    pretraining_steps: int = 0

    @property
    @abstractmethod
    def name(self) -> str:
        """Word in keys and tables."""

    @property
    def base(self) -> Task | None:
        """Task that the pre-training learns; ``None`` where there is none."""
        return None

    @abstractmethod
    def network(self, seed: int, base: dict[str, Tensor] | None) -> nn.Module:
        """Give the network that training starts from."""

    @abstractmethod
    def batches(self, seed: int, size: int) -> Iterator[Any]:
        """Draw batches without end."""

    @abstractmethod
    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        """Loss that training minimises."""

    @abstractmethod
    def evaluate(self, network: nn.Module, part: Part) -> dict[str, float]:
        """Score on a part, ``loss`` among the scores."""

    def criterion(self, scores: dict[str, float]) -> tuple[float, ...]:
        """Give what the choice of a learning rate minimises, in order of importance."""
        return (scores["loss"],)


@dataclass(frozen=True)
class Characters(Task):
    """Next character of a play: from random weights, or after learning another play."""

    plays: tuple[str, ...] = PLAYS
    learnt: tuple[str, ...] = ()
    context: int = 64

    @property
    def name(self) -> str:
        """Word in keys and tables."""
        return "GPT, fine-tuned" if self.learnt else "GPT"

    @property
    def base(self) -> Task | None:
        """The other play."""
        return replace(self, plays=self.learnt, learnt=(), pretraining_steps=0) if self.learnt else None

    def network(self, seed: int, base: dict[str, Tensor] | None) -> nn.Module:
        """Give a GPT."""
        torch.manual_seed(seed)
        network = GPT(len(alphabet()), context=self.context, **SIZES)
        if base is not None:
            network.load_state_dict(base)
        return network

    def batches(self, seed: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw windows of the text, each at a random place."""
        windows = _windows(self.plays, "train", self.context, 1)
        generator = torch.Generator().manual_seed(seed)
        while True:
            picked = windows[torch.randint(len(windows), (size,), generator=generator)]
            yield picked[:, :-1], picked[:, 1:]

    def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross entropy in nats a character."""
        ids, following = batch
        return F.cross_entropy(network(ids).flatten(0, 1), following.flatten())

    def evaluate(self, network: nn.Module, part: Part) -> dict[str, float]:
        """Cross entropy on windows side by side."""
        windows = _windows(self.plays, part, self.context, self.context)
        total = sum(self.loss(network, (w[:, :-1], w[:, 1:])).item() * len(w) for w in windows.split(EVALUATION_BATCH))
        return {"loss": total / len(windows)}


@cache
def _windows(plays: tuple[str, ...], part: Part, context: int, stride: int) -> Tensor:
    return torch.cat([stretch.unfold(0, context + 1, stride) for stretch in characters(plays)[part]])


@dataclass(frozen=True)
class Digits(Task):
    """Classes of images of digits: a few labelled ones of 5 to 9, after learning 0 to 4."""

    classes: tuple[int, ...] = (5, 6, 7, 8, 9)
    learnt: tuple[int, ...] = (0, 1, 2, 3, 4)
    n_labelled: int = 10

    @property
    def name(self) -> str:
        """Word in keys and tables."""
        return f"ViT, {self.n_labelled * len(self.classes)} images"

    @property
    def base(self) -> Task | None:
        """The other digits, all of them."""
        if not self.learnt:
            return None
        return replace(self, classes=self.learnt, learnt=(), n_labelled=10_000, pretraining_steps=0)

    def network(self, seed: int, base: dict[str, Tensor] | None) -> nn.Module:
        """Give a ViT with a fresh head."""
        torch.manual_seed(seed)
        network = ViT(len(self.learnt or self.classes), side=SIDE, patch=2, **SIZES)
        if base is not None:
            network.load_state_dict(base)
            network.set_classes(len(self.classes))
        return network

    def batches(self, seed: int, size: int) -> Iterator[Images]:
        """Draw epochs of the labelled images, which are another choice for each seed."""
        generator = torch.Generator().manual_seed(seed)
        labelled = few_of_each(digits(self.classes)["train"], self.n_labelled, generator)
        while True:
            for rows in torch.randperm(len(labelled), generator=generator).split(size):
                yield labelled.take(rows)

    def loss(self, network: nn.Module, batch: Images) -> Tensor:
        """Cross entropy of the classes."""
        return F.cross_entropy(network(batch.images), batch.classes)

    def evaluate(self, network: nn.Module, part: Part) -> dict[str, float]:
        """Cross entropy and accuracy."""
        held_out = digits(self.classes)[part]
        logits = network(held_out.images)
        accuracy = (logits.argmax(dim=1) == held_out.classes).float().mean()
        return {"loss": F.cross_entropy(logits, held_out.classes).item(), "accuracy": accuracy.item()}

    def criterion(self, scores: dict[str, float]) -> tuple[float, ...]:
        """Give accuracy the first word: it is what the claim is about, and the loss of a few-shot classifier overfits first."""
        return -scores["accuracy"], scores["loss"]


@dataclass(frozen=True)
class Cells(Task):
    """scGPT-mini on blood cells that it has not seen."""

    labels: bool = True
    max_length: int = 96

    @property
    def name(self) -> str:
        """Word in keys and tables."""
        return "scGPT, cell types" if self.labels else "scGPT, masked genes"

    @property
    def n_classes(self) -> int:
        """Cell types of the blood cells."""
        return int(blood_cells(self.max_length)[1].targets["labels"].max()) + 1

    @property
    def objective(self) -> Classification | MaskedExpression:
        """Objective of the package."""
        if self.labels:
            return Classification(self.n_classes)
        return MaskedExpression()

    def network(self, seed: int, base: dict[str, Tensor] | None) -> nn.Module:
        """Give the bundled network, with a fresh head where classes are learnt."""
        model, _, _ = blood_cells(self.max_length)
        network = copy.deepcopy(model.network).float()
        torch.manual_seed(seed)
        if self.labels:
            network.put_heads(network.fresh_heads({"classes": self.n_classes}))
        return network

    def batches(self, seed: int, size: int) -> Iterator[TokenBatch]:
        """Draw epochs of cells, of longer ones other genes each time."""
        _, cells, split = blood_cells(self.max_length)
        rng = np.random.default_rng(seed)
        draw = 0
        while True:
            draw += 1
            rows = rng.permutation(split.train)
            for start in range(0, len(rows) - size + 1, size):
                batch = cells.batch(BatchRequest(rows[start : start + size], draw))
                yield self.objective.corrupt(batch, seed=seed, draw=draw)

    def loss(self, network: nn.Module, batch: TokenBatch) -> Tensor:
        """Loss of the package's objective."""
        return self.objective(network, batch).total  # type: ignore[arg-type]

    def evaluate(self, network: nn.Module, part: Part) -> dict[str, float]:
        """Means over cells, with the same genes masked every time."""
        scores: dict[str, float] = {}
        batches = _held_out(self.max_length, part, self.objective)
        n_cells = sum(map(len, batches))
        for batch in batches:
            result = self.objective(network, batch)  # type: ignore[arg-type]
            for key, value in {"loss": result.total, **result.parts}.items():
                scores[key] = scores.get(key, 0.0) + value.item() * len(batch) / n_cells
        return scores


@cache
def _held_out(max_length: int, part: Part, objective: Classification | MaskedExpression) -> list[TokenBatch]:
    _, cells, split = blood_cells(max_length)
    rows = getattr(split, part)
    rows = rows[np.argsort(cells.lengths[rows], kind="stable")]
    batches = [cells.batch(BatchRequest(rows[i : i + EVALUATION_BATCH])) for i in range(0, len(rows), EVALUATION_BATCH)]
    return [objective.corrupt(batch, seed=0, draw=0) for batch in batches]
