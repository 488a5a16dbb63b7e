"""Which column of a matrix is which token.

Everything here takes time in proportion to the number of names.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from scgalore._words import few
from scgalore.data.names import advice
from scgalore.errors import DataError
from scgalore.genes.identifiers import NameKind, ensembl_id, looks_like_mouse, mostly_mouse, ortholog, other_names

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from numpy.typing import NDArray

    from scgalore.data.vocab import GeneVocab

__all__ = ["GeneMatch", "advice_for", "match_genes", "tokens_of_each"]

# Of two columns that are the same gene, the one with the better kind of name keeps the token.
_RANK = {kind: rank for rank, kind in enumerate(get_args(NameKind))}

# What var_names_make_unique makes of a repeated name.
_NUMBERED = re.compile(r"(.+)-\d+")

_OTHER_SPECIES = re.compile(r"ENS[A-Z]+G\d")


@dataclass(frozen=True, eq=False)
class GeneMatch:
    """Which token each column of a matrix is.

    Attributes
    ----------
    token_ids
        Token id of every column, int64, -1 for a column without one.
    renamed
        Token of each matched column whose name is written differently.
    dropped
        Names that the vocabulary does not hold.
    duplicates
        Names left out because a column with a better name has their token.
    numbered
        Those of ``dropped`` that are names of matched columns with a number, such as ``"TP53-1"``.
    species
        Whose genes the names are.
    without_ortholog
        Those of ``dropped`` that have no human ortholog, of a mouse.
    """

    token_ids: NDArray[np.int64]
    renamed: dict[str, str]
    dropped: tuple[str, ...]
    duplicates: tuple[str, ...]
    numbered: tuple[str, ...] = ()
    species: str = "human"
    without_ortholog: tuple[str, ...] = ()

    @property
    def n_vars(self) -> int:
        """Number of columns."""
        return len(self.token_ids)

    @property
    def matched(self) -> int:
        """Number of columns with a token."""
        return int((self.token_ids >= 0).sum())

    def report(self) -> dict[str, Any]:
        """Numbers of matched and renamed columns and the names that were dropped, for ``uns``."""
        of_mouse = {
            "with_ortholog": self.n_vars - len(self.without_ortholog),
            "without_ortholog": len(self.without_ortholog),
        }
        return {
            "matched": self.matched,
            "n_vars": self.n_vars,
            "renamed": len(self.renamed),
            "dropped": list(self.dropped),
            "species": self.species,
            **(of_mouse if self.species == "mouse" else {}),
        }

    def summary(self) -> str:
        """One line for the user."""
        if self.species == "mouse":
            ways = {"human ortholog": len(self.renamed)}
        else:
            by_id = sum(ensembl_id(name) is not None for name in self.renamed)
            ways = {"Ensembl id": by_id, "alias": len(self.renamed) - by_id}
        how = [f"{n:,} by {what}" for what, n in ways.items() if n]
        text = f"{self.matched:,} of {self.n_vars:,} genes matched" + (f" ({', '.join(how)})" if how else "")
        lacking = len(self.dropped) - len(self.without_ortholog)
        for n, what in (
            (len(self.without_ortholog), "without a human ortholog"),
            (lacking, "not in the vocabulary"),
            (len(self.duplicates), "left out because another column is the same gene"),
        ):
            text += f", {n:,} {what}" if n else ""
        return text


def match_genes(
    names: Iterable[str],
    vocab: GeneVocab,
    *,
    species: str = "human",
    columns: Callable[[], dict[str | None, list[str]]] | None = None,
) -> GeneMatch:
    """Find the token of every gene.

    A name that is a token itself keeps it. Others are looked up by Ensembl id, then as a current, previous or alias
    symbol, those of a mouse as the names of their human ortholog; what is ambiguous gets no token, and no two columns get
    the same. The result does not depend on the order of the columns.

    Parameters
    ----------
    names
        Gene names, usually ``adata.var_names``: symbols, Ensembl ids with or without version, or both.
    vocab
        The model's vocabulary.
    species
        Whose genes they are: ``"human"`` or ``"mouse"``.
    columns
        Reads the names that stand elsewhere (``scgalore.data.names.other_columns``), for advice where these do not match.

    Returns
    -------
    Token ids, and what was renamed or left out.

    Raises
    ------
    DataError
        If no name matches, if the names are those of another species, or if two columns of the same name would be the same
        token.
    """
    names = list(map(str, names))
    if not names:
        msg = "The data has no genes (0 variables)."
        raise DataError(msg)
    read = _Names(vocab, species, columns)
    exact = {name for name in names if read.is_gene(name)}
    unknown = set(names) - exact
    if unknown or species != "human":
        _refuse_species(names, exact, read)
    renamed, lost = _rename(unknown, exact, read)
    _refuse_repeated(names, exact | renamed.keys())
    token_of = {name: name for name in exact} | renamed
    if not token_of:
        raise DataError(_nothing_matched(names, read))
    ids = {name: vocab[token] for name, token in token_of.items()}
    dropped = tuple(name for name in names if name not in ids and name not in lost)
    return GeneMatch(
        token_ids=np.array([ids.get(name, -1) for name in names], dtype=np.int64),
        renamed={name: renamed[name] for name in names if name in renamed},
        dropped=dropped,
        duplicates=tuple(name for name in names if name in lost),
        numbered=tuple(name for name in dropped if (found := _NUMBERED.fullmatch(name)) and found[1] in ids),
        species=species,
        without_ortholog=tuple(name for name in dropped if ortholog(name) is None) if species == "mouse" else (),
    )


def tokens_of_each(names: Iterable[str], vocab: GeneVocab, *, species: str = "human") -> list[int]:
    """Token of each name, looked up for itself: two names of one gene have the same; -1 for those without.

    Parameters
    ----------
    names, vocab, species
        As for :func:`match_genes`.
    """
    return _Names(vocab, species).tokens(names)


def advice_for(
    names: Sequence[str],
    vocab: GeneVocab,
    *,
    species: str = "human",
    columns: Callable[[], dict[str | None, list[str]]] | None = None,
) -> str:
    """Say what to call so that more of the names match; ``""`` where nothing is better.

    Parameters
    ----------
    names, vocab, species, columns
        As for :func:`match_genes`.
    """
    return _Names(vocab, species, columns).advice(names)


@dataclass
class _Names:
    """Names of a species, looked up in a vocabulary."""

    vocab: GeneVocab
    species: str
    columns: Callable[[], dict[str | None, list[str]]] | None = None

    def is_gene(self, name: str) -> bool:
        return name in self.vocab and not (name.startswith("<") and name.endswith(">"))

    def tokens(self, names: Iterable[str]) -> list[int]:
        """Token of each name for itself, -1 for those without."""
        found = (name if self.is_gene(name) else self.other_token(name)[1] for name in names)
        return [-1 if token is None else self.vocab[token] for token in found]

    def other_token(self, name: str) -> tuple[NameKind, str | None]:
        """Token of a name that is none: that of the first of its other names that is one, and means one gene."""
        other = other_names(name, self.species)
        for step in other.steps:
            found = [gene if self.is_gene(gene) else self._endings.get(gene) for gene in step]
            tokens = [token for token in found if token is not None]
            if tokens:
                return other.kind, tokens[0] if len(tokens) == 1 else None
        return other.kind, None

    def advice(self, names: Sequence[str], fallback: str = "") -> str:
        """What to call so that more of some names match."""

        def count(names: Sequence[str], species: str) -> int:
            return sum(token >= 0 for token in replace(self, species=species).tokens(names))

        return advice(names, self.species, count, self.columns, fallback)

    @cached_property
    def _endings(self) -> dict[str, str]:
        """``"_ENSG..."`` -> the token that ends so, where it is one."""
        tokens: dict[str, list[str]] = defaultdict(list)
        for token in self.vocab.tokens:
            gene_id = ensembl_id(token)
            if gene_id is not None and token.endswith(f"_{gene_id}"):
                tokens[f"_{gene_id}"].append(token)
        return {ending: found[0] for ending, found in tokens.items() if len(found) == 1}


def _rename(unknown: set[str], exact: set[str], read: _Names) -> tuple[dict[str, str], set[str]]:
    """Tokens for names that are none, and the names that lost theirs to a column with a better name."""
    claims: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for name in unknown:
        kind, token = read.other_token(name)
        if token is not None:
            claims[token].append((_RANK[kind], name))
    renamed = {min(claimants)[1]: token for token, claimants in claims.items() if token not in exact}
    lost = {name for claimants in claims.values() for _, name in claimants if name not in renamed}
    return renamed, lost


def _refuse_repeated(names: Sequence[str], wanted: Collection[str]) -> None:
    # Repeated names that no vocabulary entry answers to (Y_RNA) are dropped with the rest and do no harm.
    repeated = [name for name, count in Counter(names).items() if count > 1 and name in wanted]
    if repeated:
        msg = (
            f"{len(repeated):,} genes of the vocabulary occur in more than one column: {few(repeated)}. "
            "Sum such columns, or keep one: adata = adata[:, ~adata.var_names.duplicated()].copy(). "
            "adata.var_names_make_unique() is no way out: it turns all but the first into names that no vocabulary "
            f"holds ({repeated[0] + '-1'!r}), and their counts would be lost."
        )
        raise DataError(msg)


def _refuse_species(names: Sequence[str], exact: set[str], read: _Names) -> None:
    """Refuse names that are most of them not those of the species, since the few that match would match by chance."""
    # A few symbols are the same in mouse and human (C3, F10), so "nothing matched" alone would let mouse data through.
    of_mouse = [name for name in names if looks_like_mouse(name)]
    if read.species == "mouse":
        strangers = [name for name in names if not looks_like_mouse(name) and ortholog(name) is None]
        if 2 * len(strangers) > len(names):
            msg = (
                f"species='mouse', and {len(strangers):,} of {len(names):,} gene names do not look like those of a mouse "
                f"({few(strangers)}). {read.advice(names, 'Leave species out if they are human.')}"
            )
            raise DataError(msg)
    elif 2 * len(of_mouse) > len(names) and len(exact) <= 0.05 * len(names) and not mostly_mouse(read.vocab.tokens):
        hint = "Replace those of a rat by their human orthologs in adata.var_names, or use a model with a mouse vocabulary."
        msg = (
            f"{len(of_mouse):,} of {len(names):,} gene names look like mouse or rat genes ({few(of_mouse)}), but those of the "
            f"vocabulary do not ({few(read.vocab.tokens)}). Names are not matched by changing their case, since the genes differ: "
            f"species='mouse' reads those of a mouse as their human orthologs. {read.advice(names)} {hint}"
        )
        raise DataError(" ".join(msg.split()))


def _nothing_matched(names: Sequence[str], read: _Names) -> str:
    column = "if the gene names are in a column of adata.var, pass its name as gene_symbols="
    if all(name.isdecimal() for name in names):
        hint = f"The data's names are numbers; {column}."
    elif any(_OTHER_SPECIES.match(name) for name in names):
        hint = "The data has Ensembl ids of another species than human; replace them by the human orthologs."
    elif any(ensembl_id(name) for name in names):
        hint = f"Human Ensembl ids were translated, but not into any of these tokens; {column}, and check the model."
    else:
        hint = (
            f"{column[0].upper()}{column[1:]}; expected are human symbols or Ensembl ids, as the vocabulary has them."
        )
    return (
        f"None of the {len(names):,} gene names is in the vocabulary of {len(read.vocab):,} tokens. "
        f"The data has {few(names)}; the vocabulary has {few(read.vocab.tokens)}. {read.advice(names, hint)}"
    )
