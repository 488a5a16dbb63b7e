"""Reproduce or refute three claims about low-rank training, on a small GPT, a small ViT and scGPT.

Run from the root of the repository::

    python -m benchmarks.lowrank_claims [--quick] [--only A B C]

An interrupted run continues where it stopped. Tables go to ``benchmarks/results/lowrank_claims.md``, all numbers to the
``.json`` next to it.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; the processes of the pool inherit it

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.lowrank_claims.claims import FULL, QUICK, all_arms
from benchmarks.lowrank_claims.harness import study_all
from benchmarks.lowrank_claims.report import machine, write

from scgalore._settings import settings

RESULTS = Path(__file__).parents[1] / "results"


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="a few steps of every arm, to see that all run; keeps nothing"
    )
    parser.add_argument("--only", nargs="+", choices="ABC", default=list("ABC"), help="claims to look at")
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--folder", type=Path, help="keeps finished runs; in the cache folder when left out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="gets the results, unless --quick")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    arms = [arm for arm in all_arms(plan) if arm.claim in arguments.only]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        kept = arguments.folder or settings.cachedir / "lowrank_claims"
        folder, out = (Path(temporary), Path(temporary)) if arguments.quick else (kept, arguments.out)
        studies = study_all(arms, plan.budgets, folder, arguments.workers)
        print(write(studies, {**machine(), "workers": arguments.workers}, out))
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
