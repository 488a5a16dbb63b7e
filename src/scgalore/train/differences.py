"""Describes the differences between two runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scgalore.data.fingerprint import changed_files
from scgalore.data.hashing import is_digest
from scgalore.data.identity import KIND

__all__ = ["differences_of_runs"]

BY_NAME = " by name"
"""Suffix of entries that describe the content behind a hash in another entry."""

OF_VALIDATION = "validation: "

FOUND_OUT = {"accumulate": "accumulate_tokens"}
"""Settings that are not passed by the user but derived from others."""

ADVICE = {"processes": "start it with {} again"}


def differences_of_runs(saved: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """Describe the differences between two runs: changed files first, differing hashes last.

    Parameters
    ----------
    saved, identity
        Identities of the runs. An entry such as ``"files"`` can have a second one, ``"files by name"``, which describes
        the difference.
    """
    names = {key for key in (*saved, *identity) if key.endswith(BY_NAME)}
    differing = [key for key in sorted({*saved, *identity} - names) if saved.get(key) != identity.get(key)]
    named = {key: key + BY_NAME for key in differing if key + BY_NAME in saved.keys() & identity.keys()}
    asked = [key for key in differing if not (key in FOUND_OUT and _has(FOUND_OUT[key], saved, identity))] or differing
    # Held-out cells are read like the others, so most differences occur in both.
    asked.sort(key=lambda key: key.startswith(OF_VALIDATION))
    texts: dict[str, bool] = {}
    for key in asked:
        if key not in named:
            for text, is_hash in _differences(key.removeprefix(OF_VALIDATION), saved.get(key), identity.get(key)):
                shown = text if key == key.removeprefix(OF_VALIDATION) else OF_VALIDATION + text
                if text not in texts:
                    texts[shown] = is_hash
    return [
        *dict.fromkeys(changed_files(saved[by_name], identity[by_name]) for by_name in named.values()),
        *sorted(texts, key=texts.__getitem__),
    ]


def _differences(name: str, before: Any, now: Any) -> list[tuple[str, bool]]:
    """Differences of an entry, and whether they are hashes."""
    if _has_parts(before) and _has_parts(now):
        if before[KIND] != now[KIND]:
            return _differences(name, before[KIND], now[KIND])
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return [text for key in keys for text in _differences(key, before.get(key), now.get(key))]
    if is_digest(before) or is_digest(now):
        return [(f"other {name}", True)]
    advice = f" ({ADVICE[name].format(before)})" if name in ADVICE else ""
    return [(f"{name} was {before!r}, now {now!r}{advice}", False)]


def _has_parts(value: Any) -> bool:
    return isinstance(value, Mapping) and KIND in value


def _has(name: str, *runs: Mapping[str, Any]) -> bool:
    return any(run.get(name) is not None for run in runs)
