"""Text of pages that the code already holds: keys, options, weights, commands, plots and the list of tutorials.

``conf.py`` writes what these functions return to ``docs/_generated``, where pages include it. Nothing here needs Sphinx.
"""

import base64
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import typer

from scgalore import _keys, pl
from scgalore.adapters import ADAPTERS
from scgalore.cli import app
from scgalore.datasets.registry import registry_table
from scgalore.nn import EMBEDDINGS
from scgalore.optim import OPTIMIZERS
from scgalore.weights import get_entry, list_weights

REPOSITORY = Path(__file__).parents[1]
NOTEBOOKS = REPOSITORY / "tutorials"

TUTORIALS = {
    "finetune": "Annotate cell types",
    "embedding": "Embed cells without training",
    "own_data": "Read your own 10x file",
    "integration": "Integrate batches",
    "mapping": "Map cells to a reference",
    "protein": "RNA and surface proteins",
    "perturbation": "Predict perturbations",
    "networks": "Genes, programs and networks",
    "pretraining": "Pre-train a model",
    "genes_and_memory": "Choose genes, estimate memory",
    "checkpoints": "Checkpoints and sharing",
    "command_line": "Run from the command line",
}
"""Notebooks in the order of the gallery, with the titles of their cards; those that do not exist are left out."""


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |"
        for line in lines
    )


def markdown(text: str) -> str:
    """Literals and references of a docstring, in Markdown."""
    text = re.sub(r":(\w+):`(~?[^`]+)`", r"{\1}`\2`", " ".join(text.split()))
    return text.replace("``", "`")


# Keys --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slots:
    """Keys of one group of functions.

    Attributes
    ----------
    title
        Heading of their table.
    make
        Gives the keys of a ``key_added``.
    argument
        What stands for the name of a column of labels.
    """

    title: str
    make: Callable[[str | None], Any]
    argument: tuple[str, ...] = ()


KEYS = (
    Slots("Cells and labels", partial(_keys.CellKeys.from_key_added, uns="FUNCTION")),
    Slots(
        "References",
        lambda added: _keys.MappingKeys.from_key_added(added, ("LABEL",)),
        ("LABEL",),
    ),
    Slots("Perturbations", _keys.PerturbationKeys.from_key_added),
    Slots("In-silico perturbations", _keys.InSilicoKeys.from_key_added),
    Slots("Integration scores", _keys.IntegrationKeys.from_key_added),
    Slots(
        "Gene selection",
        lambda added: _keys.GeneKeys.from_key_added(added or _keys.GeneKeys.selected),
    ),
    Slots("Gene programs", _keys.ProgramKeys.from_key_added),
    Slots("Gene networks", _keys.NetworkKeys.from_key_added),
)


def described(keys: type) -> Iterator[tuple[str, str]]:
    """Names of the keys of a class, with what their docstrings say."""
    documentation = inspect.getdoc(keys) or ""
    attributes = documentation.partition("Attributes\n----------\n")[2]
    yield from re.findall(r"^(\w+)\n((?:    .*\n?)+)", attributes, flags=re.MULTILINE)
    for name, member in vars(keys).items():
        what = member.fget if isinstance(member, property) else member
        if not name.startswith("_") and inspect.isfunction(what):
            yield name, inspect.getdoc(what) or ""


def slots_of(group: Slots) -> Iterator[tuple[str, str, str, str]]:
    """Slot, key, key with ``key_added="mine"``, and meaning."""
    default, mine = group.make(None), group.make("mine")
    summary = (inspect.getdoc(type(default)) or "").partition("\n")[0]
    for name, text in described(type(default)):
        if name in ("stem", "labels", "slots"):
            continue
        text = " ".join(text.split())
        named = re.search(r",? in ((?:``\w+``(?: and )?)+)", text)
        where = named[1] if named else f"``{re.findall(r'in ``(.+?)``', summary)[0]}``"
        keys = [getattr(keys, name) for keys in (default, mine)]
        keys = [key(*group.argument) if callable(key) else key for key in keys]
        meaning = text.replace(named[0], "") if named else text
        for slot in re.findall(r"``(\w+)``", where):
            yield slot, *keys, markdown(meaning)


