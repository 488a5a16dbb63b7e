"""The command ``scgalore``. Heavy imports are inside the commands, so that ``--help`` answers at once."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from scgalore import errors

OURS = tuple(getattr(errors, name) for name in errors.__all__)
BAD_INPUT = 2


class _Commands(TyperGroup):
    """Commands whose errors are a message for people: only a fault of the program is worth a traceback."""

    def invoke(self, ctx: Any) -> Any:  # typer brings its own click, or uses that of the environment
        try:
            return super().invoke(ctx)
        except OURS as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(BAD_INPUT) from error


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

    Your own cells, in Python, after "import scgalore as sg":

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
