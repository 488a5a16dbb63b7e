"""Parsing of perturbation labels into control, agents and separators.

An agent perturbs cells: a gene, or a compound at a dose. Both are text, ``"KLF1"`` and ``"dexamethasone@0.5"``, so that
names of perturbations are text in tables and files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from scgalore.errors import DataError, OptionError
from scgalore.perturb.labels.control import CONTROL, CONTROL_LABELS, asked_controls
from scgalore.perturb.labels.genes import GeneNames, is_guide_number

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from scgalore._typing import Control

__all__ = [
    "JOINT",
    "Agent",
    "LabelReader",
    "agents_of",
    "at_dose",
    "canonical_name",
    "control_words",
    "genes_as_written",
    "parse_condition",
    "subject_of",
]

JOINT = "+"
"""Separator of the genes in a canonical name."""

_DOSED = re.compile(r"(.+)@(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", flags=re.DOTALL)


class Agent(NamedTuple):
    """Gene, or compound at a dose, that perturbs cells.

    Attributes
    ----------
    subject
        Name of the gene or compound.
    dose
        Dose of the compound; ``None`` for a gene.
    """

    subject: str
    dose: float | None

    @classmethod
    def of(cls, text: str) -> Agent:
        """Parse an agent.

        Parameters
        ----------
        text
            ``"KLF1"`` or ``"dexamethasone@0.5"``.

        Examples
        --------
        >>> Agent.of("KLF1"), Agent.of("dexamethasone@0.5")
        (Agent(subject='KLF1', dose=None), Agent(subject='dexamethasone', dose=0.5))
        """
        found = _DOSED.fullmatch(text)
        return cls(text, None) if found is None else cls(found[1], float(found[2]))


def at_dose(compound: str, dose: float) -> str:
    """Name of a compound at a dose, which is rounded to six significant digits.

    Parameters
    ----------
    compound
        Its name.
    dose
        Positive, in the unit of the data.
    """
    return f"{compound}@{dose:.6g}"


def subject_of(agent: str) -> str:
    """Gene or compound of an agent, without a dose."""
    return Agent.of(agent).subject


def agents_of(name: str) -> tuple[str, ...]:
    """Agents of a canonical name; ``()`` for control.

    Parameters
    ----------
    name
        As returned by :func:`canonical_name`. A compound's name may contain a ``+``, since compounds are not combined.

    Examples
    --------
    >>> agents_of("KLF1+MAP2K6"), agents_of("(+)-JQ1@10"), agents_of("control")
    (('KLF1', 'MAP2K6'), ('(+)-JQ1@10',), ())
    """
    if name == CONTROL:
        return ()
    return (name,) if _DOSED.fullmatch(name) else tuple(name.split(JOINT))


def canonical_name(genes: Iterable[str]) -> str:
    """Name of a perturbation: its agents, sorted and joined by ``+``; :data:`CONTROL` for none.

    Parameters
    ----------
    genes
        Symbols in any order, or a compound at a dose.
    """
    return JOINT.join(sorted(genes)) or CONTROL


def parse_condition(text: str, *, control: Control = None, separator: str | None = None) -> tuple[str, ...]:
    """Parse one label into genes, sorted; ``()`` for control.

    Parameters
    ----------
    text
        ``"A"``, ``"A+ctrl"``, ``"ctrl+A"``, ``"A+B"``, or the same with another separator.
    control
        Label of control, or several. Each of :data:`CONTROL_LABELS` means control next to a gene, and also alone if this
        is ``None``.
    separator
        Separator between genes; ``"+"`` by default.

    Raises
    ------
    DataError
        If a part is empty or a gene occurs twice.
    OptionError
        If the separator is empty.

    Examples
    --------
    >>> parse_condition("MAP2K6+KLF1"), parse_condition("ctrl+KLF1"), parse_condition("ctrl")
    (('KLF1', 'MAP2K6'), ('KLF1',), ())
    """
    named = asked_controls(control) or CONTROL_LABELS
    controls = named if text.strip() in CONTROL_LABELS else (*named, *CONTROL_LABELS)
    return tuple(sorted(genes_as_written(text, controls=controls, separator=_joint(separator))))


def genes_as_written(text: str, *, controls: Sequence[str], separator: str) -> tuple[str, ...]:
    """Parse one label into genes, in the order of the label; ``()`` for control.

    Parameters
    ----------
    text
        The label.
    controls
        Words for control, alone or as a part.
    separator
        What stands between the parts.

    Raises
    ------
    DataError
        If a part is empty, a gene occurs twice, or a gene contains a ``+`` that is not the separator.
    """
    parts = _parts(text.strip(), controls, separator)
    genes = tuple(part for part in parts if part not in controls)
    fault = ""
    if not all(genes):
        fault = "has an empty part"
    elif len(set(genes)) < len(genes):
        fault = "names a gene twice"
    elif any(JOINT in gene for gene in genes):
        fault = f"holds a {JOINT!r}, which the separator {separator!r} leaves inside a gene name"
    if fault:
        msg = (
            f"The label {text!r} {fault}; expected a gene, genes joined by {separator!r}, or a label of control. "
            "Correct the label, or pass control= or separator= if they were not recognised."
        )
        raise DataError(msg)
    return genes


@dataclass(frozen=True)
class LabelReader:
    """Parses labels."""

    separator: str
    controls: tuple[str, ...]
    alone: Collection[str]
    gene_names: GeneNames

    @classmethod
    def of(
        cls, labels: tuple[str, ...], controls: tuple[str, ...], separator: str | None, gene_names: GeneNames
    ) -> LabelReader:
        """Detect the separator between genes if it is not given."""
        joint = _joint(separator)
        if separator is None and not any(JOINT in text for text in labels if text not in controls):
            words = control_words(controls, "_")
            reader = cls("_", words, {text for text in labels if "_" not in text}, gene_names)
            if reader.separates([text for text in labels if "_" in text and text not in words]):
                return reader
        return cls(joint, control_words(controls, joint), {text for text in labels if joint not in text}, gene_names)

    def parts(self, text: str) -> frozenset[str]:
        """Parts of a label; a control label is a single part."""
        return frozenset((text, text.strip(), *_parts(text.strip(), self.controls, self.separator)))

    def read(self, text: str) -> tuple[str, ...]:
        """Genes of a label, in the order of the label."""
        if text not in self.controls and self._is_one(text):
            return (text.strip(),)
        return genes_as_written(text, controls=self.controls, separator=self.separator)

    def _is_one(self, text: str) -> bool:
        """Whether a label that contains the separator is nevertheless a single name: of a gene (``HLA-A``) or a guide."""
        if self.separator == JOINT or self.separator not in text:
            return False
        return self.gene_names.knows(text) or any(
            is_guide_number(part) and not self._is_name(part) for part in _parts(text, self.controls, self.separator)
        )

    def _is_name(self, part: str) -> bool:
        return part in self.alone or part in self.controls or self.gene_names.knows(part)

    def separates(self, labels: list[str]) -> bool:
        """Whether most labels that may be pairs consist of names."""
        pairs = [_parts(text, self.controls, self.separator) for text in labels if not self._is_one(text)]
        n_made_of_names = sum(all(map(self._is_name, parts)) for parts in pairs)
        return bool(pairs) and 2 * n_made_of_names >= len(pairs)


def control_words(controls: tuple[str, ...], separator: str) -> tuple[str, ...]:
    """Words that mean control next to a gene (``"A+ctrl"``), which may differ from the label of control cells.

    If control cells have the same guide twice (``"NegCtrl0_NegCtrl0"``), the guide means control as well.

    Parameters
    ----------
    controls
        Labels of control in the data.
    separator
        What stands between the parts of a label.
    """
    twice = [label.split(separator) for label in controls]
    guides = [parts[0] for parts in twice if len(parts) > 1 and len(set(parts)) == 1]
    return tuple(dict.fromkeys((*controls, *guides, *CONTROL_LABELS)))


def _joint(separator: str | None) -> str:
    if separator == "":
        msg = "separator is empty; expected what stands between the genes of a label, such as '+' or '_'."
        raise OptionError(msg)
    return JOINT if separator is None else separator


def _parts(text: str, controls: Sequence[str], separator: str) -> list[str]:
    """Parts of a label; control words are removed first, since they may contain the separator ("non_targeting")."""
    if text in controls:
        return [text]
    for control in controls:
        if text.endswith(separator + control):
            return [*_parts(text[: -len(separator + control)], controls, separator), control]
        if text.startswith(control + separator):
            return [control, *_parts(text[len(control + separator) :], controls, separator)]
    return [part.strip() for part in text.split(separator)]
