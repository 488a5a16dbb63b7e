"""Conversion of guide labels to labels of the targeted genes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd

from scgalore.data.texts import looks_missing, text_of
from scgalore.errors import DataError, OptionError
from scgalore.perturb.labels.control import CONTROL, CONTROL_LABELS
from scgalore.perturb.labels.genes import guide_target

if TYPE_CHECKING:
    from collections.abc import Collection

    from scgalore.perturb.labels.genes import GeneNames

__all__ = ["Collapser", "read_guide_table"]

GUIDE_COLUMNS = ("guide", "guide_id", "guide_name", "sgrna", "sgrna_id", "sgRNA", "protospacer_id", "id")
GENE_COLUMNS = ("gene", "gene_name", "gene_symbol", "symbol", "target", "target_gene", "target_gene_name")


@dataclass(frozen=True)
class Collapser:
    """Maps labels to their targets.

    Attributes
    ----------
    labels
        All labels in the data. A label that is not a guide can be the target of others.
    controls
        Labels that are converted to control.
    gene_names
        Names of known genes, which are not parsed as guides.
    separator
        Separator between guides; ``None`` is ``"+"``, or ``"_"`` between genes.
    pattern
        Regular expression that extracts the target from the name of a guide; ``None`` recognises the usual formats.
    table
        Target of each guide, instead of a pattern.
    """

    labels: Collection[str] = field(repr=False)
    controls: Collection[str]
    gene_names: GeneNames
    separator: str | None = None
    pattern: re.Pattern[str] | None = None
    table: Mapping[str, str] | None = field(repr=False, default=None)

    def target(self, label: str) -> tuple[str | None, str]:
        """Target of a label, and how it was determined.

        Parameters
        ----------
        label
            A label in the data.

        Returns
        -------
        Genes joined by ``"+"``, a control word, or ``None`` if the label is missing; and ``"control"``, ``"guide"``,
        ``"gene"``, ``"missing"`` or ``"unmapped"`` (the label is then returned as it is).
        """
        if label in self.controls:
            return CONTROL, "control"
        if looks_missing(label):
            return None, "missing"
        whole = self._part(label)
        if whole is not None:
            return whole, "control" if whole in CONTROL_LABELS else "gene" if whole == label else "guide"
        for mark in ("+", "_") if self.separator is None else (self.separator,):
            parts = [part.strip() for part in label.split(mark)]
            found = [CONTROL if part in self.controls else self._part(part) for part in parts]
            if len(parts) < 2 or None in found or (mark == "_" != self.separator and found != parts):
                continue
            targets = list(dict.fromkeys(part for part in found if part is not None))
            genes = [part for part in targets if part not in CONTROL_LABELS]
            # Control next to a gene has no effect. Different control words are kept, so that the user can pool them.
            return "+".join(genes or targets), "guide" if found != parts else "gene" if genes else "control"
        return label, "unmapped"

    def _part(self, name: str) -> str | None:
        """Target of one guide; a gene or control word is its own target. ``None`` for other text."""
        if self.table is not None and name in self.table:
            return self.table[name]
        if self._is_target(name):
            return name
        if self.table is not None:
            return None
        if self.pattern is None:
            return guide_target(name, lambda text: text != name and (self._is_target(text) or text in self.labels))
        found = self.pattern.fullmatch(name)
        target = None if found is None else found["gene"] if "gene" in self.pattern.groupindex else found[1]
        return target if target and not self._is_several(target) else None

    def _is_several(self, text: str) -> bool:
        """Whether a pattern has matched beyond the end of the first guide."""
        return any(mark in text for mark in ("+", self.separator or "+")) and not self._is_target(text)

    def _is_target(self, text: str) -> bool:
        return text in CONTROL_LABELS or self.gene_names.knows(text)


def compiled(pattern: str | re.Pattern[str]) -> re.Pattern[str]:
    """Compile a pattern with a group for the target.

    Raises
    ------
    OptionError
        If it is not a regular expression, or has no such group.
    """
    try:
        found = re.compile(pattern)
    except (re.error, TypeError) as error:
        msg = f"pattern={pattern!r} is not a regular expression: {error}."
        raise OptionError(msg) from error
    if found.groups != 1 and "gene" not in found.groupindex:
        msg = f"pattern={pattern!r}: expected one group that holds the gene, such as r'(.+)_sg\\d+', or a group (?P<gene>...)."
        raise OptionError(msg)
    return found


def read_guide_table(table: object) -> dict[str, str]:
    """Read the target of each guide.

    Parameters
    ----------
    table
        Dictionary or Series from guide to gene, or a DataFrame with a column for each.

    Raises
    ------
    OptionError
        If the table has another type, or its columns are not recognised.
    DataError
        If a guide has several genes.
    """
    if isinstance(table, pd.DataFrame):
        genes = [name for name in GENE_COLUMNS if name in table] or list(table.columns)[-1:]
        guides = [name for name in GUIDE_COLUMNS if name in table]
        if not guides and table.shape[1] == 2:
            guides = [name for name in table.columns if name != genes[0]]
        if not genes or (not guides and table.shape[1] > 1 and genes[0] not in GENE_COLUMNS):
            msg = (
                f"table has the columns {list(table.columns)}; expected one of guides ({', '.join(GUIDE_COLUMNS)}) and one of "
                f"genes ({', '.join(GENE_COLUMNS)}), or guides as index."
            )
            raise OptionError(msg)
        pairs = zip(table[guides[0]] if guides else table.index, table[genes[0]], strict=True)
    elif isinstance(table, pd.Series | Mapping):
        pairs = zip(table.keys(), table.values() if isinstance(table, Mapping) else table, strict=True)
    else:
        msg = f"table is a {type(table).__name__}; expected a dictionary or Series of guide to gene, or a DataFrame."
        raise OptionError(msg)
    found: dict[str, str] = {}
    for guide, gene in ((text_of(guide), text_of(gene)) for guide, gene in pairs):
        if guide is not None and gene is not None and found.setdefault(guide, gene) != gene:
            msg = (
                f"table maps the guide {guide!r} to {found[guide]!r} and to {gene!r}; expected one gene for each guide."
            )
            raise DataError(msg)
    return found
