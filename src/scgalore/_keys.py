"""The name of every slot that scgalore writes or reads, in one place.

``key_added=None`` gives the default names; a given key is used verbatim for the embedding and for ``uns``, and as the
stem of the others.
"""

from dataclasses import dataclass
from typing import Self

from scgalore.errors import OptionError

__all__ = [
    "UNKNOWN",
    "CellKeys",
    "GeneKeys",
    "InSilicoKeys",
    "IntegrationKeys",
    "MappingKeys",
    "NetworkKeys",
    "PerturbationKeys",
    "ProgramKeys",
    "check_key",
]

EMBEDDING = "X_scGPT"
UNKNOWN = "unknown"
"""Label of cells that get none of the model's."""
STEM = "scgpt"


@dataclass(frozen=True)
class CellKeys:
    """Slots of :func:`scgalore.tl.embed`, :func:`scgalore.tl.finetune`, :func:`scgalore.tl.annotate` and :func:`scgalore.tl.predict_protein`.

    Attributes
    ----------
    uns
        Parameters, provenance and results, in ``uns``.
    embedding
        Cell embeddings with unit norm (float32), in ``obsm``.
    stem
        Start of the names of all other slots.
    """

    uns: str
    embedding: str = EMBEDDING
    stem: str = STEM

    @property
    def label(self) -> str:
        """Predicted class (categorical, ``"unknown"`` for unknown cells), in ``obs``."""
        return f"{self.stem}_label"

    @property
    def score(self) -> str:
        """Calibrated probability of the predicted class, in ``obs``."""
        return f"{self.stem}_label_score"

    @property
    def novelty(self) -> str:
        """Distance to the training cells, about 1 for a similar cell, in ``obs``."""
        return f"{self.stem}_novelty"

    @property
    def probabilities(self) -> str:
        """Probability of every class, in ``obsm``; ``uns[...]["classes"]`` names its columns."""
        return f"{self.stem}_probabilities"

    @property
    def colors(self) -> str:
        """Colours of the classes for scanpy's plots, in ``uns``."""
        return f"{self.label}_colors"

    @property
    def value(self) -> str:
        """Predicted number, on the scale of ``values_key``, in ``obs``."""
        return f"{self.stem}_value"

    @property
    def joint(self) -> str:
        """Embeddings of RNA and proteins together, in ``obsm``."""
        return self.embedding if self.embedding == self.stem else f"{self.embedding}_multi"

    @property
    def protein(self) -> str:
        """Proteins predicted from RNA, in ``obsm``; ``uns[...]["proteins"]`` names the columns."""
        return f"{self.stem}_protein"

    @property
    def split(self) -> str:
        """Split that each cell belongs to, in ``obs``: train, validation or test."""
        return f"{self.stem}_split"

    @property
    def slots(self) -> dict[str, tuple[str, ...]]:
        """Every name above, by slot: what a call may write."""
        return {
            "obs": (self.label, self.score, self.novelty, self.value, self.split),
            "obsm": (self.embedding, self.probabilities, self.joint, self.protein),
            "uns": (self.uns, self.colors),
        }

    @classmethod
    def from_key_added(cls, key_added: str | None, *, uns: str, embedding: str = EMBEDDING, stem: str = STEM) -> Self:
        """Names for a ``key_added``.

        Parameters
        ----------
        key_added
            Used as it is for ``uns`` and the embedding, and as the stem of the others; ``None`` gives the names below.
        uns
            Name in ``uns``: that of the function.
        embedding, stem
            Names that the model's family gives.
        """
        check_key(key_added)
        return cls(uns, embedding, stem) if key_added is None else cls(key_added, key_added, key_added)


