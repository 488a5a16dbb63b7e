"""The data sets scgalore knows by name: ``registry.toml``, read once."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from scgalore._fetch import RemoteFile, refusal_of
from scgalore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["SOURCES", "DatasetEntry", "Source", "get_entry", "list_datasets", "registry_table"]

Source = Literal["gears", "scperturb", "perturbench", "vcc"]
"""Whose way of naming columns and labels a file follows."""

SOURCES: tuple[Source, ...] = get_args(Source)


@dataclass(frozen=True)
class DatasetEntry:
    """A data set with a name.

    Attributes
    ----------
    name
        What users write.
    description
        One line about the cells and the values.
    source
        Who offers the file, and whose conventions it follows; see :func:`scgalore.datasets.to_canonical`.
    file
        What is downloaded: an h5ad file, or a zip archive that holds one.
    member
        The file of the archive that is kept; ``None`` if no archive is downloaded.
    licence, citation, homepage
        Of the data and of who offers them, which are not those of scgalore's code.
    cell_type
        Type of all cells, where the file states a wrong one.
    """

    name: str
    description: str
    source: Source
    file: RemoteFile
    licence: str
    citation: str
    homepage: str
    member: RemoteFile | None = None
    cell_type: str | None = None

    @property
    def refusal(self) -> str | None:
        """Why this data set cannot be fetched; ``None`` if it can."""
        return refusal_of([self.file])


def list_datasets() -> list[str]:
    """Names of all registered data sets, including those that :attr:`DatasetEntry.refusal` keeps from being fetched."""
    return list(_registry())


def get_entry(name: str) -> DatasetEntry:
    """Look up a registered data set.

    Parameters
    ----------
    name
        One of :func:`list_datasets`.

    Raises
    ------
    OptionError
        If there is no data set of this name.
    """
    registry = _registry()
    if name not in registry:
        close = get_close_matches(str(name).lower(), registry, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        msg = f"No data set is registered as {name!r}. {hint}Registered are: {', '.join(registry)}."
        raise OptionError(msg)
    return registry[name]


def registry_table() -> str:
    """All entries as a Markdown table, for the documentation."""
    lines = ["| name | what it holds | download | licence |", "| --- | --- | --- | --- |"]
    for entry in _registry().values():
        size = "" if entry.file.size is None else f"{entry.file.size / 1e6:,.0f} MB"
        download = size if entry.refusal is None else f"refused: {entry.refusal}"
        lines.append(f"| `{entry.name}` | {entry.description} | {download} | {entry.licence} |")
    return "\n".join(lines) + "\n"


@cache
def _registry() -> dict[str, DatasetEntry]:
    content = tomllib.loads(Path(__file__).with_name("registry.toml").read_text(encoding="utf-8"))
    return {name: _entry(name, content, **table) for name, table in content["datasets"].items()}


def _entry(
    name: str,
    content: Mapping[str, Any],
    *,
    source: Source,
    studies: list[str],
    file: dict[str, Any],
    member: dict[str, Any] | None = None,
    **fields: Any,
) -> DatasetEntry:
    offered = content["sources"][source]
    urls = file.pop("urls", None) or offered.get("urls", ())
    return DatasetEntry(
        name=name,
        source=source,
        file=RemoteFile(urls=tuple(url.format(file=file["name"]) for url in urls), **file),
        member=None if member is None else RemoteFile(urls=(), **member),
        citation="; ".join([*(content["studies"][study]["citation"] for study in studies), offered["citation"]]),
        licence=offered["licence"],
        homepage=offered["homepage"],
        **fields,
    )
