"""Time of an optimizer step and bytes of its state on scGPT's whole-human network: GaLore, galore-torch and AdamW.

    python benchmarks/optimizer_step.py
    python benchmarks/optimizer_step.py --tables frozen --ranks 8
    python benchmarks/optimizer_step.py --quick

The network has the original sizes and random weights. Gradients are of low rank with noise, change slowly from step to
step, and are generated outside of the measured time; all optimizers get the same ones. In each round every optimizer takes
one step, in changing order, so that all are measured under the same conditions. Both implementations of GaLore project the
same weights, those of ``param_groups``.

GaLore refreshes a few bases in each step, so whole cycles are measured: the median over cycles for each position in the
cycle, and of these the mean (amortised), the median and the maximum. galore-torch refreshes all bases in one of 200 steps:
its counter is advanced to measure several such steps, and the amortised time is plain + (refresh - plain) / 200. The time
of the first step, which computes all bases, is reported separately.
"""

from __future__ import annotations

import argparse
import copy
import gc
import io
import json
import math
import platform
import time
import zipfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scgalore.nn import SCGPTConfig, SCGPTNetwork
from scgalore.nn.embedding import EMBEDDINGS
from scgalore.optim import GaLoreAdamW, build_optimizer, param_groups
from scgalore.optim.memory import memory_report
from scgalore.optim.packages import require

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch.optim import Optimizer

RESULTS = Path(__file__).parent / "results"
TABLE = "encoder.embedding.weight"
HEADS = ("decoder.*", "mvc_decoder.*", "cls_decoder.*", "value_encoder.*")
GAP = 20
PACKAGE_GAP = 200  # galore-torch's default
OURS, PACKAGE, FUSED, DEFAULT = "galore", "galore-torch", "AdamW, fused", "AdamW, torch's default"
MB = 1e6


@dataclass(frozen=True)
class Sizes:
    """The network, and how many genes a data set has."""

    n_tokens: int = 60_697
    d_model: int = 512
    n_layers: int = 12
    n_genes: int = 5_000

    def network(self) -> SCGPTNetwork:
        """Random weights, with the heads of the original program's classifier before its classes are known."""
        torch.manual_seed(0)
        config = SCGPTConfig(
            n_tokens=self.n_tokens,
            pad_id=self.n_tokens - 3,
            d_model=self.d_model,
            d_hid=self.d_model,
            n_layers=self.n_layers,
            heads={"classes": 1},
        )
        return SCGPTNetwork(config)

    @contextmanager
    def with_table(self, mode: str) -> Iterator[SCGPTNetwork]:
        """Network whose table is trained in full, in the rows of the genes and three special tokens, or not at all."""
        network = self.network()
        special = torch.arange(self.n_tokens - 3, self.n_tokens)
        tokens = torch.cat([torch.arange(self.n_genes), special])
        with EMBEDDINGS[mode].applied(network, tokens):
            yield network


FULL = Sizes()
QUICK = Sizes(n_tokens=6_003, n_layers=2, n_genes=500)


