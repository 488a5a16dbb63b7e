"""Vocabulary of a model. Columns of a matrix are matched to tokens in :mod:`scgalore.data.match`.

All operations are linear in the number of tokens; the released vocabularies have 60,697.
"""

from __future__ import annotations

import json
import operator
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from scgalore._logging import info
from scgalore._words import few
from scgalore.errors import DataError, MissingKeyError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from scgalore._typing import PathLike

__all__ = ["SPECIALS", "GeneVocab"]

SPECIALS = ("<pad>", "<cls>", "<eoc>")
"""Tokens that are not genes, in the order in which they follow the genes."""


class GeneVocab:
    """Tokens and their ids, 0 to n - 1. Immutable; vocabularies with the same content are equal.

    Create it with :meth:`from_file`, :meth:`from_dict` or :meth:`from_genes`.
    """

    __slots__ = ("_added", "_ids", "_tokens")

    def __init__(self, tokens: Iterable[str], *, added: tuple[str, ...] = ()) -> None:
        self._tokens = tuple(tokens)
        self._ids = {token: i for i, token in enumerate(self._tokens)}
        self._added = added
        if len(self._ids) < len(self._tokens):
            twice = [token for token, count in Counter(self._tokens).items() if count > 1]
            msg = f"{len(twice):,} tokens occur more than once ({few(twice)}), expected each once."
            raise DataError(msg)

    @classmethod
    def from_file(cls, path: PathLike, specials: Sequence[str] = SPECIALS) -> Self:
        """Read a ``vocab.json``, which maps tokens to ids in any order.

        Parameters
        ----------
        path
            File to read.
        specials
            Required special tokens; missing ones are appended and listed in :attr:`added`.
        """
        path = Path(path)
        try:
            mapping = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            msg = f"Cannot read the vocabulary {path}: {error.strerror}. In a model folder, it is 'vocab.json'."
            raise WeightsError(msg) from error
        except ValueError as error:
            # scGPT also reads pickles, which can run code.
            msg = f"{path} is not a JSON file ({error}). Expected an object {{token: id}}; pickles are not supported."
            raise WeightsError(msg) from error
        if not isinstance(mapping, dict):
            msg = f"{path} contains a JSON {type(mapping).__name__}, expected an object {{token: id}}."
            raise WeightsError(msg)
        return cls.from_dict(mapping, specials)

    @classmethod
    def from_dict(cls, mapping: Mapping[str, int], specials: Sequence[str] = SPECIALS) -> Self:
        """Create from a mapping of tokens to ids, in any order.

        Parameters
        ----------
        mapping
            Id of each token. The ids must be 0 to n - 1, each once.
        specials
            Required special tokens; missing ones are appended and listed in :attr:`added`.
        """
        tokens = _by_id(mapping)
        added = tuple(token for token in dict.fromkeys(specials) if token not in mapping)
        if added:
            info(f"appended {', '.join(added)} to the vocabulary, from id {len(tokens):,}")
        return cls((*tokens, *added), added=added)

    @classmethod
    def from_genes(cls, genes: Iterable[str], specials: Sequence[str] = SPECIALS) -> Self:
        """Create from genes in the given order, followed by the special tokens.

        Parameters
        ----------
        genes
            Unique gene names.
        specials
            Special tokens to append.
        """
        tokens = list(genes)
        known = set(tokens)
        return cls((*tokens, *(token for token in dict.fromkeys(specials) if token not in known)))

    def __len__(self) -> int:
        return len(self._tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._ids

    def __getitem__(self, token: str) -> int:
        try:
            return self._ids[token]
        except KeyError:
            msg = f"{token!r} is not one of the {len(self):,} tokens. Use ids(), which returns -1 for unknown tokens, or match_genes() for renamed genes."
            raise MissingKeyError(msg) from None

    def __eq__(self, other: object) -> bool:
        return self._tokens == other._tokens if isinstance(other, GeneVocab) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"GeneVocab({len(self):,} tokens: {few(self._tokens)})"

    @property
    def tokens(self) -> tuple[str, ...]:
        """All tokens, by id."""
        return self._tokens

    @property
    def added(self) -> tuple[str, ...]:
        """Special tokens that the source did not contain; there are no trained weights for them."""
        return self._added

    @property
    def pad_id(self) -> int:
        """Id of ``<pad>``."""
        return self["<pad>"]

    @property
    def cls_id(self) -> int:
        """Id of ``<cls>``."""
        return self["<cls>"]

    def ids(self, tokens: Iterable[str]) -> NDArray[np.int64]:
        """Ids of tokens, -1 for unknown tokens.

        Parameters
        ----------
        tokens
            Names; must match exactly.
        """
        get = self._ids.get
        return np.fromiter((get(token, -1) for token in tokens), dtype=np.int64)

    def gene_ids(self) -> NDArray[np.int64]:
        """Ids of all tokens that are not special, sorted."""
        return np.array([i for token, i in self._ids.items() if not token.startswith("<")], dtype=np.int64)

    def to_dict(self) -> dict[str, int]:
        """Mapping of tokens to ids, ordered by id."""
        return dict(self._ids)

    def save(self, path: PathLike) -> None:
        """Write the vocabulary as JSON, readable by :meth:`from_file` and by scGPT.

        Parameters
        ----------
        path
            File to write. An existing file is replaced only once the new one is complete.
        """
        path = Path(path)
        # In the folder of the target, so that the move is atomic.
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            unfinished.write_text(json.dumps(self._ids, indent=2), encoding="utf-8")
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


def _by_id(mapping: Mapping[str, int]) -> list[str]:
    """Check the ids and return the tokens in their order."""
    expected = f"Expected {{token: id}} with the ids 0 to {len(mapping) - 1:,}, each once"
    if not mapping or not all(isinstance(token, str) for token in mapping):
        msg = f"The vocabulary is empty or has tokens that are not strings. {expected}."
        raise WeightsError(msg)
    try:
        ids = np.fromiter(map(operator.index, mapping.values()), dtype=np.int64, count=len(mapping))
    except (TypeError, OverflowError) as error:
        msg = f"The vocabulary has ids that are not integers ({error}). {expected}."
        raise WeightsError(msg) from error
    order = np.argsort(ids)
    wrong = np.flatnonzero(ids[order] != np.arange(len(ids)))
    if wrong.size:
        at, found = int(wrong[0]), int(ids[order[wrong[0]]])
        what = (
            f"has no token with id {at:,}" if found > at else f"has the id {found:,} " + ("twice" if at else "below 0")
        )
        msg = f"The vocabulary of {len(mapping):,} tokens {what}. {expected}; the file may be truncated or merged from two."
        raise WeightsError(msg)
    tokens = list(mapping)
    return [tokens[i] for i in order]
