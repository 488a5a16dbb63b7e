"""Load a model from a name or a folder, including an adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from scgalore.errors import OptionError, WeightsError
from scgalore.model.adapter_files import is_adapter_folder, read_adapter
from scgalore.model.files import read_model
from scgalore.model.training import apply_adapter
from scgalore.train.result import TrainResult
from scgalore.weights import resolve_model_folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from scgalore._typing import PathLike
    from scgalore.model.adapter_files import StoredAdapter
    from scgalore.model.family import Family

__all__ = ["load_model"]


def load_model(model: PathLike, *, base: PathLike | None, families: Mapping[str, Family]) -> Any:
    """Load a model of one of the given families.

    Parameters
    ----------
    model
        Name in the registry, address on the hub, or folder.
    base
        Location of the base weights of an adapter, if it differs from the one recorded in its folder.
    families
        Possible families.

    Returns
    -------
    A model of its family's class.
    """
    folder, entry = resolve_model_folder(model)
    if entry is not None:
        model = entry.name  # with the commit, so that the next look-up needs no network
    if is_adapter_folder(folder):
        return _with_adapter(folder, str(model), base, families)
    if base is not None:
        msg = f"base={str(base)!r} is for an adapter, but {str(model)!r} is not one. Omit base=."
        raise OptionError(msg)
    stored = read_model(model, families)
    known = {"family": stored.family, "provenance": stored.provenance, "load_report": stored.report}
    try:
        loaded = stored.family.model(stored.network, stored.vocab, **known)
    except WeightsError as error:
        msg = f"The vocabulary and the network of {stored.provenance['name']} do not match: {error}"
        raise WeightsError(msg) from error
    loaded.result, loaded.licence = stored.result, stored.licence
    return loaded


def _with_adapter(folder: Path, own_name: str, base: PathLike | None, families: Mapping[str, Family]) -> Any:
    stored = read_adapter(folder)
    name = stored.base["name"] if base is None else base
    if is_adapter_folder(resolve_model_folder(name)[0]):
        msg = f"The adapter in {folder} names {str(name)!r} as its weights, which is an adapter too. Name whole weights with base=."
        raise WeightsError(msg)
    loaded = load_model(name, base=None, families=families)
    if loaded.provenance["sha256"] != stored.base["sha256"]:
        msg = (
            f"The adapter in {folder} was trained on {stored.base['name']} (sha256 {stored.base['sha256'][:12]}), and "
            f"{loaded.provenance['name']} has other weights ({loaded.provenance['sha256'][:12]}). Pass the right ones "
            "as base=."
        )
        raise WeightsError(msg)
    if stored.memory != loaded.memory:
        _check_heads(folder, stored, loaded.network.config.heads)
        loaded.put_heads(stored.heads, seed=0)
    try:
        apply_adapter(loaded.network, stored.weights)
    except OptionError as error:
        msg = f"The adapter in {folder} does not match {loaded.provenance['name']}: {error}"
        raise WeightsError(msg) from error
    loaded.result = TrainResult(history=pd.DataFrame(), adapter=(stored.weights, stored.base), memory=stored.memory)
    loaded.provenance = {**loaded.provenance, "name": own_name, "sha256": "", "layout": "adapter"}
    loaded.provenance["base"] = stored.base["name"]
    return loaded


def _check_heads(folder: PathLike, stored: StoredAdapter, own: Mapping[str, int]) -> None:
    """Raise an error, before allocating memory, for heads without tensors in the adapter or its base."""
    rows = {len(tensor) for tensor in stored.weights.heads.values() if tensor.ndim}
    for name, n in stored.heads.items():
        if own.get(name) != n and n not in rows:
            msg = f"The adapter in {folder} lists a head {name!r} with {n:,} outputs but has no such tensor. Save it again."
            raise WeightsError(msg)
