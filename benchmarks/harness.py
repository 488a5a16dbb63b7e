"""Common parts of all benchmarks: sides in separate processes, interleaved rounds, ratios, the machine, and results.

A comparison runs its sides in turn (A, B, A, B, ...), so that both are measured under the same conditions. Results are
medians over rounds, with the smallest and largest value, and ratios of the two sides within a round, also with median and
range. Wall time on an otherwise idle machine is the main result; CPU time is reported as well, since other processes
affect it less.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Self

from benchmarks.side import THREADS_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CACHE = ROOT / "benchmarks" / ".cache"
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Instructions that decide how fast matrices are multiplied."""
MB = 1e6
GB = 1e9


@dataclass(frozen=True)
class Answer:
    """What a side did: result, seconds, and resident bytes before and at most."""

    value: Any
    wall: float
    cpu: float
    rss: int
    peak: int


class Side:
    """A process that answers requests; used in a ``with`` statement.

    Parameters
    ----------
    module
        Module that calls :func:`benchmarks.side.serve`.
    python
        Interpreter; the running one when left out.
    threads
        Threads of torch and of the libraries under it.
    """

    def __init__(self, module: str, *, threads: int, python: Path | None = None) -> None:
        self.module = module
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        count = str(threads)
        names = (THREADS_VARIABLE, "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
        self._process = subprocess.Popen(
            [str(python or sys.executable), "-W", "ignore", "-m", module],
            cwd=ROOT,
            env={**os.environ, **dict.fromkeys(names, count)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def ask(self, do: str, **arguments: Any) -> Answer:
        """Let the side do something, and wait for it.

        Raises
        ------
        RuntimeError
            If it failed or ended; the message holds what it printed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._log.seek(0)
            ended = f"ended with status {self._process.wait()}"
            msg = f"{self.module} {ended} at {do!r} (-9 is what the system does when memory runs out):\n{self._log.read()[-4000:]}"
            raise RuntimeError(msg)
        answer = json.loads(line)
        if "error" in answer:
            msg = f"{self.module} failed at {do!r}:\n{answer['error']}"
            raise RuntimeError(msg)
        return Answer(**answer)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()


def interleave(tasks: Mapping[str, Callable[[], Answer]], n_rounds: int, what: str) -> dict[str, list[Answer]]:
    """Let all tasks run in turn, ``n_rounds`` times; says what each took.

    Parameters
    ----------
    tasks
        What to do, by the name of the side.
    n_rounds
        How often.
    what
        Words in front of the lines it prints.
    """
    answers: dict[str, list[Answer]] = {name: [] for name in tasks}
    for number in range(n_rounds):
        for name, task in tasks.items():
            answer = task()
            answers[name].append(answer)
            say(f"{what}, round {number + 1} of {n_rounds}, {name}: {answer.wall:.3f} s, {answer.cpu:.3f} s of CPU")
    return answers


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of some numbers."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, numbers: Iterable[float]) -> Self:
        """Take them from the numbers."""
        found = list(numbers)
        return cls(median(found), min(found), max(found))

    def text(self, form: str = "{:.2f}") -> str:
        """Median with the range in parentheses, if there is one."""
        middle = form.format(self.median)
        low, high = form.format(self.low), form.format(self.high)
        return middle if low == high else f"{middle} ({low} to {high})"

    def to_dict(self) -> dict[str, float]:
        """Give the three numbers."""
        return {"median": self.median, "low": self.low, "high": self.high}


def seconds(answers: Sequence[Answer], clock: str = "wall") -> Spread:
    """Seconds over the rounds."""
    return Spread.of(getattr(answer, clock) for answer in answers)


def ratio(slow: Sequence[Answer], fast: Sequence[Answer], clock: str = "wall", *, factor: float = 1.0) -> Spread:
    """How many times longer ``slow`` took than ``fast``, paired by round.

    Parameters
    ----------
    slow, fast
        Answers of the same rounds.
    clock
        ``"wall"`` or ``"cpu"``.
    factor
        Work of ``fast`` over work of ``slow``, where they did not do the same.
    """
    pairs = zip(slow, fast, strict=True)
    return Spread.of(factor * getattr(one, clock) / getattr(other, clock) for one, other in pairs)


def growth(answers: Sequence[Answer]) -> int:
    """Most bytes that a call added to what the process held before the first one."""
    return max(answer.peak for answer in answers) - answers[0].rss


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, flush=True)


def machine(
    threads: int, packages: Iterable[str] = ("scgalore", "torch", "numpy", "scanpy", "anndata")
) -> dict[str, Any]:
    """What times depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "cpu": models[0] if models else platform.processor(),
        "flags": [flag for flag in FLAGS if any(flag in line.split() for line in lines if line.startswith("flags"))],
        "cores": os.cpu_count(),
        "memory_gb": round(total / GB, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": threads,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        **{name: package_version(name) for name in packages},
        "date": date.today().isoformat(),
    }


def package_version(name: str) -> str:
    """Version of an installed package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def matmul_peak(
    dtype: torch.dtype,
    *,
    device: str = "cpu",
    size: int = 2048,
    repeats: int = 8,
    multiply: Callable[[torch.Tensor, torch.Tensor], object] | None = None,
) -> float:
    """FLOP/s of a multiplication of two large square matrices, a plain one unless told otherwise; best of several."""
    import torch

    multiply = multiply or torch.mm
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        multiply(a, b)
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


@dataclass
class Report:
    """Results of one script as they come, and what is written of them."""

    name: str
    title: str
    machine: dict[str, Any]
    options: dict[str, Any]
    parts: list[str] = field(default_factory=list)
    claims: list[dict[str, Any]] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)

    def table(self, heading: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Add a table, with a sentence above it."""
        lines = ["| " + " | ".join(map(str, row)) + " |" for row in (columns, ["---"] * len(columns), *rows)]
        self.parts.append("\n".join([heading, "", *lines]))
        say("\n" + self.parts[-1] + "\n")

    def note(self, text: str) -> None:
        """Add a paragraph."""
        self.parts.append(text)
        say(text)

    def claim(self, what: str, target: str, measured: str, *, holds: bool | None) -> None:
        """Add what was to be shown and what was measured.

        Parameters
        ----------
        what
            Quantity.
        target
            What was to be shown of it.
        measured
            What was found.
        holds
            Whether it was shown; ``None`` where it is only reported. A quick run shows nothing.
        """
        holds = None if self.options.get("quick") else holds
        self.claims.append({"what": what, "target": target, "measured": measured, "holds": holds})
        say(self._line(self.claims[-1]))

    @staticmethod
    def _line(claim: Mapping[str, Any]) -> str:
        verdict = {True: ": holds", False: ": **does not hold**", None: ""}[claim["holds"]]
        return f"- {claim['what']}: claim: {claim['target']}; measured {claim['measured']}{verdict}"

    def markdown(self) -> str:
        """Give the whole as Markdown."""
        about = self.machine
        size = "--quick: smaller sizes, so the claims are not tested. " if self.options.get("quick") else ""
        where = (
            f"{size}{processor(about)}, {about['cores']} cores, {about['threads']} threads, load {about['load']} at the start, "
            f"torch {about['torch']}, scgalore {about['scgalore']}, {about['date']}."
        )
        return "\n\n".join([where, *self.parts, "\n".join(map(self._line, self.claims))]).rstrip() + "\n"

    def record(self) -> dict[str, Any]:
        """Give everything as one record."""
        return {
            "name": self.name,
            "machine": self.machine,
            "options": self.options,
            "claims": self.claims,
            "measured": self.measured,
        }

    def finish(self, folder: Path | None) -> None:
        """Print the results as a line of JSON and, given a folder, write ``NAME.json``, ``NAME.md`` and a line of runs.jsonl.

        ``NAME.md`` holds the last run on each processor, this one first.
        """
        record = self.record()
        say(json.dumps(record))
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        sections = {processor(self.machine): "", **sections_of(folder, self.name)}
        sections[processor(self.machine)] = self.markdown()
        (folder / f"{self.name}.json").write_text(json.dumps(record, indent=1) + "\n")
        text = "\n".join(f"{SECTION.format(name)}\n\n{part}" for name, part in sections.items())
        (folder / f"{self.name}.md").write_text(text)
        with (folder / "runs.jsonl").open("a") as runs:
            runs.write(json.dumps({key: value for key, value in record.items() if key != "measured"}) + "\n")


SECTION = "<!-- {} -->"
"""Begins the results of one processor."""


def processor(about: Mapping[str, Any]) -> str:
    """Name of a processor with the instructions that matter."""
    flags = ", ".join(about.get("flags", ()))
    return f"{about['cpu']} ({flags})" if flags else str(about["cpu"])


def sections_of(folder: Path, name: str) -> dict[str, str]:
    """Results that a file holds, by processor; one of earlier versions holds those of one."""
    path, record = folder / f"{name}.md", folder / f"{name}.json"
    if not path.exists() or not record.exists():
        return {}
    text = path.read_text()
    if not text.startswith("<!-- "):
        return {processor(json.loads(record.read_text())["machine"]): text}
    parts = re.split(r"^<!-- (.+) -->\n\n", text, flags=re.MULTILINE)[1:]
    return {name: part.rstrip() + "\n" for name, part in zip(parts[::2], parts[1::2], strict=True)}


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Command line that all scripts understand."""
    assert doc is not None
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="small sizes, to see that all runs; writes no results")
    made.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="threads of each side (default: all cores)"
    )
    made.add_argument("--rounds", type=int, help="rounds, instead of the script's own number")
    made.add_argument("--data", type=Path, help="folder with more data sets; what is not there is skipped")
    made.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results; none with --quick)")
    return made


def begin(name: str, title: str, arguments: argparse.Namespace) -> Report:
    """Start a report, with the machine as it is before anything runs."""
    import torch

    torch.set_num_threads(arguments.threads)
    # Not the folders, which say something of the machine's owner and nothing of the numbers.
    options = {key: value for key, value in vars(arguments).items() if not isinstance(value, Path)}
    return Report(name, title, machine(arguments.threads), options)


def results_folder(arguments: argparse.Namespace) -> Path | None:
    """Where results go: nowhere for a quick run, unless asked."""
    return arguments.out or (None if arguments.quick else RESULTS)
