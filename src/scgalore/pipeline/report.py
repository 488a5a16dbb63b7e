"""Report of a run, ``report.md``: methods, results and next steps."""

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
    """Content of the report.

    Attributes
    ----------
    config
        Configuration of the run.
    goal
        Goal of training, as the end of a sentence.
    split_note
        Description of the split, if it is not from a column.
    next_steps
        Uses of the fitted model, in Markdown.
    findings
        Scores on held-out data.
    captions
        Caption of each figure, by file name.
    sizes
        ``cells in the file``, ``cells chosen``, ``without a selected gene`` and the number of cells in each split.
    sources
        Number of selected genes by source.
    n_genes
        Number of selected genes.
    n_vars
        Number of genes in the file.
    n_known
        Number of selected genes in the model's vocabulary; ``None`` if it was extended.
    history
        Training history.
    kept
        Epoch whose weights were kept.
    converged
        Whether the validation score had stopped improving, or ``None``.
    optimizer_bytes
        Bytes of optimizer state.
    seconds
        Seconds of each stage in the session that finished the run.
    peak
        Peak memory in bytes, if known.
    versions
        Versions of packages by name.
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
        """The report as Markdown."""
        parts = [self._what(), *self.findings.sections, self._genes(), self._training(), self._pictures()]
        parts += [self._go_on(), self._limits(), self._cost(), self._made_with()]
        return "\n\n".join(parts) + "\n"

    def _what(self) -> str:
        config, sizes = self.config, self.sizes
        how = f"from `obs['{config.split_key}']`" if config.split_key else self.split_note
        chosen = f"{sizes['cells chosen']:,} of {sizes['cells in the file']:,} cells"
        lost = sizes["without a selected gene"]
        without = f" {lost:,} of them express none of the selected genes and were excluded." if lost else ""
        parts = ", ".join(f"{sizes[part]:,} {part}" for part in ("train", "validation", "test"))
        return (
            f"# scgalore run: {Path(config.data).name}\n\n"
            f"**{config.model_name}** was fine-tuned with **{config.training['optimizer']}** {self.goal}, on {chosen} of "
            f"`{Path(config.data).name}` and {self.n_genes:,} of its {self.n_vars:,} genes.{without} Split ({how}): {parts} "
            "cells. The split was made first, so that genes were selected and the model was trained on training cells only; test cells "
            "were used once, for the scores below."
        )

    def _genes(self) -> str:
        rows = [(source, str(n)) for source, n in self.sources.items()]
        known = (
            "" if self.n_known is None else f" {self.n_known:,} of the selected genes are in the model's vocabulary."
        )
        return "\n\n".join(
            [
                "## Genes",
                f"Ranked by the strategy `{self.config.gene_strategy}` on training cells. `selected_genes.csv` lists every "
                f"gene with its rank and source.{known}",
                markdown_table(("source", "selected genes"), rows),
            ]
        )

    def _training(self) -> str:
        history = self.history
        epochs = f"{len(history)} of at most {self.config.training['max_epochs']} epochs"
        kept = f"the weights of epoch {self.kept} were kept"
        if self.kept < 0:
            kept = "no epoch was better than the initial weights, which were kept"
        text = f"{epochs}; {kept}. `history.csv` has one row per epoch."
        if self.converged is False:
            text += (
                " **Training had not converged**: the validation score was still improving in the last epoch. "
                f"`scgalore run --resume --out {self.config.out} --max-epochs {2 * len(history)}` continues training."
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
                "\n\nThe number of genes increased from phase to phase. Training losses of different phases are not "
                "comparable; the validation loss always uses all genes:\n\n"
            )
            text += markdown_table(("genes", "epochs", "seconds", "last training loss"), rows)
        return f"## Training\n\n{text}"

    def _pictures(self) -> str:
        parts = [f"{caption}\n\n![{caption}](figures/{name})" for name, caption in self.captions.items()]
        return "\n\n".join(["## Figures", *parts])

    def _go_on(self) -> str:
        out = self.config.out
        return (
            "## Next steps\n\n"
            "```python\n"
            "import scanpy as sc, scgalore as sg\n\n"
            f'adata = sc.read_h5ad(r"{Path(out) / "results.h5ad"}")\n'
            f'model = sg.model.load(r"{Path(out) / "checkpoints" / "model"}")\n'
            "```\n\n"
            f"{self.next_steps}\n\n"
            "To reproduce the results, with the same versions and number of threads:\n\n"
            f'```bash\npython -m scgalore run --config "{Path(out) / "config.json"}" --out another_folder\n```'
        )

    def _limits(self) -> str:
        lines = [
            "One training seed and one split: run other seeds before interpreting small differences.",
            "`X` of `results.h5ad` is log-normalised expression of the selected genes; for other genes see the input file.",
            "Genes that are not in the model's vocabulary are not used, regardless of their rank.",
        ]
        if self.sizes["cells chosen"] < self.sizes["cells in the file"]:
            lines.append(
                "Not all cells of the file were used: `--max-cells` limits their number, and cells without a label are excluded."
            )
        return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)

    def _cost(self) -> str:
        rows = [(part, f"{seconds:.1f}") for part, seconds in self.seconds.items()]
        rows.append(("total", f"{sum(self.seconds.values()):.1f}"))
        peak = "unknown on this system" if self.peak is None else f"{self.peak / 1e6:,.0f} MB"
        training = float(self.history["seconds"].sum())
        return "\n\n".join(
            [
                "## Time and memory",
                markdown_table(("stage", "seconds"), rows),
                f"For the session that finished the run. All epochs together took {training:.1f} s. Peak resident memory of the "
                f"process: {peak}. Optimizer state: {self.optimizer_bytes / 1e6:.2f} MB.",
            ]
        )

    def _made_with(self) -> str:
        facts = {"weights": self.config.model_name, "sha256 of the data": str(self.config.data_sha256), **self.versions}
        return "## Versions\n\n" + markdown_table(("what", "version"), list(facts.items()))
