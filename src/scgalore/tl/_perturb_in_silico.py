"""In-silico perturbation of genes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgalore import _logging as logg
from scgalore._docs import shared_parameters
from scgalore._keys import InSilicoKeys
from scgalore._options import is_whole
from scgalore._rng import seed_from
from scgalore.data.cells import gene_names
from scgalore.data.expression import LogExpression
from scgalore.data.reading import Reading
from scgalore.data.resolve import copied, refuse_elsewhere, writable_adata
from scgalore.data.results import Results, refuse_overwrite
from scgalore.errors import OptionError
from scgalore.model.edits import Edit
from scgalore.model.in_silico import EditedCells
from scgalore.model.inference import RunOptions
from scgalore.perturb.predictions.null import FEWEST
from scgalore.tl._changed_genes import Genes
from scgalore.tl._in_silico_tables import shift_and_effect_tables
from scgalore.tl._shared import as_model, provenance, refuse_conditions
from scgalore.tl._states import States
from scgalore.weights import get_entry, list_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore._typing import Data, Label, PathLike, Rng
    from scgalore.model import CellModel

POOL = 3
"""Random genes that are run, as a multiple of those that a gene is compared with."""


@shared_parameters
def perturb_in_silico(
    data: Data,
    genes: str | Sequence[str] | None = None,
    *,
    mode: str = "knockout",
    level: float | None = None,
    model: PathLike | CellModel = "scgpt",
    groupby: str | None = None,
    groups: Label | Sequence[Label] | None = None,
    target_key: str | None = None,
    target: Label | None = None,
    n_cells: int = 200,
    min_cells: int = 10,
    n_null: int = 100,
    n_effects: int = 50,
    layer: str | None = None,
    gene_symbols: str | None = None,
    data_type: str | None = None,
    depth_key: str | None = None,
    species: str = "human",
    min_matched: float | None = None,
    mod: str = "rna",
    max_length: int | None = None,
    batch_tokens: int | None = None,
    accelerator: str | None = None,
    rng: Rng = 0,
    key_added: str | None = None,
    copy: bool = False,
) -> Data | None:
    """Perturb genes in silico, one at a time, and compute the change of cell embeddings and predicted expression.

    A knock-out deletes the gene's token from every cell that expresses it, as Geneformer does :cite:p:`Theodoris2023`;
    all other tokens are unchanged. Each gene is compared with random genes that change the input to the same extent,
    and with the effect expected from the regression of all other genes on it over the same cells. **These results
    describe the model and are not measurements**: see :doc:`/concepts/in-silico` for their interpretation and a
    comparison with real perturbations.

    Parameters
    ----------
    {data}
    genes
        Genes to perturb, one at a time. ``None`` uses all genes of the model's vocabulary expressed in at least
        ``min_cells`` of the selected cells.
    mode
        ``"knockout"`` removes the gene; ``"overexpress"`` adds ``level`` to its log-normalised expression in every
        cell; ``"set"`` gives it the expression ``level`` in every cell.
    level
        On the scale ``log(1 + counts per 10,000)``, where 2 is about seven times the counts; for ``"overexpress"`` and
        ``"set"`` only.
    model
        As for :func:`scgalore.tl.embed`. Models that were fine-tuned with ``task="perturbation"`` are for
        :func:`scgalore.tl.predict_perturbation` and :func:`scgalore.tl.rank_perturbations`.
    groupby
        Column of ``adata.obs``; genes are perturbed and compared within each group. ``None`` uses all cells as one
        group.
    groups
        Groups to use; ``None`` for all. Cells without a label are excluded.
    target_key
        Column of ``adata.obs`` that ``target`` is a label of.
    target
        Target state: its cells are not perturbed, and the shift of the other cells towards it is computed.
    n_cells
        Maximum number of cells of each group and of the target state, sampled with ``rng``.
    min_cells
        Minimum number of cells that express a gene, for ``genes=None``.
    n_null
        Number of random genes that each gene is compared with, at least 7, or 0 for no comparison. About three times as
        many additional genes are computed.
    n_effects
        Number of genes with the largest predicted changes to keep for each perturbed gene and group, for each of the
        two predictions.
    {layer}
    {gene_symbols}
    {data_type}
    {depth_key}
    {species}
    {min_matched}
    {mod}
    max_length
        As for :func:`scgalore.tl.embed`.
    {batch_tokens}
    {accelerator}
    rng
        Seed for sampling cells and random genes.
    {key_added}
    {copy}

    Returns
    -------
    ``None``, or with ``copy=True`` the container it was given, with this key set:

    `adata.uns['perturb_in_silico' | key_added]` : :class:`dict`
        ``shifts``, a table with one row for each gene and group, most unlike random genes first: ``gene``, ``group``,
        ``n_cells`` (whose tokens change), ``expression`` (mean, log-normalised), ``dose`` (mean change of the gene's
        value, in bins), ``shift`` (mean cosine distance between the embeddings before and after), ``shift_expected``
        (of random genes with this dose), ``log2_ratio`` (of the two), ``p_value`` and ``p_adjusted`` (Benjamini and
        Hochberg, within the group); with a target ``towards`` (share of the way from the mean of the group to that of
        the target), ``towards_expected``, ``towards_p_value`` and ``towards_p_adjusted`` (two-sided);
        ``coexpression_size`` (length of the effect by regression) and ``agreement`` (rank correlation of the two
        predicted effects over genes). ``effects``, a table of the largest predicted changes: ``gene``, ``group``,
        ``target``, ``effect`` (by the network, in bins of expression; NaN for models without a decoder from the cell
        embedding) and ``coexpression`` (by regression, log-normalised). ``n_cells`` of each group, ``params``,
        ``weights``, ``genes``, ``version``.
        :func:`scgalore.get.in_silico_shifts` and :func:`scgalore.get.in_silico_effects` read the tables.

    Raises
    ------
    DataError
        If a gene is not in the vocabulary, or is to be knocked out and not measured or not expressed in the chosen
        cells, or no cell is left to change.
    MissingKeyError
        If a column or label does not exist.
    OptionError
        If ``mode`` and ``level`` do not belong together, an option is out of range, or the model reads perturbation
        flags.

    See Also
    --------
    scgalore.get.in_silico_shifts : Read shifts by in-silico perturbations as a table.
    scgalore.get.in_silico_effects : Read effects of in-silico perturbations on other genes as a table.
    scgalore.pl.in_silico_shifts : Draw a volcano plot of in-silico perturbations.
    scgalore.tl.predict_perturbation : Predict expression after perturbations.

    Examples
    --------
    >>> import scanpy as sc, scgalore as sg
    >>> adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    >>> sg.tl.perturb_in_silico(adata, model="scgpt-mini", n_cells=20, n_null=0)
    >>> shifts = sg.get.in_silico_shifts(adata)[["gene", "shift"]]
    """
    keys, seed, edit = InSilicoKeys.from_key_added(key_added), seed_from(rng), Edit(mode, level)
    _check(n_cells=(n_cells, 1), min_cells=(min_cells, 1), n_null=(n_null, 0), n_effects=(n_effects, 0))
    if 0 < n_null * POOL <= FEWEST:
        msg = f"n_null={n_null}: too few random genes. Pass at least {FEWEST // POOL + 1}, or 0 for no comparison."
        raise OptionError(msg)
    options = RunOptions.of(precision="32-true", batch_tokens=batch_tokens, accelerator=accelerator)
    reading = Reading(layer, gene_symbols, data_type, depth_key, species, min_matched)
    names = _names(genes)
    refuse_overwrite(keys.slots, reading.reads())
    data = copied(data, mod=mod) if copy else data
    adata = writable_adata(data, mod=mod)
    columns = {"groupby": groupby, "target_key": target_key, "depth_key": depth_key}
    refuse_elsewhere(data, mod=mod, obs=columns, gene_symbols=gene_symbols)
    states = States.of(adata, groupby=groupby, groups=groups, target_key=target_key, target=target)
    fitted = as_model(model)
    refuse_conditions(fitted)
    _warn(fitted, adata)
    with logg.step(f"changing genes with {fitted.provenance['name']}") as step:
        cells = fitted.cells(adata, **reading.of_tokens(), max_length=max_length, rng=seed)
        content_keys = np.concatenate(list(cells.keys()))
        rows = states.pick(content_keys, n_cells, seed=seed)
        expression = LogExpression.from_adata(adata, reading, log_base=math.e)
        logs = expression.rows(rows)
        chosen = Genes.of(names, gene_names(adata, gene_symbols), fitted, cells, logs, edit, min_cells, species)
        null = chosen.random(n_null * POOL, seed=seed) if n_null else np.zeros(0, dtype=np.int64)
        run = EditedCells(fitted, cells, rows, states.codes[rows], logs, edit, extra=chosen.tokens, options=options)
        axes = None
        if states.target is not None:
            wanted = states.pick_target(content_keys, n_cells, seed=seed)
            aim = fitted.run(cells, rows=wanted, accelerator=accelerator, precision="32-true").embedding.mean(axis=0)
            axes = aim - _means(run.unit, run.groups)
        tables = shift_and_effect_tables(
            run, chosen, null, axes, states.names, logs, n_null=n_null, n_effects=n_effects
        )
        params = {
            **{"mode": mode, "level": level, "groupby": groupby, "groups": list(states.names)},
            **{"target_key": target_key, "target": target, "n_cells": n_cells, "min_cells": min_cells},
            **{"n_null": n_null, "n_effects": n_effects, "max_length": max_length, "rng": seed},
            **reading.params(),
        }
        content = {
            **tables,
            "n_cells": pd.DataFrame({"n_cells": run.n_cells}, index=list(states.names)),
            "params": params,
            **provenance(fitted, cells),
        }
        Results(uns={keys.uns: (content, "shifts and effects of changed genes")}).write(data, adata, mod=mod, step=step)
    return data if copy else None


def _warn(fitted: CellModel, adata: AnnData) -> None:
    """Warn once per object about known limitations of these weights."""
    name = fitted.provenance["name"]
    known = get_entry(name).in_silico if name in list_weights() else ""
    if known and logg.is_news(adata, known):
        logg.warning(f"{name}: {known}.")


def _check(**numbers: tuple[Any, int]) -> None:
    for name, (value, least) in numbers.items():
        if not is_whole(value, least):
            msg = f"{name}={value!r}: expected a whole number, {least} or more."
            raise OptionError(msg)


def _names(genes: str | Sequence[str] | None) -> list[str] | None:
    if genes is None:
        return None
    names = [genes] if isinstance(genes, str) else list(genes)
    wrong = [name for name in names if not isinstance(name, str)]
    if not names or wrong:
        msg = f"genes={genes!r}: expected names of genes, or None for all that are expressed."
        raise OptionError(msg)
    return list(dict.fromkeys(names))


def _means(x: NDArray[np.float32], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.stack([x[groups == group].mean(axis=0, dtype=np.float64) for group in range(groups.max() + 1)])
