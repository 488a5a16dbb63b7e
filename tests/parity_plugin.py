"""Comparisons with the original programs, and the page of the documentation that lists them.

``pytest --parity-table docs/parity.md`` runs the tests and writes the page.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

MANIFEST = Path(__file__).parent / "data" / "scgpt" / "manifest.json"
SCBERT = Path(__file__).parent / "data" / "scbert" / "scbert.npz"

#: Two arrays of floating-point numbers agree if they differ by this share of the largest magnitude at most. The processor
#: decides in which order a sum is added, so a bound that does not grow with the numbers holds on some processors only.
RTOL = 1e-5

#: Arrays of smaller numbers are compared as if this were their largest magnitude.
SMALLEST = 0.1

#: Comparisons that differ by more than this have a table of their own, with the rounding of the original.
LARGE = 1e-5

#: Arrays of the original that nothing of ours computes, by the start of their name.
NOT_COMPARED = {
    "styles/mvc_decoder/concat query": "not implemented: scGPT's forward pass fails with this decoder (IndexError)",
    "styles/mvc_decoder/sum query": "not implemented: scGPT's forward pass fails with this decoder (IndexError)",
    "base/loss_cce": "the contrastive loss is not built: no objective of ours uses it",
    "perturb_metrics/": "perturbation metrics are not built yet",
    "scbert/log2": "classes are found without logarithms, in whole numbers; `tokens` are what becomes of them",
}

#: Arrays that went into the original, or that scanpy made for it.
INPUTS = re.compile(
    r"batch/(gene_ids|target_values|masked_positions|\w+_labels|pad_id|cls_id)|base/clamp_values|binning/row\d|"
    r"preprocess/(counts|logged|genes|kept_genes|X_normed|X_log1p|hvg_X_normed|hvg_cell_ranger_genes)|"
    r"tokenizer/(gene_ids|binned)|collator/in\d/\w+|embed/(X|var_names)|styles/\w+_values|"
    r"perturb/(gene_ids|gene_names|expr|pert_flags|target)|losses/(input|target|mask|probs)|"
    r"scbert/(counts|masked_input|labels)|multiomic/mod_types"
)

#: What ours does otherwise although no array of the original shows it.
CHOICES = (
    "scGPT's tutorials may mask the value of `<cls>` and draw masks by position; ours never masks `<cls>`, and a cell's "
    "mask depends on the cell, the seed and the epoch only.",
    "Where a network predicts the probability of a non-zero value, scGPT's perturbation generator samples zeros even in "
    "evaluation; ours returns the two factors of the expectation and draws nothing.",
    "scGPT applies dropout to attention probabilities as well; ours to the residual branches and value encoder only. The "
    "arrays were made with dropout 0.",
    "scGPT breaks ties of the binning at random by default; ours puts them in the upper bin, as the release's own "
    "pre-training did. Both are compared.",
)


LARGER_VALUES = """\
The spacing of float32 numbers is 2e-6 at 20 and 3e-5 at 300, so sums of such numbers agree to 1e-5 only where they are added
in the same order. Our attention adds in another order than scGPT's, and the order differs between processors. *Rounding* is
the difference between the recorded array and our result in float64, where that was computed. The gradients are those before clipping;
clipped to norm 1, as the optimizer receives them, they agree to better than 1e-5 (`train_step/grad (clipped)`)."""


@dataclass(frozen=True)
class Agreement:
    """One comparison: name of the array, shape, its largest magnitude, the largest absolute difference, and remarks.

    ``tolerance`` is how large the difference may be. ``rounding`` is the distance of the original's float32 array from ours in
    float64, where that was asked for.
    """

    name: str
    shape: list[int]
    largest: float
    difference: float
    tolerance: float
    rounding: float | None
    instead: str

    @property
    def relative(self) -> float:
        """Largest absolute difference relative to the largest magnitude."""
        return self.difference / self.largest if self.largest else self.difference

    @property
    def holds(self) -> bool:
        """Whether the difference is within tolerance; NaN is not."""
        return self.difference <= self.tolerance


def compare(name: str, ours: Any, theirs: Any, *, exact: Any = None, instead: str = "") -> Agreement:
    """Compare two arrays of the same shape; text, integers and booleans have to be equal."""
    a, b = _array(ours), _array(theirs)
    assert a.shape == b.shape, f"{name}: shape {a.shape}, expected {b.shape}"
    floats = b.dtype.kind == "f"
    if b.dtype.kind in "US":
        difference, largest = float((a != b).any()), 0.0
    else:
        a, b = a.astype(np.float64), b.astype(np.float64)
        difference, largest = float(np.abs(a - b).max(initial=0)), float(np.abs(b).max(initial=0))
    tolerance = RTOL * max(largest, SMALLEST) if floats and np.isfinite(largest) else 0.0
    rounding = None if exact is None else float(np.abs(_array(exact) - b).max())
    return Agreement(name, list(b.shape), largest, difference, tolerance, rounding, instead)


@pytest.fixture
def agree(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Assert that an array is the original's, and record the comparison for the documentation.

    Differences may reach 1e-5 of the largest magnitude. Pass what ours gives in float64 as ``exact`` where values are
    large (beyond about 10): the page then shows how far the original itself is from it.
    ``instead`` tells what was compared where the arrays differ on purpose.
    """

    def agree(name: str, ours: Any, theirs: Any, *, exact: Any = None, instead: str = "") -> None:
        result = compare(name, ours, theirs, exact=exact, instead=instead)
        assert result.holds, (
            f"{name} differs by {result.difference:.2e}, {result.relative:.1e} of its largest value; "
            f"{result.tolerance:.1e} is allowed"
        )
        request.node.user_properties.append(("parity", asdict(result)))

    return agree


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity-table", type=Path, metavar="FILE", help="write the comparisons with the original here")


