"""Networks on a device that is no CPU, without one: shapes and devices of everything they make."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("elsewhere.py")
CASES = ["scgpt", "generative", "scbert", "embedding"]


@pytest.fixture(scope="module")
def passed() -> tuple[list[str], str]:
    """Names of the cases that passed, and what the process wrote to its error stream."""
    done = subprocess.run([sys.executable, SCRIPT, *CASES], capture_output=True, text=True, check=False)
    return done.stdout.split(), done.stderr


@pytest.mark.parametrize("case", CASES)
def test_everything_is_made_on_the_device_of_the_network(passed: tuple[list[str], str], case: str) -> None:
    names, errors = passed
    assert case in names, errors[-3000:]
