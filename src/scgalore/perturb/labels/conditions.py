"""Perturbation of each cell, parsed from labels in any of the usual formats."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd

from scgalore import _logging as logg
from scgalore.data.texts import looks_missing, same_label, text_of, texts_of
from scgalore.errors import MissingKeyError
from scgalore.perturb.labels.control import CONTROL, find_controls
from scgalore.perturb.labels.genes import GeneNames, guide_target
from scgalore.perturb.labels.naming import GeneNaming
from scgalore.perturb.labels.parsing import JOINT, LabelReader, canonical_name, control_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Self

    from numpy.typing import NDArray

    from scgalore._typing import Control

__all__ = ["Conditions", "labels_with_counts"]


@dataclass(frozen=True)
class Conditions:
    """The perturbation of each cell.

    Attributes
    ----------
    codes
        Position in ``names`` for each cell, int64 ``(n_obs,)``; -1 for cells whose label is missing or excluded.
    names
        Canonical names: :data:`CONTROL`, then the perturbations by first appearance. Different names of a gene in labels
        are replaced by one: the name in the measured genes, else the only name in the labels, else its current symbol.
    genes
        Agents of each name, sorted: genes, or one compound at a dose; ``()`` for control.
    spellings
        Labels found for each name, by first appearance.
    labels
        All labels found, by first appearance in the data, except excluded ones.
    written
        Genes of each of ``labels``, in the order of the label, with one name per gene.
    controls
        Labels of control in the data.
    separator
        Separator between genes in the labels.
    n_cells
        Cells of each of ``labels``.
    left_out
        Excluded labels with their numbers of cells: control words other than ``control``, and texts such as ``"nan"``.
    guides
        Target gene of each part of a label that is parsed as a guide.
    joined
        For genes with several names in the labels: these names, by the one that is used.
    renamed
        Name in the measured genes of each gene that has another name in the labels.
    gene_names
        Names of the measured genes.
    """

    kind: ClassVar[str] = "gene"
    """What perturbs: ``"gene"``, or ``"compound"`` in its subclass for compounds at doses."""

    codes: NDArray[np.int64] = field(repr=False)
    names: tuple[str, ...]
    genes: tuple[tuple[str, ...], ...] = field(repr=False)
    spellings: tuple[tuple[str, ...], ...] = field(repr=False)
    labels: tuple[str, ...] = field(repr=False)
    written: tuple[tuple[str, ...], ...] = field(repr=False)
    controls: tuple[str, ...]
    separator: str
    n_cells: tuple[int, ...] = field(repr=False, default=())
    left_out: Mapping[str, int] = field(repr=False, default_factory=dict)
    guides: Mapping[str, str] = field(repr=False, default_factory=dict)
    joined: Mapping[str, tuple[str, ...]] = field(repr=False, default_factory=dict)
    renamed: Mapping[str, str] = field(repr=False, default_factory=dict)
    gene_names: GeneNames = field(repr=False, default_factory=GeneNames)

    @classmethod
    def from_labels(
        cls,
        labels: Iterable[object] | pd.Series,
        *,
        control: Control = None,
        separator: str | None = None,
        genes: Iterable[str] = (),
    ) -> Self:
        """Read the label of each cell.

        Parameters
        ----------
        labels
            Label of each cell, ``(n_obs,)``; NaN, None and texts such as ``"nan"`` are missing labels.
        control
            Label of control, a pattern such as ``"NT_*"``, or a list of these; no other labels are control. ``None`` uses
            the entry of :data:`CONTROL_LABELS` that occurs. Next to a gene (``"A+ctrl"``), each of these words means
            control; alone, it is excluded if another label is passed.
        separator
            Separator between genes. ``None`` infers it: ``"+"`` if a label contains it; ``"_"`` if most labels that
            contain it consist of genes or other labels. Numbers of guides (``"A_1"``) are not genes.
        genes
            Names of the measured genes, used to recognise genes and to choose between several names of a gene.

        Raises
        ------
        DataError
            If no cell or several labels are control, or a label cannot be parsed.
        OptionError
            If ``control`` is not among the labels, or the separator is empty.
        """
        by_label, found = pd.factorize(texts_of(labels))
        counts = dict(zip(found.tolist(), np.bincount(by_label[by_label >= 0], minlength=len(found)), strict=True))
        controls = find_controls(counts, control)
        gene_names = GeneNames(genes)
        reader = LabelReader.of(
            tuple(text for text in counts if not looks_missing(text)), controls, separator, gene_names
        )
        of_text = {text: reader.read(text) for text in counts if text in controls or not looks_missing(text)}
        # A control word means control next to a gene or to the specified label; alone it is excluded.
        texts = tuple(text for text, genes in of_text.items() if genes or not reader.parts(text).isdisjoint(controls))
        left_out = {text: int(n) for text, n in counts.items() if text not in set(texts)}
        written = [of_text[text] for text in texts]
        guides = _guides(written, gene_names)
        targets = [tuple(dict.fromkeys(guides.get(gene, gene) for gene in of_label)) for of_label in written]
        naming = GeneNaming.of([gene for of_label in targets for gene in of_label], gene_names)
        spelled: dict[tuple[str, ...], list[str]] = {(): []}
        for text, target in zip(texts, targets, strict=True):
            spelled.setdefault(tuple(sorted({naming.name(gene) for gene in target})), []).append(text)
        position = {text: i for i, group in enumerate(spelled.values()) for text in group}
        place_of = np.array(
            [*(position.get(text, -1) for text in counts), -1], dtype=np.int64
        )  # code -1 takes the last
        return cls(
            codes=place_of[by_label],
            names=tuple(canonical_name(genes) for genes in spelled),
            genes=tuple(spelled),
            spellings=tuple(tuple(group) for group in spelled.values()),
            labels=texts,
            written=tuple(tuple(dict.fromkeys(map(naming.drawn, target))) for target in targets),
            controls=controls,
            separator=reader.separator,
            n_cells=tuple(int(counts[text]) for text in texts),
            left_out=left_out,
            guides=guides,
            joined=naming.joined(),
            renamed=naming.renamed(),
            gene_names=gene_names,
        )

    @property
    def control(self) -> str | list[str]:
        """Label of control in the data, or a list of labels if there are several."""
        return self.controls[0] if len(self.controls) == 1 else list(self.controls)

    @property
    def perturbations(self) -> tuple[str, ...]:
        """Names without control."""
        return self.names[1:]

    def rows(self, name: object) -> NDArray[np.int64]:
        """Row numbers of the cells of a perturbation, or of control, sorted.

        Parameters
        ----------
        name
            As for :meth:`genes_of`.

        Raises
        ------
        MissingKeyError
            If no perturbation has this name.
        """
        return np.flatnonzero(self.codes == self.index(name)).astype(np.int64)

    def index(self, name: object) -> int:
        """Position of a perturbation in ``names``.

        Parameters
        ----------
        name
            As for :meth:`genes_of`.

        Raises
        ------
        MissingKeyError
            If no perturbation has this name; the message lists similar names.
        """
        place = self._index.get(canonical_name(self.genes_of(name)))
        if place is None:
            close = get_close_matches(str(name), self.names, n=5) or list(self.names[:5])
            msg = f"No perturbation {name!r} among {len(self.names) - 1:,}; similar names: {', '.join(close)}."
            raise MissingKeyError(msg)
        return place

    def genes_of(self, label: object, *, separator: str | None = None) -> tuple[str, ...]:
        """Parse a label into genes, with their names in the data, sorted; ``()`` for control.

        The label need not occur in the data: it may be in the format of the data or of canonical names (``"A+B"``), with
        any name of a gene.

        Parameters
        ----------
        label
            Text or number.
        separator
            Additional separator between genes; ``"+"`` and the separator of the data are always accepted.

        Raises
        ------
        MissingKeyError
            If the label is excluded or missing.
        DataError
            If it cannot be parsed.
        """
        text = text_of(label)
        if text is not None and text not in self._texts:
            text = same_label(text, self._texts) or text
        if text is None or text in self.left_out and text != CONTROL:
            why = "is missing" if text is None else "was excluded, since it is not a perturbation"
            msg = f"The label {label!r} {why}. Name a perturbation, such as {self.names[-1]!r}, or control."
            raise MissingKeyError(msg)
        if text in self._of_label:
            return self.genes[self._of_label[text]]
        if text in self._index:
            return self.genes[self._index[text]]
        between = JOINT if JOINT in text else self.separator
        if between == JOINT and JOINT not in text and separator is not None:
            between = separator
        words = control_words(self.controls, between)
        genes = LabelReader(between, words, self._singles, self.gene_names).read(text)
        return tuple(sorted({self.name_of(gene) for gene in genes}))

    def name_of(self, gene: str) -> str:
        """Name of a gene in the data, given any of its names.

        Parameters
        ----------
        gene
            Symbol, earlier symbol, alias or Ensembl id; the gene need not occur in the data.
        """
        identity = self.gene_names.identity(gene)
        return self._name_of.get(identity) or self.gene_names.measured_as(identity) or gene

    def unknown(self, known: Callable[[str], bool] = lambda gene: False) -> dict[str, int]:
        """Labels with a part that is a gene neither of the data nor of the gene tables, with their numbers of cells.

        Parameters
        ----------
        known
            Function that returns whether a text is known as a gene elsewhere, such as in a vocabulary.
        """
        return {
            text: n
            for text, genes, n in zip(self.labels, self.written, self.n_cells, strict=True)
            if not all(self.gene_names.knows(gene) or known(gene) for gene in genes)
        }

    def report(self) -> None:
        """Log what the labels do not show: excluded cells, pooled labels, and genes with several names."""
        if self.left_out:
            logg.warning(
                f"{sum(self.left_out.values()):,} cells are left out: {labels_with_counts(self.left_out)}. Control is "
                f"{self.control!r} and no other label, and missing values are no perturbation. Pool several controls with "
                "control=[...]."
            )
        if len(self.controls) > 1:
            counts = dict(zip(self.labels, self.n_cells, strict=True))
            logg.info(f"    control: {labels_with_counts({text: counts[text] for text in self.controls}, most=20)}")
        if self.guides:
            pairs = ", ".join(f"{guide!r} of {gene}" for guide, gene in list(self.guides.items())[:5])
            logg.warning(
                f"{len(self.guides)} labels are read as guides of a gene that is a label of its own, and pooled with it: "
                f"{pairs}{', ...' if len(self.guides) > 5 else ''}. sg.pp.collapse_guides(adata) maps guides as you say."
            )
        if self.joined:
            pairs = "; ".join(
                f"{' and '.join(map(repr, names))} are called {gene}" for gene, names in self.joined.items()
            )
            logg.warning(f"Several names of one gene are one perturbation: {pairs}.")
        if self.renamed:
            pairs = ", ".join(f"{old} is {new}" for old, new in list(self.renamed.items())[:5])
            logg.info(f"    {len(self.renamed)} perturbed genes get the name of their column: {pairs}")

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    @cached_property
    def _of_label(self) -> dict[str, int]:
        return {text: i for i, group in enumerate(self.spellings) for text in group}

    @cached_property
    def _texts(self) -> frozenset[str]:
        return frozenset((*self._of_label, *self.names, *self.left_out))

    @cached_property
    def _name_of(self) -> dict[str, str]:
        return {self.gene_names.identity(gene): gene for genes in self.genes for gene in genes}

    @cached_property
    def _singles(self) -> frozenset[str]:
        return frozenset(gene for genes in self.genes for gene in genes)


def labels_with_counts(counts: Mapping[str, int], most: int = 8) -> str:
    """Labels and their numbers of cells, for a message.

    Parameters
    ----------
    counts
        Number of cells of each label.
    most
        Number of labels to show.
    """
    shown = [f"{text!r} ({n:,} cells)" for text, n in list(counts.items())[:most]]
    return ", ".join(shown) + (f" and {len(counts) - most} more" if len(counts) > most else "")


def _guides(written: Iterable[tuple[str, ...]], gene_names: GeneNames) -> dict[str, str]:
    """Labels that are guides of a gene which is also a label, such as ``A_1`` and ``A_g2`` next to ``A``."""
    written = list(written)
    targets = {genes[0] for genes in written if len(genes) == 1 and gene_names.knows(genes[0])}
    parts = dict.fromkeys(gene for genes in written for gene in genes if not gene_names.knows(gene))
    found = {part: guide_target(part, targets.__contains__) for part in parts}
    return {part: target for part, target in found.items() if target is not None}
