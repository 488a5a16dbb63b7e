"""The folder of a demonstration's files."""

from scgalore._folders import FolderKind

__all__ = ["DEMO", "FILES"]

FILES = ("report.md", "results.h5ad", "umap.png", "confusion_matrix.png", "history.png")

DEMO = FolderKind("a demo", is_one=lambda names: names <= set(FILES), permit="force=True (--force)")
