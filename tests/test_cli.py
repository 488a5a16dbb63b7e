import hashlib
import inspect
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from anndata import AnnData
from typer.testing import CliRunner, Result

import scgalore as sg
from scgalore import __version__
from scgalore._options import options_of
from scgalore._settings import settings
from scgalore.cli import app
from scgalore.data.split import random_split
from scgalore.pipeline import RunConfig
from scgalore.pipeline.checks import GENES
from scgalore.pipeline.config import training_options
from scgalore.tasks import TASKS
from scgalore.tasks.registry import DEFAULT
from scgalore.train import TrainConfig
from scgalore.train.budget import open_epochs
from scgalore.weights import WeightsEntry, WeightsFile, list_weights, registry

HEAVY = ("anndata", "lightning", "numpy", "pandas", "scanpy", "scvi", "torch")


def scgalore(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def small_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> WeightsEntry:
    """Registered weights of two small files, which the cache does not hold."""
    file = WeightsFile("model.safetensors", "http://127.0.0.1:9/model", 5, hashlib.sha256(b"12345").hexdigest())
    second = WeightsFile("vocab.json", "http://127.0.0.1:9/vocab", 2, hashlib.sha256(b"{}").hexdigest())
    entry = WeightsEntry("small", "Small weights", (file, second), "CC0-1.0", "nobody", "http://127.0.0.1:9")
    monkeypatch.setattr(registry, "_registry", lambda: {"small": entry})
    settings.cachedir = tmp_path
    return entry


def put_in_cache(entry: WeightsEntry, weights: bytes = b"12345") -> Path:
    folder = settings.cachedir / entry.name
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "vocab.json").write_bytes(b"{}")
    return folder


def test_help_teaches_the_first_steps() -> None:
    text = scgalore("--help").output
    for part in ("scgalore demo", "scgalore run cells.h5ad", "sg.tl.finetune(adata", "scgalore weights list"):
        assert part in text
    assert CliRunner().invoke(app).output == text, "no command at all should teach, too"


@pytest.mark.parametrize(
    "command", [["demo"], ["run"], ["weights"], ["weights", "list"], ["weights", "fetch"], ["weights", "path"]]
)
def test_every_command_has_help(command: list[str]) -> None:
    text = scgalore(*command, "-h").output
    assert text.startswith("Usage:")
    assert len(text.splitlines()) > 5


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, runpy\n"
        "sys.argv = ['scgalore', '--help']\n"
        "try: runpy.run_module('scgalore', run_name='__main__')\n"
        f"finally: print('HEAVY', [name for name in {HEAVY} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Usage: scgalore" in done.stdout
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_version() -> None:
    assert scgalore("--version").output.strip() == __version__


def test_weights_list_says_what_can_be_had() -> None:
    text = scgalore("weights", "list").output
    entries = {block.split()[0]: block for block in text.strip().split("\n\n")}
    assert list(entries) == list_weights()
    assert "207 MB" in entries["scgpt"]
    assert "not downloaded; to download: scgalore weights fetch scgpt" in entries["scgpt"]
    assert "licence: MIT" in entries["scgpt"]
    assert "not available: no sha256 is known" in entries["scgpt-brain"]


def test_weights_in_the_cache_are_found(small_weights: WeightsEntry) -> None:
    error = scgalore("weights", "path", "small", code=2).stderr
    assert "scgalore weights fetch small" in error
    folder = put_in_cache(small_weights)
    assert scgalore("weights", "path", "small").stdout.strip() == str(folder)
    assert scgalore("weights", "fetch", "small").stdout.strip() == str(folder)
    assert f"downloaded: {folder}" in scgalore("weights", "list").stdout


