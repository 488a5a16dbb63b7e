"""The command ``scgalore``. Heavy imports are inside the commands, so that ``--help`` answers at once."""

import json
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from scgalore import errors
from scgalore.pipeline.config import STRATEGIES, RunConfig

OURS = tuple(getattr(errors, name) for name in errors.__all__)
BAD_INPUT, INTERRUPTED = 2, 130


class _Commands(TyperGroup):
    """Commands whose errors are a message for people: only a fault of the program is worth a traceback."""

    def invoke(self, ctx: Any) -> Any:  # typer brings its own click, or uses that of the environment
        try:
            return super().invoke(ctx)
        except OURS as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(BAD_INPUT) from error


class _InGroups(TyperCommand):
    """A command whose help lists its options under headings, as plain text that a log file or a pager keeps."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        shown = [(self._heading(param), param.get_help_record(ctx)) for param in self.get_params(ctx)]
        found = [pair for pair in shown if pair[1] is not None]
        for heading, pairs in groupby(found, key=lambda pair: pair[0]):
            with formatter.section(heading):
                formatter.write_dl([record for _, record in pairs])

    @staticmethod
    def _heading(param: Any) -> str:
        named = getattr(param, "rich_help_panel", None)
        return named or ("Arguments" if param.param_type_name == "argument" else "Options")


app = typer.Typer(
    cls=_Commands,
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
weights = typer.Typer(no_args_is_help=True)
app.add_typer(weights, name="weights")


def _print_version(wanted: bool) -> None:
    if wanted:
        from scgalore import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Fine-tune single-cell foundation models on the hardware you have.

    Start here, offline and in minutes on a laptop:

        scgalore demo

    It fine-tunes a small scGPT with GaLore on real blood cells and writes a report, pictures and an AnnData to look at.

    Your own cells, from a file to a report:

        scgalore run cells.h5ad --labels-key cell_type --out runs/first

    Or in Python, after "import scgalore as sg":

        model = sg.tl.finetune(adata, "scgpt", labels_key="cell_type")

    What "scgpt" stands for, and which other weights there are:

        scgalore weights list
    """


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to make; a run that fails leaves nothing.")] = Path("scgalore_demo"),
    model: Annotated[
        str, typer.Option(help="Name of weights (see: scgalore weights list), or folder of a checkpoint.")
    ] = "scgpt-mini",
    optimizer: Annotated[str, typer.Option(help="galore, or adamw to compare with.")] = "galore",
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions, each with other cells held out.")] = 3,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Train the network from random weights, too (doubles the time).")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier demo in that folder.")] = False,
) -> None:
    """Fine-tune a model on real cells, beside logistic regression.

    Takes 700 blood cells that come with scanpy, holds out 20 % of them, fine-tunes on the others, and writes report.md,
    results.h5ad, umap.png, confusion_matrix.png and history.png. Needs no network.
    """
    typer.echo("Loading PyTorch, scvi-tools and scanpy ...")
    from scgalore.demo import run_demo

    run_demo(
        out,
        model=model,
        optimizer=optimizer,
        n_seeds=seeds,
        random_weights=random_weights,
        force=force,
        say=typer.echo,
    )


DATA, GENES, TRAINING, FOLDER = "What to learn from", "Genes", "Training", "The run's folder"


def _default(name: str) -> str:
    return str(RunConfig.__dataclass_fields__[name].default)


