"""Priors without cells: fitted to profiles of perturbations, such as pseudobulk or log fold changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scgalore._words import few
from scgalore.data.cells import gene_names
from scgalore.data.columns import read_column
from scgalore.data.texts import texts_of
from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.perturb.baselines.choice import CHOSEN, choose_prior
from scgalore.perturb.baselines.effects import RULE_SETS, prior_of
from scgalore.perturb.labels.control import CONTROL, CONTROL_LABELS
from scgalore.perturb.labels.parsing import canonical_name
from scgalore.perturb.labels.profiles import Profiles
from scgalore.perturb.labels.reading import PERT_KINDS, check_kind, read_conditions
from scgalore.perturb.labels.screen import Screen
from scgalore.perturb.labels.vectors import require_vectors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgalore._typing import Control, Label
    from scgalore.perturb.baselines.effects import Effects
    from scgalore.perturb.labels.conditions import Conditions

__all__ = ["ProfileModel", "fit_effects"]

DATA_TYPES = ("lfc", "log1p", "counts")


@dataclass(frozen=True)
class ProfileModel:
    """A prior that was fitted to profiles of perturbations.

    Attributes
    ----------
    effects
        What predicts.
    scores
        How well each candidate predicts perturbations that it was not fitted to: one row for each, and for each of the
        questions ``"seen"`` (another perturbation of one of the genes was measured) and ``"unseen"``. Columns ``question``,
        ``candidate``, ``n`` (perturbations), ``mse``, ``pearson_delta``, ``pearson_centroid``, ``discrimination``,
        ``difference`` (of the squared error, from the candidate ``"mixed"``), ``standard_error`` (its), ``chosen`` and ``weights``.
    profiles
        What it was fitted to.
    """

    effects: Effects
    scores: pd.DataFrame = field(repr=False)
    profiles: Profiles = field(repr=False)
    _conditions: Conditions = field(repr=False)

    def predict(self, perturbations: Label | Sequence[Label], *, context: str | None = None) -> pd.DataFrame:
        """Effects of perturbations, measured or not.

        Parameters
        ----------
        perturbations
            Labels, written as those of the profiles or as ``"A+B"``.
        context
            Cell type or line, where profiles have several.

        Returns
        -------
        One row for each perturbation and one column for each measured gene, on the scale of the profiles.

        Raises
        ------
        OptionError
            If no perturbation is named, or the context is none of the profiles'.
        """
        one = isinstance(perturbations, str | int | float)
        labels: list[Any] = [perturbations] if one else list(perturbations)  # type: ignore[arg-type]
        if not labels:
            msg = "perturbations is empty. Name some, such as 'KLF1+MAP2K6'."
            raise OptionError(msg)
        names = self.profiles.context_names
        if context is None and len(names) > 1 or context is not None and context not in names:
            msg = f"context={context!r}: choose one of {few(names, 10)}."
            raise OptionError(msg)
        genes = [self._conditions.genes_of(label) for label in labels]
        where = names.index(names[0] if context is None else context)
        control = self.profiles.control_means[where]
        rows = [self.effects.predict(of_label, names[where], control=control) for of_label in genes]
        return pd.DataFrame(rows, index=list(map(canonical_name, genes)), columns=list(self.profiles.genes))


def fit_effects(
    adata: AnnData,
    *,
    pert_key: str,
    data_type: str,
    control: Control = None,
    context_key: str | None = None,
    separator: str | None = None,
    pert_kind: str = PERT_KINDS[0],
    dose_key: str | None = None,
    prior: str = CHOSEN,
    embeddings: pd.DataFrame | None = None,
    layer: str | None = None,
    gene_symbols: str | None = None,
) -> ProfileModel:
    """Fit simple rules to profiles of perturbations, choose among them, and score them without any cells.

    Many screens are published as pseudobulk or as tables of log fold changes. This is what
    :func:`scgalore.tl.finetune` gives a network to correct, for such data.

    Parameters
    ----------
    adata
        Profiles by genes. It is not changed.
    pert_key
        Column of ``adata.obs`` with the perturbation of each profile: ``KLF1``, ``KLF1+ctrl`` or ``KLF1+MAP2K6``. Profiles
        without one are left out; those of one perturbation, such as replicates, count one by one.
    data_type
        ``"lfc"``: log fold changes, which are effects as they are. ``"log1p"`` or ``"counts"``: expression, of which that of
        control profiles is subtracted, after counts were scaled to 10,000 and logarithms taken.
    control
        Label of control profiles, a pattern, or several; the usual ones are recognised. Log fold changes need none, and have
        those that are there left out.
    context_key
        Column of ``adata.obs`` with the cell type or line, within which rules are fitted.
    separator
        Separator between the genes of a label. Detected if not given.
    pert_kind
        What perturbs: ``"gene"``, or ``"compound"``, whose labels are names of compounds.
    dose_key
        Column of ``adata.obs`` with the dose of each compound; ``None`` where each has one dose only.
    prior
        ``"chosen"``, or one of :data:`scgalore.perturb.PRIORS`, of compounds :data:`scgalore.perturb.COMPOUND_PRIORS`; all of
        them are scored in any case.
    embeddings
        Vectors of genes, one row a gene, for the linear rule, which finds similar genes by them; principal scores of the
        measured genes when left out. Or vectors of compounds, one row a compound; compounds are known by name when left out.
    layer
        Layer to read; ``None`` is ``adata.X``.
    gene_symbols
        Column of ``adata.var`` that holds the gene names; ``None`` is ``adata.var_names``.

    Returns
    -------
    The fitted prior. Its ``predict`` gives effects, and ``scores`` is a table.

    Raises
    ------
    MissingKeyError
        If a column or layer does not exist.
    DataError
        If labels do not parse, values are not finite, or there is no perturbation.
    OptionError
        If an option is outside its choices.

    Examples
    --------
    >>> import scgalore as sg
    >>> prior = sg.perturb.fit_effects(adata, pert_key="perturbation", data_type="lfc")  # doctest: +SKIP
    >>> prior.scores  # doctest: +SKIP
    >>> prior.predict(["KLF1+MAP2K6"])  # doctest: +SKIP
    >>> prior = sg.perturb.fit_effects(
    ...     drugs, pert_key="drug", pert_kind="compound", dose_key="dose", data_type="lfc", embeddings=fingerprints
    ... )  # doctest: +SKIP
    >>> prior.predict(["dexamethasone@0.3"])  # doctest: +SKIP
    """
    if not isinstance(adata, AnnData):
        msg = f"Expected an AnnData of profiles, not a {type(adata).__name__}. A rule is fitted by sg.perturb.fit_rule(name, profiles)."
        raise DataError(msg)
    check_kind(pert_kind, dose_key=dose_key, separator=separator)
    priors = (CHOSEN, *RULE_SETS[pert_kind].priors)
    for name, value, choices in (("data_type", data_type, DATA_TYPES), ("prior", prior, priors)):
        if value not in choices:
            msg = f"{name}={value!r}: choose one of {', '.join(map(repr, choices))}."
            raise OptionError(msg)
    read: dict[str, Any] = {"layer": layer, "gene_symbols": gene_symbols}
    labels: dict[str, Any] = {"control": control, "separator": separator, "pert_kind": pert_kind, "dose_key": dose_key}
    if data_type == "lfc":
        conditions, profiles = _log_fold_changes(adata, pert_key, context_key, labels, read)
    else:
        screen = Screen.from_adata(
            adata, pert_key=pert_key, context_key=context_key, data_type=data_type, **labels, **read
        )
        conditions, profiles = screen.conditions, screen.profiles()
    if embeddings is not None and pert_kind != PERT_KINDS[0]:
        require_vectors([agent for agents in profiles.perturbed for agent in agents], embeddings, "embeddings=")
    choice = choose_prior(profiles, embeddings=embeddings)
    recipe = choice.recipe if prior == CHOSEN else prior_of(prior)
    return ProfileModel(recipe.fit(profiles, embeddings=embeddings), choice.table, profiles, conditions)


def _log_fold_changes(
    adata: AnnData, pert_key: str, context_key: str | None, labels: dict[str, Any], read: dict[str, Any]
) -> tuple[Conditions, Profiles]:
    """Profiles whose control is zero everywhere."""
    texts = texts_of(read_column(adata.obs, pert_key, asked="pert_key", gaps=True))
    genes = gene_names(adata, read["gene_symbols"])
    # The parser of labels expects one of control, and log fold changes need no profile of it.
    is_there = labels["control"] is not None or any(
        text is not None and text.strip() in CONTROL_LABELS for text in texts
    )
    obs = pd.DataFrame({pert_key: texts}, index=adata.obs_names)
    if labels["dose_key"] is not None:
        obs[labels["dose_key"]] = read_column(adata.obs, labels["dose_key"], asked="dose_key")
    added = obs[:0] if is_there else pd.DataFrame({pert_key: [CONTROL]})
    conditions = read_conditions(pd.concat([added, obs]), pert_key=pert_key, genes=genes, **labels)
    codes = conditions.codes[len(added) :]
    rows = np.flatnonzero(codes > 0)
    if len(rows) == 0:
        msg = f"adata.obs[{pert_key!r}] names no perturbation. Pass the column of the perturbations as pert_key=."
        raise DataError(msg)
    contexts = np.full(adata.n_obs, "")
    if context_key is not None:
        contexts = texts_of(read_column(adata.obs, context_key, asked="context_key", gaps=False)).astype(str)
    names, of_row = np.unique(contexts[rows], return_inverse=True)
    if read["layer"] is not None and read["layer"] not in adata.layers:
        msg = f"layer={read['layer']!r} is not in adata.layers, which has {few(adata.layers) or 'none'}."
        raise MissingKeyError(msg)
    matrix = adata.X if read["layer"] is None else adata.layers[read["layer"]]
    values = matrix[rows]
    effects = np.asarray(values.toarray() if sp.issparse(values) else values, dtype=np.float64)
    if not np.isfinite(effects).all():
        msg = "The log fold changes hold NaN or infinity. Leave out these genes, or set them to 0."
        raise DataError(msg)
    nothing = np.zeros((len(names), effects.shape[1]))
    return conditions, Profiles(
        genes=tuple(genes),
        perturbations=tuple(conditions.names[code] for code in codes[rows]),
        perturbed=tuple(conditions.genes[code] for code in codes[rows]),
        context_names=tuple(map(str, names)),
        contexts=of_row.astype(np.int64),
        means=effects,
        variances=np.zeros_like(effects),
        n_cells=np.ones(len(rows), dtype=np.int64),
        control_means=nothing,
        control_variances=np.zeros_like(nothing),
        n_controls=np.ones(len(names), dtype=np.int64),
        kind=conditions.kind,
    )
