"""Target state of a search for perturbations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgalore._words import few
from scgalore.data.columns import read_column
from scgalore.data.split import PARTS
from scgalore.data.texts import same_label, texts_of
from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.perturb.labels.control import CONTROL
from scgalore.perturb.labels.parsing import canonical_name
from scgalore.perturb.predictions.retrieval import mean_of

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore._typing import Label
    from scgalore.perturb.labels.profiles import Profiles
    from scgalore.perturb.labels.screen import Screen

__all__ = ["Wanted", "context_code"]


@dataclass(frozen=True)
class Wanted:
    """Target effect of a search.

    Attributes
    ----------
    name
        Name; canonical if the target is a perturbation.
    effect
        Target difference from the control mean, ``(n_genes,)``.
    compared
        Genes that are compared, bool ``(n_genes,)``.
    trained_on
        Whether the target cells or the target perturbation were used for training.
    """

    name: str
    effect: NDArray[np.float64] = field(repr=False)
    compared: NDArray[np.bool_] = field(repr=False)
    trained_on: bool

    @classmethod
    def of(
        cls,
        target: Label | Mapping[str, float] | pd.Series,
        target_key: str | None,
        adata: AnnData,
        screen: Screen,
        controls: Profiles,
        code: int,
        seen: AbstractSet[str],
    ) -> Wanted:
        """Compute the target effect.

        Parameters
        ----------
        target, target_key
            As for :func:`scgalore.tl.rank_perturbations`.
        adata, screen
            The cells.
        controls
            Profiles with control means.
        code
            Index of the context.
        seen
            Training perturbations.
        """
        if isinstance(target, Mapping | pd.Series):
            if target_key is not None:
                msg = f"target_key={target_key!r} is for a label, but target is a table of effects. Omit target_key=."
                raise OptionError(msg)
            return cls._from_effects(pd.Series(target, dtype=np.float64), screen)
        perturbed: tuple[str, ...] = ()
        if target_key is None:
            perturbed, is_target = _perturbation(target, screen)
            target = canonical_name(perturbed)
        else:
            column = texts_of(read_column(adata.obs, target_key, asked="target_key"))
            labels = [label for label in dict.fromkeys(column) if label is not None]
            is_target = column == (same_label(target, labels) or str(target))
            if not is_target.any():
                msg = f"No cell is labelled {target!r} in adata.obs[{target_key!r}], which has {few(labels, 5)}."
                raise MissingKeyError(msg)
        context = controls.context_names[code]
        inside = is_target if screen.contexts is None else is_target & (screen.contexts == context)
        if not inside.any():
            msg = f"No cell of the target {target!r} is in context {context!r}. Choose another context=."
            raise DataError(msg)
        effect = mean_of(screen.expression, np.flatnonzero(inside)) - controls.control_means[code]
        # The change of a perturbed gene itself would reveal the perturbation.
        compared = ~np.isin(np.array(screen.genes), perturbed)
        return cls(str(target), effect, compared, _was_trained_on(screen, inside, seen))

    @classmethod
    def _from_effects(cls, effects: pd.Series, screen: Screen) -> Wanted:
        named = pd.Series(np.arange(len(screen.genes)), index=screen.genes)
        known = [gene for gene in effects.index if gene in named.index]
        if not known or not np.isfinite(effects).all() or effects.index.has_duplicates:
            msg = (
                f"target has {len(effects):,} genes, {len(known):,} of which are measured; expected finite effects of "
                "measured genes, each listed once."
            )
            raise DataError(msg)
        effect, compared = np.zeros(len(named)), np.zeros(len(named), dtype=bool)
        for gene in known:
            effect[named[gene]], compared[named[gene]] = effects[gene], True
        return cls("given effects", effect, compared, trained_on=False)


def _perturbation(target: Any, screen: Screen) -> tuple[tuple[str, ...], NDArray[np.bool_]]:
    perturbed = screen.conditions.genes_of(target)
    if not perturbed:
        msg = f"target={target!r} is control, where the search starts. Pass a perturbation, or another column as target_key=."
        raise OptionError(msg)
    return perturbed, screen.conditions.codes == screen.conditions.index(canonical_name(perturbed))


def _was_trained_on(screen: Screen, cells: NDArray[np.bool_], seen: AbstractSet[str]) -> bool:
    """Whether some of these perturbed cells, or their perturbation in other cells, were in the training data."""
    cells = cells & (screen.conditions.codes > 0)
    names = {screen.conditions.names[code] for code in np.unique(screen.conditions.codes[cells])}
    used = screen.parts is not None and bool(np.isin(screen.parts[cells], PARTS[:2]).any())
    return used or not seen.isdisjoint(names)


def context_code(context: Label | None, controls: Profiles) -> int:
    """Index of the context to use.

    Raises
    ------
    OptionError
        If there are several and none is given, or the context does not exist.
    DataError
        If it has no control cell.
    """
    names = controls.context_names
    found = None if context is None else same_label(context, names)
    if context is None and len(names) > 1 or context is not None and found not in names:
        given = "" if context is None else f"context={context!r}: "
        msg = f"{given}effects differ between contexts; pass one of {few(names, 10)} as context=."
        raise OptionError(msg)
    code = 0 if found is None else names.index(found)
    if controls.n_controls[code] == 0:
        msg = f"Context {names[code]!r} has no {CONTROL} cell to start from. Choose another context=."
        raise DataError(msg)
    return code
