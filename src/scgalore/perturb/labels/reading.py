"""Reading of conditions from columns of ``obs``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scgalore.data.columns import read_column
from scgalore.data.texts import texts_of
from scgalore.errors import OptionError
from scgalore.perturb.labels.compounds import Compounds, dosed_numbers, dosed_texts
from scgalore.perturb.labels.conditions import Conditions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from scgalore._typing import Control

__all__ = ["LABELS", "PERT_KINDS", "check_kind", "condition_texts", "label_options", "read_conditions"]

PERT_KINDS = ("gene", "compound")
"""Types of perturbation: a gene, known by its name, or a compound, known by a vector and its dose."""

LABELS = ("pert_key", "control", "separator", "pert_kind", "dose_key")
"""Names of all options for reading labels."""


def label_options(params: Mapping[str, Any]) -> dict[str, Any]:
    """Select the parameters of :func:`read_conditions`; records of version 0.11 and earlier have those of genes only."""
    found = {name: params.get(name) for name in LABELS}
    return {**found, "pert_kind": found["pert_kind"] or PERT_KINDS[0]}


def read_conditions(
    obs: pd.DataFrame,
    *,
    pert_key: str,
    control: Control = None,
    separator: str | None = None,
    pert_kind: str = PERT_KINDS[0],
    dose_key: str | None = None,
    genes: Iterable[str] = (),
) -> Conditions:
    """Read the perturbation of each cell.

    Parameters
    ----------
    obs
        ``adata.obs``.
    pert_key
        Column with the labels: genes, or the name of a compound.
    control, separator, genes
        As for :meth:`Conditions.from_labels`.
    pert_kind
        One of :data:`PERT_KINDS`.
    dose_key
        Column with the dose of each compound; ``None`` if each has a single dose.

    Raises
    ------
    MissingKeyError
        If a column does not exist.
    DataError
        If labels or doses cannot be read.
    OptionError
        If an option is not one of its choices or belongs to the other type of perturbation.
    """
    check_kind(pert_kind, dose_key=dose_key, separator=separator)
    labels = read_column(obs, pert_key, asked="pert_key")
    if pert_kind == Compounds.kind:
        doses = None if dose_key is None else read_column(obs, dose_key, asked="dose_key")
        return Compounds.from_doses(labels, doses, control=control)
    return Conditions.from_labels(labels, control=control, separator=separator, genes=genes)


def check_kind(pert_kind: object, **of_compounds: object) -> None:
    """Raise :class:`~scgalore.errors.OptionError` for an unknown type, or for options of compounds if genes are perturbed.

    Parameters
    ----------
    pert_kind
        One of :data:`PERT_KINDS`.
    **of_compounds
        Options by name; ``separator`` is for genes.
    """
    if pert_kind not in PERT_KINDS:
        msg = f"pert_kind={pert_kind!r}: choose one of {', '.join(map(repr, PERT_KINDS))}."
        raise OptionError(msg)
    separator = of_compounds.pop("separator", None)
    if pert_kind == Conditions.kind:
        for name, value in of_compounds.items():
            if value is not None:
                msg = f"{name}={value!r} belongs to pert_kind='compound', and this is {pert_kind!r}. Pass that, or leave {name} out."
                raise OptionError(msg)
    elif separator not in (None, "+"):
        msg = (
            f"separator={separator!r} belongs to genes: a label of pert_kind='compound' is one compound. Leave it out."
        )
        raise OptionError(msg)


def condition_texts(obs: pd.DataFrame, params: Mapping[str, Any]) -> NDArray[np.object_]:
    """Text that identifies the perturbation of each cell, ``(n_obs,)``: the label, with the dose if there are doses.

    Parameters
    ----------
    obs
        ``adata.obs``.
    params
        Parameters with ``pert_key`` and, if there are doses, ``dose_key``.
    """
    labels = texts_of(read_column(obs, params["pert_key"], asked="pert_key"))
    key = params.get("dose_key")
    return labels if key is None else dosed_texts(labels, dosed_numbers(read_column(obs, key, asked="dose_key")))
