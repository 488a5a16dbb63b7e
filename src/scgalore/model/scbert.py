"""scBERT: released and fine-tuned weights, original files, and its entry in the families."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch

from scgalore import _logging as logg
from scgalore.data.tokens import TokenizerConfig
from scgalore.errors import OptionError
from scgalore.model.cell_model import CellModel
from scgalore.model.family import Family
from scgalore.model.loading import load_model
from scgalore.nn import SCBERTConfig, SCBERTNetwork
from scgalore.weights import export_scbert, read_scbert
from scgalore.weights.scbert import N_GENES, SPECIALS, finds_scbert, released_tensors

if TYPE_CHECKING:
    from scgalore._typing import PathLike
    from scgalore.data.vocab import GeneVocab
    from scgalore.nn.scbert_config import Attention, Head, Pooling
    from scgalore.weights import Checkpoint

__all__ = ["SCBERT", "SCBERT_FAMILY"]


class SCBERT(CellModel):
    """A scBERT model :cite:p:`Yang2022`.

    Created by :meth:`from_pretrained` (released or fine-tuned weights) or :meth:`from_config` (random weights).
    Parameters are those of :class:`scgalore.model.CellModel`.

    See Also
    --------
    scgalore.model.load : Load a model of any family.
    scgalore.model.CellModel : Methods of all models.

    Examples
    --------
    >>> import scgalore as sg
    >>> model = sg.model.SCBERT.from_pretrained("panglao_pretrain.pth")
    >>> sg.tl.embed(adata, model)
    """

    @classmethod
    def own_family(cls) -> Family:
        """The scBERT family."""
        return SCBERT_FAMILY

    @classmethod
    def from_pretrained(cls, model: PathLike = "scbert", *, base: PathLike | None = None, **parts: Any) -> Self:
        """Load weights of scBERT; :func:`scgalore.model.load` loads weights of any family.

        Parameters
        ----------
        model
            Name in the registry (:func:`scgalore.weights.list_weights`), an original ``.pth`` file or its folder,
            or a folder written by :meth:`save` or :meth:`save_adapter`.
        base
            Location of the base weights of an adapter, if it differs from the one recorded in its folder.
        **parts
            As for :meth:`with_parts`: ``pooling``, ``head``, ``attention``. By default as recorded in the folder.

        Returns
        -------
        The model in evaluation mode, on the CPU; ``load_report`` accounts for every tensor, including those of the
        optimizer.

        Raises
        ------
        OptionError
            If ``model`` is neither a name, a file nor a folder, or a part does not exist.
        WeightsError
            If the file is incomplete or damaged, or has no gene names.
        DownloadError
            If the weights are not downloaded and cannot be.
        """
        loaded = load_model(model, base=base, families={SCBERT_FAMILY.name: SCBERT_FAMILY})
        return loaded.with_parts(**parts) if parts else loaded

    def with_parts(
        self, *, attention: Attention | None = None, pooling: Pooling | None = None, head: Head | None = None
    ) -> SCBERT:
        """Copy of the model with other parts and the same weights; heads of another kind are dropped.

        Parameters
        ----------
        attention
            ``"exact"`` attends only to the expressed genes and drops the random features, which cannot be restored.
            Released weights were trained with features, which differ much from the softmax at their logits: with exact
            attention they can be trained further, but not used for embedding.
        pooling
            Cell embedding: ``"mean"`` over its tokens, or ``"cls"``, the state of the trailing token.
        head
            Type of heads: ``"linear"`` layers on the embedding, or as in scBERT, which uses the ``"tokens"`` of all
            genes.

        Returns
        -------
        The copy. Parts that are ``None`` are unchanged.

        Raises
        ------
        OptionError
            If a part does not exist, or the model has no random features.
        """
        changes: dict[str, Any] = {"attention": attention, "pooling": pooling, "head": head}
        changes = {name: value for name, value in changes.items() if value is not None}
        config = self.network.config
        for name, value in changes.items():
            if not (kind := SCBERTConfig.kinds[name]).fits(value):
                msg = f"{name}={value!r}: {kind.expected}."
                raise OptionError(msg)
        if attention == "favor" and config.attention == "exact":
            msg = "attention='favor': this model has no random features, and they cannot be drawn again. Load the weights again."
            raise OptionError(msg)
        other_heads = head not in (None, config.head)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = SCBERTNetwork(config.replace(**changes, **({"heads": {}} if other_heads else {})))
        tensors = self.network.state_dict()
        own = network.state_dict()
        network.load_state_dict({name: tensors.get(name, tensor) for name, tensor in own.items()})
        copy = SCBERT(network, self.vocab, family=self.family, provenance=self.provenance, load_report=self.load_report)
        copy.result = None if other_heads else self.result
        return copy

    def export_scbert(self, folder: PathLike, *, overwrite: bool = False) -> None:
        """Write ``scbert.pth`` for the original implementation, and ``vocab.json`` with the order of its genes.

        Heads on the cell embedding cannot be exported; a warning is logged.

        Parameters
        ----------
        folder
            Folder to create.
        overwrite
            Whether a checkpoint in the folder may be replaced.

        Raises
        ------
        OptionError
            If the network has exact attention, which the original implementation does not support.
        """
        if self.network.config.attention != "favor":
            msg = "A network with exact attention has no random features, so the original scBERT cannot run it. Use save() instead."
            raise OptionError(msg)
        if self.network.config.heads:
            logg.warning(
                f"The heads {list(self.network.config.heads)} cannot be stored in the original layout and are not exported; save() keeps them."
            )
        genes = self.vocab.gene_ids()
        export_scbert(
            folder,
            genes=[self.vocab.tokens[row] for row in genes.tolist()],
            tensors=released_tensors(self.network.state_dict(), genes.tolist(), self.vocab.cls_id),
            overwrite=overwrite,
        )


def _released_config(checkpoint: Checkpoint, vocab: GeneVocab) -> SCBERTConfig:
    seen: dict[str, Any] = SCBERTConfig.seen_in(checkpoint.shapes)
    n_bins = seen.get("n_bins", SCBERTConfig.n_bins)
    return SCBERTConfig(pad_id=vocab.pad_id, max_length=len(vocab) - 1, mask_value=float(n_bins), **seen)


def _class_tokens(config: SCBERTConfig, *, max_length: int | None, seed: int) -> TokenizerConfig:
    """Classes of expression as tokens: all genes, or with exact attention those in a class above 0."""
    return TokenizerConfig(
        n_bins=config.n_bins,
        max_length=config.max_length if max_length is None else max_length,
        cls_value=config.pad_value,
        pad_value=config.pad_value,
        classes=True,
        every_gene=config.attention == "favor",
        seed=seed,
    )


SCBERT_FAMILY = Family(
    name="scbert",
    title="scBERT",
    stem="scbert",
    embedding="X_scBERT",
    network=SCBERTNetwork,
    config=SCBERTConfig,
    model=SCBERT,
    can=frozenset({"cell heads", "expression"}),
    specials=SPECIALS,
    tokenizer=_class_tokens,
    recognises=finds_scbert,
    read=read_scbert,
    foreign_config=_released_config,
    sizes={"scbert": SCBERTConfig(n_tokens=N_GENES + 2, pad_id=N_GENES + 1, gene2vec=True)},
)
"""Yang et al., Nature Machine Intelligence 2022, doi:10.1038/s42256-022-00534-z."""
