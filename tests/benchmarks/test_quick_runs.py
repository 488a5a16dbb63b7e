"""Every script runs from end to end at its small size."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from benchmarks import peers, run
from benchmarks.harness import ROOT

if TYPE_CHECKING:
    from pathlib import Path

WITH_ORIGINAL = {"embedding", "training_step", "loading"}


@pytest.mark.slow
@pytest.mark.parametrize("name", run.SCRIPTS)
def test_quick_run_of_a_script_gives_its_claims(name: str, tmp_path: Path) -> None:
    if name in WITH_ORIGINAL and not peers.interpreter().exists():
        pytest.skip("python benchmarks/peers.py makes the environment of the original, from the package index")
    command = [sys.executable, "benchmarks/run.py", name, "--quick", "--threads", "1", "--out", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert record["claims"]
    assert {claim["holds"] for claim in record["claims"]} == {None}
    for claim in record["claims"]:
        assert claim["what"] in (tmp_path / f"{name}.md").read_text()
