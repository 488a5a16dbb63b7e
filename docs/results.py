"""How pages show the results of ``benchmarks``: a figure, what was measured on which machine, and the tables folded.

The files in ``benchmarks/results`` are made by the benchmarks and included as they are; :func:`shown` changes their text
when a page reads it. Claims that a benchmark checks are left out: the pages say what was found.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


@dataclass(frozen=True)
class Bars:
    """Bars of some columns of a table.

    Attributes
    ----------
    columns
        Columns to draw, one colour each.
    xlabel
        What they measure.
    table
        Which table of the file.
    rows
        Pattern of the rows to draw, matched with the first column.
    line
        Where to draw a line, for comparison.
    by
        Columns that name a row.
    """

    columns: tuple[str, ...]
    xlabel: str
    table: int = 0
    rows: str = ".*"
    line: float | None = None
    by: tuple[int, ...] = (0,)


FIGURES = {
    "bundled_model": Bars(
        ("accuracy",),
        "accuracy of cell types by neighbours, mean over data sets",
        rows="mean.*",
        by=(1,),
    ),
    "classes_floor": Bars(
        ("the model minus the best baseline",),
        "accuracy minus that of the best baseline",
        line=0,
    ),
    "compounds": Bars(
        ("pearson_delta",), "Pearson correlation of effects, held-out compounds"
    ),
    "curriculum": Bars(("seconds",), "seconds of training, annotation"),
    "embedding": Bars(
        ("scGPT 0.2.4 / this, wall",),
        "times as many cells per second as scGPT 0.2.4",
        line=1,
    ),
    "in_silico": Bars(
        ("direction",),
        "rank correlation with measured effects, 104 activations",
        line=0,
    ),
    "integration": Bars(
        ("bio", "batch", "total"), "score, immune cells of three assays"
    ),
    "mapping": Bars(
        (
            "sg.tl.annotate, fine-tuned",
            "mapped",
            "mapped, fine-tuned",
            "PCA, unit norm, weighted",
            "PCA",
            "embedding as it is",
        ),
        "accuracy of labels, mean over five queries",
        rows="mean",
    ),
    "memory_estimate": Bars(
        ("state, estimate", "state, measured"), "bytes of optimizer state"
    ),
    "perturbation_floor": Bars(
        ("model", "prior alone", "best baseline"),
        "score, K562, seed 1",
        rows="pearson.*|disc.*|pds.*",
    ),
    "proteins": Bars(
        ("Pearson",), "Pearson correlation of predicted proteins, 500 cells by CITE-seq"
    ),
    "regression": Bars(("R2",), "R2 of held-out cells", by=(1, 0)),
    "select_genes": Bars(("seconds",), "seconds, made cells"),
    "training_step": Bars(
        ("original / this, wall",),
        "times as fast as scGPT 0.2.4 in float32, per cell",
        line=1,
    ),
    "unknown_types": Bars(
        ("novelty (ours)", "highest probability", "logistic regression"),
        "area under the ROC curve, cells of Kang et al.",
        line=0.5,
    ),
}
"""What is drawn of each file of results."""


def tables(text: str) -> list[list[list[str]]]:
    """Tables of a text in Markdown, without the line below their heads."""
    found = re.findall(r"(?:^\|.*\|\n?)+", text, flags=re.MULTILINE)
    split = [
        [
            [cell.strip() for cell in line.strip().strip("|").split("|")]
            for line in part.splitlines()
        ]
        for part in found
    ]
    return [[rows[0], *rows[2:]] for rows in split]


def number(cell: str) -> tuple[float, float]:
    """A number and its error, if it has one."""
    value, _, error = re.split(r" / | \(", cell)[0].replace(",", "").partition(" ± ")
    try:
        return float(value), float(error or 0)
    except ValueError:
        return np.nan, 0.0


def draw(bars: Bars, text: str, path: Path) -> None:
    """Draw bars of a table to a file."""
    head, *rows = tables(text)[bars.table]
    rows = [row for row in rows if re.fullmatch(bars.rows, row[0])]
    chosen = [head.index(column) for column in bars.columns]
    names = [", ".join(row[i] for i in bars.by) for row in rows]
    values = np.array(
        [[number(row[i]) for i in chosen] for row in rows]
    )  # (rows, columns, 2)
    if len(rows) == 1:  # one row of many columns: a bar for each column
        names, values = list(bars.columns), values.transpose(1, 0, 2)
    n_rows, n_bars = values.shape[:2]
    style: Any = {
        "font.size": 9,
        "svg.hashsalt": path.stem,
        "svg.fonttype": "none",
        "font.family": "sans-serif",
    }
    with mpl.rc_context(style):
        figure = Figure(
            figsize=(7, 0.6 + n_rows * (0.1 + 0.18 * n_bars)), layout="constrained"
        )
        ax = figure.subplots()
        height = 0.8 / n_bars
        for i in range(n_bars):
            label = bars.columns[i] if n_bars > 1 else None
            errors = values[:, i, 1] if values[:, i, 1].any() else None
            ax.barh(
                np.arange(n_rows) + i * height,
                values[:, i, 0],
                height,
                xerr=errors,
                label=label,
                ecolor="#888888",
            )
        ax.set(
            yticks=np.arange(n_rows) + (n_bars - 1) * height / 2,
            yticklabels=names,
            xlabel=bars.xlabel,
        )
        ax.invert_yaxis()
        ax.spines[["top", "right"]].set_visible(False)
        if bars.line is not None:
            ax.axvline(bars.line, color="#888888", linewidth=1)
        if n_bars > 1:
            figure.legend(loc="outside upper center", ncols=n_bars, frameon=False)
        figure.savefig(path, metadata={"Date": None})


def write(folder: Path) -> None:
    """Draw all figures."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, bars in FIGURES.items():
        source, path = RESULTS / f"{name}.md", folder / f"{name}.svg"
        if not path.exists() or path.stat().st_mtime < max(
            source.stat().st_mtime, Path(__file__).stat().st_mtime
        ):
            draw(bars, source.read_text(encoding="utf-8"), path)


