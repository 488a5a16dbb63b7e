import gc
import importlib.metadata
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

gc.disable()  # until the tests begin

os.environ["MPLBACKEND"] = "agg"  # before anything imports pyplot
# Tiny networks are fastest on one thread. The first use of numba (sc.pp.neighbors) would set torch's number of threads, too,
# and make every test after it many times slower.
for _threads in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")

# At the beginning of each run Lightning reads the metadata of all packages that are installed.
importlib.metadata.entry_points = cache(importlib.metadata.entry_points)  # type: ignore[assignment]

from hypothesis import settings as hypothesis_settings  # noqa: E402

from scgalore._settings import settings  # noqa: E402
from scgalore.nn.cpu import choice, measure  # noqa: E402

if TYPE_CHECKING:
    from anndata import AnnData

REPOSITORY = Path(__file__).parents[1]

# How long an example takes says more about the machine than about the code.
hypothesis_settings.register_profile("scgalore", deadline=None)
hypothesis_settings.load_profile("scgalore")

pytest_plugins = ("tests.hub_plugin", "tests.original_plugin", "tests.parity_plugin", "tests.tiny_plugin")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--internet", action="store_true", help="also run the tests that fetch from the internet")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--internet"):
        return
    skip = pytest.mark.skip(reason="needs the internet; run with --internet")
    for item in items:
        if "internet" in item.keywords:
            item.add_marker(skip)


def pytest_collection_finish() -> None:
    """Leave what is there by now, modules and tests, out of all later collections: it stays, and takes half a second each time."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _own_settings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep tests away from the user's cache, in this process and in those it starts, and undo what they set."""
    cachedir = tmp_path_factory.getbasetemp() / "cache"
    for name in [name for name in os.environ if name.startswith("SCGALORE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SCGALORE_CACHEDIR", str(cachedir))
    settings.reset()
    yield
    monkeypatch.undo()
    settings.reset()


@pytest.fixture(autouse=True)
def _torch_is_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no kernel of ours have been measured to be faster, so that numbers do not depend on the machine; saves measuring."""
    monkeypatch.setattr(choice, "_measured", dict.fromkeys(measure.CASES, frozenset()))


@pytest.fixture(params=["torch", "onednn"])
def each_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Compute with torch's kernels for CPUs, then with ours wherever there is a choice, in layers of any size."""
    monkeypatch.setattr("scgalore.nn.cpu.linear._SMALLEST", 1)
    settings.cpu_kernels = request.param
    return request.param


@pytest.fixture(autouse=True)
def _no_figures_left() -> Iterator[None]:
    """Close what a test drew: pyplot keeps figures until they are closed, and the next test may count them."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


@pytest.fixture(scope="session")
def _pbmc_once() -> "AnnData":
    sc = pytest.importorskip("scanpy")
    reduced = sc.datasets.pbmc68k_reduced()
    adata = reduced.raw.to_adata()
    adata.obs = reduced.obs.copy()
    return adata


@pytest.fixture
def pbmc(_pbmc_once: "AnnData") -> "AnnData":
    """700 peripheral blood cells, 765 genes, log-normalised, with ``obs["bulk_labels"]``."""
    return _pbmc_once.copy()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of larger real data sets, where the machine has them beside the repository."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the data sets in {folder}")
    return folder
