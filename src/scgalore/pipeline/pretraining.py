"""Pipeline from files of cells to a pre-trained model and a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scgalore import __version__, errors
from scgalore._settings import settings
from scgalore._words import duration
from scgalore._world import is_first_process
from scgalore.errors import OptionError
from scgalore.model.distributed import by_first
from scgalore.model.families import FAMILIES
from scgalore.pipeline.folder import RunFolder
from scgalore.pipeline.measure import Stopwatch, circumstances, peak_memory, versions
from scgalore.pipeline.pretrain_config import PretrainConfig
from scgalore.pipeline.progress import Stages
from scgalore.tasks.figures import umap
from scgalore.tasks.findings import markdown_table
from scgalore.tl._pretrain import PretrainingRun
from scgalore.tl._pretraining import BUDGETS
from scgalore.train.checkpoint import last_checkpoint, progress, read_checkpoint

if TYPE_CHECKING:
    from anndata import AnnData

    from scgalore.model import CellModel

__all__ = ["FILES", "plan_pretraining", "pretrain"]

FILES = ("config.json", "environment.txt", "history.csv", "metrics.json", "held_out.h5ad", "report.md")
"""Files in the order in which they are written; the last one marks the run as finished."""

NEW, BEGUN, FINISHED = "new", "begun", "finished"

OURS = tuple(getattr(errors, name) for name in errors.__all__)
NEIGHBOURS, COMPONENTS, FOLDS = 15, 50, 5


def pretrain(config: PretrainConfig, *, force: bool = False, resume: bool = False) -> Path:
    """Pre-train a model on files of cells, and report its scores on held-out cells.

    The folder ``config.out`` gets ``config.json``, ``environment.txt``, ``history.csv``, ``checkpoints/`` with the
    model, ``metrics.json``, ``held_out.h5ad`` (the held-out cells with their embeddings), ``figures/`` and
    ``report.md``.

    Parameters
    ----------
    config
        Configuration of the run.
    force
        Whether to replace an existing run in the folder.
    resume
        Whether to resume an interrupted run in the folder, also within an epoch; results are identical to those of an
        uninterrupted run.

    Returns
    -------
    The folder.

    Raises
    ------
    DataError, MissingKeyError, OptionError, WeightsError, DownloadError
        If the run is not possible. Nothing is written then.

    See Also
    --------
    scgalore.pipeline.PretrainConfig : Configuration of a pre-training run.
    scgalore.tl.pretrain : Pre-train a model on files of cells.

    Examples
    --------
    >>> import scgalore as sg
    >>> config = sg.pipeline.PretrainConfig("cells/", "runs/x", max_hours=4)
    >>> folder = sg.pipeline.pretrain(config)  # doctest: +SKIP
    """
    # Messages on each file, losses and throughput are needed during long runs.
    with settings.override(verbosity=max(2, settings.verbosity or 0)):
        return _pretrain(config, force=force, resume=resume)


def _pretrain(config: PretrainConfig, *, force: bool, resume: bool) -> Path:
    folder = _folder(config)
    stages, watch = Stages(4), Stopwatch()
    # Only the first process checks the folder and writes to it: others might see its new files.
    state = by_first(lambda: _state(folder, config, force=force, resume=resume))
    if state == FINISHED:
        stages.say(f"The run in {folder.path} is finished; nothing was changed.")
        return folder.path
    with stages.stage("read") as note, watch.time("read"):
        run, held = _read(config)
        start = _called(config)
        before = None if run.shown is None else run.model.run(run.shown).embedding
        note(f"{run.training.n_obs:,} cells to train on, {0 if held is None else held.n_obs:,} held out")
    by_first(lambda: _begin(folder, config, resumed=state == BEGUN))
    with stages.stage("pre-train", own_bar=True) as note, watch.time("pre-train"):
        try:
            run.train(checkpoint_dir=folder.checkpoints, resume=True, logger=config.options["logger"])
        except OURS:
            if is_first_process() and not last_checkpoint(folder.checkpoints).exists():
                folder.remove()  # failed before training
            raise
        after = None if run.shown is None else run.model.run(run.shown).embedding
        if not is_first_process():
            return folder.path
        run.model.save(folder.model, overwrite=True)
        with folder.writing("history.csv") as draft:
            run.model.history.to_csv(draft)
        note(f"{len(run.model.history)} epochs, kept epoch {run.model.result.best_epoch}")  # type: ignore[union-attr]
    with stages.stage("evaluate") as note, watch.time("evaluate"):
        scores = {} if held is None else _scores(config, held, before, after, run)
        _write_metrics(folder, run, scores)
        note(_headline(scores) or "no labels for scoring embeddings")
    with stages.stage("report") as note, watch.time("report"):
        captions = _draw(folder, run.model, held, _keys(config))
        if held is not None:
            with folder.writing("held_out.h5ad") as draft:
                held.write_h5ad(draft)
        text = _report(config, run, start, scores, captions, watch)
        with folder.writing("report.md") as draft:
            draft.write_text(text, encoding="utf-8")
        note(f"report.md, {len(captions)} figures")
    return folder.path


def plan_pretraining(config: PretrainConfig, *, force: bool = False, resume: bool = False) -> str:
    """Check and describe a run, with estimates of memory and time (from a few timed steps); nothing is written.

    Parameters
    ----------
    config, force, resume
        As for :func:`pretrain`.
    """
    folder = _folder(config)
    state = by_first(lambda: _state(folder, config, force=force, resume=resume))
    if state == FINISHED:
        return f"The run in {folder.path} is finished; nothing would be changed."
    run, held = _read(config)
    seconds = run.seconds_per_step()
    steps = run.steps()
    network = run.model.network
    chosen = {name: value for name, value in config.options.items() if value not in (None, [], {}, False)}
    width = max(map(len, chosen))
    return "\n".join(
        [
            f"{run.training.n_obs:,} cells to train on, {0 if held is None else held.n_obs:,} held out, of "
            f"{run.training.n_matched:,} genes in the model's vocabulary.",
            f"{run.model!r}",
            f"{sum(p.numel() for p in network.parameters()):,} parameters; a step of {run.cells_per_step} cells takes about "
            f"{seconds:.2f} s on this machine ({run.cells_per_step / seconds:,.0f} cells/s).",
            f"{steps:,} steps ({steps * run.cells_per_step / run.training.n_obs:.1f} passes over the cells) take about "
            f"{duration(steps * seconds)}, without validation.",
            "",
            str(run.memory()),
            "",
            *_begun(folder, state),
            f"The run would write {', '.join(FILES)}, figures and checkpoints to {folder.path}.",
            "",
            *(f"{name:<{width}}  {value}" for name, value in chosen.items()),
            "",
            "Nothing was written.",
        ]
    )


def _begun(folder: RunFolder, state: str) -> list[str]:
    """Description of the checkpoint to resume from."""
    path = last_checkpoint(folder.checkpoints)
    if state != BEGUN:
        return []
    if not path.exists():
        return ["The run in the folder has no checkpoint yet and would start from the beginning."]
    return [f"It would resume from {path} at {progress(read_checkpoint(path, mmap=True))}."]


def _called(config: PretrainConfig) -> str:
    """Description of the initial weights."""
    sizes = config.options["sizes"]
    if sizes is None:
        return Path(config.options["model"]).name
    shown = ", ".join(f"{name} {value}" for name, value in sizes.items())
    return f"{config.options['model']} with random weights ({shown})"


def _folder(config: PretrainConfig) -> RunFolder:
    return RunFolder(Path(config.out), FILES, PretrainConfig.from_json)


def _keys(config: PretrainConfig) -> list[str]:
    return [] if config.options["labels_key"] is None else [config.options["labels_key"]]


def _read(config: PretrainConfig) -> tuple[PretrainingRun, AnnData | None]:
    """The run, and its held-out cells with their labels."""
    run = _prepared(config)
    return run, None if run.held is None else run.held.to_adata(run.model.vocab, obs_keys=_keys(config))


def _prepared(config: PretrainConfig) -> PretrainingRun:
    options = {name: value for name, value in config.options.items() if value is not None}
    model: Any = options.pop("model")
    if (sizes := options.pop("sizes", None)) is not None:
        if model not in FAMILIES:
            msg = f"model={model!r}: with sizes, expected a model family: {', '.join(map(repr, FAMILIES))}."
            raise OptionError(msg)
        model = FAMILIES[model].config(**{"n_tokens": 1, "pad_id": 0, **sizes})
    for name in ("labels_key", "logger"):
        options.pop(name, None)
    options.setdefault("max_length", None)
    return PretrainingRun.of(config.sources, model, validation=None, **options)


def _state(folder: RunFolder, config: PretrainConfig, *, force: bool, resume: bool) -> str:
    """State of the folder, if it may be written to: new, a run to resume, or a finished run."""
    folder.check(force=force, resume=resume)
    if not (resume and folder.is_begun):
        return NEW
    if changed := folder.config().differences(config):
        msg = f"{folder.path} contains a different run: {'; '.join(changed[:4])}. Resume it with its own configuration."
        raise OptionError(msg)
    return FINISHED if folder.is_finished else BEGUN


def _begin(folder: RunFolder, config: PretrainConfig, *, resumed: bool) -> None:
    environment = ""
    path = folder.path / "environment.txt"
    if resumed:
        folder.remove_drafts()
        environment = path.read_text(encoding="utf-8") + "\n" if path.exists() else ""
    else:
        folder.begin(config.changed(version=__version__))
    with folder.writing("environment.txt") as draft:
        draft.write_text(environment + circumstances("resumed" if resumed else "begun"), encoding="utf-8")


def _scores(
    config: PretrainConfig, held: AnnData, before: Any, after: Any, run: PretrainingRun
) -> dict[str, dict[str, float]]:
    """Add embeddings to the held-out cells, and score them by labels, if available."""
    from sklearn.decomposition import PCA

    own = run.model.family.embedding
    held.obsm["before"], held.obsm[own] = before, after
    x = np.asarray(held.X.toarray())
    held.obsm["X_pca"] = PCA(min(COMPONENTS, *(n - 1 for n in x.shape)), random_state=0).fit_transform(x)
    key = config.options["labels_key"]
    if key is None:
        return {}
    labels, known = held.obs[key], held.obs[key].notna().to_numpy()
    names = {"principal components": "X_pca", "before": "before", "after": own}
    return {
        name: _neighbour_accuracy(held.obsm[slot][known], labels[known].astype(str).to_numpy())
        for name, slot in names.items()
    }


def _neighbour_accuracy(x: Any, labels: Any) -> dict[str, float]:
    """Fraction of cells whose label equals that of their neighbours, for labels with at least as many cells as folds."""
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.neighbors import KNeighborsClassifier

    names, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    kept = (counts >= FOLDS)[codes]
    if len(np.unique(codes[kept])) < 2:
        return {}
    x, labels = x[kept], names[codes[kept]]
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    neighbours = KNeighborsClassifier(min(NEIGHBOURS, min(len(others) for others, _ in folds.split(x, labels))))
    found = cross_val_predict(neighbours, x, labels, cv=folds) == labels
    return {"accuracy": float(found.mean()), "se": float(found.std(ddof=1) / np.sqrt(len(found))), "n": len(found)}


def _headline(scores: dict[str, dict[str, float]]) -> str:
    return ", ".join(f"{name} {row['accuracy']:.3f}" for name, row in scores.items() if row)


def _write_metrics(folder: RunFolder, run: PretrainingRun, scores: dict[str, Any]) -> None:
    assert run.model.result is not None
    history = run.model.history
    losses = [name for name in ("train_loss", "validation_loss") if name in history]
    content = {
        "cells": {"train": run.training.n_obs, "held out": 0 if run.held is None else run.held.n_obs},
        "genes": run.training.n_matched,
        "neighbours": scores,
        "losses": {
            name: {"first": float(history[name].iloc[0]), "last": float(history[name].iloc[-1])} for name in losses
        },
        "cells_per_second": float(history["cells_per_second"].mean()),
        "training": {"epochs": len(history), **run.model.result.summary()},
    }
    with folder.writing("metrics.json") as draft:
        draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _draw(folder: RunFolder, model: CellModel, held: AnnData | None, keys: list[str]) -> dict[str, str]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    captions = {"history.png": "Training and validation loss by step."}
    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    ax = figure.subplots()
    assert model.result is not None
    steps = (np.arange(len(model.history)) + 1) * (model.result.steps or 0) / max(1, len(model.history))
    for name, label in (("train_loss", "training"), ("validation_loss", "held out")):
        if name in model.history:
            ax.plot(steps, model.history[name], marker=".", label=label)
    ax.set(xlabel="steps", ylabel="loss")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    figures = {"history.png": figure}
    if held is not None:
        shown = ["source", *keys]
        for name, (_, draw) in umap(shown, shown, held.n_obs, use_rep=model.family.embedding).items():
            captions[name] = "UMAP (scanpy) of the embeddings of held-out cells after pre-training."
            figures[name] = draw(held)
    for name, made in figures.items():
        with folder.writing(f"figures/{name}") as draft:
            made.savefig(draft, dpi=150)
    return captions


def _report(
    config: PretrainConfig,
    run: PretrainingRun,
    start: str,
    scores: dict[str, dict[str, float]],
    captions: dict[str, str],
    watch: Stopwatch,
) -> str:
    result, history = run.model.result, run.model.history
    assert result is not None
    budget = next((name for name in BUDGETS if config.options[name] is not None), BUDGETS[0])
    about = "about " if config.options["accumulate_tokens"] is not None else ""
    by = f" by {run.n_processes} processes" if run.n_processes > 1 else ""
    sections = [
        f"# scgalore pretrain: {run.training.n_obs:,} cells",
        f"**{start}** was trained for {result.steps:,} steps of {about}{run.cells_per_step} cells{by} (budget in "
        f"{budget.removeprefix('max_')}), {(result.steps or 0) * run.cells_per_step / run.training.n_obs:.1f} passes over the cells, on the "
        f"{run.training.n_matched:,} genes of the files in its vocabulary. The weights of epoch {result.best_epoch} were kept.",
    ]
    if scores:
        rows = [
            (name, f"{row['accuracy']:.3f} ± {row['se']:.3f}", str(int(row["n"])))
            for name, row in scores.items()
            if row
        ]
        sections.append(
            "## Labels of neighbours\n\n"
            + markdown_table(("embedding", "accuracy", "held-out cells"), rows)
            + f"\n\nFraction of held-out cells whose `{config.options['labels_key']}` equals that of most of their {NEIGHBOURS} nearest "
            f"neighbours, by {FOLDS}-fold cross-validation, ± standard error; labels with fewer than {FOLDS} "
            f"cells are excluded. Principal components are the first {COMPONENTS} of the log-normalised expression of the same cells."
        )
    losses = [name for name in ("train_loss", "validation_loss") if name in history]
    of_losses = [
        (name, f"{history[name].iloc[0]:.4g}", f"{history[name].min():.4g}", f"{history[name].iloc[-1]:.4g}")
        for name in losses
    ]
    pace = f"{history['cells_per_second'].mean():,.0f} cells/s and {history['tokens_per_second'].mean():,.0f} tokens/s, {history['waited'].mean():.0%} of the time spent waiting for data."
    sections.append(
        "## Training\n\n" + markdown_table(("loss", "first epoch", "lowest", "last epoch"), of_losses) + f"\n\n{pace}"
    )
    sections.append(
        "## Figures\n\n" + "\n\n".join(f"{text}\n\n![{text}](figures/{name})" for name, text in captions.items())
    )
    out, best = Path(config.out), _folder(config).best
    kept = sorted(
        (f"`checkpoints/best/{path.name}`" for path in best.glob("epoch-*")), key=lambda name: (len(name), name)
    )
    sections.append(
        "## Next steps\n\n```python\nimport scgalore as sg\n\n"
        f'model = sg.model.load(r"{out / "checkpoints" / "model"}")\n```\n\n'
        "`sg.tl.embed(cells, model)` embeds cells, and `sg.tl.finetune(cells, model, labels_key=...)` fine-tunes these weights."
        + (f" Models of the best epochs, which can be loaded as well: {', '.join(kept)}." if kept else "")
    )
    peak = peak_memory()
    cost = [(part, f"{seconds:.1f}") for part, seconds in watch.seconds.items()]
    sections.append(
        "## Time and memory\n\n"
        + markdown_table(("stage", "seconds"), cost)
        + f"\n\nFor the session that finished the run. Peak resident memory: {'unknown' if peak is None else f'{peak / 1e6:,.0f} MB'}. "
        f"Optimizer state: {(result.optimizer_bytes or 0) / 1e6:.2f} MB."
    )
    sections.append("## Versions\n\n" + markdown_table(("what", "version"), list(versions().items())))
    return "\n\n".join(sections) + "\n"
