"""The command ``scgalore``. Slow imports are inside the commands, so that ``--help`` is fast.

The options of ``run`` and ``pretrain`` are created from the options declared by the run, its tasks and its training
(:mod:`scgalore._options`) when the command is first used.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from inspect import Parameter, Signature
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from scgalore import errors
from scgalore._world import is_first_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from scgalore._options import Option
    from scgalore.pipeline.config import RunConfig

OURS = tuple(getattr(errors, name) for name in errors.__all__)
BAD_INPUT, INTERRUPTED = 2, 130


class _Commands(TyperGroup):
    """Commands that print errors as messages; only internal errors show a traceback."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find a command; those with many options are created here, so that listing the commands stays fast."""
        name, command, rest = super().resolve_command(ctx, args)
        makers = {"run": (_run, _run_parameters), "pretrain": (_pretrain, _pretrain_parameters)}
        return name, command if name not in makers else _made_command(name, *makers[name]), rest

    def invoke(self, ctx: Any) -> Any:  # typer brings its own click, or uses that of the environment
        try:
            return super().invoke(ctx)
        except OURS as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(BAD_INPUT) from error


class _InGroups(TyperCommand):
    """A command whose help lists its options under headings, as plain text for log files and pagers."""

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

    It fine-tunes a small scGPT with GaLore on real blood cells and writes a report, figures and an AnnData.

    Your own cells, from a file to a report:

        scgalore run cells.h5ad --labels-key cell_type --out runs/first

    Or in Python, after "import scgalore as sg":

        model = sg.tl.finetune(adata, "scgpt", labels_key="cell_type")

    A model of your own, from any number of files:

        scgalore pretrain folder/of/h5ad --max-hours 4 --out runs/own

    To list the available weights:

        scgalore weights list
    """


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("scgalore_demo"),
    model: Annotated[
        str, typer.Option(help="Name of weights (see: scgalore weights list) or folder of a checkpoint.")
    ] = "scgpt-mini",
    optimizer: Annotated[str, typer.Option(help="galore, or adamw for comparison.")] = "galore",
    seeds: Annotated[int, typer.Option(min=1, help="Number of repetitions, each with different held-out cells.")] = 3,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier demo in that folder.")] = False,
) -> None:
    """Fine-tune a model on real cells, and compare it with logistic regression.

    Uses 700 blood cells included in scanpy, holds out 20 % of them, fine-tunes on the others, and writes report.md,
    results.h5ad, umap.png, confusion_matrix.png and history.png, and a run folder for each seed. Works offline.
    """
    typer.echo("Loading PyTorch, scvi-tools and scanpy ...")
    from scgalore.pipeline.demo import run_demo

    run_demo(out, model=model, optimizer=optimizer, n_seeds=seeds, force=force, say=typer.echo)


FOLDER = "The run's folder"


@app.command(cls=_InGroups)
def run() -> None:
    """Fine-tune a model on a file of cells and write a report."""


@app.command(cls=_InGroups)
def pretrain() -> None:
    """Pre-train a model on a collection of files and write a report."""


def _made_command(name: str, function: Callable[..., None], parameters: Callable[[], list[Parameter]]) -> Any:
    """A command with all of its options."""
    made = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
    function.__signature__ = Signature(parameters())  # type: ignore[attr-defined]
    made.command(cls=_InGroups, context_settings={"help_option_names": ["-h", "--help"]})(function)
    command = typer.main.get_command(made)
    command.name = name
    return command


def _run_parameters() -> list[Parameter]:
    what = "An .h5ad file or .zarr folder: cells by genes, counts or log-normalised."
    argument = ("data", Path | None, typer.Argument(help=what, show_default=False), None)
    return [*_own_parameters(argument, "scgalore_run"), *map(_parameter, *zip(*_declared(), strict=True))]


def _pretrain_parameters() -> list[Parameter]:
    from scgalore.pipeline.pretrain_config import pretrain_options

    what = "Files (.h5ad, .zarr) or folders of them; NAME=PATH assigns a file to a named source."
    argument = ("sources", list[str] | None, typer.Argument(help=what, show_default=False), None)
    return [*_own_parameters(argument, "scgalore_pretrain"), *map(_parameter, *zip(*pretrain_options(), strict=True))]


def _declared() -> list[tuple[Option, str]]:
    """Options that are declared elsewhere, each with its heading in the help."""
    from scgalore._options import options_of
    from scgalore.pipeline.config import RunConfig, training_options
    from scgalore.tasks.registry import TASKS

    genes = ("n_genes", "gene_strategy", "batch_key", "must_include")
    own = [(option, "Genes" if option.name in genes else "Cells and model") for option in options_of(RunConfig)]
    known = {option.name for option, _ in own}
    of_tasks: dict[str, tuple[Option, str]] = {}
    for task in TASKS.values():
        for option in task.arguments:
            if option.name not in known:
                heading = f"Task {task.name}: {task.summary}"
                if option.name in of_tasks:  # defined by the first task, with the help of this task appended
                    first, heading = of_tasks[option.name]
                    if first.help == option.help:
                        continue
                    option = replace(first, help=f"{first.short_help[:-1]}; for task {task.name}: {option.short_help}")
                of_tasks[option.name] = (option, heading)
    own.sort(key=lambda pair: pair[1] == "Genes")
    return [*own, *of_tasks.values(), *((option, "Training") for option in training_options())]


def _parameter(option: Option, heading: str) -> Parameter:
    """Command-line parameter of a declared option; values are strings, which the option parses."""
    names = [f"--{name.replace('_', '-')}" for name in (option.name, *option.aliases)]
    has_default = option.default not in (None, (), {}) and not option.kind.is_switch
    shown = option.shown_default or (str(option.default) if has_default else False)
    how: dict[str, Any] = {"help": option.short_help, "show_default": shown, "rich_help_panel": heading}
    kind: type = bool if option.kind.is_switch else str
    if option.kind.is_switch:
        made = typer.Option(f"{names[0]}/--no-{names[0][2:]}", **how)
    else:
        made = typer.Option(*names, metavar="VALUE", **how)
    return Parameter(option.name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, made])


def _own_parameters(argument: tuple[str, Any, Any, Any], out: str) -> list[Parameter]:
    """Parameters that are not options of a run: input and output."""
    here: dict[str, Any] = {"rich_help_panel": FOLDER}
    flag = {
        "resume": "Resume the run in the folder.",
        "force": "Replace the run in the folder; other files are kept.",
    }
    flag["dry_run"] = "Check everything, describe the run, and write nothing."
    config = "config.json of another run; options given in addition take precedence."
    parameters = [
        argument,
        ("out", Path | None, typer.Option(help="Output folder.", show_default=out, **here), None),
        ("config", Path | None, typer.Option(help=config, **here), None),
        *(
            (name, bool, typer.Option(f"--{name.replace('_', '-')}", help=text, **here), False)
            for name, text in flag.items()
        ),
    ]
    return [
        Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, made])
        for name, kind, made, default in parameters
    ]


def _run(**given: Any) -> None:
    """Fine-tune a model on a file of cells and write a report.

    Reads and splits the data, selects genes on the training cells, fine-tunes the model, predicts held-out cells, and
    compares the scores with baselines. Cell types:

        scgalore run cells.h5ad --labels-key cell_type --out runs/types

    A perturbation screen, offline, with the small weights of the package:

        scgalore run screen.h5ad --pert-key gene --model scgpt-mini

    A large file on a laptop:

        scgalore run data.h5ad --strategy progressive --genes 5000 --epochs 30 --max-cells 50000 --device cpu

    Resume an interrupted run, with the same results as without interruption:

        scgalore run --resume --out runs/x

    Continue a finished run with more epochs:

        scgalore run --resume --out runs/x --epochs 40

    Repeat a run in another folder, with the same results:

        scgalore run --config runs/x/config.json --out runs/y

    The folder contains report.md (start there), metrics.json, results.h5ad, selected_genes.csv, split.csv, history.csv,
    figures, checkpoints with the fitted model, config.json and environment.txt.

    Exit codes: 0 done, 2 bad input (nothing was written), 1 internal error, 130 interrupted.
    """
    config, resume, force, dry_run = (given.pop(name) for name in ("config", "resume", "force", "dry_run"))
    wanted = _run_config(_read(given, _declared()), config, resume=resume)
    typer.echo("Loading PyTorch, scvi-tools and scanpy ...", err=True)
    with _interruptible("run", Path(wanted.out)):
        if dry_run:
            from scgalore.pipeline.plan import plan

            typer.echo(plan(wanted, force=force, resume=resume))
            return
        from scgalore.pipeline.runner import run as run_pipeline

        typer.echo(run_pipeline(wanted, force=force, resume=resume) / "report.md")


def _pretrain(**given: Any) -> None:
    """Pre-train a model on a collection of files and write a report.

    The expression of masked genes is predicted; no labels are needed. Files are streamed, so there can be any number of
    cells. Continue from the small weights of the package, on all files of a folder:

        scgalore pretrain cells/ --model scgpt-mini --max-hours 4 --out runs/blood

    Start from random weights, with a vocabulary of the genes in the files:

        scgalore pretrain cells/ --model scgpt --sizes d_model=256,n_layers=6,n_heads=8,d_hid=512 --max-steps 100000

    Healthy cells from CELLxGENE files, with a share for each tissue and cell types drawn equally often:

        scgalore pretrain blood=census/blood/ pancreas=census/pancreas.h5ad --shares blood=0.7,pancreas=0.3
            --where "is_primary_data and disease == 'normal'" --weights-key cell_type

    Estimate the time and memory of a run:

        scgalore pretrain cells/ --max-cells 1000000 --dry-run

    Resume an interrupted run within the pass over the files, with the same results as without interruption:

        scgalore pretrain --resume --out runs/blood

    Options are those of the run. If files were moved, pass their new paths:

        scgalore pretrain elsewhere/ --resume --out runs/blood

    On two GPUs, with a checkpoint every half hour:

        torchrun --standalone --nproc_per_node=2 -m scgalore pretrain cells/ --checkpoint-every "30 min" --out
        runs/blood

    The folder contains report.md (start there), metrics.json, history.csv, held_out.h5ad with embeddings of held-out
    cells, figures, checkpoints with the model, config.json and environment.txt.

    Exit codes: 0 done, 2 bad input (nothing was written), 1 internal error, 130 interrupted.
    """
    from scgalore.pipeline.pretrain_config import PretrainConfig, pretrain_options

    config, resume, force, dry_run = (given.pop(name) for name in ("config", "resume", "force", "dry_run"))
    sources, out = given.pop("sources"), given.pop("out") or Path("scgalore_pretrain")
    values = _read(given, pretrain_options())
    if sources:
        values["sources"] = _named_sources(sources)
    if config is None and resume and (out / "config.json").exists():
        config = out / "config.json"  # options of the run; files may have been moved
    if config is None and not sources:
        msg = (
            "Missing files. Pass them, for example: scgalore pretrain cells/. For all options: scgalore pretrain --help"
        )
        raise errors.OptionError(msg)
    wanted = PretrainConfig.from_json(config, **values, out=out) if config else PretrainConfig(out=out, **values)
    _echo_once("Loading PyTorch, scvi-tools and scanpy ...", err=True)
    with _interruptible("pretrain", Path(wanted.out)):
        from scgalore.pipeline import pretraining

        if dry_run:
            _echo_once(pretraining.plan_pretraining(wanted, force=force, resume=resume))
            return
        _echo_once(pretraining.pretrain(wanted, force=force, resume=resume) / "report.md")


def _echo_once(text: Any, *, err: bool = False) -> None:
    """Print in the first process only."""
    if is_first_process():
        typer.echo(text, err=err)


def _named_sources(paths: list[str]) -> Any:
    """Paths as they are, or those of ``NAME=PATH`` by name."""
    pairs = [path.split("=", 1) for path in paths if "=" in path and not Path(path).exists()]
    if not pairs:
        return paths
    if len(pairs) < len(paths):
        msg = "Some files have a name (NAME=PATH), others do not. Name all of them or none."
        raise errors.OptionError(msg)
    named: dict[str, list[str]] = {}
    for name, path in pairs:
        named.setdefault(name, []).append(path)
    return named


def _read(given: dict[str, Any], declared: Iterable[tuple[Option, str]]) -> dict[str, Any]:
    """Parse the values of options from the command line."""
    options = {option.name: option for option, _ in declared}
    return {
        name: options[name].kind.read(value) if isinstance(value, str) else value
        for name, value in given.items()
        if value is not None
    }


@contextmanager
def _interruptible(command: str, out: Path) -> Iterator[None]:
    """Print how to resume a run when it is interrupted."""
    try:
        yield
    except KeyboardInterrupt as error:
        begun = (out / "config.json").exists()
        hint = f"Continue with: scgalore {command} --resume --out {out}"
        typer.echo(f"\nInterrupted. {hint}" if begun else "\nInterrupted; nothing was written.", err=True)
        raise typer.Exit(INTERRUPTED) from error


def _run_config(given: dict[str, Any], config: Path | None, *, resume: bool) -> RunConfig:
    """Configuration of a run: the given options, and otherwise those of a file or of the run to resume."""
    from scgalore.pipeline.config import RunConfig

    out = given.get("out", Path("scgalore_run"))
    if config is None and resume and "data" not in given:
        config = out / "config.json"
        if not config.exists():
            msg = f"{out} contains no run to resume. Pass the data to start one."
            raise errors.OptionError(msg)
        return RunConfig.from_json(config, **given)
    if config is None:
        if "data" not in given:
            msg = (
                "Missing data. Pass a file, for example: scgalore run cells.h5ad. For all options: scgalore run --help"
            )
            raise errors.OptionError(msg)
        return RunConfig(**{"out": out, **given})
    if "data" in given:
        given["data_sha256"] = None  # for other data
    wanted = RunConfig.from_json(config, **given)
    if given.keys() & {"n_genes", "max_epochs"} and "curriculum" not in given and wanted.training.get("curriculum"):
        return wanted.changed(curriculum=True)  # the phases in the file are for its genes and epochs
    return wanted


@weights.callback()
def about_weights() -> None:
    """Show, download, share and bundle weights."""


@weights.command("list")
def list_() -> None:
    """List available weights with size, licence, and whether they are downloaded or can be."""
    from scgalore.weights import get_entry, list_weights

    for name in list_weights():
        entry = get_entry(name)
        typer.echo(f"{name}  {_size(name)}  {_state(name)}")
        typer.echo(f"    {entry.description}\n    licence: {entry.licence}\n")


@weights.command()
def fetch(name: Annotated[str, typer.Argument(help="One of: scgalore weights list.")]) -> None:
    """Download weights to the cache, verify them, and print their folder."""
    from scgalore.weights import fetch_weights

    typer.echo(fetch_weights(name))


@weights.command()
def path(name: Annotated[str, typer.Argument(help="One of: scgalore weights list.")]) -> None:
    """Print the folder of downloaded weights, without downloading anything."""
    folder = _folder(name)
    if folder is None:
        msg = f"The weights {name!r} are not downloaded: {_state(name)}."
        raise errors.WeightsError(msg)
    typer.echo(folder)


ADDRESS = "hf://owner/name, or hf://owner/name@revision with a branch, a tag or a commit."


@weights.command()
def pull(address: Annotated[str, typer.Argument(help=ADDRESS)]) -> None:
    """Download a model from the Hugging Face Hub to the cache, verify it, and print its folder.

    For a private model, log in first (hf auth login) or set HF_TOKEN.
    """
    from scgalore.weights.hub import HubAddress, fetch_hub

    typer.echo(fetch_hub(HubAddress.parse(address))[0])


@weights.command()
def publish(
    folder: Annotated[Path, typer.Argument(help="Folder of a saved model, in any layout that scgalore reads.")],
    repo: Annotated[str, typer.Argument(help="owner/name on the Hugging Face Hub; created if it does not exist.")],
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Visibility of a new repository.", show_default="the owner's setting"),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch; created if it does not exist.", show_default="main")
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(help="Licence of the weights, such as cc-by-4.0.", show_default="that of the initial weights"),
    ] = None,
    message: Annotated[str | None, typer.Option(help="Commit message.", show_default=False)] = None,
) -> None:
    """Publish a model on the Hugging Face Hub, with a model card, and print its address.

    The model is loaded and written as safetensors. README.md in the folder is used as model card; otherwise, a card is
    generated. Other files in the folder are not published. Log in first (hf auth login) or set HF_TOKEN.

        scgalore weights publish runs/types/checkpoints/model my-lab/pbmc-types --licence cc-by-4.0
    """
    from scgalore.model import load

    if not folder.exists():
        msg = f"Folder {folder} not found. Pass the folder of a saved model, such as runs/x/checkpoints/model."
        raise errors.OptionError(msg)
    card = folder / "README.md"
    how: dict[str, Any] = {"private": private, "revision": revision, "licence": licence, "commit_message": message}
    typer.echo(load(folder).push_to_hub(repo, card=card.read_text("utf-8") if card.is_file() else None, **how))


@weights.command()
def bundle(
    models: Annotated[list[str], typer.Argument(help="Names of weights, and addresses hf://owner/name.")],
    out: Annotated[Path, typer.Argument(help="Output file.")],
) -> None:
    """Pack weights into one file, to unpack with "unbundle" on a machine without network access.

    scgalore weights bundle scgpt hf://my-lab/pbmc-types weights.tar
    """
    from scgalore.weights import bundle

    typer.echo(bundle(models, out))


@weights.command()
def unbundle(path: Annotated[Path, typer.Argument(help='File created by "bundle".')]) -> None:
    """Unpack bundled weights into the cache, verify them, and print the names to load them by."""
    from scgalore.weights import unbundle

    typer.echo("\n".join(unbundle(path)))


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
        return f"downloaded: {folder}"
    refusal = get_entry(name).refusal
    return (
        f"not downloaded; to download: scgalore weights fetch {name}"
        if refusal is None
        else f"not available: {refusal}"
    )


def _size(name: str) -> str:
    from scgalore.weights import get_entry

    files, folder = get_entry(name).files, _folder(name)
    sizes = [(folder / file.name).stat().st_size if folder else file.size for file in files]
    known = [size for size in sizes if size is not None]
    return f"{sum(known) / 1e6:,.0f} MB" if len(known) == len(files) else "size unknown"
