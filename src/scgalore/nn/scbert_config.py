"""Configuration of scBERT networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from scgalore._options import SWITCH, choice, whole
from scgalore.nn.base import WIDTH, NetworkConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scgalore._options import Kind

Attention = Literal["favor", "exact"]
Pooling = Literal["mean", "cls"]
Head = Literal["linear", "tokens"]

__all__ = ["Attention", "Head", "Pooling", "SCBERTConfig"]


@dataclass(frozen=True, kw_only=True)
class SCBERTConfig(NetworkConfig):
    """Sizes and parts of a :class:`~scgalore.nn.SCBERTNetwork`; the defaults are those of the released weights.

    Attributes
    ----------
    n_tokens
        Number of rows of the gene embedding: genes, ``<cls>`` (scBERT's trailing token) and ``<pad>``.
    pad_id
        Token id of ``<pad>``.
    d_model
        Width.
    dropout
        Not used: scBERT has no dropout.
    heads
        Number of outputs of each head on the cell embedding, by name.
    n_bins
        Number of expression classes, 0 to ``n_bins - 1``.
    max_length
        Maximum number of tokens per cell.
    mask_value
        Class of masked tokens: ``n_bins``.
    pad_value
        Value of padding and ``<cls>``.
    n_heads
        Number of attention heads.
    d_head
        Width of a head; all heads together are wider than the network.
    d_hid
        Width of the feed-forward layers.
    n_layers
        Number of blocks.
    attention
        ``"favor"`` attends to all genes by random features, as required by the released weights. ``"exact"`` attends to
        the genes with a class above 0, which are then the only tokens.
    n_features
        Number of random features per head.
    pooling
        Cell embedding: the mean over its tokens, or the state of ``<cls>``.
    head
        Type of heads: ``"linear"`` layers on the cell embedding, or ``"tokens"`` as in scBERT: one number per gene
        token, then layers of 512 and 128.
    gene2vec
        Whether the gene embeddings are fixed vectors: they are not trained, and their float64 values are kept for
        export.
    """

    kinds: ClassVar[Mapping[str, Kind]] = {
        **NetworkConfig.kinds,
        "n_heads": whole(1, 1 << 12),
        "d_head": WIDTH,
        "d_hid": WIDTH,
        "n_layers": whole(1, 1 << 10),
        "attention": choice(*get_args(Attention)),
        "n_features": whole(1, 1 << 16),
        "pooling": choice(*get_args(Pooling)),
        "head": choice(*get_args(Head)),
        "gene2vec": SWITCH,
    }

    d_model: int = 200
    dropout: float = 0.0
    n_bins: int = 6
    max_length: int = 16907
    mask_value: float = 6.0
    pad_value: float = 0.0
    n_heads: int = 10
    d_head: int = 64
    d_hid: int = 800
    n_layers: int = 6
    attention: Attention = "favor"
    n_features: int = 266
    pooling: Pooling = "mean"
    head: Head = "linear"
    gene2vec: bool = False

    @classmethod
    def seen_in(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Sizes and parts determined by names and shapes of the tensors."""
        first = "performer.net.layers.0."
        projection = shapes.get(f"{first}0.fn.fast_attention.projection_matrix", ())
        table, classes = shapes.get("pos_emb.emb.weight", ()), shapes.get("token_emb.weight", ())
        inner, hidden = shapes.get(f"{first}0.fn.to_q.weight", ()), shapes.get(f"{first}1.fn.fn.w1.weight", ())
        sizes = {"n_tokens": table[:1], "d_model": table[1:2], "d_hid": hidden[:1]}
        sizes |= {"n_features": projection[:1], "d_head": projection[1:2]}
        found: dict[str, Any] = {name: size[0] for name, size in sizes.items() if size}
        if inner and projection and projection[1]:
            found["n_heads"] = inner[0] // projection[1]
        if classes:
            found["n_bins"] = classes[0] - 1  # the last one is for masked tokens
        return {
            **found,
            "n_layers": len({name.split(".")[3] for name in shapes if name.startswith("performer.net.layers.")}),
            "attention": "favor" if projection else "exact",
            "head": "tokens" if "to_scalars.weight" in shapes else "linear",
            "gene2vec": "pos_emb.emb.digits" in shapes,
        }

    @classmethod
    def heads_in(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Numbers of outputs of the heads."""
        found = {}
        for name, shape in shapes.items():
            parts = name.split(".")
            if parts[0] == "heads" and len(shape) == 2 and parts[2:] in (["weight"], ["fc3", "weight"]):
                found[parts[1]] = shape[0]
        return {"heads": found}
