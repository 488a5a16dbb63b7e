"""Registry of data sets, read once from ``registry.toml``."""

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
"""Source whose conventions for columns and labels a file follows."""

SOURCES: tuple[Source, ...] = get_args(Source)


@dataclass(frozen=True)
class DatasetEntry:
    """A registered data set.

    Attributes
    ----------
    name
        Name of the data set.
    description
        One line about the cells and the values.
    source
        Provider of the file, whose conventions it follows; see :func:`scgalore.datasets.to_canonical`.
    file
        Download: an h5ad file, or a zip archive that contains one.
    member
        File of the archive that is kept; ``None`` if the download is not an archive.
    licence, citation, homepage
        Those of the data and their provider, not of scgalore's code.
    cell_type
        Type of all cells, if it is wrong in the file.

    See Also
    --------
    scgalore.datasets.get_entry : Look up a data set.

    Examples
    --------
    >>> import scgalore as sg
    >>> entry = sg.datasets.get_entry("perturbench_devel")
    >>> entry.source
    'perturbench'
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
        """Reason why this data set cannot be downloaded; ``None`` if it can."""
        return refusal_of([self.file])


def list_datasets() -> list[str]:
    """Names of all registered data sets, including those that cannot be downloaded (:attr:`DatasetEntry.refusal`).

    See Also
    --------
    scgalore.datasets.get_entry : Look up a data set.
    scgalore.datasets.load_dataset : Read a data set by its name.

    Examples
    --------
    >>> import scgalore as sg
    >>> "perturbench_devel" in sg.datasets.list_datasets()
    True
    """
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
        If there is no data set with this name.

    See Also
    --------
    scgalore.datasets.list_datasets : List the names of all data sets.
    scgalore.datasets.load_dataset : Read a data set by its name.

    Examples
    --------
    >>> import scgalore as sg
    >>> sg.datasets.get_entry("perturbench_devel").cell_type is None
    True
    """
    registry = _registry()
    if name not in registry:
        close = get_close_matches(str(name).lower(), registry, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        msg = f"No data set is named {name!r}. {hint}Choose one of {', '.join(registry)}."
        raise OptionError(msg)
    return registry[name]


def registry_table() -> str:
    """All entries as a Markdown table, for the documentation."""
    lines = ["| name | content | download | licence |", "| --- | --- | --- | --- |"]
    for entry in _registry().values():
        size = "" if entry.file.size is None else f"{entry.file.size / 1e6:,.0f} MB"
        download = size if entry.refusal is None else f"not available: {entry.refusal}"
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
