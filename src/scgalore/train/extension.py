"""Resuming a run with more epochs than it was started with.

Apart from learning rates, the state of a run does not depend on the total number of epochs, nor on a patience that has
not been exceeded. These settings may therefore be increased when a run is resumed; no others may change.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scgalore.train.config import TrainConfig

__all__ = ["GROWING", "extended", "extended_config"]

GROWING = ("max_epochs", "patience")
"""Settings that may be increased when a run is resumed."""


def extended(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run after its extension.

    Parameters
    ----------
    saved
        Settings the run was started with, by name.
    wanted
        Settings of the call that resumes it.

    Returns
    -------
    ``saved`` with ``max_epochs`` and ``patience`` of ``wanted`` if these are larger (``patience=None`` is the largest),
    and with a curriculum whose last phase has the additional epochs.
    """
    result = dict(saved)
    before, after = saved.get("max_epochs"), wanted.get("max_epochs")
    if before is not None and after is not None and after > before:
        result["max_epochs"] = after
        if isinstance(saved.get("curriculum"), dict):
            phases = dict(saved["curriculum"])
            phases[max(phases)] += after - before
            result["curriculum"] = phases
    if saved.get("patience") is not None:
        patience = wanted.get("patience")
        result["patience"] = patience if patience is None else max(patience, saved["patience"])
    return result


def extended_config(config: TrainConfig, saved: Mapping[str, Any] | None) -> TrainConfig:
    """Give a run that is continued for more epochs the phases that it was begun with.

    Parameters
    ----------
    config
        Training settings. Rising numbers of genes share the epochs of one run out evenly, which those of a begun one are no
        longer.
    saved
        Settings that the run was begun with; ``None`` for a new one.
    """
    if config.curriculum is None or saved is None or saved.get("curriculum") is None:
        return config
    phases = extended(saved, config.to_dict())["curriculum"]
    assert isinstance(config.curriculum, dict)  # so it is once it has been checked
    if list(phases) != list(config.curriculum) or sum(phases.values()) != config.max_epochs:
        return config  # of another run, which is refused when the two are compared
    return replace(config, curriculum=phases)