@app.command(cls=_InGroups)
def run(
    data: Annotated[
        Path | None,
        typer.Argument(
            help="An .h5ad file or .zarr folder: cells by genes, counts or log-normalised.", show_default=False
        ),
    ] = None,
    labels_key: Annotated[
        str | None, typer.Option(help="Column of obs with classes to learn, such as cell types.", rich_help_panel=DATA)
    ] = None,
    pert_key: Annotated[
        str | None,
        typer.Option(
            help="Column of obs with the perturbation of each cell, to learn effects. With neither of the two, the run goes "
            "on with masked expression.",
            rich_help_panel=DATA,
        ),
    ] = None,
    control: Annotated[
        str | None, typer.Option(help="Label of control cells, if it is none of the usual ones.", rich_help_panel=DATA)
    ] = None,
    context_key: Annotated[
        str | None,
        typer.Option(help="Column of obs with the cell type or line of perturbed cells.", rich_help_panel=DATA),
    ] = None,
    batch_key: Annotated[str | None, typer.Option(help="Column of obs with batches.", rich_help_panel=DATA)] = None,
    split_key: Annotated[
        str | None,
        typer.Option(help="Column of obs with train, validation or test, to keep a split.", rich_help_panel=DATA),
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="Layer that holds the expression, instead of X.", rich_help_panel=DATA)
    ] = None,
    gene_symbols: Annotated[
        str | None, typer.Option(help="Column of var with gene names, instead of its index.", rich_help_panel=DATA)
    ] = None,
    max_cells: Annotated[
        int | None,
        typer.Option(
            help="Most cells to work with, drawn within classes or perturbations.",
            show_default=_default("max_cells"),
            rich_help_panel=DATA,
        ),
    ] = None,
    genes: Annotated[
        int | None,
        typer.Option(help="How many genes to select.", show_default="3000, or all expressed", rich_help_panel=GENES),
    ] = None,
    gene_strategy: Annotated[
        str | None,
        typer.Option(
            help="How genes are ranked: biological, hvg, perturbation or expressed.",
            show_default="biological, or perturbation with --pert-key",
            rich_help_panel=GENES,
        ),
    ] = None,
    must_include: Annotated[
        list[str] | None,
        typer.Option(help="A gene to select whatever its rank; may be repeated.", rich_help_panel=GENES),
    ] = None,
    species: Annotated[
        str | None,
        typer.Option(help="human or mouse.", show_default=_default("species"), rich_help_panel=GENES),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help=f"{STRATEGIES[0]}: few genes first, then more; {STRATEGIES[1]}: all from the start.",
            show_default=_default("strategy"),
            rich_help_panel=TRAINING,
        ),
    ] = None,
    phases: Annotated[
        str | None,
        typer.Option(
            help="Genes of each phase, as in 500,1200.",
            show_default="500,1200,2500 and all",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Name of weights (see: scgalore weights list), or folder of a checkpoint. scgpt-mini needs no network.",
            show_default=_default("model"),
            rich_help_panel=TRAINING,
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training cells.", rich_help_panel=TRAINING)
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="galore, adamw and others.", rich_help_panel=TRAINING)] = None,
    batch_size: Annotated[str | None, typer.Option(help="Cells in a batch, or auto.", rich_help_panel=TRAINING)] = None,
    precision: Annotated[
        str | None, typer.Option(help="32-true, bf16-mixed or 16-mixed.", rich_help_panel=TRAINING)
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, gpu, mps or auto.", rich_help_panel=TRAINING)] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of everything random.", show_default=_default("seed"), rich_help_panel=TRAINING),
    ] = None,
    train_option: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE, a further field of scgalore.train.TrainConfig, such as max_length=512; may be repeated.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to make.", show_default="scgalore_run", rich_help_panel=FOLDER)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="config.json of another run; options given beside it take precedence.", rich_help_panel=FOLDER
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the folder.", rich_help_panel=FOLDER)
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Replace the run in the folder; other files are never touched.", rich_help_panel=FOLDER
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check everything, say what would be done, and write nothing.", rich_help_panel=FOLDER
        ),
    ] = False,
) -> None:
    """Fine-tune a model on a file of cells and write a report.

    Reads, splits, selects genes from the training cells, fine-tunes, predicts what was held out, and scores it beside
    baselines. Cell types:

        scgalore run cells.h5ad --labels-key cell_type --out runs/types

    A perturbation screen, offline, with the small weights that come along:

        scgalore run screen.h5ad --pert-key gene --model scgpt-mini

    A large file on a laptop:

        scgalore run data.h5ad --genes 5000 --max-cells 50000 --device cpu

    Interrupted? It goes on where it was, and the numbers are those of a run that was not:

        scgalore run --resume --out runs/x

    The same once more, in another folder, gives the same numbers:

        scgalore run --config runs/x/config.json --out runs/y

    The folder gets report.md (begin there), metrics.json, results.h5ad, selected_genes.csv, split.csv, history.csv, figures,
    checkpoints with the fitted model, config.json and environment.txt.

    Exit codes: 0 done, 2 bad input (nothing was written), 1 a fault of the program, 130 interrupted.
    """
    given = {
        "data": data,
        "out": out,
        "labels_key": labels_key,
        "pert_key": pert_key,
        "control": control,
        "context_key": context_key,
        "batch_key": batch_key,
        "split_key": split_key,
        "layer": layer,
        "gene_symbols": gene_symbols,
        "max_cells": max_cells,
        "genes": genes,
        "gene_strategy": gene_strategy,
        "must_include": must_include or None,
        "species": species,
        "strategy": strategy,
        "phases": None if phases is None else _numbers("--phases", phases),
        "model": model,
        "epochs": epochs,
        "optimizer": optimizer,
        "batch_size": int(batch_size) if batch_size is not None and batch_size.isdigit() else batch_size,
        "precision": precision,
        "device": device,
        "seed": seed,
        "train_options": _train_options(train_option) or None,
    }
    wanted = _run_config({name: value for name, value in given.items() if value is not None}, config, resume=resume)
    typer.echo("Loading PyTorch, scvi-tools and scanpy ...", err=True)
    try:
        if dry_run:
            from scgalore.pipeline.plan import plan

            typer.echo(plan(wanted, force=force, resume=resume))
            return
        from scgalore.pipeline.runner import run as run_pipeline

        typer.echo(run_pipeline(wanted, force=force, resume=resume) / "report.md")
    except KeyboardInterrupt as error:
        typer.echo(_interrupted(Path(wanted.out)), err=True)
        raise typer.Exit(INTERRUPTED) from error


