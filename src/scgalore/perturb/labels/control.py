"""Labels of control cells: those specified by the user, or the usual words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase

from scgalore._words import few
from scgalore.data.texts import same_label, text_of
from scgalore.errors import DataError, OptionError

__all__ = ["CONTROL", "CONTROL_LABELS", "asked_controls", "find_controls"]

CONTROL = "control"
"""Name of the unperturbed state in results, independent of its label in the data."""

# Case matters: CTRL (chymotrypsin like) is a human gene.
CONTROL_LABELS = (
    CONTROL,
    "Control",
    "ctrl",
    "Ctrl",
    "non-targeting",
    "Non-targeting",
    "Non-Targeting",
    "nontargeting",
    "non_targeting",
    "NT",
    "negctrl",
    "NegCtrl",
    "neg_ctrl",
    "unperturbed",
    "DMSO",
    "dmso",
    "vehicle",
    "Vehicle",
)
"""Labels recognised as control by default, and words that mean control next to a gene: ``"KLF1+ctrl"``."""


def asked_controls(control: object) -> tuple[str, ...]:
    """Labels and patterns given by the user, as text; empty for ``None``.

    Parameters
    ----------
    control
        A label (text or number), a pattern, or a sequence of these.

    Raises
    ------
    OptionError
        If the sequence is empty or contains a missing value.
    """
    if control is None:
        return ()
    several = isinstance(control, Iterable) and not isinstance(control, str | bytes | Mapping)
    texts = [text_of(label) for label in (control if several else [control])]  # type: ignore[attr-defined]
    named = tuple(dict.fromkeys(text for text in texts if text is not None))
    if not named or None in texts:
        msg = f"control={control!r}: expected a label, a pattern such as 'NT_*', or a list of these without gaps."
        raise OptionError(msg)
    return named


def find_controls(labels: Iterable[str], control: object = None) -> tuple[str, ...]:
    """Find the labels of control cells, as spelled in the data.

    Parameters
    ----------
    labels
        Unique labels of the data.
    control
        As for :func:`asked_controls`; ``None`` uses the entry of :data:`CONTROL_LABELS` that occurs. In a pattern,
        ``*`` matches any text, ``?`` one character and ``[...]`` one of several characters; a label equal to the pattern
        is matched literally.

    Raises
    ------
    OptionError
        If a label or pattern matches no label.
    DataError
        If ``control`` is ``None``, and none or several of the usual labels occur.
    """
    labels = tuple(labels)
    if control is None:
        return _usual_word(labels)
    found: list[str] = []
    for name in asked_controls(control):
        own = same_label(name, labels)
        fitting = [own] if own is not None and own in labels else [text for text in labels if fnmatchcase(text, name)]
        if not fitting:
            close = get_close_matches(name, labels, n=5) or list(labels[:5])
            msg = f"control={name!r} is none of the {len(labels):,} labels; similar ones: {', '.join(close)}."
            raise OptionError(msg)
        found += fitting
    return tuple(dict.fromkeys(found))


def _usual_word(labels: tuple[str, ...]) -> tuple[str, ...]:
    found = [label for label in labels if label.strip() in CONTROL_LABELS]
    if len({label.strip() for label in found}) == 1:
        return tuple(found)
    if not found:
        msg = (
            f"No label of control among {', '.join(labels[:5])}{', ...' if labels[5:] else ''}: looked for "
            f"{', '.join(CONTROL_LABELS)}. Name it with control=."
        )
    else:
        msg = (
            f"Several labels look like control: {', '.join(found)}. Name the one that is, control={found[0]!r}: cells of the "
            f"others are left out then. Or pool them, control=[{few(found, len(found))}]."
        )
    raise DataError(msg)