@dataclass(frozen=True)
class MappingKeys:
    """Slots of :func:`scgalore.tl.map_to_reference`.

    Attributes
    ----------
    uns
        Parameters, provenance and what was found, in ``uns``.
    embedding
        Cell embeddings, in ``obsm``.
    stem
        Start of the names of all other slots.
    labels
        Names of the reference's columns of labels.
    """

    uns: str
    embedding: str
    stem: str
    labels: tuple[str, ...]

    def label(self, name: str) -> str:
        """Label by the votes of the neighbours, in ``obs``."""
        return f"{self.stem}_{name.replace('/', '_')}"

    def score(self, name: str) -> str:
        """Its calibrated probability, in ``obs``."""
        return f"{self.label(name)}_score"

    def probabilities(self, name: str) -> str:
        """Probability of every class, in ``obsm``."""
        return f"{self.label(name)}_probabilities"

    def colors(self, name: str) -> str:
        """Colours of the classes for scanpy's plots, in ``uns``."""
        return f"{self.label(name)}_colors"

    @property
    def novelty(self) -> str:
        """Distance to the reference, about 1 for a similar cell, in ``obs``."""
        return f"{self.stem}_novelty"

    @property
    def neighbors(self) -> str:
        """Indices of the nearest cells of the reference, in ``obsm``."""
        return f"{self.stem}_neighbors"

    @property
    def distances(self) -> str:
        """Distances of the neighbours, in ``obsm``."""
        return f"{self.stem}_distances"

    @property
    def coordinates(self) -> str:
        """Coordinates in the plot of the reference, in ``obsm``."""
        return f"{self.stem}_umap"

    @property
    def slots(self) -> dict[str, tuple[str, ...]]:
        """Every name above, by slot: what a call may write."""
        of_labels = {
            "obs": (self.label, self.score),
            "obsm": (self.probabilities,),
            "uns": (self.colors,),
        }
        named = {slot: [make(name) for name in self.labels for make in makes] for slot, makes in of_labels.items()}
        return {
            "obs": (*named["obs"], self.novelty),
            "obsm": (*named["obsm"], self.embedding, self.neighbors, self.distances, self.coordinates),
            "uns": (*named["uns"], self.uns),
        }

    @classmethod
    def from_key_added(
        cls, key_added: str | None, labels: tuple[str, ...], *, embedding: str = EMBEDDING, stem: str = STEM
    ) -> Self:
        """Names for a ``key_added``; the others as for :meth:`CellKeys.from_key_added`."""
        check_key(key_added)
        if key_added is None:
            return cls("map_to_reference", embedding, f"{stem}_mapped", labels)
        return cls(key_added, key_added, key_added, labels)


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
    split
        Split that :func:`scgalore.pp.split_perturbations` writes, in ``obs`` and ``uns``.
    genes
        Targets of guides that :func:`scgalore.pp.collapse_guides` writes, in ``obs`` and ``uns``.
    """

    prediction: str = "predict_perturbation"
    evaluation: str = "evaluate_perturbation"
    ranked: str = "predict_perturbation_rank_genes_groups"
    embedding: str = f"{EMBEDDING}_perturbed"
    split: str = "split"
    genes: str = "perturbed_gene"

    @classmethod
    def from_key_added(cls, key_added: str | None, *, embedding: str = EMBEDDING) -> Self:
        """Names for a ``key_added``; ``embedding`` is the name that the model's family gives to embeddings."""
        check_key(key_added)
        if key_added is None:
            return cls(embedding=f"{embedding}_perturbed")
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

    @property
    def slots(self) -> dict[str, tuple[str, ...]]:
        """Every name above, by slot."""
        return {"var": (self.selected, self.rank, self.source), "uns": (self.uns,)}

    @classmethod
    def from_key_added(cls, key_added: str) -> Self:
        """Names for a ``key_added``."""
        check_key(key_added)
        return cls() if key_added in (None, cls().selected) else cls(key_added, key_added)


@dataclass(frozen=True)
class IntegrationKeys:
    """Slots of :func:`scgalore.tl.evaluate_integration`.

    Attributes
    ----------
    uns
        Scores and parameters, in ``uns``.
    """

    uns: str = "evaluate_integration"

    @property
    def slots(self) -> dict[str, tuple[str, ...]]:
        """The name above, by slot."""
        return {"uns": (self.uns,)}

    @classmethod
    def from_key_added(cls, key_added: str | None) -> Self:
        """Names for a ``key_added``."""
        check_key(key_added)
        return cls() if key_added is None else cls(key_added)


@dataclass(frozen=True)
class InSilicoKeys:
    """Slots of :func:`scgalore.tl.perturb_in_silico`.

    Attributes
    ----------
    uns
        Shifts, effects and parameters, in ``uns``.
    """

    uns: str = "perturb_in_silico"

    @property
    def slots(self) -> dict[str, tuple[str, ...]]:
        """The name above, by slot."""
        return {"uns": (self.uns,)}

    @classmethod
    def from_key_added(cls, key_added: str | None) -> Self:
        """Names for a ``key_added``."""
        check_key(key_added)
        return cls() if key_added is None else cls(key_added)


@dataclass(frozen=True)
class NetworkKeys:
    """Slots of :func:`scgalore.tl.gene_network` and :func:`scgalore.tl.evaluate_gene_network`, in ``uns``.

    Attributes
    ----------
    network
        Edges and parameters.
    evaluation
        Scores of a network.
    """

    network: str = "gene_network"
    evaluation: str = "evaluate_gene_network"

    @classmethod
    def from_key_added(cls, key_added: str | None) -> Self:
        """Names for a ``key_added``."""
        check_key(key_added)
        return cls() if key_added is None else cls(key_added, key_added)


@dataclass(frozen=True)
class ProgramKeys:
    """Slots of :func:`scgalore.tl.gene_programs`.

    Attributes
    ----------
    program
        Program of each gene, in ``var``.
    activity
        Activity of each program in each cell, in ``obsm``.
    uns
        Programs, gene sets they are enriched in, and parameters, in ``uns``.
    """

    program: str = "gene_program"
    activity: str = "X_gene_programs"
    uns: str = "gene_programs"

    @property
    def slots(self) -> dict[str, tuple[str, ...]]:
        """Every name above, by slot."""
        return {"var": (self.program,), "obsm": (self.activity,), "uns": (self.uns,)}

    @classmethod
    def from_key_added(cls, key_added: str | None) -> Self:
        """Names for a ``key_added``."""
        check_key(key_added)
        return cls() if key_added is None else cls(key_added, key_added, key_added)


def check_key(key_added: object) -> None:
    """Raise :class:`~scgalore.errors.OptionError` for a ``key_added`` that cannot be a key."""
    if key_added is None or (isinstance(key_added, str) and key_added and "/" not in key_added):
        return
    # HDF5 would make groups of a slash, and anndata refuses to write such keys.
    msg = f"key_added={key_added!r}: expected a string without '/', or None for the default names."
    raise OptionError(msg)