def _run_config(given: dict[str, Any], config: Path | None, *, resume: bool) -> RunConfig:
    """Configuration of a run: what was given, on top of that of a file or of the run that is to be continued."""
    out = given.get("out", Path("scgalore_run"))
    if config is None and resume and "data" not in given:
        config = out / "config.json"
        if not config.exists():
            msg = f"There is no run in {out} to continue. Name the data, to begin one."
            raise errors.OptionError(msg)
        return RunConfig.from_json(config, **given)
    if config is None:
        if "data" not in given:
            msg = "Name the data: scgalore run cells.h5ad. All options are explained by: scgalore run --help"
            raise errors.OptionError(msg)
        return RunConfig(**{"out": out, **given})
    if "data" in given:
        given["data_sha256"] = None  # other data are meant
    if given.keys() & {"genes", "epochs", "strategy"}:
        given.setdefault("phases", None)  # those of the file belong to its own genes and epochs
    return RunConfig.from_json(config, **given)


def _interrupted(out: Path) -> str:
    if (out / "config.json").exists():
        return f"\nInterrupted. Continue with: scgalore run --resume --out {out}"
    return "\nInterrupted; nothing was written."


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        msg = f"{option} {text!r}: give whole numbers with commas between them, as in 500,1200."
        raise errors.OptionError(msg) from error


def _train_options(pairs: list[str] | None) -> dict[str, Any]:
    options = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals:
            msg = f"--train-option {pair!r}: expected NAME=VALUE, as in max_length=512."
            raise errors.OptionError(msg)
        try:
            options[name] = json.loads(value)
        except ValueError:  # a text needs no quotes
            options[name] = value
    return options


@weights.callback()
def about_weights() -> None:
    """Show, download and find registered weights."""


@weights.command("list")
def list_() -> None:
    """Show the weights that can be named: size, licence, and whether they are here or can be fetched."""
    from scgalore.weights import get_entry, list_weights

    for name in list_weights():
        entry = get_entry(name)
        typer.echo(f"{name}  {_size(name)}  {_state(name)}")
        typer.echo(f"    {entry.description}\n    licence: {entry.licence}\n")


@weights.command()
def fetch(name: Annotated[str, typer.Argument(help="One of: scgalore weights list.")]) -> None:
    """Download weights to the cache, check them, and print their folder."""
    from scgalore.weights import fetch_weights

    typer.echo(fetch_weights(name))


@weights.command()
def path(name: Annotated[str, typer.Argument(help="One of: scgalore weights list.")]) -> None:
    """Print the folder of weights that are here, without downloading anything."""
    folder = _folder(name)
    if folder is None:
        msg = f"The weights {name!r} are not here: {_state(name)}."
        raise errors.WeightsError(msg)
    typer.echo(folder)


def _folder(name: str) -> Path | None:
    """Folder of verified weights, if they need not be fetched."""
    from scgalore._settings import settings
    from scgalore.weights import fetch_weights

    with settings.override(offline=True):
        try:
            return fetch_weights(name)
        except errors.DownloadError:
            return None


def _state(name: str) -> str:
    from scgalore.weights import get_entry

    if (folder := _folder(name)) is not None:
        return f"here: {folder}"
    refusal = get_entry(name).refusal
    return f"can be fetched: scgalore weights fetch {name}" if refusal is None else f"cannot be fetched: {refusal}"


def _size(name: str) -> str:
    from scgalore.weights import get_entry

    files, folder = get_entry(name).files, _folder(name)
    sizes = [(folder / file.name).stat().st_size if folder else file.size for file in files]
    known = [size for size in sizes if size is not None]
    return f"{sum(known) / 1e6:,.0f} MB" if len(known) == len(files) else "size unknown"
