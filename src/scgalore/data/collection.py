"""Named groups of files and objects, as listed by the user."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from anndata import AnnData

from scgalore.data.sources import FORMATS
from scgalore.errors import DataError, OptionError

if TYPE_CHECKING:
    from scgalore._typing import PathLike

__all__ = ["Collection", "Listed"]

Listed: TypeAlias = "PathLike | AnnData | Sequence[PathLike | AnnData]"
"""Files, folders of files, and objects."""


@dataclass(frozen=True)
class Collection:
    """Files and objects in named groups.

    Attributes
    ----------
    names
        Names of the groups; for a list without names, its files.
    sources
        All files and objects, by group.
    group_of
        Index of the group of each.
    named
        Whether the user named the groups.
    """

    names: tuple[str, ...]
    sources: tuple[Path | AnnData, ...]
    group_of: tuple[int, ...]
    named: bool

    @classmethod
    def of(cls, listed: Listed | Mapping[str, Listed]) -> Collection:
        """Parse the argument of the user.

        Parameters
        ----------
        listed
            A path, an AnnData, a sequence of them, or a mapping of names to such. A folder other than ``.zarr`` is
            replaced by all ``.h5ad`` files and ``.zarr`` folders in it, sorted by name.

        Raises
        ------
        DataError
            If there are no sources.
        """
        if isinstance(listed, Mapping):
            groups = {str(name): _each(of_name) for name, of_name in listed.items()}
            empty = [name for name, found in groups.items() if not found]
            if empty:
                msg = f"The source {empty[0]!r} has no files. Omit it, or pass paths of .h5ad files or .zarr folders."
                raise DataError(msg)
            sources = [source for found in groups.values() for source in found]
            numbers = [number for number, found in enumerate(groups.values()) for _ in found]
            names = tuple(groups)
        else:
            sources = _each(listed)
            numbers = list(range(len(sources)))
            names = tuple(
                f"AnnData number {number}" if isinstance(source, AnnData) else str(source)
                for number, source in enumerate(sources)
            )
        if not sources:
            msg = "There are no sources. Pass paths of .h5ad files or .zarr folders, or AnnData objects."
            raise DataError(msg)
        return cls(names, tuple(sources), tuple(numbers), isinstance(listed, Mapping))

    def each(self, option: str, value: Any) -> list[Any]:
        """Value of an option for each file.

        Parameters
        ----------
        option
            Name of the option.
        value
            One value for all, or a mapping from names of groups to values; ``None`` for groups that are not listed.

        Raises
        ------
        OptionError
            If it contains an unknown group.
        """
        if not isinstance(value, Mapping):
            return [value] * len(self.sources)
        self.check_names(option, value)
        return [value.get(self.names[group]) for group in self.group_of]

    def check_names(self, option: str, value: Mapping[str, Any]) -> None:
        """Raise :class:`~scgalore.errors.OptionError` if a mapping contains an unknown group."""
        unknown = [name for name in value if name not in self.names]
        if unknown:
            msg = f"{option} contains the unknown source {unknown[0]!r}; choose from {list(self.names)[:10]}."
            raise OptionError(msg)


def _each(listed: Listed) -> list[Path | AnnData]:
    if isinstance(listed, str | os.PathLike | AnnData):
        listed = [listed]
    found: list[Path | AnnData] = []
    for source in listed:
        if isinstance(source, AnnData):
            found.append(source)
            continue
        path = Path(source)
        if path.suffix in FORMATS or not path.is_dir():
            found.append(path)
            continue
        inside = sorted(one for one in path.iterdir() if one.suffix in FORMATS)
        if not inside:
            msg = f"{path} contains no .h5ad files or .zarr folders. Pass their paths."
            raise DataError(msg)
        found += inside
    return found
