"""``import scgalore`` is quick and leaves no trace; each test looks at a fresh interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HEAVY = [
    "anndata",
    "lightning",
    "matplotlib",
    "mudata",
    "numpy",
    "pandas",
    "scanpy",
    "scipy",
    "scvi",
    "sklearn",
    "torch",
]

STATE = """
import json, logging, os, sys, warnings

def state():
    loggers = [logging.getLogger(), *filter(lambda x: isinstance(x, logging.Logger), logging.root.manager.loggerDict.values())]
    return {
        "filters": [str(entry) for entry in warnings.filters],
        "showwarning": warnings.showwarning.__qualname__,
        "handlers": [str(handler) for logger in loggers for handler in logger.handlers],
        "levels": {logger.name: logger.level for logger in loggers if logger.level},
        "environment": dict(os.environ),
        "excepthook": sys.excepthook.__name__,
        "path": sys.path,
    }
"""

EVERYTHING = "import scgalore as sg; [getattr(sg, name) for name in sg.__all__]"


def run(code: str, home: Path, **environment: str) -> Any:
    """Run code with an empty home as working directory and give what it prints, read as JSON."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "SCGALORE_"))}
    # Byte code, and the caches that matplotlib and numba keep for themselves, are none of this package's doing.
    elsewhere = {name: str(home.parent / "caches") for name in ("MPLCONFIGDIR", "NUMBA_CACHE_DIR")}
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=home,
        env={**kept, **elsewhere, "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout or "null")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def test_nothing_heavy_is_loaded(home: Path) -> None:
    loaded = run("import scgalore, sys, json; print(json.dumps(sorted(sys.modules)))", home)
    assert [name for name in HEAVY if name in loaded] == []


def test_settings_load_nothing_heavy_either(home: Path) -> None:
    loaded = run("import scgalore, sys, json; scgalore.settings; print(json.dumps(sorted(sys.modules)))", home)
    assert [name for name in HEAVY if name in loaded] == []


@pytest.mark.parametrize("code", ["import scgalore", "import scgalore; scgalore.settings"])
def test_global_state_is_left_alone(home: Path, code: str) -> None:
    before, after = run(f"{STATE}\nbefore = state()\n{code}\nprint(json.dumps([before, state()]))", home)
    assert after == before


def test_random_state_and_plot_style_are_left_alone(home: Path) -> None:
    before, after = run(
        f"""
import json, random
import matplotlib, numpy as np, torch

def state():
    return [
        str(random.getstate()),
        str(np.random.get_state()),
        torch.get_rng_state().tolist(),
        str(torch.get_default_dtype()),
        torch.are_deterministic_algorithms_enabled(),
        {{key: str(value) for key, value in matplotlib.rcParams.items() if key != "backend"}},
    ]

before = state()
{EVERYTHING}
print(json.dumps([before, state()]))
""",
        home,
    )
    assert after == before


@pytest.mark.parametrize("code", ["import scgalore", EVERYTHING])
def test_nothing_is_written(home: Path, code: str) -> None:
    run(code, home)
    assert sorted(home.rglob("*")) == []


def test_names_are_listed_and_unknown_ones_refused(home: Path) -> None:
    listed = run("import scgalore as sg, json; print(json.dumps(dir(sg)))", home)
    assert {"tl", "pl", "model", "settings", "__version__"} <= set(listed)
    code = "import scgalore as sg, json\ntry: sg.tools\nexcept AttributeError as error: print(json.dumps(str(error)))"
    assert "tools" in run(code, home)