class Table:
    """Collects comparisons from the reports of passed tests (so also from xdist's workers) and writes the page."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Agreement] = {}
        self.message = f"{path} was not written"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            for key, value in report.user_properties:
                if key == "parity":
                    row = Agreement(**value)  # type: ignore[arg-type]
                    known = self.rows.get(row.name, row)
                    self.rows[row.name] = max(known, row, key=lambda row: (row.difference, row.rounding is not None))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        missing = sorted(set(arrays_of_the_original()) - set(self.rows))
        if exitstatus == 0 and not missing:
            self.path.write_text(page(self.rows.values()), encoding="utf-8")
            self.message = f"{self.path}: {len(self.rows)} arrays"
        else:
            self.message += f"; no comparison of {missing[:5]} and {len(missing)} in all" if missing else ""
            session.exitstatus = exitstatus or pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.write_sep("-", self.message)


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--parity-table")
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Table(path))


def arrays_of_the_original() -> list[str]:
    """Names of all arrays that have to be compared."""
    files: dict[str, list[str]] = json.loads(MANIFEST.read_text())["npz"]
    files |= {SCBERT.name: list(np.load(SCBERT))}
    names = [f"{file.removesuffix('.npz')}/{name}" for file, arrays in files.items() for name in arrays]
    return [name for name in names if not name.startswith(tuple(NOT_COMPARED)) and not INPUTS.fullmatch(name)]


def page(rows: Iterable[Agreement]) -> str:
    """Write the page of the documentation."""
    order = {name: place for place, name in enumerate(arrays_of_the_original())}
    rows = sorted(rows, key=lambda row: order.get(row.name, len(order)))
    lines = [*_introduction(rows), "", "## Larger values", "", LARGER_VALUES, ""]
    lines += ["| array | largest | difference | relative | rounding |", "|---|---|---|---|---|"]
    for row in rows:
        if row.difference > LARGE:
            rounding = "" if row.rounding is None else f"{row.rounding:.1e}"
            numbers = f"{row.largest:.4g} | {row.difference:.1e} | {row.relative:.1e} | {rounding}"
            lines.append(f"| `{row.name}` | {numbers} |")
    lines += ["", "## Different on purpose", "", "| what ours does, and what was compared | arrays |", "|---|---|"]
    for reason in dict.fromkeys(row.instead for row in rows if row.instead):
        lines.append(f"| {reason} | {', '.join(f'`{row.name}`' for row in rows if row.instead == reason)} |")
    lines += ["", "Not compared:", "", *(f"- `{name}`: {reason}" for name, reason in NOT_COMPARED.items())]
    lines += ["", "Beyond these arrays:", "", *(f"- {choice}" for choice in CHOICES)]
    for file in dict.fromkeys(row.name.partition("/")[0] for row in rows):
        lines += [
            "",
            f"## {file}.npz",
            "",
            "| array | shape | largest | difference | relative |",
            "|---|---|---|---|---|",
        ]
        lines += [_line(row) for row in rows if row.name.startswith(f"{file}/")]
    return "\n".join([*lines, ""])


def _introduction(rows: list[Agreement]) -> list[str]:
    manifest = json.loads(MANIFEST.read_text())
    large = [row for row in rows if row.difference > LARGE]
    n_equal = sum(row.difference == 0 for row in rows)
    worst = max((row.relative for row in large), default=0)
    return [
        "# Parity with scGPT and scBERT",
        "",
        "Results of unmodified scGPT and scBERT on the CPU in float32, with tiny networks of random weights, compared with ours for",
        "the same weights and input: tokens, outputs, losses, gradients and embeddings, one row per array.",
        "",
        f"- originals: scGPT {manifest['scgpt']}, torch {manifest['torch']}, NumPy {manifest['numpy']} (all files but `scbert.npz`); scBERT at",
        "  commit 262fd4b of TencentAILabHealthcare/scBERT, one cell at a time (`scbert.npz`)",
        f"- ours: torch {torch.__version__}, NumPy {np.__version__}",
        f"- {len(rows) - len(large)} of {len(rows)} arrays agree to 1e-5 or better, {n_equal} of them to the last bit",
        f"- the other {len(large)} hold larger values and agree to {worst:.1e} of the largest",
        "- a test fails where floating-point numbers differ by more than 1e-5 of the largest magnitude in their array (taken as",
        f"  {SMALLEST} if it is smaller), or where integers, booleans or text differ at all",
        "- every test run makes these comparisons; `pytest --parity-table docs/parity.md` writes this page",
        "",
        "*Difference* is the largest absolute difference, *relative* the same divided by the largest value. A star marks arrays",
        "that differ on purpose.",
    ]


def _line(row: Agreement) -> str:
    numbers = ("equal", "") if row.difference == 0 else (f"{row.difference:.1e}", f"{row.relative:.1e}")
    shape = " x ".join(map(str, row.shape)) or "scalar"
    name = f"`{row.name.partition('/')[2]}`{' *' * bool(row.instead)}"
    return f"| {name} | {shape} | {row.largest:.4g} | {' | '.join(numbers)} |"


def _array(x: Any) -> np.ndarray[Any, Any]:
    return x.detach().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