def shown(name: str, text: str) -> str:
    """What a page shows of a file of results.

    Parameters
    ----------
    name
        Name of the file without its suffix.
    text
        What is in it.
    """
    lines = [line for line in text.splitlines() if not re.match(r"- .*\bclaim: ", line)]
    machine, version = machine_of(lines)
    if machine:
        lines = lines[1:]
    images = [line for line in lines if line.startswith("![")]
    rest = [line for line in lines if not line.startswith("![")]
    parts = list(figure(name)) + images
    if machine:
        parts.append(f"Measured on {machine}.")
    long = sum(map(len, lines)) > 700 or len(lines) > 12
    body = "\n".join(rest).strip()
    if long:
        title = (
            f"Tables of {name.replace('_', ' ')}{f' ({version})' if version else ''}"
        )
        body = f"::::{{dropdown}} {title}\n\n{body}\n\n::::"
    return "\n\n".join([*parts, body]) + "\n"


def machine_of(lines: list[str]) -> tuple[str, str]:
    """The machine of the first line, in words, and the version that was measured."""
    if not lines or "torch " not in lines[0]:
        return "", ""
    processor = re.search(r"AMD EPYC|Intel\(R\) Xeon\(R\)", lines[0])
    cores = re.search(r"(\d+) cores, (\d+) threads", lines[0])
    version = re.search(r"scgalore [\d.]*\d", lines[0])
    date = re.search(r"\d{4}-\d\d-\d\d", lines[0])
    threads = (
        f", {cores[2]} {'threads' if cores[2] != '1' else 'thread'}" if cores else ""
    )
    named = processor[0].replace("(R)", "") if processor else "one machine"
    made = f"{version[0]}, {date[0]}" if version and date else date[0] if date else ""
    return f"{named}{threads}{f' ({made})' if made else ''}", version[
        0
    ] if version else ""


def figure(name: str) -> Iterator[str]:
    """The figure of a file, if it has one."""
    if name in FIGURES:
        yield f"![{FIGURES[name].xlabel}](/_generated/figures/{name}.svg)"
