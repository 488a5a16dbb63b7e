"""Simulated perturbed cells as an AnnData."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scgalore._docs import shared_parameters
from scgalore._keys import PerturbationKeys
from scgalore._rng import seed_from
from scgalore.data.hashing import fold_seed
from scgalore.data.reading import READING
from scgalore.data.records import read_prediction_record
from scgalore.data.scale import to_log1p
from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.perturb.labels.control import CONTROL
from scgalore.perturb.labels.parsing import canonical_name
from scgalore.perturb.labels.profiles import row_label
from scgalore.perturb.labels.reading import label_options
from scgalore.perturb.labels.screen import Screen
from scgalore.perturb.predictions.controls import refuse_other_scale
from scgalore.perturb.predictions.ranking import ranked_genes
from scgalore.perturb.predictions.synthesis import synthesise

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from scgalore._typing import Label, Rng
    from scgalore.perturb.labels.conditions import Conditions

READ = ("context_key", "log_base", *READING)


@shared_parameters
def perturbed_cells(
    adata: AnnData,
    perturbations: Label | Sequence[Label] | None = None,
    *,
    n_cells: int | None = None,
    key: str = PerturbationKeys().prediction,
    with_control: bool = True,
    rng: Rng = None,
) -> AnnData:
    """Sample cells around predicted means, for tests and plots that need cells.

    Only the means are predictions. Zeros and variance are taken from control cells and shifted
    (see :func:`scgalore.perturb.synthesise`), and differences between sampled cells of one perturbation are
    meaningless.

    Parameters
    ----------
    adata
        Annotated data matrix with the prediction and its control cells.
    perturbations
        Predicted perturbations: ``"KLF1"``, ``"KLF1+MAP2K6"``, ``"K562 | KLF1"``, or a list of these; labels of the
        data also work. Without a context, all contexts are used. ``None`` uses all.
    n_cells
        Number of cells per perturbation. ``None`` uses the number of measured cells, else the median over measured
        perturbations, else the number of control cells.
    {key}
    with_control
        Whether to include the control cells of the same contexts.
    rng
        Seed or NumPy generator; ``None`` uses the seed of the prediction. The cells of a perturbation do not depend on
        which others are sampled.

    Returns
    -------
    New object with log-normalised expression (float32, sparse) and the genes of ``adata``. ``obs`` contains
    ``perturbation`` (``"control"`` or the sorted genes), ``context``, ``condition`` (both, if there are several
    contexts) and ``predicted`` (``False`` for control cells). ``uns["rank_genes_groups"]`` ranks genes by predicted
    effect, so that scanpy's plots of ranked genes work: ``sc.pl.rank_genes_groups_dotplot(cells)``. Its p-values are
    NaN.

    Raises
    ------
    DataError
        If ``adata`` is not an AnnData, or its genes, control cells or scale differ from those of the prediction.
    MissingKeyError
        If there is no prediction under ``key``, or a perturbation or column does not exist.
    OptionError
        If ``n_cells`` is below 1.

    See Also
    --------
    scgalore.tl.predict_perturbation : Predict expression after perturbations.
    scgalore.get.perturbation_effects : Read predicted effects as a table.
    scgalore.perturb.synthesise : Sample cells from means and control cells.
    scgalore.perturb.write_vcc : Write cells for the Virtual Cell Challenge.

    Examples
    --------
    Here ``adata`` contains predictions by :func:`scgalore.tl.predict_perturbation`.

    >>> import scanpy as sc, scgalore as sg
    >>> cells = sg.get.perturbed_cells(adata, ["KLF1+MAP2K6"])
    >>> axes = sc.pl.rank_genes_groups_dotplot(cells, n_genes=5, show=False)
    """
    if n_cells is not None and n_cells < 1:
        msg = f"n_cells={n_cells}: expected 1 or more, or None for the measured number."
        raise OptionError(msg)
    result = read_prediction_record(adata, key)
    seed = seed_from(result["params"].get("rng", 0) if rng is None else rng)
    screen = Screen.from_adata(
        adata, **{name: result["params"].get(name) for name in READ}, **label_options(result["params"])
    )
    rows, places = _chosen(result, perturbations, key, screen.conditions)
    _check_genes(result["means"].index, screen)
    pools = _pools(screen, rows["context"])
    refuse_other_scale(adata, key, screen)
    sizes = _sizes(screen, rows, n_cells, {context: len(cells) for context, cells in pools.items()})
    means = result["means"].to_numpy(np.float64)
    expression = {context: screen.expression.rows(cells) for context, cells in pools.items()}
    blocks, obs = [], []
    for label, name, context, place, n in zip(
        rows.index, rows["perturbation"], rows["context"], places, sizes, strict=True
    ):
        drawn_from = fold_seed(seed, "perturbed cells", label)
        blocks.append(synthesise(means[:, place], expression[context], n_cells=n, seed=drawn_from))
        names = [f"{label}-{i}" for i in range(n)]
        obs.append(_described(names, name, context, label, predicted=True))
    if with_control:
        for context, cells in pools.items():
            blocks.append(expression[context])
            names = adata.obs_names[cells].astype(str).tolist()
            obs.append(_described(names, CONTROL, context, row_label(CONTROL, context), predicted=False))
    return _assembled(
        adata,
        blocks,
        obs,
        _ranked(result, rows, places, adata.var_names, screen.expression.log_base),
        screen.expression.log_base,
    )


def _chosen(
    result: Mapping[str, Any], perturbations: Label | Sequence[Label] | None, key: str, conditions: Conditions
) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """Requested rows, with their positions in the tables."""
    texts = result["rows"].astype({"perturbation": str, "context": str})
    if perturbations is None:
        return texts, np.arange(len(texts))
    one = isinstance(perturbations, str) or not isinstance(perturbations, Iterable)
    wanted: list[Label] = [perturbations] if one else list(perturbations)  # type: ignore[arg-type, list-item]
    places: list[int] = []
    for label in wanted:
        found = np.flatnonzero(texts.index == label)
        name = str(label)
        if len(found) == 0:  # in another format, perhaps after a context
            context, _, rest = name.rpartition(" | ")
            name = canonical_name(conditions.genes_of(rest))
            here = (texts["context"] == context) if context else True
            found = np.flatnonzero((texts["perturbation"] == name) & here)
        if len(found) == 0:
            similar = get_close_matches(name, [*texts["perturbation"], *texts.index], n=5) or list(texts.index[:5])
            msg = (
                f"{label!r} is not among the {len(texts):,} perturbations in adata.uns[{key!r}]; similar ones: "
                f"{', '.join(similar)}. Predict it with sg.tl.predict_perturbation(adata, [...])."
            )
            raise MissingKeyError(msg)
        places += found.tolist()
    if not places:
        msg = "perturbations is empty. Pass predicted perturbations, or None for all."
        raise OptionError(msg)
    chosen = np.array(list(dict.fromkeys(places)), dtype=np.int64)
    return texts.iloc[chosen], chosen


def _check_genes(predicted: pd.Index, screen: Screen) -> None:
    if list(map(str, predicted)) != list(screen.genes):
        msg = (
            f"The prediction has {len(predicted):,} genes, which differ from the {len(screen.genes):,} genes of adata. Call "
            "sg.tl.predict_perturbation(adata) again."
        )
        raise DataError(msg)


def _pools(screen: Screen, wanted: pd.Series) -> dict[str, NDArray[np.int64]]:
    """Control cells of the requested contexts."""
    names = [""] if screen.contexts is None else np.unique(screen.contexts).tolist()
    pools = dict(zip(names, screen.pools().of_context, strict=True))
    contexts = list(dict.fromkeys(wanted))
    for context in contexts:
        if len(pools.get(context, ())) == 0:
            where = f" of context {context!r}" if context else ""
            msg = f"adata no longer has control cells{where} to sample from. Pass the object with the prediction."
            raise DataError(msg)
    return {context: pools[context] for context in contexts}


def _sizes(screen: Screen, rows: pd.DataFrame, n_cells: int | None, n_controls: Mapping[str, int]) -> list[int]:
    if n_cells is not None:
        return [n_cells] * len(rows)
    codes, names = screen.conditions.codes, np.array(screen.conditions.names)
    perturbed = codes > 0
    contexts = np.full(len(codes), "") if screen.contexts is None else screen.contexts
    measured = pd.DataFrame({"name": names[codes[perturbed]], "context": contexts[perturbed]}).value_counts()
    usual = int(np.median(measured)) if len(measured) else 0
    pairs = zip(rows["perturbation"], rows["context"], strict=True)
    return [int(measured.get((name, context), usual)) or n_controls[context] for name, context in pairs]


def _described(names: list[str], perturbation: str, context: str, condition: str, *, predicted: bool) -> pd.DataFrame:
    columns = {"perturbation": perturbation, "context": context, "condition": condition, "predicted": predicted}
    return pd.DataFrame(columns, index=names)


def _ranked(
    result: Mapping[str, Any], rows: pd.DataFrame, places: NDArray[np.int64], genes: pd.Index, log_base: float
) -> dict[str, Any]:
    """Record of ranked genes written by the prediction, with gene names as in ``var``, for scanpy."""
    effects, means = (
        pd.DataFrame(result[name].to_numpy()[:, places], index=genes, columns=rows.index)
        for name in ("effects", "means")
    )
    return ranked_genes(effects, means, groupby="condition", log_base=log_base)


def _assembled(
    adata: AnnData, blocks: list[sp.csr_matrix], obs: list[pd.DataFrame], ranked: dict[str, Any], log_base: float
) -> AnnData:
    table = pd.concat(obs)
    for column in ("perturbation", "context", "condition"):
        # Categories in the order of the record, as scanpy's plots expect.
        table[column] = pd.Categorical(table[column], categories=list(dict.fromkeys(table[column])))
    cells = AnnData(sp.vstack(blocks, format="csr", dtype=np.float32), obs=table, var=adata.var.copy())
    cells.obs_names_make_unique()
    cells.uns["log1p"] = to_log1p(log_base)
    cells.uns["rank_genes_groups"] = ranked
    return cells
