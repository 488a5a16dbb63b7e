"""A run that learns to name classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from scgalore import pl
from scgalore._keys import LabelKeys
from scgalore.data.labels import class_codes, encode_labels
from scgalore.tasks.baselines import BASELINES, LOGISTIC
from scgalore.tasks.figures import on_axes, umap
from scgalore.tasks.findings import Findings, markdown_table, with_error
from scgalore.tasks.label_scores import LabelScores
from scgalore.tasks.cells import CellSplit

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore.model import SCGPT
    from scgalore.pipeline.config import RunConfig

__all__ = ["Classes"]

METRICS = {"accuracy": "accuracy", "macro_f1": "macro F1"}
KEYS = LabelKeys("finetune")


class Classes(CellSplit):
    """Learn ``labels_key``, and name the classes of the held-out cells.

    Parameters
    ----------
    config
        Of the run.
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        assert config.labels_key is not None
        self.labels_key = config.labels_key
        self.goal = f"to name the classes of `obs['{self.labels_key}']`"

    def keys(self) -> list[str]:
        """Cells without a label take no part."""
        return [self.labels_key, *super().keys()]

    def strata(self, adata: AnnData) -> NDArray[np.int64]:
        """Each part has its share of every class."""
        codes, classes = encode_labels(adata, self.labels_key)
        # Plots take numbers for measurements; classes without cells would get colours.
        adata.obs[self.labels_key] = pd.Categorical.from_codes(codes, categories=pd.Index(classes))
        return codes

    def check(self, adata: AnnData, model: SCGPT) -> None:
        """Read the cells once as training will."""
        model.cells(adata, gene_symbols=self.config.gene_symbols, rng=self.config.seed)

    def options(self) -> dict[str, Any]:
        """The column of the labels."""
        return {"labels_key": self.labels_key}

    def predict(self, adata: AnnData, model: SCGPT) -> str:
        """Nothing is left to do: fine-tuning has written labels and embeddings."""
        return f"labels and embeddings of {adata.n_obs:,} cells, written by fine-tuning"

    def evaluate(self, adata: AnnData, model: SCGPT) -> Findings:
        """Compare the labels of test cells with those of simple classifiers."""
        codes, classes = encode_labels(adata, self.labels_key)
        split = self.parts(adata)
        x = _seen_genes(adata)
        name = f"{self.config.model_name} + {self.config.optimizer}"
        predicted = {name: class_codes(adata.obs[KEYS.label], classes)}
        predicted |= {method: classify(x, codes, split) for method, classify in BASELINES.items()}
        on_test = {method: found[split.test] for method, found in predicted.items()}
        scores = LabelScores.of(on_test, codes[split.test], seed=self.config.seed)
        rival = max(LOGISTIC, key=lambda method: scores.row(method)["macro_f1"])
        difference = scores.difference(name, rival)
        mine, theirs = scores.row(name), scores.row(rival)
        metrics = {
            "n_classes": len(classes),
            "test": {"n": scores.n, **mine},
            "baselines": {method: scores.row(method) for method in BASELINES},
            "difference": {"to": rival, **difference},
        }
        numbers = [f"{title} {mine[key]:.3f} ({rival} {theirs[key]:.3f})" for key, title in METRICS.items()]
        return Findings(
            metrics,
            f"{', '.join(numbers)} on {scores.n:,} test cells",
            [_section(scores, name, rival, difference)],
            {
                "confusion_matrix.png": (
                    "Held-out cells by true and predicted class.",
                    on_axes(lambda adata, ax: pl.confusion_matrix(adata, ax=ax, show=False), size=(7.5, 6.5)),
                ),
                **umap([self.labels_key, KEYS.label], ["true label", "predicted label"], adata.n_obs),
            },
        )


def _section(scores: LabelScores, name: str, rival: str, difference: dict[str, float]) -> str:
    rows = [
        (
            method,
            *(with_error(scores.row(method)[key], scores.row(method)[f"{key}_se"]) for key in METRICS),
            str(scores.n),
        )
        for method in scores.samples
    ]
    verdicts = [f"- {_verdict(title, difference[key], difference[f'{key}_se'])}" for key, title in METRICS.items()]
    return "\n\n".join(
        [
            "## Held-out cells",
            markdown_table(("method", *METRICS.values(), "test cells"), rows),
            "Value ± standard error, over samples of the test cells. It says how much the choice of test cells matters, and "
            "not how much another seed of training would: run the same configuration with another `seed` for that. In macro "
            "F1 every class counts the same, however rare. All methods saw the same genes and were fitted to the same "
            "training cells; validation cells chose the epoch of the network.",
            f"{name} minus {rival}, the stronger of the two on these very cells:",
            "\n".join(verdicts),
        ]
    )


def _verdict(metric: str, difference: float, error: float) -> str:
    text = f"{metric}: {with_error(difference, error, sign='+')}"
    if abs(difference) <= 2 * error:
        return f"{text}, within twice the standard error: these cells do not tell the two apart."
    return f"{text}: {'better' if difference > 0 else 'worse'} by more than twice the standard error."


def _seen_genes(adata: AnnData) -> NDArray[np.float32]:
    """Expression of the genes that the model has tokens for."""
    dropped = pd.Index(list(adata.uns[KEYS.uns]["genes"]["dropped"]))
    return adata.X[:, ~adata.var_names.isin(dropped)].toarray()
