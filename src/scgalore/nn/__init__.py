"""Networks in plain torch: they know nothing of AnnData, scanpy or scvi, and are useful by themselves."""

from scgalore.nn.attention import attention_scores, rank_scores
from scgalore.nn.config import SCGPTConfig
from scgalore.nn.embedding import EMBEDDINGS, EmbeddingMode
from scgalore.nn.encoder import CellEncoder
from scgalore.nn.network import Encoded, SCGPTNetwork

__all__ = [
    "CellEncoder",
    "EMBEDDINGS",
    "EmbeddingMode",
    "Encoded",
    "SCGPTConfig",
    "SCGPTNetwork",
    "attention_scores",
    "rank_scores",
]