def keys() -> str:
    """Every key, by the functions that write it."""
    parts = []
    for group in KEYS:
        summary = markdown(
            (inspect.getdoc(type(group.make(None))) or "").partition("\n")[0]
        )
        rows = [
            (f'`{slot}["{key}"]`', f"`{mine}`", what)
            for slot, key, mine, what in slots_of(group)
        ]
        head = ("key", '`key_added="mine"`', "content")
        functions = ", ".join(re.findall(r"\{func\}`[^`]+`", summary)).replace(
            "`scgalore", "`~scgalore"
        )
        parts += [f"## {group.title}", f"Written by {functions}.", table(head, rows)]
    return "\n\n".join(parts)


# Registries --------------------------------------------------------------------------------------------------------------


def registry(entries: Mapping[str, Any]) -> str:
    """Descriptions of the entries of a registry, with their defaults."""
    parts = []
    for name, entry in entries.items():
        parts.append(f"`{name}`\n: {entry.trains} Optimizer state: {entry.state_bytes}")
        if options := getattr(entry, "options", None):
            shown = {"lr": getattr(entry, "lr", None), **options}
            defaults = ", ".join(
                f"`{key}={value!r}`"
                for key, value in shown.items()
                if value is not None
            )
            parts.append(f"  Defaults: {defaults}. {entry.source}")
    return "\n\n".join(parts)


def capabilities() -> str:
    """Training options that each optimizer supports."""
    columns = {
        "`shard_optimizer`": "shardable",
        "`per_layer_update`": "per_layer",
        "needs curvature": "needs_curvature",
    }
    rows = [
        (
            f"`{name}`",
            *("yes" if getattr(spec, what) else "no" for what in columns.values()),
        )
        for name, spec in OPTIMIZERS.items()
    ]
    return table(("optimizer", *columns), rows)


def weights() -> str:
    """Registered weights with their size, licence and source."""
    parts = []
    for name in list_weights():
        entry = get_entry(name)
        size = sum(file.size or 0 for file in entry.files) / 1e6
        state = (
            "Included in the package."
            if entry.bundled
            else f"Download: {size:,.0f} MB."
        )
        if entry.refusal:
            state = f"**Not available**: {entry.refusal}."
        cite = re.sub(r"doi:(\S+)$", r"[doi:\1](https://doi.org/\1)", entry.citation)
        parts.append(
            f"`{name}`\n: {entry.description}. {state}\n\n"
            f"  Licence: {entry.licence}. [Source]({entry.homepage}). Cite: {cite}."
        )
    return "\n\n".join(parts)


# Command line ------------------------------------------------------------------------------------------------------------


def commands() -> str:
    """Every command with its options."""
    root = typer.main.get_command(app)
    return "\n\n".join(command_page("scgalore", root, ()))


def command_page(path: str, command: Any, words: tuple[str, ...]) -> Iterator[str]:
    """Sections of a command and of the commands below it."""
    names = list(getattr(command, "commands", {}))
    context = command.context_class(command, info_name=path)
    if not names:
        yield f"## `{path}`"
        yield help_text(command.help or "")
        heading = None
        for param in command.get_params(context):
            record = param.get_help_record(context)
            panel = getattr(param, "rich_help_panel", None)
            if record is None or "--help" in record[0]:
                continue
            if panel and panel != heading:
                heading = panel
                yield f"### {panel}"
            name = (
                record[0].strip("[]")
                if param.param_type_name == "argument"
                else record[0]
            )
            yield f"`{name}`\n: {plain(record[1])}"
    for name in names:
        _, below, _ = command.resolve_command(context, [name])
        yield from command_page(f"{path} {name}", below, (*words, name))


