"""A small GPT and a small ViT in plain torch, with scGPT's module names.

The names matter: adapters find layers by them (``layers``, ``Wqkv``, ``out_proj``, ``linear1``, ``linear2``), and what lies
outside ``encoder`` and ``transformer_encoder`` counts as a head, which trains in every arm.

Shape letters: b samples, s tokens, d width, h heads, e width of a head.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

# Three times the width, not four: attention and MLP then take equally many adapter parameters at the same rank, and both
# together at half of it, so that claim C can be asked at exactly equal parameters.
MLP_RATIO = 3
INIT_STD = 0.08  # about 1 / sqrt(64)


class SelfAttention(nn.Module):
    """Exact attention over all tokens, or over the earlier ones."""

    def __init__(self, d_model: int, n_heads: int, *, causal: bool) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.causal = causal
        self.Wqkv = nn.Linear(d_model, 3 * d_model)
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of ``x``, ``(b, s, d)``."""
        q, k, v = (p.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for p in self.Wqkv(x).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)  # (b, h, s, e)
        return self.out_proj(mixed.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, d_model: int, n_heads: int, *, causal: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.self_attn = SelfAttention(d_model, n_heads, causal=causal)
        self.norm2 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, MLP_RATIO * d_model)
        self.linear2 = nn.Linear(MLP_RATIO * d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Attention, then MLP, each added to ``x``, ``(b, s, d)``."""
        x = x + self.self_attn(self.norm1(x))
        return x + self.linear2(F.gelu(self.linear1(self.norm2(x))))


class Transformer(nn.Module):
    """Blocks and a final norm."""

    def __init__(self, d_model: int, n_heads: int, n_layers: int, *, causal: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(d_model, n_heads, causal=causal) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks on ``x``, ``(b, s, d)``."""
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class CharacterEncoder(nn.Module):
    """Embeddings of characters and of their positions."""

    def __init__(self, n_characters: int, context: int, d_model: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_characters, d_model)
        self.position = nn.Embedding(context, d_model)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed character ids, int64 ``(b, s)``."""
        return self.embedding(ids) + self.position.weight[: ids.shape[1]]


class PatchEncoder(nn.Module):
    """Embeddings of square patches and of their positions."""

    def __init__(self, n_patches: int, patch: int, d_model: int) -> None:
        super().__init__()
        self.patch = patch
        self.embedding = nn.Linear(patch * patch, d_model)
        self.position = nn.Embedding(n_patches, d_model)

    def forward(self, images: Tensor) -> Tensor:
        """Embed the patches of images, float ``(b, side, side)``."""
        patches = F.unfold(images.unsqueeze(1), self.patch, stride=self.patch).transpose(1, 2)  # (b, s, patch * patch)
        return self.embedding(patches) + self.position.weight


class GPT(nn.Module):
    """Next-character network."""

    body = ("encoder", "transformer_encoder")

    def __init__(self, n_characters: int, *, context: int, d_model: int, n_heads: int, n_layers: int) -> None:
        super().__init__()
        self.encoder = CharacterEncoder(n_characters, context, d_model)
        self.transformer_encoder = Transformer(d_model, n_heads, n_layers, causal=True)
        self.head = nn.Linear(d_model, n_characters)
        self.apply(_initialise)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of the next character, ``(b, s, n_characters)``."""
        return self.head(self.transformer_encoder(self.encoder(ids)))


class ViT(nn.Module):
    """Image classifier on the mean of its patches' states."""

    body = ("encoder", "transformer_encoder")

    def __init__(self, n_classes: int, *, side: int, patch: int, d_model: int, n_heads: int, n_layers: int) -> None:
        super().__init__()
        self.encoder = PatchEncoder((side // patch) ** 2, patch, d_model)
        self.transformer_encoder = Transformer(d_model, n_heads, n_layers, causal=False)
        self.head = nn.Linear(d_model, n_classes)
        self.apply(_initialise)

    def set_classes(self, n_classes: int) -> None:
        """Put a fresh head of ``n_classes`` in place."""
        self.head = nn.Linear(self.head.in_features, n_classes)
        _initialise(self.head)

    def forward(self, images: Tensor) -> Tensor:
        """Class logits, ``(b, n_classes)``."""
        return self.head(self.transformer_encoder(self.encoder(images)).mean(dim=1))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
