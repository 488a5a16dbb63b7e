"""Pipeline from a file of cells to a report: split, select genes, fine-tune, predict, evaluate, report."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from scgalore import _logging as logg
from scgalore import errors
from scgalore._options import UNS_OR_OBSM
from scgalore._world import launched_world
from scgalore.data.proteins import NAMES_KEY
from scgalore.data.scale import is_called_counts
from scgalore.data.split import PARTS
from scgalore.errors import OptionError
from scgalore.pipeline.cells import CellFile, draw_rows, on_selected_genes
from scgalore.pipeline.checks import (
    OWN_SPLIT,
    SELECTED,
    cell_files,
    complete_config,
    load_model,
    training_call,
    with_cells,
)
from scgalore.pipeline.folder import RunFolder
from scgalore.pipeline.measure import Stopwatch, circumstances, peak_memory, versions
from scgalore.pipeline.progress import Stages
from scgalore.pipeline.report import Report
from scgalore.tasks.figures import HISTORY, SELECTION
from scgalore.tasks.registry import TASKS
from scgalore.tl import finetune, select_genes
from scgalore.train.checkpoint import last_checkpoint
from scgalore.train.extension import GROWING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from scgalore.model import CellModel
    from scgalore.pipeline.config import RunConfig
    from scgalore.tasks.call import TrainingCall
    from scgalore.tasks.findings import Findings

__all__ = ["run"]

OURS = tuple(getattr(errors, name) for name in errors.__all__)
KEY = SELECTED
N_STAGES = 7


def run(config: RunConfig, *, force: bool = False, resume: bool = False) -> Path:
    """Fine-tune a model on a file of cells, and report its scores on held-out cells.

    Cells are read and split, genes are ranked on the training cells and selected, the model is fine-tuned, and held-out
    cells are predicted and scored together with baselines. The folder ``config.out`` contains ``config.json``,
    ``environment.txt``, ``selected_genes.csv``, ``split.csv``, ``history.csv``, ``checkpoints/``, ``metrics.json``,
    ``results.h5ad``, ``figures/`` and ``report.md``; see :doc:`/pipeline` for their content. Every file is written
    completely or not at all.

    Parameters
    ----------
    config
        Configuration of the run.
    force
        Whether to replace an existing run in the folder. Folders with other content are never changed.
    resume
        Whether to resume an interrupted run in the folder, with the same configuration; results are identical to those
        of an uninterrupted run. Without such a run it starts from the beginning; a finished run is not changed. With a
        larger ``max_epochs``, a finished run is also continued from its last epoch; from there, the learning rate
        follows the schedule of the longer run.

    Returns
    -------
    The folder.

    Raises
    ------
    DataError, MissingKeyError, OptionError, WeightsError, DownloadError
        If the run is not possible. Nothing is written then.

    See Also
    --------
    scgalore.pipeline.RunConfig : Configuration of a run.
    scgalore.tl.finetune : Fine-tune a model on your cells.

    Examples
    --------
    >>> import scgalore as sg
    >>> config = sg.pipeline.RunConfig("cells.h5ad", "runs/x", labels_key="cell_type", model="scgpt-mini")
    >>> folder = sg.pipeline.run(config)  # doctest: +SKIP
    """
    if (n := launched_world().size) > 1:
        msg = f"A run uses a single process, but {n} were started. To train with several, call sg.tl.finetune in a script."
        raise OptionError(msg)
    folder = RunFolder(Path(config.out))
    folder.check(force=force, resume=resume)
    config, file = complete_config(config)
    stages = Stages(N_STAGES)
    resumed = resume and folder.is_begun
    if resumed:
        begun = _begun(folder, config)
        if config.training.get("max_epochs") is None:  # chosen by the run
            config = config.changed(**{name: config.training.get(name) or begun.training.get(name) for name in GROWING})
        grown = [name for name in GROWING if begun.training.get(name) != config.training.get(name)]
        if grown:
            config = _extended(folder, begun, config)
            shown = ", ".join(f"{name} {begun.training.get(name)} to {config.training.get(name)}" for name in grown)
            stages.say(f"The run in {folder.path} is extended: {shown}.")
        elif folder.is_finished:
            stages.say(f"The run in {folder.path} is finished; nothing was changed.")
            return folder.path
    with logg.summarised():
        _Run(config, file, folder, stages, resumed=resumed).make()
    return folder.path


class _Run:
    """State of a run during its stages."""

    def __init__(self, config: RunConfig, file: CellFile, folder: RunFolder, stages: Stages, *, resumed: bool) -> None:
        self.config, self.file, self.folder, self.stages, self.resumed = config, file, folder, stages, resumed
        assert config.task is not None
        self.task = TASKS[config.task]
        self.split_key = config.split_key or OWN_SPLIT
        self.watch = Stopwatch()
        self.other_cells: dict[str, AnnData] = {}
        self.sizes = {"cells in the file": len(file.obs)}

    def make(self) -> None:
        """Execute all stages. Nothing is written before all inputs have been checked."""
        model = load_model(self.config.model)
        self.task.require(model)
        adata, genes = self._prepare()
        self.task.check_cells(adata, model, self._call())
        self._begin(adata, genes)
        with self._stage("fine-tune", own_bar=True) as note:
            fitted = self._finetune(adata, model)
            n_known = self._n_known(adata)
            known = "" if n_known is None else f"; {n_known:,} of {adata.n_vars:,} genes are in the model's vocabulary"
            note(f"{len(fitted.history)} epochs, kept {self._kept(fitted)}{known}")
        self._write_table("history.csv", fitted.history)
        with self._stage("predict", own_bar=True) as note:
            note(self.task.predict(adata, fitted, self._call()))
        with self._stage("evaluate") as note:
            findings = self.task.evaluate(adata, fitted, self._call(), name=self.config.name)
            note(findings.headline)
            self._write_metrics(findings, fitted, adata.n_vars)
            fitted.save(self.folder.model, evaluation=findings.sections, overwrite=True)  # with the scores in its card
        with self._stage("report") as note:
            captions = self._draw(adata, findings)
            with self.folder.writing("results.h5ad") as draft:
                adata.write_h5ad(draft)
            note(f"report.md, {len(captions)} figures, results.h5ad")
        report = self._report(adata, findings, captions, fitted)
        with self.folder.writing("report.md") as draft:
            draft.write_text(report.text(), encoding="utf-8")

    @contextmanager
    def _stage(self, name: str, *, own_bar: bool = False) -> Iterator[Any]:
        with self.stages.stage(name, own_bar=own_bar) as note, self.watch.time(name):
            yield note

    def _prepare(self) -> tuple[AnnData, pd.DataFrame]:
        """Cells with their split and the selected genes, and the table of all genes."""
        config, task = self.config, self.task
        with self._stage("read") as note:
            keys = [*task.draw_keys(config.arguments), *([] if config.split_key is None else [config.split_key])]
            most = None if isinstance(config.max_cells, str) else config.max_cells
            rows = draw_rows(self.file.obs, keys, most=most, seed=config.rng)
            kept = [] if config.split_key is None else [config.split_key]
            tables = [config.arguments[option.name] for option in task.arguments if option.column == "obsm"]
            kept += [NAMES_KEY] if tables else []
            either = [config.arguments[option.name] for option in task.arguments if option.column == UNS_OR_OBSM]
            either = [key for key in either if key is not None]
            uns, obsm = [*kept, *either, *self._records()], [*tables, *either]
            adata = self.file.read(rows, config.layer, uns=uns, obsm=obsm)
            self.sizes["cells chosen"] = adata.n_obs
            note(f"{adata.n_obs:,} of {len(self.file.obs):,} cells, {adata.n_vars:,} genes")
        with self._stage("split") as note:
            task.split(adata, training_call(config), self.split_key)
            counts = adata.obs[self.split_key].value_counts()
            note(", ".join(f"{counts.get(part, 0):,} {part}" for part in PARTS) + " cells")
        with self._stage("select genes") as note:
            self._select(adata)
            genes = adata.var[[f"{KEY}_rank", f"{KEY}_source", KEY]]
            self.ranked = AnnData(obs=adata.obs[:0], var=adata.var, uns=dict(adata.uns))  # all genes, for a figure
            adata, self.sizes["without a selected gene"] = on_selected_genes(
                adata, adata.var[KEY].to_numpy(bool), config.reading
            )
            note(f"{adata.n_vars:,} ({config.gene_strategy}), ranked on training cells")
        self.other_cells = {name: self._read_others(Path(path)) for name, path in cell_files(config).items()}
        counts = adata.obs[self.split_key].value_counts()
        self.sizes |= {part: int(counts.get(part, 0)) for part in PARTS}
        return adata, genes.set_axis(["rank", "source", "selected"], axis=1).rename_axis("gene")

    def _read_others(self, path: Path) -> AnnData:
        """Cells of another file given as an argument, with all genes, log-normalised."""
        file = CellFile.of(path)
        most = None if isinstance(self.config.max_cells, str) else self.config.max_cells
        adata = file.read(
            draw_rows(file.obs, [], most=most, seed=self.config.rng), self.config.layer, uns=self._records()
        )
        return on_selected_genes(adata, np.ones(adata.n_vars, dtype=bool), self.config.reading)[0]

    def _records(self) -> list[str]:
        """Entries of ``uns`` that determine how the matrix is read."""
        # Otherwise the record of the logarithm refers to another matrix.
        return [] if is_called_counts(self.config.layer) else ["log1p"]

    def _select(self, adata: AnnData) -> None:
        parts = adata.obs[self.split_key]
        n_expressed = int((adata.X[(parts == "train").to_numpy()].getnnz(axis=0) > 0).sum())
        sizes = {part: int((parts == part).sum()) for part in PARTS}
        self.config = config = with_cells(self.config, n_expressed, sizes)
        assert config.n_genes is not None
        assert config.gene_strategy is not None
        known = signature(select_genes).parameters
        select_genes(
            adata,
            config.n_genes,
            config.gene_strategy,
            split_key=self.split_key,
            must_include=config.must_include or None,
            **{name: value for name, value in config.reading.params().items() if name in known},
            key_added=KEY,
            **{"batch_key": config.batch_key, **{k: v for k, v in config.arguments.items() if k in known}},
        )

    def _call(self) -> TrainingCall:
        """The training call for the cells that were read, with their split in a column."""
        call = training_call(self.config)
        # After gene selection the matrix is log-normalised, regardless of the file.
        arguments = {**call.arguments, **self.other_cells}
        return replace(
            call,
            arguments=arguments,
            split_key=self.split_key,
            reading=replace(call.reading, data_type="log1p", depth_key=None),
        )

    def _begin(self, adata: AnnData, genes: pd.DataFrame) -> None:
        """Write the files that are available before training."""
        environment = ""
        if self.resumed:
            self.folder.remove_drafts()
            self.folder.reopen(self.config)
            path = self.folder.path / "environment.txt"
            environment = path.read_text(encoding="utf-8") + "\n" if path.exists() else ""
        else:
            self.folder.begin(self.config)
        with self.folder.writing("environment.txt") as draft:
            draft.write_text(environment + circumstances("resumed" if self.resumed else "begun"), encoding="utf-8")
        self._write_table("selected_genes.csv", genes.sort_values("rank", na_position="last", kind="stable"))
        parts = adata.obs[self.split_key].rename("part").rename_axis("cell")
        self._write_table("split.csv", parts.to_frame())

    def _finetune(self, adata: AnnData, model: CellModel) -> CellModel:
        config, folder = self.config, self.folder
        try:
            return finetune(
                adata,
                model,
                task=config.task,
                **self._call().arguments,
                split_key=self.split_key,
                **self._call().reading.params(),
                genes_key=KEY if config.training.get("curriculum") else None,
                checkpoint_dir=folder.checkpoints,
                resume=True,
                save_dir=folder.model,
                logger=config.logger,
                rng=config.rng,
                **config.training,
            )
        except OURS:
            if not last_checkpoint(folder.checkpoints).exists():
                folder.remove()  # failed before training
            raise

    def _kept(self, model: CellModel) -> str:
        best = self._best_epoch(model)
        return f"epoch {best}" if best >= 0 else "the initial weights"

    @staticmethod
    def _n_known(adata: AnnData) -> int | None:
        """Number of selected genes in the model's vocabulary, if the task recorded it."""
        return adata.uns["finetune"].get("genes", {}).get("matched")

    @staticmethod
    def _best_epoch(model: CellModel) -> int:
        assert model.result is not None
        assert model.result.best_epoch is not None
        return model.result.best_epoch

    def _write_table(self, name: str, table: pd.DataFrame) -> None:
        with self.folder.writing(name) as draft:
            table.to_csv(draft)

    def _write_metrics(self, findings: Findings, model: CellModel, n_genes: int) -> None:
        assert model.result is not None
        content = {
            "task": self.config.task,
            "cells": self.sizes,
            "genes": n_genes,
            **findings.metrics,
            "training": {"epochs": len(model.history), **model.result.summary()},
        }
        with self.folder.writing("metrics.json") as draft:
            draft.write_text(json.dumps(content, indent=2, default=_plain) + "\n", encoding="utf-8")

    def _draw(self, adata: AnnData, findings: Findings) -> dict[str, str]:
        figures = {**findings.figures, "history.png": HISTORY, "gene_selection.png": SELECTION}
        for name, (_, draw) in figures.items():
            figure = draw(self.ranked if name == "gene_selection.png" else adata)
            with self.folder.writing(f"figures/{name}") as draft:
                figure.savefig(draft, dpi=150)
        return {name: caption for name, (caption, _) in figures.items()}

    def _report(self, adata: AnnData, findings: Findings, captions: dict[str, str], model: CellModel) -> Report:
        assert model.result is not None
        return Report(
            config=self.config,
            goal=self.task.goal(self.config.arguments),
            split_note=self.task.split_note,
            next_steps=self.task.next_steps,
            findings=findings,
            captions=captions,
            sizes=self.sizes,
            sources={str(name): int(n) for name, n in adata.var[f"{KEY}_source"].value_counts().items() if n},
            n_genes=adata.n_vars,
            n_vars=len(self.file.var),
            n_known=self._n_known(adata),
            history=model.history,
            kept=self._best_epoch(model),
            converged=model.result.converged,
            optimizer_bytes=model.result.optimizer_bytes or 0,
            seconds=self.watch.seconds,
            peak=peak_memory(),
            versions=versions(),
        )


def _plain(value: Any) -> Any:
    """Convert NumPy scalars to built-in numbers."""
    return value.item()


def _begun(folder: RunFolder, config: RunConfig) -> RunConfig:
    """Configuration of the run in the folder, which must match the requested configuration."""
    begun = folder.config()
    changed = begun.differences(config)
    if changed:
        msg = (
            f"{folder.path} contains a different run: {'; '.join(changed[:4])}. Resume it with its own configuration, "
            f"--config {folder.path / 'config.json'}, or pass another folder."
        )
        raise OptionError(msg)
    return begun


def _extended(folder: RunFolder, begun: RunConfig, config: RunConfig) -> RunConfig:
    """The configuration with the choices of the original run."""
    if folder.is_finished and not last_checkpoint(folder.checkpoints).exists():
        msg = (
            f"{folder.path} no longer has {last_checkpoint(folder.checkpoints).name}, so training cannot continue. Keep "
            "max_epochs unchanged, or replace the run with force=True (--force)."
        )
        raise OptionError(msg)
    if config.training.get("curriculum") is True:
        config = config.changed(curriculum=begun.training["curriculum"])
    return config.changed(n_genes=begun.n_genes)
