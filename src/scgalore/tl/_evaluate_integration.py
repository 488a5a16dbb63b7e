"""Evaluate integration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgalore import __version__
from scgalore import _logging as logg
from scgalore._docs import shared_parameters
from scgalore._keys import EMBEDDING, IntegrationKeys
from scgalore._progress import progress
from scgalore._rng import seed_from
from scgalore.data.expression import LogExpression
from scgalore.data.reading import Reading
from scgalore.data.resolve import copied, refuse_elsewhere, writable_adata
from scgalore.data.results import Results, refuse_overwrite
from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.integration.design import Design
from scgalore.integration.harmony import harmony
from scgalore.integration.scores import SCORES, batch_variance, score_embedding
from scgalore.selection.ranking import rank_adata

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore._typing import Data, Rng

PCA, HARMONY = "PCA", "Harmony"
N_GENES, N_COMPONENTS = 2000, 50


@shared_parameters
def evaluate_integration(
    data: Data,
    batch_key: str,
    labels_key: str,
    *,
    embeddings: str | Sequence[str] = (EMBEDDING,),
    baselines: Sequence[str] = (PCA, HARMONY),
    unintegrated: str | None = None,
    layer: str | None = None,
    data_type: str | None = None,
    mod: str = "rna",
    rng: Rng = 0,
    key_added: str | None = None,
    copy: bool = False,
) -> Data | None:
    """Score embeddings by batch mixing and separation of labels :cite:p:`Luecken2022`.

    Computes the ten scores of scib as defined in scib-metrics, each from 0 to 1 (best). Two baselines are
    scored on the same cells: principal components without integration, and Harmony :cite:p:`Korsunsky2019`.
    :doc:`/concepts/integration-scores` explains what each score measures, where values differ from scib-metrics, and
    when not to trust them. All pairs of cells are compared, in blocks: time is quadratic in the number of cells.

    Parameters
    ----------
    {data}
    batch_key
        Column of ``adata.obs`` with the batch of each cell.
    {labels_key}
    embeddings
        Keys of ``adata.obsm``.
    baselines
        Baselines to score as well: ``"PCA"``, 50 components of the 2,000 genes most variable within batches, and
        ``"Harmony"``, the same components corrected. May be empty.
    unintegrated
        Key of ``adata.obsm`` with an embedding without integration, used instead of the principal components: as a
        baseline (under its own name), as input of Harmony, and as reference for the variance between batches.
        ``None`` computes components from the expression.
    {layer}
    {data_type}
    {mod}
    rng
        Seed or NumPy generator, for k-means and Harmony. The same seed gives the same result; ``None`` gives a
        different one on each call.
    {key_added}
    {copy}

    Returns
    -------
    ``None``, or with ``copy=True`` the container it was given, with this key set:

    `adata.uns['evaluate_integration' | key_added]` : :class:`dict`
        ``scores`` (a table with one row per embedding; columns ``nmi``, ``ari``, ``asw_label``, ``isolated_labels``,
        ``clisi``, ``bras``, ``ilisi``, ``kbet``, ``graph_connectivity``, ``pcr_comparison``, ``asw_batch``, and the
        means ``bio``, ``batch`` and ``total``, 0.6 of the first and 0.4 of the second), ``columns`` (a table with title
        and group of each column), ``n_cells`` (a table, labels by batches), ``params`` and ``version``.

    Raises
    ------
    MissingKeyError
        If a column, an embedding, ``layer`` or ``mod`` does not exist.
    DataError
        If a cell has no batch or label, there is only one batch or label, an embedding contains NaN or infinite values,
        or the expression for principal components cannot be read.
    OptionError
        If a baseline is unknown, or two rows would have the same name.

    See Also
    --------
    scgalore.tl.embed : Embed cells without training.
    scgalore.tl.finetune : Fine-tune a model on your cells.
    scgalore.get.integration_scores : Read integration scores as a table.
    scgalore.pl.integration_scores : Draw a table of integration scores.

    Examples
    --------
    Here ``adata`` has cells of two assays.

    >>> import scgalore as sg
    >>> sg.tl.embed(adata, "scgpt-mini")
    >>> sg.tl.evaluate_integration(adata, "assay", "cell_type", embeddings=["X_scGPT"])
    >>> sorted(sg.get.integration_scores(adata).index)
    ['Harmony', 'PCA', 'X_scGPT']
    """
    keys, seed = IntegrationKeys.from_key_added(key_added), seed_from(rng)
    reading = Reading(layer, data_type=data_type)
    names = [embeddings] if isinstance(embeddings, str) else list(embeddings)
    baselines = _checked_rows(names, baselines)
    refuse_overwrite(keys.slots, reading.reads())
    data = copied(data, mod=mod) if copy else data
    adata = writable_adata(data, mod=mod)
    refuse_elsewhere(data, mod=mod, obs={"batch_key": batch_key, "labels_key": labels_key})
    design = Design.of(adata, batch_key, labels_key)
    wanted = [*names, unintegrated] if unintegrated else names
    found = {name: _read(adata, name) for name in wanted}
    for doubt in design.doubts():
        logg.warning(doubt)
    with logg.step(f"scoring {len(names) + len(baselines):,} embeddings of {adata.n_obs:,} cells") as step:
        before = found[unintegrated] if unintegrated else _components(adata, batch_key, reading)
        rows = {}
        if PCA in baselines:
            rows[unintegrated or PCA] = before
        if HARMONY in baselines:
            rows[HARMONY] = harmony(before, design.batches, seed=seed)
        rows |= {name: found[name] for name in names}
        variance = batch_variance(before, design.batches)
        scores = pd.DataFrame.from_dict(
            {
                name: score_embedding(x, design.batches, design.labels, unintegrated_variance=variance, seed=seed)
                for name, x in progress(rows.items(), label="embeddings", total=len(rows))
            },
            orient="index",
        )
        _report(scores)
        params = {
            "batch_key": batch_key,
            "labels_key": labels_key,
            "embeddings": names,
            "baselines": baselines,
            "unintegrated": unintegrated,
            "layer": layer,
            "data_type": data_type,
            "rng": seed,
        }
        columns = {score.name: (score.title, score.group) for score in SCORES}
        content = {
            "scores": scores,
            "columns": pd.DataFrame.from_dict(columns, orient="index", columns=["title", "group"]),
            "n_cells": pd.DataFrame(design.table(), index=design.label_names, columns=design.batch_names),
            "params": params,
            "version": __version__,
        }
        Results(uns={keys.uns: (content, "scores of embeddings")}).write(data, adata, mod=mod, step=step)
    return data if copy else None


def _checked_rows(names: Sequence[str], baselines: str | Sequence[str]) -> list[str]:
    """Check the names of all rows and return the baselines in order."""
    wanted = [baselines] if isinstance(baselines, str) else list(baselines)
    unknown = [name for name in wanted if name not in (PCA, HARMONY)]
    if unknown:
        msg = f"baselines={wanted}: {unknown[0]!r} is neither {PCA!r} nor {HARMONY!r}. Pass other embeddings as embeddings=."
        raise OptionError(msg)
    rows = [*wanted, *names]
    if not rows:
        msg = "No embedding to score. Pass keys of adata.obsm as embeddings=."
        raise OptionError(msg)
    twice = [name for name in rows if rows.count(name) > 1]
    if twice:
        msg = f"{twice[0]!r} occurs more than once in embeddings= and baselines=; each row of the table needs a unique name."
        raise OptionError(msg)
    return [name for name in (PCA, HARMONY) if name in wanted]


def _read(adata: AnnData, key: str) -> NDArray[np.float64]:
    """Read and check an embedding from ``obsm``."""
    if key not in adata.obsm:
        msg = (
            f"adata.obsm has no {key!r}; it has {', '.join(map(repr, adata.obsm)) or 'no key'}. Compute one with "
            "sg.tl.embed(adata), or pass existing keys as embeddings=."
        )
        raise MissingKeyError(msg)
    value: Any = adata.obsm[key]
    where = f"adata.obsm[{key!r}]"
    try:
        x = np.asarray(value.toarray() if hasattr(value, "toarray") else value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        msg = f"{where} contains values that are not numbers ({error}); expected an embedding, cells by dimensions."
        raise DataError(msg) from error
    if x.ndim != 2 or x.shape[1] == 0:
        msg = f"{where} has shape {x.shape}; expected cells by dimensions."
        raise DataError(msg)
    wrong = int((~np.isfinite(x)).any(axis=1).sum())
    if wrong:
        msg = (
            f"{where} contains NaN or infinite values in {wrong:,} of {len(x):,} cells. Embed them again, or score the others: adata = "
            f"adata[np.isfinite({where}).all(axis=1)].copy()."
        )
        raise DataError(msg)
    return x


def _components(adata: AnnData, batch_key: str, reading: Reading) -> NDArray[np.float64]:
    """Principal components of log-normalised expression, without integration."""
    ranking = rank_adata(adata, "hvg", batch_key=batch_key, **reading.params())
    genes = np.flatnonzero(ranking.best(N_GENES))
    expression = LogExpression.from_adata(adata, reading)
    x = np.empty((adata.n_obs, len(genes)), dtype=np.float32)
    for start, rows in expression.chunks():
        x[start : start + rows.shape[0]] = rows[:, genes].toarray()
    x -= x.mean(axis=0)
    # From the covariance matrix: exact, without a random start, and small because there are few genes.
    _, axes = np.linalg.eigh(x.T.astype(np.float64) @ x)
    return x @ axes[:, ::-1][:, :N_COMPONENTS]


def _report(scores: pd.DataFrame) -> None:
    undefined = [score.title for score in SCORES if scores[score.name].isna().all()]
    if undefined:
        logg.warning(
            f"Undefined for these batches and labels, and excluded from the means: {', '.join(undefined)}. Means are only comparable "
            "within this table."
        )
    best = int(scores["total"].fillna(-1).argmax())
    logg.info(f"    highest total: {scores.index[best]}, {scores['total'].iloc[best]:.3f}")