def test_damaged_weights_are_not_here(small_weights: WeightsEntry) -> None:
    put_in_cache(small_weights, weights=b"12x45")
    scgalore("weights", "path", "small", code=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["weights", "fetch", "scgtp"], "Did you mean 'scgpt'?", id="unknown_name"),
        pytest.param(["weights", "path", "scgtp"], "Did you mean 'scgpt'?", id="unknown_name_of_path"),
        pytest.param(["weights", "fetch", "scgpt-brain"], "no sha256 is known", id="refused"),
        pytest.param(["weights", "path", "scgpt-brain"], "not available: no sha256", id="refused_path"),
        pytest.param(["demo", "--model", "no-such-model"], "neither an existing folder nor the name", id="model"),
        pytest.param(["demo", "--seeds", "0"], "'--seeds'", id="seeds"),
        pytest.param(["demo", "--out", "taken"], "'thesis.tex'", id="out"),
        pytest.param(["demo", "--out", "taken", "--force"], "'thesis.tex'", id="out_forced"),
        pytest.param(["run"], "Missing data", id="no_data"),
        pytest.param(["run", "absent.h5ad"], "absent.h5ad does not exist", id="no_such_file"),
        pytest.param(["run", "absent.h5ad", "--genes", "0"], "n_genes=0", id="no_genes"),
        pytest.param(["run", "absent.h5ad", "--genes", "many"], "n_genes='many'", id="genes_in_words"),
        pytest.param(
            ["run", "absent.h5ad", "--curriculum", "10,few"], "numbers of genes must be integers", id="curriculum"
        ),
        pytest.param(["run", "absent.h5ad", "--strategy", "fast"], "curriculum='fast'", id="strategy"),
        pytest.param(["run", "absent.h5ad", "--lr", "-1"], "lr=-1", id="lr"),
        pytest.param(
            ["run", "absent.h5ad", "--control", "ctrl"], "is an argument of task='perturbation'", id="other_task"
        ),
        pytest.param(["run", "x.h5ad", "--out", "taken", "--force"], "'thesis.tex'", id="run_out_forced"),
        pytest.param(["run", "--resume", "--out", "new"], "new contains no run to resume", id="nothing_to_resume"),
        pytest.param(["run", "--config", "absent.json"], "absent.json cannot be read", id="no_config"),
    ],
)
def test_bad_input_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    result = scgalore(*arguments, code=2)
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "thesis.tex"]


def test_without_network_the_message_says_what_to_do() -> None:
    settings.offline = True
    error = scgalore("weights", "fetch", "scgpt", code=2).stderr
    for part in ("sha256 6cb5d451", "https://huggingface.co/", str(settings.cachedir / "scgpt" / "best_model.pt")):
        assert part in error


def test_faults_of_the_program_are_not_disguised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("scgalore.weights.fetch_weights", broken)
    assert isinstance(scgalore("weights", "fetch", "scgpt", code=1).exception, ZeroDivisionError)


def test_demo_passes_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, dict[str, object]]] = []
    monkeypatch.setattr("scgalore.pipeline.demo.run_demo", lambda out, **options: calls.append((out, options)))
    scgalore("demo")
    scgalore("demo", "--out", "x", "--model", "m", "--optimizer", "adamw", "--seeds", "5", "--force")
    (out, defaults), (other, given) = calls
    del defaults["say"], given["say"]
    assert out == Path("scgalore_demo")
    assert defaults == {"model": "scgpt-mini", "optimizer": "galore", "n_seeds": 3, "force": False}
    assert other == Path("x")
    assert given == {"model": "m", "optimizer": "adamw", "n_seeds": 5, "force": True}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunConfig, dict[str, bool]]]:
    """What the command asks the pipeline for; nothing is run."""
    calls: list[tuple[RunConfig, dict[str, bool]]] = []

    def noted(config: RunConfig, **options: bool) -> Path:
        calls.append((config, options))
        return Path(config.out)

    monkeypatch.setattr("scgalore.pipeline.runner.run", noted)
    return calls