def help_text(text: str) -> str:
    """Help of a command: indented lines are commands."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        f"```text\n{inspect.cleandoc(paragraph)}\n```"
        if paragraph.startswith("    ")
        else plain(paragraph)
        for paragraph in paragraphs
    )


def plain(text: str) -> str:
    """Text in which no character means more than itself to Markdown."""
    return re.sub(r"([*_<>`$\[\]{}])", r"\\\1", " ".join(text.split()))


# Tutorials and plots -----------------------------------------------------------------------------------------------------


def notebooks() -> dict[str, dict[str, Any]]:
    """Notebooks of the gallery that exist, in its order."""
    found = {name: NOTEBOOKS / f"{name}.ipynb" for name in TUTORIALS}
    return {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name, path in found.items()
        if path.exists()
    }


def figures_of(notebook: dict[str, Any]) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Cells that show figures, with the figures."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):
                yield cell, base64.b64decode("".join(png))


def thumbnail(notebook: dict[str, Any]) -> bytes | None:
    """The figure of the cell with the tag ``thumbnail``, else the first one."""
    figures = list(figures_of(notebook))
    tagged = [
        png for cell, png in figures if "thumbnail" in cell["metadata"].get("tags", [])
    ]
    return next(iter([*tagged, *(png for _, png in figures)]), None)


def lead(notebook: dict[str, Any]) -> str:
    """The first sentence below the title."""
    paragraphs = "".join(notebook["cells"][0]["source"]).split("\n\n")
    text = " ".join(paragraphs[1].split()) if len(paragraphs) > 1 else ""
    return re.split(r"(?<=[.:]) (?=[A-Z`])", text)[0]


def card(title: str, link: str, text: str = "", image: str | None = None) -> str:
    """A card of a grid."""
    options = [
        f":link: {link}",
        ":link-type: doc",
        *([f":img-top: {image}"] if image else []),
        ":class-img-top: thumb",
    ]
    return "\n".join([f"::::{{grid-item-card}} {title}", *options, "", text, "::::"])


def grid(cards: list[str]) -> str:
    """Cards side by side, as many as the screen is wide enough for."""
    return "\n\n".join([":::::{grid} 1 2 2 3\n:gutter: 3", *cards, ":::::"])


def gallery(pictures: Path) -> str:
    """Cards of the tutorials, and the table of contents that they are in."""
    cards = []
    for name, notebook in notebooks().items():
        png = thumbnail(notebook)
        if png:
            (pictures / f"tutorial_{name}.png").write_bytes(png)
        image = f"/_generated/pictures/tutorial_{name}.png" if png else None
        cards.append(card(TUTORIALS[name], f"/tutorials/{name}", lead(notebook), image))
    entries = "\n".join(
        f"{title} </tutorials/{name}>"
        for name, title in TUTORIALS.items()
        if name in notebooks()
    )
    return f"{grid(cards)}\n\n```{{toctree}}\n:hidden:\n\n{entries}\n```"


def plots(pictures: Path, examples: Mapping[str, Callable[[], Any]]) -> str:
    """A figure of each plot: of the first tutorial that shows it, else of an example."""
    found: dict[str, bytes] = {}
    for notebook in notebooks().values():
        for cell, png in figures_of(notebook):
            for name in re.findall(r"\bsg\.pl\.(\w+)\(", "".join(cell["source"])):
                found.setdefault(name, png)
    cards = []
    for name in sorted({*found, *examples} & set(pl.__all__)):
        path = pictures / f"pl_{name}.png"
        if name in found:
            path.write_bytes(found[name])
        elif not path.exists():
            axes = np.ravel(examples[name]())[0]
            axes.figure.savefig(path, dpi=100)
        link = f"generated/scgalore.pl.{name}"
        cards.append(
            card(
                f"`pl.{name}`",
                f"/api/{link}",
                image=f"/_generated/pictures/pl_{name}.png",
            )
        )
    return grid(cards)


def write(folder: Path, examples: Mapping[str, Callable[[], Any]]) -> None:
    """Write all of it to a folder; ``examples`` draw the plots that no tutorial shows."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    texts = {
        "adapters": registry(ADAPTERS),
        "capabilities": capabilities(),
        "commands": commands(),
        "datasets": registry_table(),
        "embeddings": registry(EMBEDDINGS),
        "gallery": gallery(pictures),
        "keys": keys(),
        "optimizers": registry(OPTIMIZERS),
        "plots": plots(pictures, examples),
        "weights": weights(),
    }
    for name, text in texts.items():
        path = folder / f"{name}.md"
        # A page is read again if a file that it includes is newer.
        if not path.exists() or path.read_text(encoding="utf-8") != f"{text}\n":
            path.write_text(f"{text}\n", encoding="utf-8")
