"""Demo: a preset of the pipeline on cells that are part of scanpy, repeated with several seeds."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pandas as pd

from scgalore._files import whole_file
from scgalore._folders import no_empty_folders
from scgalore.errors import OptionError
from scgalore.pipeline.config import RunConfig
from scgalore.pipeline.folder import RunFolder
from scgalore.pipeline.measure import Stopwatch, peak_memory, versions
from scgalore.pipeline.runner import run
from scgalore.tasks.baselines import LOGISTIC
from scgalore.tasks.findings import markdown_table
from scgalore.tasks.linear import PRIOR_ALONE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from scgalore._typing import PathLike

__all__ = ["PRESET", "compare", "run_demo", "score_table"]

METRICS = {"accuracy": "accuracy", "macro_f1": "macro F1"}
FILES = ("report.md", "results.h5ad", "umap.png", "confusion_matrix.png", "history.png")
CELLS = "cells.h5ad"

PRESET: dict[str, Any] = {
    "labels_key": "bulk_labels",
    "test_size": 0.2,
    "max_epochs": 10,
    "batch_size": 16,
    "lr": 2e-3,
    "max_length": 128,
}
"""Options of the runs, tuned on other splits of the same cells."""

NETWORK = "the network alone"

OF_OPTIMIZER: dict[str, dict[str, Any]] = {"galore": {"optimizer_options": {"rank": 32}}}


def run_demo(
    out: PathLike = "scgalore_demo",
    *,
    model: PathLike = "scgpt-mini",
    optimizer: str = "galore",
    n_seeds: int = 3,
    force: bool = False,
    say: Callable[[str], None] = print,
    **options: Any,
) -> Path:
    """Fine-tune a model on scanpy's pbmc68k, and compare it with logistic regression on the same genes and cells.

    For each seed, a run of the pipeline holds out 20 % of the cells, stratified by class, fine-tunes on the others, and
    scores the model, its linear model alone and other baselines; a second run fine-tunes the network alone. Works
    offline.

    Parameters
    ----------
    out
        Folder to create, with ``report.md``, ``results.h5ad``, ``umap.png``, ``confusion_matrix.png`` and
        ``history.png`` (of the first seed), ``cells.h5ad``, and the folder of a run for each seed. A failed demo leaves
        no files.
    model
        Name of registered weights, or folder of a checkpoint.
    optimizer
        Entry of :data:`scgalore.optim.OPTIMIZERS`.
    n_seeds
        Number of repetitions, each with its own split and training seed.
    force
        Whether to replace an earlier demo in ``out``; other folders are never changed.
    say
        Function called with each line of progress.
    **options
        Options of the runs that differ from :data:`PRESET`.

    Returns
    -------
    The folder.

    Raises
    ------
    OptionError
        If the folder exists, or an option is out of range.
    """
    if n_seeds < 1:
        msg = f"n_seeds={n_seeds}: expected at least 1."
        raise OptionError(msg)
    folder = Path(out).expanduser().absolute()
    chosen = {**PRESET, **OF_OPTIMIZER.get(optimizer, {}), "optimizer": optimizer, "model": str(model), **options}
    configs = [
        RunConfig(folder / CELLS, folder / f"seed_{seed}{more}", **{**chosen, **how}, rng=seed)
        for seed in range(n_seeds)
        for more, how in (("", {}), ("_network", {"prior": "none"}))
    ]
    with _room_for_demo(folder, force=force):
        _write_cells(folder / CELLS)
        scores = _scores_of(configs, watch := Stopwatch(), say)
        for name in FILES[1:]:
            source = Path(configs[0].out) / (name if name.endswith(".h5ad") else f"figures/{name}")
            shutil.copyfile(source, folder / name)
        with whole_file(folder / FILES[0]) as draft:
            draft.write_text(_report(scores, configs[0], watch.seconds), encoding="utf-8")
    say(f"\nOn held-out cells:\n\n{score_table(scores)}\n\nYour files:")
    for name in FILES:
        say(f"  {folder / name}")
    return folder


@contextmanager
def _room_for_demo(folder: Path, *, force: bool) -> Iterator[None]:
    """Yield an empty folder; if the block fails, it is removed and an earlier demo is restored."""
    _refuse_foreign(folder, force=force)
    old = None
    with no_empty_folders(folder.parent):
        if folder.exists() and any(folder.iterdir()):
            old = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.old")
            folder.rename(old)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            if old is not None:
                old.rename(folder)
            raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _refuse_foreign(folder: Path, *, force: bool) -> None:
    """Raise an error for a folder that contains other files than an earlier demo, or one that may not be replaced."""
    if not folder.exists():
        return
    found = sorted(folder.iterdir()) if folder.is_dir() else [folder]
    runs = [path for path in found if path.is_dir() and path.name.startswith("seed_")]
    foreign = [path for path in found if path not in runs and path.name not in (*FILES, CELLS)]
    if foreign:
        msg = f"{folder} contains files that are not from a demo, such as {foreign[0].name!r}, and was not changed. Pass a new folder."
        raise OptionError(msg)
    if found and not force:
        msg = f"{folder} contains an earlier demo. Pass force=True (--force) to replace it, or a new folder."
        raise OptionError(msg)
    for path in runs:
        RunFolder(path).check(force=True, resume=False)


def _scores_of(configs: Sequence[RunConfig], watch: Stopwatch, say: Callable[[str], None]) -> pd.DataFrame:
    """Run all seeds, each followed by a run of the network alone; one row per seed and method."""
    tables = []
    for number, (config, alone) in enumerate(zip(configs[::2], configs[1::2], strict=True)):
        name = Path(config.out).name
        say(f"\nRun {2 * number + 1} of {len(configs)}: seed {config.rng}")
        with watch.time(name):
            run(config)
        say(f"\nRun {2 * number + 2} of {len(configs)}: seed {config.rng}, {NETWORK}")
        with watch.time(Path(alone.out).name):
            run(alone)
        found = _scores(Path(config.out), Path(alone.out), config.name, config.rng)
        rival = strongest(found, LOGISTIC)
        mine, theirs = (found[found["method"] == method].iloc[0] for method in (config.name, rival))
        numbers = [f"{title} {mine[key]:.3f} ({theirs[key]:.3f})" for key, title in METRICS.items()]
        say(f"  {name}, {watch.seconds[name]:.0f} s: held-out {', '.join(numbers)}, {rival} in brackets")
        tables.append(found)
    return pd.concat(tables, ignore_index=True)


def _write_cells(path: Path) -> None:
    import scanpy as sc

    # Its X is scaled; raw contains the log-normalised values. Results of earlier analyses are removed.
    adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    del adata.obsm, adata.obsp, adata.varm
    adata.uns = {}
    adata.write_h5ad(path)


def _scores(folder: Path, alone: Path, name: str, seed: int) -> pd.DataFrame:
    """One row per method, from the metrics of a run and of the run with the network alone."""
    found, network = (json.loads((run / "metrics.json").read_text(encoding="utf-8")) for run in (folder, alone))
    rows = {name: found["test"], PRIOR_ALONE: found["prior"], NETWORK: network["test"], **found["baselines"]}
    n = int(found["test"]["n"])
    return pd.DataFrame(
        [{"seed": seed, "method": method, **{key: row[key] for key in METRICS}, "n": n} for method, row in rows.items()]
    )


def _report(scores: pd.DataFrame, config: RunConfig, seconds: dict[str, float]) -> str:
    found = json.loads((Path(config.out) / "metrics.json").read_text(encoding="utf-8"))
    n_seeds = scores["seed"].nunique()
    rival = strongest(scores, LOGISTIC)
    settings = ", ".join(
        f"{name} {config.training[name]}"
        for name in ("max_epochs", "batch_size", "lr", "max_length")
        if name in config.training
    )
    peak = "unknown on this system" if (memory := peak_memory()) is None else f"{memory / 1e6:,.0f} MB"
    times = [(part, f"{value:.1f}") for part, value in seconds.items()] + [("total", f"{sum(seconds.values()):.1f}")]
    return "\n\n".join(
        [
            "# scgalore demo",
            f"**{config.model_name}** was fine-tuned with **{config.training['optimizer']}** to predict the {found['n_classes']} "
            f"cell types of {found['cells']['cells chosen']} blood cells (pbmc68k of scanpy, log-normalised, "
            f"`obs['bulk_labels']`). {found['cells']['test']} cells were held out at random, stratified by class"
            f"{f', with each of {n_seeds} seeds' if n_seeds > 1 else ''}. The settings ({settings}) were tuned on other "
            "splits of the same cells; those of the baselines were not tuned. All methods were fitted to the same cells; the network uses a tenth of them to select its epoch, and to decide whether it is used. Each "
            "seed is a run of the pipeline with its own report, `seed_0/report.md` and so on.",
            "## Held-out cells",
            score_table(scores),
            "Mean ± standard deviation over the seeds. In macro F1 all classes have equal weight, however rare.",
            "## Difference from logistic regression",
            f"{config.name} minus {rival} (the better of the two on these cells), by seed:",
            _difference_table(paired_differences(scores, config.name, rival)),
            _listed(compare(scores, config.name, rival)),
            "## Figures",
            "For the first seed: all cells by true and predicted label, held-out cells by true and predicted class, and the loss "
            "by epoch.",
            "![UMAP by true and predicted label](umap.png)",
            "![confusion matrix](confusion_matrix.png)",
            "![history](history.png)",
            "## Time and memory",
            markdown_table(("part", "seconds"), times),
            f"Peak resident memory of the process: {peak}. Optimizer state: "
            f"{found['training']['optimizer_bytes'] / 1e6:.2f} MB.",
            "## Versions",
            markdown_table(("what", "version"), list({"weights": config.model_name, **versions()}.items())),
            "",
        ]
    )


def score_table(scores: pd.DataFrame) -> str:
    """One row per method, in the order of the scores."""
    rows = []
    for method, group in scores.groupby("method", sort=False):
        cells = sorted(group["n"].unique())
        n_cells = str(cells[0]) if len(cells) == 1 else f"{cells[0]}-{cells[-1]}"
        numbers = [_mean_sd(group[metric]) for metric in METRICS]
        rows.append((str(method), *numbers, str(len(group)), n_cells))
    return markdown_table(("method", *METRICS.values(), "seeds", "held-out cells"), rows)


def strongest(scores: pd.DataFrame, methods: Sequence[str]) -> str:
    """Method with the highest mean macro F1, for a conservative comparison."""
    means = scores.groupby("method")["macro_f1"].mean()
    return max(methods, key=lambda method: means[method])


def paired_differences(scores: pd.DataFrame, method: str, rival: str) -> pd.DataFrame:
    """Accuracy and macro F1 of a method minus those of another, one row per seed."""
    mine, theirs = (scores[scores["method"] == name].set_index("seed")[list(METRICS)] for name in (method, rival))
    return mine - theirs


def compare(scores: pd.DataFrame, method: str, rival: str) -> list[str]:
    """Compare two methods, with one sentence per metric.

    The noise is the standard deviation of the paired differences over the seeds, which includes the choice of cells and
    the randomness of training.

    Parameters
    ----------
    scores
        One row per seed and method: ``seed, method, accuracy, macro_f1, n``.
    method, rival
        Methods to compare.
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
        return f"{metric}: {method} is {abs(mean):.3f} {way} {rival}. With one seed, the noise cannot be estimated."
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
