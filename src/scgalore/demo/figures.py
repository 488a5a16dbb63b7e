"""The pictures of the demonstration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from scgalore import pl

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

__all__ = ["save_figures"]


def save_figures(adata: AnnData, folder: Path, *, labels_key: str) -> None:
    """Write ``umap.png``, ``confusion_matrix.png`` and ``history.png``.

    Figures are made without pyplot, so that neither its backend nor its list of open figures changes.

    Parameters
    ----------
    adata
        With the results of fine-tuning and a UMAP; the colours of the labels are written to its ``uns``.
    folder
        Where to write.
    labels_key
        Column of ``adata.obs`` with the true labels.
    """
    _umap(adata, labels_key).savefig(folder / "umap.png", dpi=150)
    figure = Figure(figsize=(7.5, 6.5), layout="constrained")
    pl.confusion_matrix(adata, ax=figure.subplots(), show=False)
    figure.savefig(folder / "confusion_matrix.png", dpi=150)
    figure = Figure(figsize=(5.0, 3.5), layout="constrained")
    pl.history(adata, ax=figure.subplots(), show=False)
    figure.savefig(folder / "history.png", dpi=150)


def _umap(adata: AnnData, labels_key: str) -> Figure:
    import scanpy as sc

    predicted = "scgpt_label"
    figure = Figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    look = {"size": 50, "frameon": False, "show": False}
    sc.pl.umap(adata, color=labels_key, ax=left, title="true label", legend_loc=None, **look)
    by_name = dict(zip(adata.obs[labels_key].cat.categories, adata.uns[f"{labels_key}_colors"], strict=True))
    adata.uns[f"{predicted}_colors"] = [by_name[name] for name in adata.obs[predicted].cat.categories]
    sc.pl.umap(adata, color=predicted, ax=right, title="predicted label", **look)
    return figure
