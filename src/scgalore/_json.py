"""JSON files of unknown origin: read within limits of size, and checked against the expected fields."""

from __future__ import annotations

import json
from reprlib import Repr
from typing import TYPE_CHECKING, Any

from scgalore._options import Kind
from scgalore.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["OBJECT", "STRING", "check_fields", "named", "nullable", "read_json"]

MAX_BYTES = 1 << 23
"""Size of a file that describes a model, at most; those that are written are a thousandth of it."""

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


def read_json(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Parameters
    ----------
    path
        The file.
    max_bytes
        What is larger is refused unread.

    Raises
    ------
    WeightsError
        If there is no such file, it is too large, it is not JSON, a key occurs twice or it holds anything but an object.
    """
    try:
        if (size := path.stat().st_size) > max_bytes or not path.is_file():
            found = f"has {size:,} bytes" if path.is_file() else "is no plain file"
            msg = f"{path} {found}; expected a JSON file of at most {max_bytes:,} bytes."
            raise WeightsError(msg)
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}. Fetch or save it again."
        raise WeightsError(msg) from error
    except RecursionError as error:
        msg = f"{path} is nested too deeply for a file that describes a model. Fetch or save it again."
        raise WeightsError(msg) from error
    except _TwiceError as error:
        msg = f"{path} holds {named(error.args[0])} twice; expected each name once. Fetch or save it again."
        raise WeightsError(msg) from error
    except WeightsError:
        raise
    except ValueError as error:
        msg = f"{path} is not valid JSON ({error}). Fetch or save it again."
        raise WeightsError(msg) from error
    if not isinstance(content, dict):
        msg = f"{path} holds a {type(content).__name__}; expected a JSON object."
        raise WeightsError(msg)
    return content


def check_fields(content: Any, kinds: Mapping[str, Kind], *, where: Any, missing: Iterable[str] = ()) -> None:
    """Check the fields of an object from a file against their declared types and ranges.

    Parameters
    ----------
    content
        The object; fields that are not declared are left alone.
    kinds
        What each field must be.
    where
        File or part of it, for the message.
    missing
        Declared fields that need not be there.

    Raises
    ------
    WeightsError
        If it is no object, or a field is absent or of another kind.
    """
    if not hasattr(content, "keys"):
        msg = f"{where} is {named(content)}; expected an object with {', '.join(kinds)}."
        raise WeightsError(msg)
    if absent := [name for name in kinds if name not in content and name not in set(missing)]:
        msg = f"{where} lacks {', '.join(absent)}: {'; '.join(f'{name}, {kinds[name].expected}' for name in absent)}."
        raise WeightsError(msg)
    for name, kind in kinds.items():
        if name in content and not kind.fits(content[name]):
            msg = f"{where}: {name} is {named(content[name])}; {kind.expected}."
            raise WeightsError(msg)


def named(value: Any) -> str:
    """A value of a file for a message: short, whatever it is."""
    return _SHORT.repr(value).encode("utf-8", "backslashreplace").decode()


def nullable(kind: Kind) -> Kind:
    """The same, or nothing."""
    return Kind(f"{kind.expected}, or null", lambda value: value is None or kind.fits(value))


STRING = Kind("it must be a string", lambda value: isinstance(value, str))
OBJECT = Kind("it must be an object", lambda value: isinstance(value, dict))


class _TwiceError(ValueError):
    """A key of an object occurs twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _TwiceError(twice)
    return content
