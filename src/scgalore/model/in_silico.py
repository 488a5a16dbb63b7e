"""Effects of in-silico edits of single genes on embeddings and predicted expression.

Shape letters: c cells, b genes that are changed, g groups of cells, d width, n columns of the matrix.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from scgalore.model.edits import Bins
from scgalore.model.inference import BATCH_TOKENS, levels_of
from scgalore.nn.finite import refuse_not_finite_outputs

if TYPE_CHECKING:
    from collections.abc import Iterator

    import scipy.sparse as sp
    from numpy.typing import NDArray

    from scgalore.data.cells import TokenCells
    from scgalore.data.tokens import RaggedTokens
    from scgalore.model.cell_model import CellModel
    from scgalore.model.edits import Edit
    from scgalore.model.inference import RunOptions

__all__ = ["EditedCells", "Shifts"]


@dataclass(frozen=True)
class Shifts:
    """Effects of edits of genes.

    Attributes
    ----------
    n_changed
        Number of cells of each group whose tokens change, int64 ``(b, g)``.
    dose
        Mean absolute change of the gene's value over all cells of a group, in units of the network's input, ``(b, g)``.
    change
        Mean change of the log-normalised expression of the gene, ``(b, g)``.
    shift
        Mean cosine distance of the embeddings before and after, ``(b, g)``.
    towards
        Mean fraction of the distance to the target state, ``(b, g)``; NaN without one.
    embedding
        Mean change of the embedding before normalisation, float32 ``(b, g, d)``.
    """

    n_changed: NDArray[np.int64]
    dose: NDArray[np.float64]
    change: NDArray[np.float64]
    shift: NDArray[np.float64]
    towards: NDArray[np.float64]
    embedding: NDArray[np.float32] = field(repr=False)


class EditedCells:
    """Cells of groups, prepared for edits.

    Parameters
    ----------
    model
        Model without perturbation flags.
    cells
        All cells of the AnnData.
    rows
        Cells to edit, int64 ``(c,)``.
    groups
        Group of each of these, int64 ``(c,)``, from 0 without gaps.
    logs
        Log-normalised expression of ``rows``, natural logarithm.
    edit
        Edit of each gene.
    extra
        Token ids of unmeasured genes that may be edited.
    options
        Device, precision and batch size.
    """

    def __init__(
        self,
        model: CellModel,
        cells: TokenCells,
        rows: NDArray[np.int64],
        groups: NDArray[np.int64],
        logs: sp.csr_matrix,
        edit: Edit,
        *,
        extra: NDArray[np.int64],
        options: RunOptions,
    ) -> None:
        self.groups, self.edit = groups, edit
        self.n_cells = np.bincount(groups)
        self._network, self._options = model.network, options
        config = cells.tokenizer.config
        self._shows_zeros = config.include_zeros or config.every_gene
        self._tokens: RaggedTokens = next(iter(cells.windows(rows, size=max(len(rows), 1))))
        self._column = {int(t): i for i, t in enumerate(cells.tokenizer.token_ids) if t >= 0}
        self._logs = logs.tocsc()
        self._bins = Bins(cells, logs) if edit.mode != "knockout" else None
        model.network.eval().to(options.device)
        known = torch.from_numpy(np.union1d(cells.tokens(), extra))
        self._encode = model.family.encoder(model.network, known, levels=levels_of(config), dtype=options.dtype)
        self._batch_tokens = options.batch_tokens or BATCH_TOKENS[options.device.type == "cpu"]
        #: Embeddings before edits, not normalised, ``(c, d)``.
        self.before = self._run_all(self._each_cell())

    @property
    def unit(self) -> NDArray[np.float32]:
        """Embeddings before edits with unit norm, ``(c, d)``."""
        return F.normalize(torch.from_numpy(self.before), dim=1).numpy()

    def values(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Value of each of these tokens in each cell, 0 if the cell does not have it, ``(c, b)``."""
        order = np.argsort(tokens)
        at = np.searchsorted(tokens[order], self._tokens.genes).clip(max=len(tokens) - 1)
        hit = tokens[order][at] == self._tokens.genes
        cell = np.repeat(np.arange(len(self._tokens)), self._tokens.lengths)
        out = np.zeros((len(self._tokens), len(tokens)), dtype=np.float32)
        out[cell[hit], order[at[hit]]] = self._tokens.values[hit]
        return out

    def logs(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Log-normalised expression of genes in each cell, 0 for unmeasured genes, ``(c, b)``."""
        out = np.zeros((self._logs.shape[0], len(tokens)))
        columns = np.array([self._column.get(token, -1) for token in tokens.tolist()])
        measured = np.flatnonzero(columns >= 0)
        out[:, measured] = self._logs[:, columns[measured]].toarray()
        return out

    def shifts(self, tokens: NDArray[np.int64], axes: NDArray[np.float64] | None) -> Shifts:
        """Edit each of the genes in all cells.

        Parameters
        ----------
        tokens
            Token ids, int64 ``(b,)``.
        axes
            Direction from each group to the target state, ``(g, d)``; ``None`` without one.
        """
        old, logs = self.values(tokens), self.logs(tokens)
        changed_logs = self.edit.apply(logs)
        new = np.zeros_like(old) if self._bins is None else self._bins.of(changed_logs)
        changed = old != new
        n_groups, d = len(self.n_cells), self.before.shape[1]
        unit = self.unit
        shape = (len(tokens), n_groups)
        shift, towards = np.zeros(shape), np.full(shape, np.nan if axes is None else 0.0)
        moved = np.zeros((*shape, d), dtype=np.float32)
        for cells, genes, after in self._run(self._edited(tokens, new, changed)):
            place = genes * n_groups + self.groups[cells]
            after_unit = F.normalize(torch.from_numpy(after), dim=1).numpy()
            # For unit vectors, 1 - cosine is half the squared distance, which is more accurate for small distances.
            distance = np.square(after_unit - unit[cells], dtype=np.float64).sum(axis=1) / 2
            np.add.at(shift.reshape(-1), place, distance)
            np.add.at(moved.reshape(-1, d), place, after - self.before[cells])
            if axes is not None:
                axis = axes[self.groups[cells]]
                along = ((after_unit - unit[cells]) * axis).sum(axis=1) / np.square(axis).sum(axis=1)
                np.add.at(towards.reshape(-1), place, along)
        return Shifts(
            n_changed=self._by_group(changed).astype(np.int64),
            dose=self._by_group(np.abs(new - old)) / self.n_cells,
            change=self._by_group(changed_logs - logs) / self.n_cells,
            shift=shift / self.n_cells,
            towards=towards / self.n_cells,
            embedding=(moved / self.n_cells[:, None]).astype(np.float32),
        )

    def expression_change(self, change: NDArray[np.float32], tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Change of the predicted expression of genes when embeddings change.

        Parameters
        ----------
        change
            Changes of embeddings, as :attr:`Shifts.embedding`, ``(b, d)``.
        tokens
            Token ids of the genes, int64 ``(n,)``.

        Returns
        -------
        ``(b, n)``, in units of the network's input; NaN if the network predicts no expression from the cell embedding.
        """
        device = self._options.device
        with torch.inference_mode():
            found = self._network.expression_change(
                torch.from_numpy(change).to(device), torch.from_numpy(tokens).to(device)
            )
        if found is None:
            return np.full((len(change), len(tokens)), np.nan)
        return found.cpu().numpy().astype(np.float64)

    def _by_group(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Sums over the cells of each group, ``(b, g)``, of values ``(c, b)``."""
        member = self.groups[:, None] == np.arange(len(self.n_cells))
        return values.T.astype(np.float64) @ member

    def _each_cell(self) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
        bounds = self._tokens.indptr
        for cell, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
            yield (
                cell,
                np.zeros(1, dtype=np.int64),
                self._tokens.genes[None, start:stop],
                self._tokens.values[None, start:stop],
            )

    def _edited(
        self, tokens: NDArray[np.int64], new: NDArray[np.float32], changed: NDArray[np.bool_]
    ) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
        """Cell, positions of the edited genes, and tokens and values of the edited cells, each ``(k, s)``."""
        for cell, _, genes, values in self._each_cell():
            order = np.argsort(genes[0], kind="stable")
            at = order[np.searchsorted(genes[0], tokens, sorter=order).clip(max=len(order) - 1)]
            present = genes[0, at] == tokens
            gone = present & (new[cell] == 0) & (not self._shows_zeros)
            length = genes.shape[1]
            for kind in (gone, present & ~gone, ~present):
                which = np.flatnonzero(kind & changed[cell])
                step = max(1, self._batch_tokens // length)
                for some in (which[i : i + step] for i in range(0, len(which), step)):
                    if kind is gone:
                        kept = np.arange(length - 1) + (np.arange(length - 1) >= at[some, None])
                        yield cell, some, genes[0][kept], values[0][kept]
                        continue
                    own_genes, own_values = genes.repeat(len(some), axis=0), values.repeat(len(some), axis=0)
                    edited = new[cell, some].astype(np.float32)
                    if present[some[0]]:
                        own_values[np.arange(len(some)), at[some]] = edited
                    else:
                        own_genes = np.column_stack([own_genes, tokens[some]])
                        own_values = np.column_stack([own_values, edited])
                    yield cell, some, own_genes, own_values

    def _run_all(self, pieces: Any) -> NDArray[np.float32]:
        return np.concatenate([after for _, _, after in self._run(pieces)])

    def _run(self, pieces: Any) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
        """Batches of edited cells: cell and gene of each, and its embedding, ``(k, d)``."""
        waiting: list[Any] = []
        size = 0
        for piece in pieces:
            if waiting and size + piece[2].size > self._batch_tokens:
                yield self._embed(waiting)
                waiting, size = [], 0
            waiting.append(piece)
            size += piece[2].size
        if waiting:
            yield self._embed(waiting)

    def _embed(self, pieces: list[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        cells = np.repeat([cell for cell, *_ in pieces], [len(some) for _, some, *_ in pieces])
        genes = np.concatenate([some for _, some, *_ in pieces])
        lengths = [own.shape[1] for _, some, own, _ in pieces for _ in some]
        device = self._options.device
        tokens = torch.from_numpy(np.concatenate([own.ravel() for _, _, own, _ in pieces])).to(device)
        values = torch.from_numpy(np.concatenate([own.ravel() for *_, own in pieces])).to(device)
        with torch.inference_mode():
            after = self._network.embedding(self._encode(tokens, values, lengths)).float().cpu().numpy()
        refuse_not_finite_outputs({"the embedding": after}, self._tokens.cells[cells])
        return cells, genes, after
