"""Priors fitted to profiles of perturbations, such as pseudobulk or log fold changes, without single cells."""

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
from scgalore.data.matrix import layer_names
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
    """A prior fitted to profiles of perturbations.

    Attributes
    ----------
    effects
        Fitted effects, which predict perturbations.
    scores
        Cross-validated scores, one row per candidate and
        question: ``"seen"`` (another perturbation of one of the genes was measured) or ``"unseen"``. Columns
        ``question``, ``candidate``, ``n`` (perturbations), ``mse``, ``pearson_delta``, ``pearson_centroid``,
        ``discrimination``, ``difference`` (of the squared error from that of ``"mixed"``), its ``standard_error``,
        ``chosen`` and ``weights``.
    profiles
        Profiles that it was fitted to.
    """

    effects: Effects
    scores: pd.DataFrame = field(repr=False)
    profiles: Profiles = field(repr=False)
    _conditions: Conditions = field(repr=False)

    def predict(self, perturbations: Label | Sequence[Label], *, context: str | None = None) -> pd.DataFrame:
        """Predict effects of perturbations, measured or not.

        Parameters
        ----------
        perturbations
            Labels in the format of the profiles or as ``"A+B"``.
        context
            Cell type or line, if profiles have several.

        Returns
        -------
        One row per perturbation and one column per measured gene, on the scale of the profiles.

        Raises
        ------
        OptionError
            If ``perturbations`` is empty, or the context is not in the profiles.
        """
        one = isinstance(perturbations, str | int | float)
        labels: list[Any] = [perturbations] if one else list(perturbations)  # type: ignore[arg-type]
        if not labels:
            msg = "perturbations is empty. Pass at least one, such as 'KLF1+MAP2K6'."
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
    """Fit simple baselines to profiles of perturbations, score them by cross-validation, and choose the best.

    For screens that are published as pseudobulk or as tables of log fold changes. The result is the prior that
    :func:`scgalore.tl.finetune` would let a network correct.

    Parameters
    ----------
    adata
        Profiles by genes. Not modified.
    pert_key
        Column of ``adata.obs`` with the perturbation of each profile: ``KLF1``, ``KLF1+ctrl`` or ``KLF1+MAP2K6``.
        Profiles without a label are excluded; replicates of a perturbation count separately.
    data_type
        ``"lfc"``: log fold changes, used as effects. ``"log1p"`` or ``"counts"``: expression, from which that of
        control profiles is subtracted; counts are first normalised to 10,000 and log-transformed.
    control
        Label of control profiles, a pattern, or several; the usual ones are recognised. Log fold changes need no
        controls; existing ones are excluded.
    context_key
        Column of ``adata.obs`` with the cell type or line, within which rules are fitted.
    separator
        Separator between the genes of a label. Detected if not given.
    pert_kind
        Type of perturbation: ``"gene"``, or ``"compound"``, whose labels are names of compounds.
    dose_key
        Column of ``adata.obs`` with the dose of each compound; ``None`` if each has a single dose.
    prior
        ``"chosen"``, or one of :data:`scgalore.perturb.PRIORS` (for compounds
        :data:`scgalore.perturb.COMPOUND_PRIORS`); all are scored in any case.
    embeddings
        Vectors of genes, one row per gene, for similarities in the linear baseline; by default principal scores of the
        measured genes. Or vectors of compounds, one row per compound; by default compounds are represented by name.
    layer
        Layer to read; ``None`` is ``adata.X``.
    gene_symbols
        Column of ``adata.var`` with the gene names; ``None`` reads ``adata.var_names``.

    Returns
    -------
    The fitted prior. Its ``predict`` gives effects, and ``scores`` is a table.

    Raises
    ------
    MissingKeyError
        If a column or layer does not exist.
    DataError
        If labels cannot be parsed, values are not finite, or there are no perturbations.
    OptionError
        If an option is not one of its choices.

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
        msg = f"Expected an AnnData of profiles, not a {type(adata).__name__}. To fit a baseline to Profiles, call sg.perturb.fit_rule(name, profiles)."
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
    """Profiles of log fold changes, with zero controls."""
    texts = texts_of(read_column(adata.obs, pert_key, asked="pert_key", gaps=True))
    genes = gene_names(adata, read["gene_symbols"])
    # The label parser expects a control label, but log fold changes need no control profile.
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
        msg = f"adata.obs[{pert_key!r}] contains no perturbation. Pass the column of perturbations as pert_key=."
        raise DataError(msg)
    contexts = np.full(adata.n_obs, "")
    if context_key is not None:
        contexts = texts_of(read_column(adata.obs, context_key, asked="context_key", gaps=False)).astype(str)
    names, of_row = np.unique(contexts[rows], return_inverse=True)
    if read["layer"] is not None and read["layer"] not in adata.layers:
        msg = f"layer={read['layer']!r} is not in adata.layers, which has {few(layer_names(adata)) or 'none'}."
        raise MissingKeyError(msg)
    matrix = adata.X if read["layer"] is None else adata.layers[read["layer"]]
    values = matrix[rows]
    effects = np.asarray(values.toarray() if sp.issparse(values) else values, dtype=np.float64)
    if not np.isfinite(effects).all():
        msg = "The log fold changes contain NaN or infinite values. Exclude these genes, or set them to 0."
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
