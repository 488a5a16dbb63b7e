"""Networks in plain torch, independent of AnnData, scanpy and scvi."""

from scgalore.nn.attention import AttentionMeans, attention_scores, rank_scores
from scgalore.nn.base import CellNetwork, CellOutput, Encoded, NetworkConfig, PaddedEncoder
from scgalore.nn.embedding import EMBEDDINGS, EmbeddingMode
from scgalore.nn.scbert import SCBERTNetwork
from scgalore.nn.scbert_config import SCBERTConfig
from scgalore.nn.scgpt import SCGPTNetwork
from scgalore.nn.scgpt_config import SCGPTConfig
from scgalore.nn.scgpt_encoder import CellEncoder

__all__ = [
    "AttentionMeans",
    "CellEncoder",
    "CellNetwork",
    "CellOutput",
    "EMBEDDINGS",
    "EmbeddingMode",
    "Encoded",
    "NetworkConfig",
    "PaddedEncoder",
    "SCBERTConfig",
    "SCBERTNetwork",
    "SCGPTConfig",
    "SCGPTNetwork",
    "attention_scores",
    "rank_scores",
]
