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


@pytest.mark.parametrize("code", ["import scgalore", "import scgalore; scgalore.settings"])
def test_nothing_heavy_is_loaded_and_no_trace_left(home: Path, code: str) -> None:
    show = "print(json.dumps([before, state(), sorted(sys.modules)]))"
    before, after, loaded = run(f"{STATE}\nbefore = state()\n{code}\n{show}", home)
    assert [name for name in HEAVY if name in loaded] == []
    assert after == before
    assert sorted(home.rglob("*")) == []


def test_everything_leaves_random_state_plot_style_and_files_alone(home: Path) -> None:
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
    assert sorted(home.rglob("*")) == []


def test_names_are_listed_and_unknown_ones_refused(home: Path) -> None:
    code = """
import json, scgalore as sg

listed = dir(sg)
try:
    sg.tools
except AttributeError as error:
    print(json.dumps([listed, str(error)]))
"""
    listed, message = run(code, home)
    assert {"tl", "pl", "model", "settings", "__version__"} <= set(listed)
    assert "tools" in message


def test_embedding_loads_nothing_that_it_does_not_need(home: Path) -> None:
    loaded = run(
        """
import json, sys
import numpy as np, pandas as pd
from anndata import AnnData
import scgalore as sg

genes = ["CD3D", "CD3E", "LYZ", "CD14", "MS4A1", "CD79A", "NKG7", "GNLY"]
values = np.arange(1, 33, dtype=np.float32).reshape(4, 8)
adata = AnnData(values, var=pd.DataFrame(index=genes))
sg.tl.embed(adata, "scgpt-mini")
print(json.dumps(sorted(sys.modules)))
""",
        home,
    )
    slow = ("lightning", "matplotlib", "scanpy", "scipy.optimize", "scipy.stats", "scvi", "sklearn", "torch._dynamo")
    assert [name for name in slow if name in loaded] == []
