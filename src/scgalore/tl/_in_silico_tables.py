"""What changed genes do, as tables: shifts of embeddings next to random genes, and effects by network and regression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgalore._progress import progress
from scgalore.perturb.baselines.coexpression import Coexpression
from scgalore.perturb.predictions.null import adjusted, against_random

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgalore.model.in_silico import EditedCells
    from scgalore.tl._changed_genes import Genes

__all__ = ["shift_and_effect_tables"]

BLOCK = 1 << 25
"""Numbers that the effects of a block of genes hold at most."""


def shift_and_effect_tables(
    run: EditedCells,
    chosen: Genes,
    null: NDArray[np.int64],
    axes: NDArray[np.float64] | None,
    groups: tuple[str, ...],
    logs: Any,
    *,
    n_null: int,
    n_effects: int,
) -> dict[str, pd.DataFrame]:
    """Run the network over all genes, a block of them at a time.

    Parameters
    ----------
    run
        The cells.
    chosen
        Genes to change.
    null
        Token ids of random genes.
    axes
        Way from each group to the wanted state; ``None`` without one.
    groups
        Their names.
    logs
        Log-normalised expression of the cells, sparse.
    n_null, n_effects
        As for :func:`scgalore.tl.perturb_in_silico`.

    Returns
    -------
    ``"shifts"`` and ``"effects"``.
    """
    tokens = np.concatenate([chosen.tokens, np.setdiff1d(null, chosen.tokens)])
    n_own, n_groups = len(chosen.tokens), len(groups)
    fits = [Coexpression.of(logs[run.groups == group]) for group in range(n_groups)]
    column_of = dict(zip(chosen.column_tokens.tolist(), chosen.columns.tolist(), strict=True))
    size = max(1, min(256, BLOCK // (n_groups * max(logs.shape[1], 1))))
    shape = (len(tokens), n_groups)
    found = {
        name: np.zeros(shape) for name in ("n_changed", "dose", "shift", "towards", "size", "agreement", "expression")
    }
    effects: list[pd.DataFrame] = []
    starts = range(0, len(tokens), size)
    for start in progress(starts, label="blocks of genes", total=len(starts)):
        block = tokens[start : start + size]
        here = slice(start, start + len(block))
        shifts = run.shifts(block, axes)
        for name in ("n_changed", "dose", "shift", "towards"):
            found[name][here] = getattr(shifts, name)
        found["expression"][here] = _group_means(run.logs(block), run.groups)
        own = block[: max(n_own - start, 0)]
        if len(own) == 0:
            continue
        columns = np.array([column_of.get(token, -1) for token in own.tolist()], dtype=np.int64)
        for group, fit in enumerate(fits):
            linear = np.zeros((len(own), len(chosen.columns)))
            measured = np.flatnonzero(columns >= 0)
            by_regression = fit.effects(columns[measured], shifts.change[measured, group])
            linear[measured] = by_regression[:, chosen.columns]
            linear[columns < 0] = np.nan
            network = run.expression_change(shifts.embedding[: len(own), group], chosen.column_tokens)
            others = own[:, None] != chosen.column_tokens[None, :]  # the gene itself is no effect
            found["size"][start : start + len(own), group] = np.sqrt(np.where(others, linear**2, 0).sum(axis=1))
            found["agreement"][start : start + len(own), group] = _rank_correlations(network, linear, others)
            named = chosen.names[start : start + len(own)]
            effects += _largest(named, groups[group], chosen.measured, network, linear, others, n_effects)
    table = _shift_table(found, chosen, tokens, null, groups, n_own, n_null, with_target=axes is not None)
    empty = pd.DataFrame({name: [] for name in ("gene", "group", "target", "effect", "coexpression")})
    return {"shifts": table, "effects": pd.concat(effects, ignore_index=True) if effects else empty}


def _group_means(values: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.stack([values[groups == group].mean(axis=0) for group in range(groups.max() + 1)], axis=1)


def _rank_correlations(
    first: NDArray[np.float64], second: NDArray[np.float64], counted: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Spearman's correlation of each pair of rows; NaN where one does not vary."""
    out = np.full(len(first), np.nan)
    for row, (x, y, kept) in enumerate(zip(first, second, counted, strict=True)):
        a, b = (pd.Series(values[kept]).rank().to_numpy() for values in (x, y))
        if np.isfinite(a).all() and np.isfinite(b).all() and a.std() > 0 and b.std() > 0:
            out[row] = np.corrcoef(a, b)[0, 1]
    return out


def _largest(
    genes: list[str],
    group: str,
    names: list[str],
    network: NDArray[np.float64],
    linear: NDArray[np.float64],
    counted: NDArray[np.bool_],
    n: int,
) -> list[pd.DataFrame]:
    """The ``n`` largest effects of each gene by either prediction."""
    if n == 0:
        return []
    all_names = np.array(names, dtype=object)
    out = []
    for gene, x, y, kept in zip(genes, network, linear, counted, strict=True):
        sizes = [np.where(kept & np.isfinite(v), np.abs(v), -1.0) for v in (x, y)]
        top = [np.argsort(-size, kind="stable")[:n] for size in sizes]
        at = np.unique(np.concatenate([i[size[i] > 0] for i, size in zip(top, sizes, strict=True)]))
        order = np.argsort(-np.where(np.isfinite(x[at]), np.abs(x[at]), np.abs(y[at])), kind="stable")
        at = at[order]
        out.append(
            pd.DataFrame(
                {"gene": gene, "group": group, "target": all_names[at], "effect": x[at], "coexpression": y[at]}
            )
        )
    return out


def _shift_table(
    found: dict[str, NDArray[np.float64]],
    chosen: Genes,
    tokens: NDArray[np.int64],
    null: NDArray[np.int64],
    groups: tuple[str, ...],
    n_own: int,
    n_null: int,
    *,
    with_target: bool,
) -> pd.DataFrame:
    """One row for each gene and group, with what random genes do."""
    is_null = np.isin(tokens, null)
    parts = []
    for group, name in enumerate(groups):
        own = {key: values[:n_own, group] for key, values in found.items()}
        dose = found["dose"][:, group]
        table = pd.DataFrame({"gene": chosen.names, "group": name})
        table["n_cells"] = own["n_changed"].astype(np.int64)
        for key in ("expression", "dose", "shift"):
            table[key] = own[key]
        compared = against_random(found["shift"][:, group], dose, is_null, n_null, signed=False)
        table["shift_expected"] = compared.expected[:n_own]
        with np.errstate(divide="ignore", invalid="ignore"):
            table["log2_ratio"] = np.log2(table["shift"] / table["shift_expected"])
        table["p_value"] = compared.p_values[:n_own]
        table["p_adjusted"] = adjusted(compared.p_values[:n_own])
        if with_target:
            compared = against_random(found["towards"][:, group], dose, is_null, n_null, signed=True)
            table["towards"] = own["towards"]
            table["towards_expected"] = compared.expected[:n_own]
            table["towards_p_value"] = compared.p_values[:n_own]
            table["towards_p_adjusted"] = adjusted(compared.p_values[:n_own])
        table["coexpression_size"], table["agreement"] = own["size"], own["agreement"]
        by = "towards" if with_target else "log2_ratio" if n_null else "shift"
        parts.append(table.sort_values(by, ascending=False, kind="stable", na_position="last"))
    return pd.concat(parts, ignore_index=True)
