"""Predicted perturbations, and their matching with measured ones."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from scgalore import _logging as logg
from scgalore.errors import DataError
from scgalore.perturb.labels.profiles import Profiles, row_label

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from scgalore.perturb.labels.screen import Screen

    Values = NDArray[np.float64]

__all__ = ["HeldOut", "Prediction", "columns_of", "held_out", "matched_rows", "profiles_of"]


@dataclass(frozen=True)
class Prediction:
    """Predicted mean expression of some rows.

    Attributes
    ----------
    genes
        Names of the columns, each a gene of the screen.
    rows
        One row per prediction, with columns ``perturbation`` (canonical name), ``context`` (``""`` if there is only
        one) and ``group``.
    means
        Predicted mean log-normalised expression, ``(n, n_genes)``.
    effects
        Predicted means minus the control means used by the predictor.
    vectors
        The predictor's embeddings of perturbed genes, one row per gene, for the linear baseline, or ``None``.
    prior
        Effects predicted by the prior, ``(n, n_genes)``, or ``None``.
    """

    genes: tuple[str, ...] = field(repr=False)
    rows: pd.DataFrame
    means: Values = field(repr=False)
    effects: Values = field(repr=False)
    vectors: pd.DataFrame | None = field(default=None, repr=False)
    prior: Values | None = field(default=None, repr=False)


def columns_of(genes: Sequence[str], prediction: Prediction) -> NDArray[np.int64]:
    """Columns of the screen that were predicted, int64.

    Parameters
    ----------
    genes
        Genes of the screen.
    prediction
        Prediction to score.

    Raises
    ------
    DataError
        If the prediction contains NaN or infinite values, or a gene that was not measured.
    """
    if not np.isfinite(prediction.means).all() or not np.isfinite(prediction.effects).all():
        msg = (
            "The prediction contains NaN or infinite values. Predict again with sg.tl.predict_perturbation(adata, ...)."
        )
        raise DataError(msg)
    place = {name: i for i, name in enumerate(genes)}
    missing = [name for name in prediction.genes if name not in place]
    if missing or not prediction.genes:
        msg = (
            f"{len(missing)} of {len(prediction.genes)} predicted genes are not in the data ({', '.join(missing[:5])}). Score "
            "a prediction with the AnnData it was made from."
        )
        raise DataError(msg)
    return np.array([place[name] for name in prediction.genes], dtype=np.int64)


@dataclass(frozen=True)
class HeldOut:
    """Cells used for scoring, and cells available to baselines; bool ``(n_obs,)``.

    Attributes
    ----------
    test
        Held-out perturbed cells, and control cells.
    train
        The other perturbed cells, and the same control cells.
    group
        Group of the ``test`` cells, context times number of names plus name, int64; -1 for all others.
    """

    test: NDArray[np.bool_] = field(repr=False)
    train: NDArray[np.bool_] = field(repr=False)
    group: NDArray[np.int64] = field(repr=False)


def held_out(screen: Screen, prediction: Prediction) -> HeldOut:
    """Separate held-out cells from cells available for fitting.

    Parameters
    ----------
    screen
        Measured cells.
    prediction
        Prediction; without a split, its rows are held out.
    """
    codes, names = screen.conditions.codes, screen.conditions.names
    contexts, context = np.array([""]), np.zeros(len(codes), dtype=np.int64)
    if screen.contexts is not None:
        contexts, context = np.unique(screen.contexts.astype(str), return_inverse=True)
    group = np.where(codes < 0, -1, context * len(names) + codes)
    control, perturbed = codes == 0, codes > 0
    if screen.parts is None:
        known = {
            (str(c), name): i * len(names) + j for i, c in enumerate(contexts) for j, name in enumerate(names) if j
        }
        asked = zip(prediction.rows["context"].astype(str), prediction.rows["perturbation"].astype(str), strict=True)
        held = np.isin(group, [known[row] for row in asked if row in known])
        trained = perturbed & ~held
    else:
        held = screen.parts == "test"
        trained = perturbed & np.isin(screen.parts, ["train", "validation"])
    test = perturbed & held
    # Control cells are available for prediction, except those held out by a split of cells, unless there are no others.
    free = control & ~held
    free |= control & ~np.isin(context, context[free])
    return HeldOut(test | free, trained | free, np.where(test | free, group, -1))


def profiles_of(screen: Screen, cells: NDArray[np.bool_], columns: NDArray[np.int64]) -> Profiles:
    """Average profiles of selected cells.

    Parameters
    ----------
    screen
        Measured cells.
    cells
        Cells to use, bool ``(n_obs,)``.
    columns
        Genes to keep, in this order.
    """
    contexts = None if screen.contexts is None else [str(name) for name in screen.contexts]
    found = Profiles.of(screen.expression, screen.genes, screen.conditions, contexts, cells=cells)
    if len(columns) == len(found.genes) and (np.diff(columns) == 1).all():
        return found
    tables = ("means", "variances", "control_means", "control_variances")
    part = {name: getattr(found, name)[:, columns] for name in tables}
    return dataclasses.replace(found, genes=tuple(found.genes[i] for i in columns), **part)


def matched_rows(measured: Profiles, prediction: Prediction) -> tuple[list[int], list[int]]:
    """Rows of the prediction that were measured and held out, and their positions among the measured rows.

    Parameters
    ----------
    measured
        Held-out rows of the screen.
    prediction
        Prediction to score.

    Raises
    ------
    DataError
        If a row was predicted twice, or none was measured.
    """
    place = {label: i for i, label in enumerate(measured.labels)}
    asked = [
        row_label(str(name), str(context))
        for name, context in zip(prediction.rows["perturbation"], prediction.rows["context"], strict=True)
    ]
    twice = sorted({label for label in asked if asked.count(label) > 1})
    if twice:
        msg = f"{twice[0]!r} was predicted more than once. Predict each perturbation once per context."
        raise DataError(msg)
    taken = [i for i, label in enumerate(asked) if label in place]
    if not taken:
        msg = (
            f"None of the {len(asked)} predicted perturbations was measured and held out; held out are "
            f"{', '.join(list(place)[:5]) or 'none'}. Call sg.tl.predict_perturbation(adata) without perturbations= first."
        )
        raise DataError(msg)
    if len(taken) < len(asked):
        logg.info(
            f"    {len(asked) - len(taken)} of {len(asked)} predicted perturbations have no held-out cells: not scored"
        )
    if len(taken) < len(place):
        missing = [label for label in place if label not in set(asked)]
        logg.warning(
            f"{len(missing)} of {len(place)} held-out perturbations were not predicted and are not scored "
            f"({', '.join(missing[:5])})."
        )
    return taken, [place[asked[i]] for i in taken]
