"""Search for the perturbation with a target effect, and evaluation of such a search."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgalore.errors import OptionError
from scgalore.perturb.baselines.effects import fit_rule
from scgalore.perturb.labels.parsing import agents_of
from scgalore.perturb.predictions import retrieval
from scgalore.tasks.perturbation.agents import agent_tokens
from scgalore.tasks.perturbation.effects import predict_effects, prior_effects
from scgalore.tasks.perturbation.memory import memory_of
from scgalore.tasks.perturbation.reading import trained_on, training_profiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scgalore.model import CellModel
    from scgalore.perturb.labels.profiles import Profiles
    from scgalore.perturb.labels.screen import Screen
    from scgalore.tl._wanted import Wanted

__all__ = ["Search"]

Genes = tuple[str, ...]


@dataclass(frozen=True)
class Search:
    """Candidates in one context; the effect of each is predicted once.

    Attributes
    ----------
    model
        Model fine-tuned on perturbations.
    screen
        Screen with control cells and measured perturbations.
    controls
        Profiles of all cells.
    code
        Index of the context.
    metric
        One of :data:`scgalore.perturb.predictions.retrieval.METRICS`.
    options
        Keyword arguments of :func:`scgalore.tasks.perturbation.fitting.predict_effects`.
    """

    model: CellModel
    screen: Screen
    controls: Profiles
    code: int
    metric: str
    options: dict[str, Any]
    predicted: dict[Genes, NDArray[np.float64]] = field(default_factory=dict, repr=False)

    @property
    def context(self) -> str:
        """Name of the context."""
        return self.controls.context_names[self.code]

    @cached_property
    def seen(self) -> set[str]:
        """Training perturbations, by their names in this screen."""
        return trained_on(self.model, self.screen.conditions)

    @cached_property
    def training(self) -> Profiles:
        """Measured profiles of this context that are not held out."""
        known = training_profiles(self.screen, self.model, self.controls)
        return known.take(np.flatnonzero(known.contexts == self.code))

    @cached_property
    def held_out(self) -> Profiles:
        """Test perturbations of this context that the model has a token for; empty without a split."""
        parts = self.screen.parts
        if parts is None or "test" not in parts:
            return self.controls.take([])
        test = self.screen.profiles("test")
        known = [self.knows(genes) for genes in test.perturbed]
        return test.take(np.flatnonzero((test.contexts == self.code) & known))

    def knows(self, genes: Genes) -> bool:
        """Whether the model has a token for each gene, or for the compound."""
        return min(agent_tokens(genes, self.model.vocab, species=self.screen.reading.species)) >= 0

    def candidates(self, given: Sequence[Genes]) -> list[Genes]:
        """Genes perturbed in training and those given, without control."""
        genes = {agent for name in self.seen for agent in agents_of(name)}
        found = sorted({(gene,) for gene in genes} | set(given) - {()})
        if not found:
            msg = "The model does not record which genes were perturbed in training. Pass candidates=[...]."
            raise OptionError(msg)
        return found

    def effects(self, wanted: Sequence[Genes]) -> NDArray[np.float64]:
        """Predicted effects, ``(len(wanted), n_genes)``."""
        new = [genes for genes in dict.fromkeys(wanted) if genes not in self.predicted]
        if new:
            rows = [(self.code, genes) for genes in new]
            made = predict_effects(self.model, self.screen, rows, self.controls, **self.options)
            self.predicted.update(zip(new, made, strict=True))
        return np.array([self.predicted[genes] for genes in wanted])

    def prior_effects(self, wanted: Sequence[Genes]) -> NDArray[np.float64] | None:
        """Effects predicted by the model's prior alone."""
        rows = [(self.code, genes) for genes in wanted]
        effects = prior_effects(self.model, self.screen, rows, self.controls)
        if effects is None:
            return None
        control = self.controls.control_means[self.code]
        return np.maximum(control + effects, 0) - control  # as in a prediction

    def ranking(self, candidates: list[Genes], wanted: Wanted, *, max_pairs: int) -> pd.DataFrame:
        """Table of the candidates, best first, including up to ``max_pairs`` pairs of the best genes."""

        def scored(effects: NDArray[np.float64]) -> NDArray[np.float64]:
            return retrieval.scores(effects[:, wanted.compared], wanted.effect[wanted.compared], self.metric)

        if max_pairs:
            singles = [genes for genes in candidates if len(genes) == 1]
            values = scored(self.effects(singles))
            found = retrieval.best_pairs([gene for (gene,) in singles], values, self.metric, max_pairs)
            candidates = list(dict.fromkeys([*candidates, *found]))
        seen = None if memory_of(self.model) is None else self.seen
        prior = self.prior_effects(candidates)
        measured = dict(zip(self.training.perturbed, scored(self.training.effects), strict=True))
        table = pd.DataFrame(
            {
                "perturbation": ["+".join(genes) for genes in candidates],
                "n_genes_perturbed": [len(genes) for genes in candidates],
                "evidence": ["unknown" if seen is None else retrieval.evidence(genes, seen) for genes in candidates],
                "score": scored(self.effects(candidates)),
                "score_prior": np.nan if prior is None else scored(prior),
                "score_measured": [measured.get(genes, np.nan) for genes in candidates],
            }
        )
        table.insert(3, "is_target", table["perturbation"] == wanted.name)
        return table.sort_values("score", ascending=self.metric == "mse", kind="stable", ignore_index=True)

    def recovery(self, candidates: Sequence[Genes]) -> pd.DataFrame:
        """Ranks of held-out perturbations among the candidates, all training perturbations and each other."""
        observed = self.held_out
        # Training doubles are included: otherwise the number of perturbed genes alone would narrow the choice.
        names = {agents_of(name) for name in self.seen} | {*self.training.perturbed}
        names = {genes for genes in names if self.knows(genes)}
        pool = sorted({*candidates, *names, *observed.perturbed}) if len(observed) else []
        effects = {"model": self.effects(pool)} if pool else {}
        if pool and (prior := self.prior_effects(pool)) is not None:
            effects["prior"] = prior
        if pool and len(self.training):
            rule = fit_rule("training mean", self.training)
            effects["training mean"] = retrieval.rule_effects(rule, pool, self.context, self.screen.genes)
        return retrieval.recovery(observed.effects, observed.perturbed, pool, effects, self.screen.genes, self.metric)
