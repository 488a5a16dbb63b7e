"""``report.md``: what was done, what came of it, and how to go on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from scgalore.tasks.findings import markdown_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from scgalore.pipeline.config import RunConfig
    from scgalore.tasks.findings import Findings

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """Everything the report says.

    Attributes
    ----------
    config
        Of the run.
    goal
        What the model learned, as the end of a sentence.
    split_note
        How the split was made, where no column has it.
    next_steps
        What can be done with the fitted model, in Markdown.
    findings
        What was found on held-out data.
    captions
        What each picture shows, by the name of its file.
    sizes
        ``cells in the file``, ``cells chosen``, ``without a selected gene`` and the cells of each part.
    sources
        Number of selected genes by why they were selected.
    n_genes
        Genes that were selected.
    n_vars
        Genes in the file.
    n_known
        Selected genes that the model has a token for; ``None`` where it learnt those that it lacked.
    history
        Of the training.
    kept
        Epoch whose weights were kept.
    converged
        Whether the validation score had stopped improving, where something tells.
    optimizer_bytes
        Optimizer state of the run.
    seconds
        Of each stage, of the session that ended the run.
    peak
        Peak memory in bytes, where known.
    versions
        By name.
    """

    config: RunConfig
    goal: str
    split_note: str
    next_steps: str
    findings: Findings
    captions: Mapping[str, str]
    sizes: Mapping[str, int]
    sources: Mapping[str, int]
    n_genes: int
    n_vars: int
    n_known: int | None
    history: pd.DataFrame = field(repr=False)
    kept: int
    converged: bool | None
    optimizer_bytes: int
    seconds: Mapping[str, float]
    peak: int | None
    versions: Mapping[str, str]

    def text(self) -> str:
        """Write it as Markdown."""
        parts = [self._what(), *self.findings.sections, self._genes(), self._training(), self._pictures()]
        parts += [self._go_on(), self._limits(), self._cost(), self._made_with()]
        return "\n\n".join(parts) + "\n"

    def _what(self) -> str:
        config, sizes = self.config, self.sizes
        how = f"as `obs['{config.split_key}']` has it" if config.split_key else self.split_note
        chosen = f"{sizes['cells chosen']:,} of {sizes['cells in the file']:,} cells"
        lost = sizes["without a selected gene"]
        without = f" {lost:,} of them express none of the selected genes and were left out." if lost else ""
        parts = ", ".join(f"{sizes[part]:,} {part}" for part in ("train", "validation", "test"))
        return (
            f"# scgalore run: {Path(config.data).name}\n\n"
            f"**{config.model_name}** was fine-tuned with **{config.training['optimizer']}** {self.goal}, on {chosen} of "
            f"`{Path(config.data).name}` and {self.n_genes:,} of its {self.n_vars:,} genes.{without} The split, {how}: {parts} "
            "cells. The split was made first, so that selecting genes and training saw training cells only; test cells "
            "were looked at once, for the numbers below."
        )

    def _genes(self) -> str:
        rows = [(source, str(n)) for source, n in self.sources.items()]
        known = "" if self.n_known is None else f" The model knows {self.n_known:,} of the selected ones."
        return "\n\n".join(
            [
                "## Genes",
                f"Ranked by the strategy `{self.config.gene_strategy}` from training cells. `selected_genes.csv` has every "
                f"gene with its rank and its source.{known}",
                markdown_table(("source", "selected genes"), rows),
            ]
        )

    def _training(self) -> str:
        history = self.history
        epochs = f"{len(history)} of at most {self.config.training['max_epochs']} epochs"
        kept = f"the weights of epoch {self.kept} were kept"
        if self.kept < 0:
            kept = "no epoch did better than the start, whose weights were kept"
        text = f"{epochs}; {kept}. `history.csv` has a row for each."
        if self.converged is False:
            text += (
                " **Training had not converged**: the validation score was still improving in the last epoch. "
                f"`scgalore run --resume --out {self.config.out} --max-epochs {2 * len(history)}` goes on."
            )
        if self.config.training.get("curriculum") and "n_genes" in history:
            groups = history.groupby("n_genes", sort=False)
            rows = [
                (
                    f"{float(str(n)):,.0f}",
                    str(len(part)),
                    f"{part['seconds'].sum():.1f}",
                    f"{part['train_loss'].iloc[-1]:.4f}",
                )
                for n, part in groups
            ]
            text += (
                "\n\nGenes grew from phase to phase. Losses of different phases are of different tasks on the training "
                "cells; the validation loss is always of all genes:\n\n"
            )
            text += markdown_table(("genes", "epochs", "seconds", "last training loss"), rows)
        return f"## Training\n\n{text}"

    def _pictures(self) -> str:
        parts = [f"{caption}\n\n![{caption}](figures/{name})" for name, caption in self.captions.items()]
        return "\n\n".join(["## Pictures", *parts])

    def _go_on(self) -> str:
        out = self.config.out
        return (
            "## How to go on\n\n"
            "```python\n"
            "import scanpy as sc, scgalore as sg\n\n"
            f'adata = sc.read_h5ad(r"{Path(out) / "results.h5ad"}")\n'
            f'model = sg.model.load(r"{Path(out) / "checkpoints" / "model"}")\n'
            "```\n\n"
            f"{self.next_steps}\n\n"
            "The same numbers again, with the same versions and number of threads:\n\n"
            f'```bash\npython -m scgalore run --config "{Path(out) / "config.json"}" --out another_folder\n```'
        )

    def _limits(self) -> str:
        lines = [
            "One seed of training and one split: run other seeds before believing a small difference.",
            "`X` of `results.h5ad` is log-normalised expression of the selected genes; the file of the data has the rest.",
            "Genes that the model's vocabulary lacks are not seen by it, whatever their rank.",
        ]
        if self.sizes["cells chosen"] < self.sizes["cells in the file"]:
            lines.append(
                "Not all cells of the file took part; `--max-cells` says how many may, and cells without a label never do."
            )
        return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)

    def _cost(self) -> str:
        rows = [(part, f"{seconds:.1f}") for part, seconds in self.seconds.items()]
        rows.append(("total", f"{sum(self.seconds.values()):.1f}"))
        peak = "not known on this system" if self.peak is None else f"{self.peak / 1e6:,.0f} MB"
        training = float(self.history["seconds"].sum())
        return "\n\n".join(
            [
                "## Time and memory",
                markdown_table(("stage", "seconds"), rows),
                f"Of the session that ended the run. All epochs together took {training:.1f} s. Peak resident memory of the "
                f"process: {peak}. Optimizer state: {self.optimizer_bytes / 1e6:.2f} MB.",
            ]
        )

    def _made_with(self) -> str:
        facts = {"weights": self.config.model_name, "sha256 of the data": str(self.config.data_sha256), **self.versions}
        return "## Made with\n\n" + markdown_table(("what", "version"), list(facts.items()))
