"""Predicted means and effects of perturbations, in the form written to an AnnData."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgalore import __version__
from scgalore import _logging as logg
from scgalore._words import few
from scgalore.data.columns import read_column
from scgalore.data.results import Results
from scgalore.data.texts import texts_of
from scgalore.errors import OptionError
from scgalore.perturb.labels.parsing import Agent, agents_of, canonical_name, subject_of
from scgalore.perturb.labels.profiles import row_label
from scgalore.perturb.labels.screen import Screen
from scgalore.perturb.predictions.plane import embed_in_plane
from scgalore.perturb.predictions.ranking import ranked_genes
from scgalore.perturb.splits.own import groups_in
from scgalore.tasks.perturbation.agents import refuse_unknown, with_compounds
from scgalore.tasks.perturbation.effects import perturbed_embeddings, predict_effects, prior_effects, refuse_other_scale
from scgalore.tasks.perturbation.memory import memory_of
from scgalore.tasks.perturbation.networks import gene_vectors, genes_seen
from scgalore.tasks.perturbation.reading import perturbed_genes, trained_on, training_profiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from anndata import AnnData

    from scgalore._keys import PerturbationKeys
    from scgalore._typing import Label
    from scgalore.perturb.labels.profiles import Profiles
    from scgalore.tasks.base import TaskModel

__all__ = ["Wanted", "predict_wanted"]


class Wanted:
    """Perturbations to predict, read from an AnnData and checked before any work.

    Parameters
    ----------
    adata
        Cells by genes.
    perturbations
        Labels to predict; ``None`` uses those of the test split, or all without a split.
    read
        Result of :func:`~scgalore.tasks.perturbation.reading.read_params`.
    model
        Model for the prediction, whose labels may have another format than those of the data.
    per_cell
        Column of ``adata.obs`` with a perturbation for each cell.
    """

    def __init__(
        self,
        adata: AnnData,
        perturbations: Label | Sequence[Label] | None,
        read: dict[str, Any],
        model: TaskModel,
        *,
        per_cell: str | None = None,
    ) -> None:
        self.adata, self.read, self.per_cell = adata, read, per_cell
        self.screen = Screen.from_adata(adata, **read)
        names = _names(perturbations, self.screen, model)
        self.by_cell = None if per_cell is None else _per_cell(adata, per_cell, self.screen, model)
        if names is None and self.by_cell is not None:
            names = sorted(set(map(canonical_name, self.by_cell)) - {"control"})
        self.controls = self.screen.profiles()
        #: One row per prediction: perturbation, context and genes.
        self.rows = _rows(names, self.screen, self.controls)
        agents = {agent for part in (*self.rows["genes"], *(self.by_cell or ())) for agent in part}
        #: The model, extended by compounds with vectors in the data.
        self.model = with_compounds(model, agents, self.screen.vectors)
        refuse_unknown(agents, self.model.vocab, species=self.screen.reading.species)
        _warn_of_high_doses(agents, model)


def predict_wanted(
    wanted: Wanted,
    keys: PerturbationKeys,
    *,
    device: torch.device,
    n_controls: int = 100,
    batch_tokens: int | None = None,
    seed: int = 0,
) -> Results:
    """Predict, and return the results documented in :func:`scgalore.tl.predict_perturbation`.

    Parameters
    ----------
    wanted
        Perturbations to predict, with the model.
    keys
        Names of the slots.
    device
        Torch device.
    n_controls
        Number of control cells per context to average a prediction over.
    batch_tokens
        Maximum number of tokens per batch.
    seed
        Seed for sampling control cells.
    """
    rows, screen, read, model = wanted.rows, wanted.screen, wanted.read, wanted.model
    refuse_other_scale(model, screen, wanted.controls)
    pairs = list(zip(rows["context_code"], rows["genes"], strict=True))
    seen = genes_seen(screen, model.vocab)
    effects = predict_effects(
        model,
        screen,
        pairs,
        wanted.controls,
        n_controls=n_controls,
        device=device,
        batch_tokens=batch_tokens,
        seed=seed,
    )
    content = _content(wanted.adata, model, screen, wanted.controls, rows, effects, read)
    prior = prior_effects(model, screen, pairs, wanted.controls)
    if prior is not None:
        control = wanted.controls.control_means[rows["context_code"]]
        prior = np.maximum(control + prior, 0) - control  # as in a prediction
        content["prior"] = pd.DataFrame(
            prior.T.astype(np.float32), content["effects"].index, content["effects"].columns
        )
    content["genes"] = seen
    content["params"] |= {"n_controls": n_controls, "rng": seed, "per_cell": wanted.per_cell}
    record = ranked_genes(
        content["effects"], content["means"], groupby=read["pert_key"], log_base=screen.expression.log_base
    )
    results = Results(
        uns={
            keys.prediction: (content, "means, effects, parameters, provenance"),
            keys.ranked: (record, "genes ranked by predicted effect, for scanpy's plots"),
        }
    )
    if wanted.by_cell is not None:
        cells = perturbed_embeddings(model, screen, wanted.by_cell, device=device, batch_tokens=batch_tokens)
        results.obsm[keys.embedding] = (cells, "embeddings of perturbed cells")
    return results


def _names(perturbations: Label | Sequence[Label] | None, screen: Screen, model: TaskModel) -> list[str] | None:
    if perturbations is None:
        return None
    one = isinstance(perturbations, str) or not isinstance(perturbations, Iterable)
    labels: list[Label] = [perturbations] if one else list(perturbations)  # type: ignore[arg-type, list-item]
    if not labels:
        msg = "perturbations is empty. Pass at least one, such as 'KLF1+MAP2K6', or None for those of the test split."
        raise OptionError(msg)
    return list(map(canonical_name, perturbed_genes(labels, screen, model)))


def _per_cell(adata: AnnData, key: str, screen: Screen, model: TaskModel) -> list[tuple[str, ...]]:
    labels = texts_of(read_column(adata.obs, key, asked="per_cell", gaps=False))
    genes = {label: perturbed_genes([label], screen, model)[0] for label in dict.fromkeys(labels)}
    return [genes[label] for label in labels]


def _warn_of_high_doses(agents: Iterable[str], model: TaskModel) -> None:
    """Warn of doses above those of the training data, which get the effect of the highest."""
    memory = memory_of(model)
    if memory is None:
        return
    trained = [
        agent for part in ("train", "validation") for name in memory.perturbations[part] for agent in agents_of(name)
    ]
    highest = max((Agent.of(agent).dose or 0.0 for agent in trained), default=0.0)
    above = sorted(agent for agent in agents if (Agent.of(agent).dose or 0.0) > highest)
    if above:
        logg.warning(
            f"extrapolated: {few(above)} {'is' if len(above) == 1 else 'are'} above {highest:g}, the highest dose of the training data, "
            "whose effect is predicted. What a higher one does is not known."
        )


def _rows(names: list[str] | None, screen: Screen, controls: Profiles) -> pd.DataFrame:
    """Perturbation, context and genes of each row to predict."""
    contexts = controls.context_names
    if names is None:
        found = controls if screen.parts is None or "test" not in screen.parts else screen.profiles("test")
        pairs = list(zip(found.contexts.tolist(), found.perturbations, strict=True))
    else:
        pairs = [(code, name) for code in range(len(contexts)) if controls.n_controls[code] for name in names]
    if not pairs:
        msg = "There are no perturbations to predict. Pass some, as in perturbations=['KLF1+MAP2K6']."
        raise OptionError(msg)
    table = pd.DataFrame(pairs, columns=["context_code", "perturbation"])
    table["context"] = [contexts[code] for code in table["context_code"]]
    table["genes"] = [agents_of(name) for name in table["perturbation"]]
    table.index = [
        row_label(name, context) for name, context in zip(table["perturbation"], table["context"], strict=True)
    ]
    return table


def _content(
    adata: AnnData,
    model: TaskModel,
    screen: Screen,
    controls: Profiles,
    rows: pd.DataFrame,
    effects: np.ndarray,
    read: dict[str, Any],
) -> dict[str, Any]:
    control_means = controls.control_means[rows["context_code"]]
    genes, columns = pd.Index(screen.genes), pd.Index(rows.index)
    seen = trained_on(model, screen.conditions)
    group_of = groups_in(adata.uns, read["split_key"])
    table = pd.DataFrame(
        {
            "perturbation": rows["perturbation"],
            "context": rows["context"],
            "n_genes_perturbed": [len(genes) for genes in rows["genes"]],
            "group": [group_of.get(name, "") for name in rows["perturbation"]],
            "measured": [name in seen for name in rows["perturbation"]],
        },
        index=rows.index,
    )
    if screen.conditions.kind == "compound":
        found = [Agent.of(name) for name in rows["perturbation"]]
        table["compound"] = [compound for compound, _ in found]
        table["dose"] = [0.0 if dose is None else dose for _, dose in found]
    return {
        "means": pd.DataFrame((control_means + effects).T.astype(np.float32), genes, columns),
        "effects": pd.DataFrame(effects.T.astype(np.float32), genes, columns),
        "control_means": pd.DataFrame(
            controls.control_means.T.astype(np.float32), index=list(screen.genes), columns=_context_columns(controls)
        ),
        "control_cells": [int(n) for n in controls.n_controls],
        "rows": table,
        **_vectors(model, screen, rows),
        **_observed(controls, table),
        **embed_in_plane(training_profiles(screen, model, controls), table, effects),
        "params": read | {name: screen.params[name] for name in ("control", "separator", "log_base")},
        "weights": dict(model.provenance),
        "version": __version__,
    }


def _vectors(model: TaskModel, screen: Screen, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Vectors for the baselines: the model's embeddings of perturbed genes, or the vectors of compounds."""
    agents = sorted({agent for part in (*screen.conditions.genes, *rows["genes"]) for agent in part})
    if screen.conditions.kind == "gene":
        vectors = gene_vectors(model.network, model.vocab, agents, species=screen.reading.species)
    elif screen.vectors is not None:
        compounds = dict.fromkeys(map(subject_of, agents))
        vectors = screen.vectors.loc[[name for name in compounds if name in screen.vectors.index]]
    else:
        return {}
    return {"gene_vectors": vectors.set_axis([f"d{i}" for i in range(vectors.shape[1])], axis=1)}


def _observed(measured: Profiles, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Measured effects of compounds that are predicted, at all of their doses and in all contexts; nothing for genes."""
    if measured.kind != "compound":
        return {}
    compounds = set(rows["compound"])
    of_rows = np.flatnonzero([subject_of(name) in compounds for name in measured.perturbations])
    found = measured.take(of_rows)
    return {"observed": pd.DataFrame(found.effects.T.astype(np.float32), list(found.genes), found.labels)}


def _context_columns(controls: Profiles) -> list[str]:
    return [name or "control" for name in controls.context_names]
