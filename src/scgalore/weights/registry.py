"""The weights scgalore knows by name: ``registry.toml``, read once."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from scgalore._fetch import RemoteFile, refusal_of
from scgalore.errors import OptionError

__all__ = ["WeightsEntry", "WeightsFile", "get_entry", "list_weights"]


@dataclass(frozen=True)
class WeightsFile:
    """One file of a :class:`WeightsEntry`.

    Attributes
    ----------
    name
        File name inside the entry's folder.
    url
        Address at a fixed revision; empty if the file lies in the package or has no direct address.
    size
        Bytes, where known.
    sha256
        What the content must hash to; empty if nobody has published it.
    """

    name: str
    url: str = ""
    size: int | None = None
    sha256: str = ""

    @property
    def remote(self) -> RemoteFile:
        """What a download has to know."""
        return RemoteFile(self.name, (self.url,) if self.url else (), self.size, self.sha256)


@dataclass(frozen=True)
class WeightsEntry:
    """Weights with a name.

    Attributes
    ----------
    name
        What users write: ``model="scgpt"``.
    description
        One line about the cells and the size.
    files
        Everything :func:`~scgalore.weights.read_checkpoint` needs, small files first.
    licence, citation, homepage
        Of the weights, which need not be those of scgalore's code.
    revision
        Version of the source that the addresses and hashes belong to.
    bundled
        Whether the files are shipped inside the package.
    args
        Stands in for an ``args.json`` that the source lacks.
    zero_shot
        One sentence on what embeddings without fine-tuning are worth, which :func:`scgalore.tl.embed` reports; empty where
        nothing was measured.
    in_silico
        The same of genes changed in silico, which :func:`scgalore.tl.perturb_in_silico` warns with.
    family
        Entry of :data:`scgalore.model.FAMILIES` that reads them.
    """

    name: str
    description: str
    files: tuple[WeightsFile, ...]
    licence: str
    citation: str
    homepage: str
    revision: str | None = None
    bundled: bool = False
    args: Mapping[str, Any] | None = None
    zero_shot: str = ""
    in_silico: str = ""
    family: str = "scgpt"

    @property
    def refusal(self) -> str | None:
        """Why these weights cannot be fetched; ``None`` if they can."""
        if self.bundled:
            complete = all(file.sha256 for file in self.files)
            return None if complete else "they are not built yet in this version of scgalore"
        return refusal_of([file.remote for file in self.files])


def list_weights() -> list[str]:
    """Names of all registered weights, including those that :attr:`WeightsEntry.refusal` keeps from being fetched."""
    return list(_registry())


def get_entry(name: str) -> WeightsEntry:
    """Look up registered weights.

    Parameters
    ----------
    name
        One of :func:`list_weights`.

    Raises
    ------
    OptionError
        If there are no weights of this name.
    """
    registry = _registry()
    if name not in registry:
        msg = f"No weights are registered as {name!r}. {suggestion(name)}"
        raise OptionError(msg)
    return registry[name]


def suggestion(name: str) -> str:
    """Sentences that list the registered names, the one closest to ``name`` first."""
    close = get_close_matches(name.lower(), list_weights(), n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Registered are: {', '.join(list_weights())}."


@cache
def _registry() -> dict[str, WeightsEntry]:
    content = tomllib.loads(Path(__file__).with_name("registry.toml").read_text(encoding="utf-8"))
    return {name: _entry(name, content["origins"], **table) for name, table in content["weights"].items()}


def _entry(
    name: str,
    origins: Mapping[str, Mapping[str, str]],
    *,
    origin: str,
    files: list[dict[str, Any]],
    url: str = "",
    **fields: Any,
) -> WeightsEntry:
    return WeightsEntry(
        name=name,
        files=tuple(
            WeightsFile(**{"url": url.format(revision=fields.get("revision"), file=file["name"]), **file})
            for file in files
        ),
        **{**origins[origin], **fields},
    )
