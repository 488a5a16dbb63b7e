"""Comparison of nested states to the last bit."""

from collections.abc import Iterator
from typing import Any

import torch


def leaves(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of everything inside dictionaries, lists and tuples."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from leaves(value, f"{path}/{key}")
    elif isinstance(content, list | tuple):
        for i, value in enumerate(content):
            yield from leaves(value, f"{path}/{i}")
    else:
        yield path, content


def differences(first: Any, second: Any, *, besides: tuple[str, ...] = ()) -> list[str]:
    """Paths at which two nested objects differ in a bit or a dtype, but for those with a word of ``besides`` in them."""
    one, other = dict(leaves(first)), dict(leaves(second))
    paths = [path for path in {**one, **other} if not any(word in path for word in besides)]

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            return a.dtype == b.dtype and torch.equal(a, b)
        return bool(a == b)

    return [path for path in paths if not (path in one and path in other and same(one[path], other[path]))]