def test_run_passes_its_options_on(runs: list[tuple[RunConfig, dict[str, bool]]]) -> None:
    scgalore("run", "cells.h5ad")
    given = (
        "--labels-key type --n-genes 500 --curriculum 100,500 --max-epochs 3 --max-cells 90 --accelerator cpu "
        "--batch-size auto --rng 2 --must-include CD3D,CD8A --max-length 64 --clip-norm inf --gradient-checkpointing "
        '--optimizer-options {"rank":8} --force'
    )
    scgalore("run", "cells.h5ad", *given.split(), "--out", "runs/x")
    (defaults, flags), (config, forced) = runs
    assert (defaults, flags) == (RunConfig("cells.h5ad", "scgalore_run"), {"force": False, "resume": False})
    assert forced == {"force": True, "resume": False}
    assert config == RunConfig(
        "cells.h5ad",
        "runs/x",
        labels_key="type",
        n_genes=500,
        curriculum=[100, 500],
        max_epochs=3,
        max_cells=90,
        accelerator="cpu",
        batch_size="auto",
        rng=2,
        must_include=["CD3D", "CD8A"],
        max_length=64,
        clip_norm=math.inf,
        gradient_checkpointing=True,
        optimizer_options={"rank": 8},
    )


@pytest.mark.parametrize(("strategy", "curriculum"), [("progressive", True), ("standard", False)])
def test_the_published_call_keeps_its_short_names(
    runs: list[tuple[RunConfig, dict[str, bool]]], strategy: str, curriculum: bool
) -> None:
    call = f"run data.h5ad --strategy {strategy} --genes 5000 --epochs 30 --max-cells 50000 --device cpu --seed 1"
    scgalore(*call.split())
    options = {"n_genes": 5000, "max_epochs": 30, "max_cells": 50_000, "accelerator": "cpu", "rng": 1}
    assert runs[0][0] == RunConfig("data.h5ad", "scgalore_run", curriculum=curriculum, **options)


def test_run_from_a_configuration_changes_what_is_given(
    runs: list[tuple[RunConfig, dict[str, bool]]], tmp_path: Path
) -> None:
    options = {"labels_key": "type", "n_genes": 500, "curriculum": [100, 500], "data_sha256": "0" * 64}
    of_file = RunConfig("a.h5ad", "x", **options)
    path = tmp_path / "config.json"
    path.write_text(of_file.to_json(), encoding="utf-8")
    scgalore("run", "--config", str(path), "--out", "y")
    scgalore("run", "b.h5ad", "--config", str(path), "--genes", "50")
    (same, _), (changed, _) = runs
    assert same == of_file.changed(out="y")
    assert changed == of_file.changed(data="b.h5ad", data_sha256=None, n_genes=50, curriculum=True), (
        "the phases and the hash belong to other genes and data"
    )


def test_resuming_needs_the_folder_alone(runs: list[tuple[RunConfig, dict[str, bool]]], tmp_path: Path) -> None:
    config = RunConfig("a.h5ad", tmp_path, rng=5)
    (tmp_path / "config.json").write_text(config.to_json(), encoding="utf-8")
    scgalore("run", "--resume", "--out", str(tmp_path))
    assert runs == [(config, {"force": False, "resume": True})]