class Gradients:
    """Gradients that all networks share: of low rank with a tenth of noise, and turning slowly."""

    def __init__(self, module: nn.Module, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        params = {name: param for name, param in module.named_parameters() if param.requires_grad}
        self._ends = [{name: _low_rank_with_noise(p.shape, generator) for name, p in params.items()} for _ in range(2)]
        self.tensors = {name: torch.empty_like(param) for name, param in params.items()}

    def turn_to(self, step: int) -> None:
        """Gradients of this step: 0.02 rad further than those before."""
        angle = 0.02 * step
        for name, grad in self.tensors.items():
            torch.mul(self._ends[0][name], math.cos(angle), out=grad).add_(self._ends[1][name], alpha=math.sin(angle))

    def give_to(self, module: nn.Module) -> None:
        """Let the parameters hold them; no optimizer here writes to gradients."""
        for name, param in module.named_parameters():
            if name in self.tensors:
                param.grad = self.tensors[name]


def _low_rank_with_noise(shape: torch.Size, generator: torch.Generator, rank: int = 32) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if len(shape) != 2:
        return 1e-3 * noise
    left = torch.randn(shape[0], rank, generator=generator)
    right = torch.randn(rank, shape[1], generator=generator)
    spectrum = 1.0 / torch.arange(1, rank + 1)
    return 1e-3 * noise.mul_(0.1).addmm_(left * spectrum, right)


@dataclass
class Side:
    """One optimizer on its own copy of the network, with CPU and wall seconds of each of its steps."""

    name: str
    module: nn.Module
    optimizer: Optimizer
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def step(self) -> None:
        """Take a step and note its time."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.optimizer.step()
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)

    def move_to_refresh(self) -> None:
        """Set galore-torch's counters so that the coming step refreshes every basis."""
        for state in self.optimizer.state.values():
            state["step"] = PACKAGE_GAP * (1 + state["step"] // PACKAGE_GAP)


def package_optimizer(module: nn.Module, rank: int) -> Optimizer:
    """Build the optimizer of galore-torch itself, on the weights that ours projects."""
    require("galore_torch", install="galore-torch")
    from galore_torch import GaLoreAdamW as PackageGaLore

    from scgalore.optim.galore_torch import package_groups

    groups = package_groups(param_groups(module, rank=rank, update_proj_gap=PACKAGE_GAP))
    return PackageGaLore(groups, lr=1e-4, no_deprecation_warning=True)


def make_sides(network: nn.Module, rank: int) -> list[Side]:
    """Build all optimizers, each on a copy of the network."""
    builders = {
        OURS: lambda module: build_optimizer("galore", module, rank=rank, update_proj_gap=GAP),
        PACKAGE: lambda module: package_optimizer(module, rank),
        FUSED: lambda module: build_optimizer("adamw", module),
        DEFAULT: lambda module: torch.optim.AdamW(param_groups(module, rank=None), lr=1e-4),
    }
    modules = {name: copy.deepcopy(network) for name in builders}
    return [Side(name, module, builders[name](module)) for name, module in modules.items()]


def time_steps(sizes: Sizes, table: str, rank: int, n_cycles: int) -> list[Side]:
    """Let all sides take a first step and whole cycles of ours, in turn."""
    with sizes.with_table(table) as network:
        sides = make_sides(network, rank)
    del network
    gradients = Gradients(sides[0].module)
    for side in sides:
        gradients.give_to(side.module)
    gc.collect()
    gc.disable()
    try:
        for number in range(1 + n_cycles * GAP):
            gradients.turn_to(number)
            for place in range(len(sides)):
                side = sides[(place + number) % len(sides)]
                if side.name == PACKAGE and is_package_refresh(number):
                    side.move_to_refresh()
                side.step()
    finally:
        gc.enable()
    return sides


def is_package_refresh(number: int) -> bool:
    """Whether galore-torch refreshes in this round: in the first, and once in each of our cycles."""
    return number % GAP == 0


def summary(name: str, seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds: ``first``, ``plain``, ``slowest`` and ``amortised`` step."""
    ms = [1e3 * value for value in seconds]
    later = ms[1:]
    if name == OURS:
        places = [median(later[place::GAP]) for place in range(GAP)]
        return {"first": ms[0], "plain": median(places), "slowest": max(places), "amortised": fmean(places)}
    if name == PACKAGE:
        plain = median(value for number, value in enumerate(ms) if not is_package_refresh(number))
        refresh = median(value for number, value in enumerate(ms) if number and is_package_refresh(number))
        amortised = plain + (refresh - plain) / PACKAGE_GAP
        return {"first": ms[0], "plain": plain, "slowest": refresh, "amortised": amortised}
    plain = median(later)
    return {"first": ms[0], "plain": plain, "slowest": plain, "amortised": plain}


def formula_bytes(optimizer: Optimizer) -> int:
    """State in float32 by the formula, with exactly the numbers that the method needs; counters left out."""
    total = 0
    for group in optimizer.param_groups:
        rank, split = group.get("rank"), group.get("split", 1)
        for param in group["params"]:
            if rank is None:
                total += 4 * 2 * param.numel()
            else:
                sides = param.shape[0] // split, param.shape[1]
                total += 4 * split * rank * (2 * max(sides) + min(sides))
    return total


def checkpoint_bytes(optimizer: Optimizer) -> int:
    """Bytes of the tensors in the file that ``torch.save(optimizer.state_dict())`` writes."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    with zipfile.ZipFile(file) as archive:
        return sum(entry.file_size for entry in archive.infolist() if "/data/" in entry.filename)


def measure_state(sizes: Sizes, ranks: Sequence[int]) -> list[dict[str, Any]]:
    """Bytes after one step, with the whole table for AdamW and the rows of the genes for GaLore."""
    rows: list[dict[str, Any]] = []

    def measure(what: str, rank: int | None, optimizer: Optimizer, module: nn.Module) -> None:
        gradients.turn_to(0)
        gradients.give_to(module)
        optimizer.step()
        kept = memory_report(module, optimizer).total.state
        saved = checkpoint_bytes(optimizer)
        rows.append(
            {"what": what, "rank": rank, "kept": kept, "formula": formula_bytes(optimizer), "checkpoint": saved}
        )

    with sizes.with_table("full") as network:
        gradients = Gradients(network)
        measure("AdamW, whole table", None, build_optimizer("adamw", network), network)
    with sizes.with_table("rows") as network:
        gradients = Gradients(network)
        measure("AdamW, rows", None, build_optimizer("adamw", network), network)
        for rank in ranks:
            variants: dict[str, dict[str, Any]] = {
                HEADS_AND_ROWS_UNDER_ADAM: dict.fromkeys(HEADS),
                ROWS_UNDER_ADAM: {},
                ALL_PROJECTED: {TABLE: {"rank": rank}},
            }
            for what, overrides in variants.items():
                groups = param_groups(network, rank=rank, overrides=overrides)
                measure(what, rank, GaLoreAdamW(groups, lr=1e-4), network)
            measure(f"{PACKAGE}, rows under Adam", rank, package_optimizer(network, rank), network)
    for row in rows:
        row["ratio"] = row["kept"] / rows[0]["kept"]
    return rows


HEADS_AND_ROWS_UNDER_ADAM = "galore, heads and rows under Adam"
ROWS_UNDER_ADAM = "galore, rows under Adam (default)"
ALL_PROJECTED = "galore, heads and rows projected"


def time_claims(times: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What was to be shown about time, each with what was measured."""
    by = {(row["table"], row["rank"], row["side"]): row for row in times}
    least = {("frozen", 8): "at least 2.5x", ("full", 8): "at least 5x"} | {
        (table, 128): "not slower (1x), with 10x more frequent refresh" for table in ("frozen", "rows", "full")
    }
    for table, rank, side in by:
        if side != OURS:
            continue
        ours, package = by[table, rank, OURS], by[table, rank, PACKAGE]
        cpu, wall = (package[clock]["amortised"] / ours[clock]["amortised"] for clock in ("cpu", "wall"))
        claim = least.get((table, rank), "none")
        yield f"amortised step against galore-torch, table {table}, rank {rank}: claim: {claim}; measured {cpu:.2f}x CPU, {wall:.2f}x wall"
        peak, other = (row["cpu"]["slowest"] / row["cpu"]["plain"] for row in (ours, package))
        yield f"slowest step over median, table {table}, rank {rank}: claim: at most 3x; measured {peak:.2f}x ({PACKAGE} {other:.1f}x)"
        first, other = (row["cpu"]["first"] / row["cpu"]["plain"] for row in (ours, package))
        yield f"very first step over median, table {table}, rank {rank}: claim: none; measured {first:.2f}x ({PACKAGE} {other:.1f}x)"


def state_claims(states: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What was to be shown about state, each with what was measured."""
    most = {
        (HEADS_AND_ROWS_UNDER_ADAM, 8): 10,
        (HEADS_AND_ROWS_UNDER_ADAM, 128): 23,
        (ROWS_UNDER_ADAM, 8): 10,
        (ROWS_UNDER_ADAM, 128): 23,
        (ALL_PROJECTED, 8): 3,
        (ALL_PROJECTED, 128): 18,
    }
    whole = states[0]["kept"] / MB
    for row in states:
        if limit := most.get((row["what"], row["rank"])):
            share = f"{100 * row['ratio']:.2f} % of {whole:.1f} MB"
            yield f"state, {row['what']}, rank {row['rank']}: claim: at most {limit} %; measured {share}"
    ours = [row for row in states if row["what"].startswith("galore,")]
    apart = max(abs(row["kept"] - row["checkpoint"]) for row in ours)
    yield f"kept bytes against those of the checkpoint: claim: equal; measured at most {apart} bytes apart"


def time_table(times: Sequence[dict[str, Any]]) -> str:
    """Markdown table of milliseconds."""
    lines = [
        "| table | rank | optimizer | plain | slowest | first | amortised | amortised, wall | galore-torch / this |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in times:
        package = next(r for r in times if (r["table"], r["rank"], r["side"]) == (row["table"], row["rank"], PACKAGE))
        ratio = package["cpu"]["amortised"] / row["cpu"]["amortised"]
        cells = (row["cpu"][key] for key in ("plain", "slowest", "first", "amortised"))
        numbers = " | ".join(f"{value:.1f}" for value in (*cells, row["wall"]["amortised"]))
        lines.append(f"| {row['table']} | {row['rank']} | {row['side']} | {numbers} | {ratio:.2f} |")
    return "\n".join(lines)


def state_table(states: Sequence[dict[str, Any]]) -> str:
    """Markdown table of megabytes."""
    lines = ["| optimizer | rank | formula | kept | checkpoint | of AdamW's |", "|---|---|---|---|---|---|"]
    for row in states:
        sizes = " | ".join(f"{row[key] / MB:.2f}" for key in ("formula", "kept", "checkpoint"))
        lines.append(f"| {row['what']} | {row['rank'] or '-'} | {sizes} | {100 * row['ratio']:.1f} % |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the times depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("scgalore", "torch", "galore-torch")},
        "date": date.today().isoformat(),
    }


def run(sizes: Sizes, tables: Sequence[str], ranks: Sequence[int], n_cycles: int) -> dict[str, Any]:
    """Measure everything; prints each result as it comes."""
    n_parameters = sum(param.numel() for param in sizes.network().parameters())
    print(f"{n_parameters:,} parameters; {sizes}; {machine()}", flush=True)
    times = []
    for table in tables:
        for rank in ranks:
            begin = time.perf_counter()
            for side in time_steps(sizes, table, rank, n_cycles):
                clocks = {"cpu": summary(side.name, side.cpu), "wall": summary(side.name, side.wall)}
                seconds = {"cpu_seconds": side.cpu, "wall_seconds": side.wall}
                times.append({"table": table, "rank": rank, "side": side.name, **clocks, **seconds})
            del side
            print(f"table {table}, rank {rank}: {time.perf_counter() - begin:.0f} s", flush=True)
            print("\n".join(time_table(times[-4:]).splitlines()[2:]), flush=True)
    states = measure_state(sizes, sorted({8, 128, *ranks}))
    return {
        "machine": machine(),
        "sizes": {**asdict(sizes), "n_parameters": n_parameters},
        "cycles": n_cycles,
        "gap": {OURS: GAP, PACKAGE: PACKAGE_GAP},
        "times": times,
        "states": states,
    }


def report(results: dict[str, Any]) -> str:
    """Markdown page of the results."""
    about, sizes = results["machine"], results["sizes"]
    is_full = sizes["n_layers"] == FULL.n_layers and sizes["n_tokens"] == FULL.n_tokens
    small = [] if is_full else ["The claims are about the whole-human network, and this is a smaller one.", ""]
    claims = [*time_claims(results["times"]), *state_claims(results["states"])]
    return "\n".join(
        [
            f"{sizes['n_parameters']:,} parameters, {about['cpu']}, {about['threads']} thread(s), torch {about['torch']}, "
            f"{about['date']}.",
            "",
            f"Milliseconds of CPU time of one step. GaLore refreshes every {GAP} steps, galore-torch every {PACKAGE_GAP}.",
            "",
            time_table(results["times"]),
            "",
            f"Optimizer state in MB with {sizes['n_genes']:,} genes.",
            "",
            state_table(results["states"]),
            "",
            *small,
            *(f"- {claim}" for claim in claims),
            "",
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tables", nargs="+", choices=list(EMBEDDINGS), help="default: frozen rows full")
    parser.add_argument("--ranks", nargs="+", type=int, help="default: 8 64 128")
    parser.add_argument("--cycles", type=int, default=3, help=f"cycles of {GAP} rounds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--quick", action="store_true", help="two layers, a tenth of the table, one cycle; writes no file"
    )
    parser.add_argument("--out", type=Path, help=f"folder of the results (default: {RESULTS.name} next to this file)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    begin = time.perf_counter()
    if args.quick:
        results = run(QUICK, args.tables or ["frozen", "full"], args.ranks or [8, 128], n_cycles=1)
    else:
        results = run(FULL, args.tables or ["frozen", "rows", "full"], args.ranks or [8, 64, 128], args.cycles)
    text = report(results)
    print(f"\n{text}\n{time.perf_counter() - begin:.0f} s in all")
    folder = args.out or (None if args.quick else RESULTS)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "optimizer_step.json").write_text(json.dumps(results, indent=1) + "\n")
        (folder / "optimizer_step.md").write_text(text)


if __name__ == "__main__":
    main()
