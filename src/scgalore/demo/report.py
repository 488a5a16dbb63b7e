"""``report.md``: what was done, how good it is, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scgalore.tasks.baselines import LOGISTIC
from scgalore.tasks.findings import markdown_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

__all__ = ["METRICS", "RANDOM", "Report", "compare", "score_table", "strongest"]

METRICS = {"accuracy": "accuracy", "macro_f1": "macro F1"}
RANDOM = "same network, random weights"


@dataclass(frozen=True)
class Report:
    """Everything the report says.

    Attributes
    ----------
    method
        Name of the fine-tuned model in ``scores``.
    optimizer
        What it was fine-tuned with.
    scores
        One row a seed and method: ``seed, method, accuracy, macro_f1, n``, on held-out cells.
    sizes
        Number of ``cells``, cells ``held out``, ``genes`` seen by every method, and ``classes``.
    settings
        Training options by name.
    weights
        Name and sha256 of what was fine-tuned.
    optimizer_bytes
        Optimizer state of the run.
    adamw_bytes
        Optimizer state of AdamW on the same network.
    table_rows
        Rows of the table of gene embeddings that were trained, and all of them.
    seconds
        Time of each part.
    peak
        Peak memory in bytes, where known.
    versions
        Versions by name.
    """

    method: str
    optimizer: str
    scores: pd.DataFrame
    sizes: Mapping[str, int]
    settings: Mapping[str, object]
    weights: Mapping[str, str]
    optimizer_bytes: int
    adamw_bytes: int
    table_rows: tuple[int, int]
    seconds: Mapping[str, float]
    peak: int | None
    versions: Mapping[str, str]

    def text(self) -> str:
        """Write it as Markdown."""
        return "\n\n".join([self._what(), self._scores(), self._pictures(), self._cost(), self._made_with()]) + "\n"

    def _what(self) -> str:
        n_seeds = self.scores["seed"].nunique()
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items() if value not in (None, {}))
        longest = self.settings.get("max_length")
        sampled = (
            ""
            if longest is None
            else f" (the model in training at most {longest} tokens of a cell, drawn anew each epoch)"
        )
        return (
            "# scgalore demo\n\n"
            f"All parameters of **{self.weights['name']}** were fine-tuned with **{self.optimizer}** to name the "
            f"{self.sizes['classes']} cell types of {self.sizes['cells']} blood cells (pbmc68k as it comes with scanpy, "
            f"log-normalised, `obs['bulk_labels']`). {self.sizes['held out']} cells were held out, drawn at random within the "
            f"classes{f' with each of {n_seeds} seeds' if n_seeds > 1 else ''}; they took no part in the training, whose "
            f"settings ({settings}) were not chosen on these splits. The demo's own settings come from trials on other splits of the "
            "same cells, which speaks for the model and not for the baselines, whose settings were never tuned. Every method saw "
            f"the same {self.sizes['genes']} genes{sampled} and the same cells."
        )

    def _scores(self) -> str:
        rival = strongest(self.scores, LOGISTIC)
        parts = [
            "## Held-out cells",
            score_table(self.scores),
            "Mean ± standard deviation over the seeds. In macro F1 every class counts the same, however rare.",
            "## Difference to logistic regression",
            f"{self.method} minus {rival} (the stronger of the two on these very cells), seed by seed:",
            _difference_table(paired_differences(self.scores, self.method, rival)),
            _listed(compare(self.scores, self.method, rival)),
        ]
        if paired_differences(self.scores, self.method, rival)["macro_f1"].mean() < 0:
            parts.append(
                f"A likely reason, not tested here: {self.sizes['cells'] - self.sizes['held out']} labelled cells suffice for a "
                "linear model of a few hundred genes and are few for a transformer, unless pretraining helps. How much it helps "
                "is measured with `scgalore demo --random-weights`."
            )
        if RANDOM in set(self.scores["method"]):
            parts += ["## What pretraining buys", _listed(compare(self.scores, self.method, RANDOM))]
        return "\n\n".join(parts)

    def _pictures(self) -> str:
        return (
            "## Pictures\n\nOf the first seed. The UMAP is scanpy's, of the fine-tuned embeddings of all cells, those trained on "
            "included; the confusion matrix is of the held-out cells alone.\n\n"
            "![UMAP by true and predicted label](umap.png)\n\n![confusion matrix](confusion_matrix.png)\n\n![history](history.png)"
        )

    def _cost(self) -> str:
        rows = [(part, f"{seconds:.1f}") for part, seconds in self.seconds.items()]
        total = ("total", f"{sum(self.seconds.values()):.1f}")
        peak = "not known on this system" if self.peak is None else f"{self.peak / 1e6:,.0f} MB"
        state = f"Optimizer state: {self.optimizer} {_size(self.optimizer_bytes)}"
        if self.optimizer != "adamw":
            share = self.optimizer_bytes / self.adamw_bytes
            state += f", {share:.0%} of the {_size(self.adamw_bytes)} of AdamW on the same network (both measured). "
            trained, total_rows = self.table_rows
            state += f"Of the {total_rows:,} rows of gene embeddings, both train the {trained:,} that these cells use"
        return "\n\n".join(
            [
                "## Time and memory",
                markdown_table(("part", "seconds"), [*rows, total]),
                f"Peak resident memory of the whole process: {peak}.",
                f"{state}.",
            ]
        )

    def _made_with(self) -> str:
        facts = {"weights": self.weights["name"], "sha256 of the weights": self.weights["sha256"], **self.versions}
        return "## Made with\n\n" + markdown_table(("what", "version"), list(facts.items()))


def score_table(scores: pd.DataFrame) -> str:
    """One row a method, in the order of the scores."""
    rows = []
    for method, group in scores.groupby("method", sort=False):
        cells = sorted(group["n"].unique())
        n_cells = str(cells[0]) if len(cells) == 1 else f"{cells[0]}-{cells[-1]}"
        numbers = [_mean_sd(group[metric]) for metric in METRICS]
        rows.append((str(method), *numbers, str(len(group)), n_cells))
    return markdown_table(("method", *METRICS.values(), "seeds", "held-out cells"), rows)


def strongest(scores: pd.DataFrame, methods: Sequence[str]) -> str:
    """Method with the highest mean macro F1, which makes a comparison with it the harder one."""
    means = scores.groupby("method")["macro_f1"].mean()
    return max(methods, key=lambda method: means[method])


def paired_differences(scores: pd.DataFrame, method: str, rival: str) -> pd.DataFrame:
    """Accuracy and macro F1 of a method minus those of another, one row a seed."""
    mine, theirs = (scores[scores["method"] == name].set_index("seed")[list(METRICS)] for name in (method, rival))
    return mine - theirs


def compare(scores: pd.DataFrame, method: str, rival: str) -> list[str]:
    """Say in a sentence for each metric whether a method is as good as another.

    The noise is the standard deviation of the paired differences over the seeds, so it holds the choice of cells as well as
    the randomness of training.

    Parameters
    ----------
    scores
        As in :class:`Report`.
    method, rival
        What is compared with what.
    """
    return [
        _verdict(name, method, rival, differences)
        for name, (_, differences) in zip(
            METRICS.values(), paired_differences(scores, method, rival).items(), strict=True
        )
    ]


def _verdict(metric: str, method: str, rival: str, differences: pd.Series) -> str:
    mean, sd = differences.mean(), differences.std()
    way = "below" if mean < 0 else "above"
    if len(differences) == 1:
        return f"{metric}: {method} is {abs(mean):.3f} {way} {rival}. One seed does not tell how much of that is noise."
    noise = f"the standard deviation of {sd:.3f} over {len(differences)} seeds"
    if abs(mean) <= sd:
        return f"{metric}: {method} equals {rival} within the noise (difference {mean:+.3f}, not more than {noise})."
    verb = "fails to reach" if mean < 0 else "exceeds"
    return f"{metric}: {method} {verb} {rival}, by {abs(mean):.3f}, which is more than {noise}."


def _difference_table(differences: pd.DataFrame) -> str:
    rows = [
        (str(seed), *(f"{value:+.3f}" for value in row))
        for seed, row in zip(differences.index, differences.to_numpy(), strict=True)
    ]
    if len(rows) > 1:
        rows.append(("mean ± sd", *(_mean_sd(differences[metric], sign="+") for metric in METRICS)))
    return markdown_table(("seed", *METRICS.values()), rows)


def _listed(sentences: list[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _mean_sd(values: pd.Series, *, sign: str = "") -> str:
    mean = f"{values.mean():{sign}.3f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std():.3f}"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.2f} MB"
