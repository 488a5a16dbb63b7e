"""The name of every slot that scgalore writes or reads, in one place.

``key_added=None`` gives the default names; a given key is used verbatim for the embedding and for ``uns``, and as the
stem of the others.
"""

from dataclasses import dataclass
from typing import Self

from scgalore.errors import OptionError

__all__ = ["EmbedKeys", "GeneKeys", "LabelKeys", "PerturbationKeys"]

EMBEDDING = "X_scGPT"
STEM = "scgpt"


@dataclass(frozen=True)
class EmbedKeys:
    """Slots of :func:`scgalore.tl.embed`.

    Attributes
    ----------
    embedding
        Cell embeddings, in ``obsm``.
    uns
        Parameters and provenance, in ``uns``.
    """

    embedding: str = EMBEDDING
    uns: str = "embed"

    @classmethod
    def from_key_added(cls, key_added: str | None) -> Self:
        """Names for a ``key_added``."""
        _check(key_added)
        return cls() if key_added is None else cls(key_added, key_added)


@dataclass(frozen=True)
class LabelKeys:
    """Slots of :func:`scgalore.tl.finetune` and :func:`scgalore.tl.annotate`.

    Attributes
    ----------
    uns
        Parameters, provenance and results, in ``uns``.
    embedding
        Cell embeddings, in ``obsm``.
    label, score
        Predicted class and its probability, in ``obs``.
    split
        Part of the data each cell belonged to, in ``obs``.
    probabilities
        Probability of every class, in ``obsm``; ``uns[...]["classes"]`` names its columns.
    """

    uns: str
    embedding: str = EMBEDDING
    label: str = f"{STEM}_label"
    score: str = f"{STEM}_label_score"
    split: str = f"{STEM}_split"
    probabilities: str = f"{STEM}_probabilities"

    @property
    def colors(self) -> str:
        """Colours of the classes, in ``uns``, where scanpy looks for them."""
        return f"{self.label}_colors"

    @classmethod
    def from_key_added(cls, key_added: str | None, *, uns: str) -> Self:
        """Names for a ``key_added``; ``uns`` is the default name there, that of the function."""
        _check(key_added)
        if key_added is None:
            return cls(uns)
        k = key_added
        return cls(k, k, f"{k}_label", f"{k}_label_score", f"{k}_split", f"{k}_probabilities")


@dataclass(frozen=True)
class PerturbationKeys:
    """Slots of :func:`scgalore.tl.predict_perturbation` and :func:`scgalore.tl.evaluate_perturbation`, in ``uns`` but for one.

    Attributes
    ----------
    prediction
        Predicted means and effects.
    evaluation
        Scores of a prediction.
    ranked
        Genes ranked by predicted effect, as scanpy's plots read them.
    embedding
        Embeddings of perturbed cells, in ``obsm``.
    """

    prediction: str = "predict_perturbation"
    evaluation: str = "evaluate_perturbation"
    ranked: str = "predict_perturbation_rank_genes_groups"
    embedding: str = f"{EMBEDDING}_perturbed"

    @classmethod
    def from_key_added(cls, key_added: str | None) -> Self:
        """Names for a ``key_added``."""
        _check(key_added)
        if key_added is None:
            return cls()
        return cls(key_added, key_added, f"{key_added}_rank_genes_groups", f"{key_added}_perturbed")


@dataclass(frozen=True)
class GeneKeys:
    """Slots of :func:`scgalore.tl.select_genes`.

    Attributes
    ----------
    selected
        Whether a gene is selected, in ``var``.
    uns
        Parameters and what each source gave, in ``uns``.
    """

    selected: str = "selected"
    uns: str = "select_genes"

    @property
    def rank(self) -> str:
        """Place in the ranked list, 0 the best, in ``var``."""
        return f"{self.selected}_rank"

    @property
    def source(self) -> str:
        """What placed a gene there, in ``var``."""
        return f"{self.selected}_source"

    @classmethod
    def from_key_added(cls, key_added: str) -> Self:
        """Names for a ``key_added``."""
        _check(key_added)
        return cls() if key_added in (None, cls().selected) else cls(key_added, key_added)


def _check(key_added: object) -> None:
    if key_added is None or (isinstance(key_added, str) and key_added and "/" not in key_added):
        return
    # HDF5 would make groups of a slash, and anndata refuses to write such keys.
    msg = f"key_added={key_added!r}: expected a string without '/', or None for the default names."
    raise OptionError(msg)
