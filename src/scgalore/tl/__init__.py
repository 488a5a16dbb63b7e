"""Tools: each reads an AnnData or MuData, calls a model, and writes documented keys."""

from scgalore.tl._annotate import annotate
from scgalore.tl._embed import embed
from scgalore.tl._finetune import finetune

__all__ = ["annotate", "embed", "finetune"]
