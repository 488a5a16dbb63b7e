"""Genes to change in silico, and random genes to compare them with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from scgalore._words import few
from scgalore.data.match import tokens_of_each
from scgalore.errors import DataError, OptionError
from scgalore.perturb.predictions.null import random_genes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgalore.data.cells import TokenCells
    from scgalore.model import CellModel
    from scgalore.model.edits import Edit

__all__ = ["Genes"]


@dataclass(frozen=True)
class Genes:
    """Genes to change, and genes from which random ones may be drawn.

    Attributes
    ----------
    names, tokens
        Names and tokens of the genes to change.
    measured
        Names of the columns that have a token.
    columns, column_tokens
        These columns and their tokens.
    expression
        Mean log-normalised expression of each of these columns in the chosen cells.
    drawable
        Columns that random genes may be drawn from: those that the edit changes in some cell.
    """

    names: list[str]
    tokens: NDArray[np.int64]
    measured: list[str] = field(repr=False)
    columns: NDArray[np.int64] = field(repr=False)
    column_tokens: NDArray[np.int64] = field(repr=False)
    expression: NDArray[np.float64] = field(repr=False)
    drawable: NDArray[np.bool_] = field(repr=False)

    @classmethod
    def of(
        cls,
        names: list[str] | None,
        columns_named: list[str],
        model: CellModel,
        cells: TokenCells,
        logs: Any,
        edit: Edit,
        min_cells: int,
        species: str,
    ) -> Genes:
        """Find the genes and raise an error for those that cannot be changed.

        Parameters
        ----------
        names
            Requested genes; ``None`` for all.
        columns_named
            Names of all columns.
        model, cells, logs, edit
            Model, cells and edit.
        min_cells
            Minimum number of cells that express a gene, if ``names`` is ``None``.
        species
            Species of the genes.
        """
        columns = np.flatnonzero(cells.tokenizer.token_ids >= 0)
        columns = columns[
            np.argsort(cells.tokenizer.token_ids[columns])
        ]  # ties do not depend on the order of the columns
        column_tokens = cells.tokenizer.token_ids[columns]
        n_expressed = np.asarray((logs != 0).sum(axis=0)).ravel()[columns]
        expression = np.asarray(logs.mean(axis=0), dtype=np.float64).ravel()[columns]
        measured = [columns_named[i] for i in columns]
        drawable = n_expressed > 0
        if names is None:
            enough = np.flatnonzero(n_expressed >= min_cells)
            if len(enough) == 0:
                msg = (
                    f"No gene of the vocabulary is expressed in min_cells={min_cells} of the {logs.shape[0]:,} chosen cells. Decrease min_cells "
                    "or increase n_cells."
                )
                raise DataError(msg)
            names, tokens = [measured[i] for i in enough], column_tokens[enough]
        else:
            tokens = np.array(tokens_of_each(names, model.vocab, species=species), dtype=np.int64)
            _refuse(names, tokens < 0, "not in the vocabulary of the model", "Use a current symbol or an Ensembl id.")
            if edit.mode == "knockout":
                place = {token: i for i, token in enumerate(column_tokens.tolist())}
                at = np.array([place.get(token, -1) for token in tokens.tolist()])
                hint = "A gene that is not measured cannot be knocked out; mode='overexpress' and 'set' can add it."
                _refuse(names, at < 0, "not measured in these data", hint)
                hint = f"Omit them, or pass genes=None for all genes expressed in at least min_cells={min_cells} cells."
                _refuse(names, ~drawable[at], f"not expressed in any of the {logs.shape[0]:,} chosen cells", hint)
            first = np.unique(tokens, return_index=True)[1]
            if len(first) < len(tokens):
                twice = [name for i, name in enumerate(names) if i not in first]
                msg = (
                    f"genes= contains a gene more than once, under different names: {few(twice)}. Pass each gene once."
                )
                raise OptionError(msg)
        return cls(names, tokens, measured, columns, column_tokens, expression, drawable)

    def random(self, n: int, *, seed: int) -> NDArray[np.int64]:
        """Token ids of random genes from all levels of expression."""
        at = np.flatnonzero(self.drawable)
        return self.column_tokens[at[random_genes(self.expression[at], self.column_tokens[at], n, seed=seed)]]


def _refuse(names: list[str], wrong: NDArray[np.bool_], what: str, hint: str) -> None:
    if wrong.any():
        bad = [name for name, is_wrong in zip(names, wrong, strict=True) if is_wrong]
        msg = f"{len(bad):,} of {len(names):,} genes are {what}: {few(bad)}. {hint}"
        raise DataError(msg)
