"""Going on with a run for more epochs than it was begun with.

What a run has done so far does not depend on how many epochs were asked for, but for its learning rates, nor on a patience that
it has not used up. So these may grow when it is continued, and nothing else may change.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scgalore.train.config import TrainConfig

__all__ = ["GROWING", "extended", "extended_config"]

GROWING = ("max_epochs", "patience")
"""Settings that may grow when a run is continued."""


def extended(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run as they are after it was extended as far as was asked for.

    Parameters
    ----------
    saved
        Settings it was begun with, by name.
    wanted
        Settings of the call that continues it.

    Returns
    -------
    ``saved`` with the wanted ``max_epochs`` and ``patience`` where these are larger (no ``patience`` is the largest), and with a
    curriculum whose last phase takes the further epochs. The phases before it are past.
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
        How to train. Rising numbers of genes share the epochs of one run out evenly, which those of a begun one are no longer.
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