def test_interrupted_runs_end_with_130_and_say_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(config: RunConfig, **_: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("scgalore.pipeline.runner.run", interrupted)
    assert "nothing was written" in scgalore("run", "a.h5ad", "--out", str(tmp_path), code=130).stderr
    (tmp_path / "config.json").touch()
    error = scgalore("run", "a.h5ad", "--out", str(tmp_path), code=130).stderr
    assert f"scgalore run --resume --out {tmp_path}" in error


def test_dry_run_says_what_would_be_done_and_writes_nothing(pbmc: AnnData, tmp_path: Path) -> None:
    path = tmp_path / "pbmc.h5ad"
    pbmc.write_h5ad(path)
    options = ("--labels-key", "bulk_labels", "--model", "scgpt-mini", "--out", str(tmp_path / "x"), "--dry-run")
    text = scgalore("run", str(path), *options).stdout
    for part in (
        "700 cells and 765 genes",
        "bulk_labels",
        "biological",
        "galore",
        "Nothing was written",
    ):
        assert part in text
    assert [path.name for path in tmp_path.iterdir()] == ["pbmc.h5ad"]
    assert f"max_epochs about {open_epochs(560, TrainConfig())} " in " ".join(text.split())
    more = scgalore("run", str(path), *options, "--n-genes", "5000").stdout
    assert "cells that express all of 765 genes" in more, "more cannot be selected than there are"
    scgalore("run", str(path), *options, "--n-genes", "0", code=2)


def test_help_of_run_lists_options_under_headings() -> None:
    lines = scgalore("run", "--help").output.splitlines()
    headings = [line.split(":")[0] for line in lines if line.endswith(":") and not line.startswith(" ")]
    tasks = [f"Task {task.name}" for task in TASKS.values() if task.arguments]
    assert headings == ["Arguments", "The run's folder", "Cells and model", "Genes", *tasks, "Training", "Options"]
    text = "\n".join(lines)
    for part in ("--resume", "--dry-run", "Exit codes: 0 done, 2 bad input"):
        assert part in text


def test_every_declared_option_is_offered_with_help_and_default() -> None:
    text = " ".join(scgalore("run", "--help").output.split())
    declared = {o.name: o for task in TASKS.values() for o in task.arguments}
    declared |= {option.name: option for option in (*training_options(), *options_of(RunConfig))}
    for name, option in declared.items():
        flag = f"--{name.replace('_', '-')}"
        assert f" {flag} " in text or f" {flag}, " in text, flag
        assert option.short_help.endswith((".", "?")), name
        shown = "".join(text.replace("- ", "-").split())
        assert "".join(option.short_help.replace("- ", "-").split()) in shown, name
        for alias in option.aliases:
            assert f"--{alias}" in text


def test_page_names_all_tasks_and_short_names() -> None:
    page = (Path(__file__).parents[1] / "docs" / "pipeline.md").read_text(encoding="utf-8")
    for task in TASKS.values():
        named = "none of these" if task.name == DEFAULT else f"`--task {task.name}`"
        key = named if task.key is None else f"`--{task.key.replace('_', '-')}`"
        assert f"| `{task.name}` | {key} |" in page
    for option in (*options_of(RunConfig), *training_options()):
        for alias in option.aliases:
            rows = [line for line in page.splitlines() if line.startswith(f"| `--{alias}")]
            assert len(rows) == 1, alias
            assert f"`--{option.name.replace('_', '-')}" in rows[0]


def test_no_two_places_give_different_defaults() -> None:
    places: dict[str, dict[str, object]] = {
        "run": {option.name: option.default for option in options_of(RunConfig)},
        "training": {option.name: option.default for option in options_of(TrainConfig)},
        "fields of TrainConfig": vars(TrainConfig()),
        "random_split": _defaults_of(random_split),
        "tl.finetune": _defaults_of(sg.tl.finetune),
        "tl.select_genes": _defaults_of(sg.tl.select_genes),
        "a run that is left to choose": {"n_genes": GENES},
        "estimate_memory": _defaults_of(sg.estimate_memory),
        **{f"task {task.name}": {option.name: option.default for option in task.arguments} for task in TASKS.values()},
    }
    found: dict[str, dict[str, object]] = {}
    for place, defaults in places.items():
        for name, default in defaults.items():
            if default not in (None, (), {}):  # left to who is called next
                found.setdefault(name, {})[place] = default
    found.pop("prior")  # tasks have different ones
    assert {name: of for name, of in found.items() if len(set(map(repr, of.values()))) > 1} == {}
    run_help = " ".join(scgalore("run", "--help").output.split())
    assert "[default: (0.1)]" in run_help
    assert inspect.signature(random_split).parameters["test_size"].default == 0.1, "as the help of a run shows"


def _defaults_of(function: Any) -> dict[str, object]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
