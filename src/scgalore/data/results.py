"""Everything a call writes to an AnnData, collected to be written at once or not at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import pandas as pd

from scgalore._uns import to_uns
from scgalore.data.resolve import shown_keys, write_obs, write_var
from scgalore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from anndata import AnnData

    from scgalore import _logging as logg
    from scgalore._typing import Data

__all__ = ["Read", "Results", "refuse_overwrite"]

Read: TypeAlias = "tuple[str, str, str | None]"
"""A slot, the argument with a key in it, and the key; ``None`` if nothing is read."""


@dataclass
class Results:
    """Values by slot and key, each with a short description for the log message.

    Attributes
    ----------
    obs, var, obsm, varm, uns
        Pairs of a value and its description, by key.
    """

    obs: dict[str, tuple[Any, str]] = field(default_factory=dict)
    var: dict[str, tuple[Any, str]] = field(default_factory=dict)
    obsm: dict[str, tuple[Any, str]] = field(default_factory=dict)
    varm: dict[str, tuple[Any, str]] = field(default_factory=dict)
    uns: dict[str, tuple[Any, str]] = field(default_factory=dict)

    def write(self, data: Data, adata: AnnData, *, mod: str = "rna", step: logg.Step | None = None) -> None:
        """Write to the AnnData, add ``obs`` and ``var`` to the MuData, and log the keys.

        Parameters
        ----------
        data, adata
            The AnnData or MuData passed by the user, and the AnnData in it.
        mod
            Modality of a MuData.
        step
            Log step that reports the keys.
        """
        uns = {key: to_uns(value) for key, (value, _) in self.uns.items()}
        if adata.is_view:
            # As in scanpy: writing to a view would copy it anyway, with a warning that points here and not to the
            # user's code.
            adata._init_as_actual(adata.copy())
        for key, (value, _) in self.obs.items():
            adata.obs[key] = pd.Series(value, index=adata.obs_names)
        for key, (value, _) in self.var.items():
            adata.var[key] = pd.Series(value, index=adata.var_names)
        for key, (value, _) in self.obsm.items():
            adata.obsm[key] = value
        for key, (value, _) in self.varm.items():
            adata.varm[key] = value
        adata.uns.update(uns)
        write_obs(data, adata, list(self.obs), mod=mod)
        write_var(data, adata, list(self.var), mod=mod)
        if step is None:
            return
        for slot in ("obs", "var", "obsm", "varm", "uns"):
            for key, (_, what) in getattr(self, slot).items():
                step.added(slot, key, what)


def refuse_overwrite(
    writes: Mapping[str, Iterable[str]], reads: Iterable[Read], *, data: Data | None = None, mod: str = "rna"
) -> None:
    """Raise :class:`~scgalore.errors.OptionError` if a call would overwrite what it reads.

    Called before any work, so that labels and records of the user are never replaced by results derived from them. A
    second call may replace the results of the first.

    Parameters
    ----------
    writes
        Keys that the call may write, by slot.
    reads
        Keys that it reads.
    data, mod
        AnnData or MuData, and modality; the tables of a MuData contain the columns of its modalities as well.
    """
    taken = {slot: {*keys, *shown_keys(data, slot, keys, mod)} for slot, keys in writes.items()}
    for slot, argument, key in reads:
        if key is not None and key in taken.get(slot, ()):
            msg = (
                f"adata.{slot}[{key!r}] is read by this call ({argument}) and would be overwritten by its results. Pass another "
                f"key_added=, or read a copy: adata.{slot}['my_{key}'] = adata.{slot}[{key!r}]."
            )
            raise OptionError(msg)
