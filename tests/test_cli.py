import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from scgalore import __version__
from scgalore._settings import settings
from scgalore.cli import app
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
    for part in ("scgalore demo", "sg.tl.finetune(adata", "scgalore weights list"):
        assert part in text
    assert CliRunner().invoke(app).output == text, "no command at all should teach, too"


@pytest.mark.parametrize(
    "command", [["demo"], ["weights"], ["weights", "list"], ["weights", "fetch"], ["weights", "path"]]
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
    assert "can be fetched: scgalore weights fetch scgpt" in entries["scgpt"]
    assert "licence: MIT" in entries["scgpt"]
    assert "cannot be fetched: no sha256 is known" in entries["scgpt-brain"]


def test_weights_in_the_cache_are_found(small_weights: WeightsEntry) -> None:
    error = scgalore("weights", "path", "small", code=2).stderr
    assert "scgalore weights fetch small" in error
    folder = put_in_cache(small_weights)
    assert scgalore("weights", "path", "small").stdout.strip() == str(folder)
    assert scgalore("weights", "fetch", "small").stdout.strip() == str(folder)
    assert f"here: {folder}" in scgalore("weights", "list").stdout


def test_damaged_weights_are_not_here(small_weights: WeightsEntry) -> None:
    put_in_cache(small_weights, weights=b"12x45")
    scgalore("weights", "path", "small", code=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["weights", "fetch", "scgtp"], "Did you mean 'scgpt'?", id="unknown_name"),
        pytest.param(["weights", "path", "scgtp"], "Did you mean 'scgpt'?", id="unknown_name_of_path"),
        pytest.param(["weights", "fetch", "scgpt-brain"], "no sha256 is known", id="refused"),
        pytest.param(["weights", "path", "scgpt-brain"], "cannot be fetched", id="refused_path"),
        pytest.param(["demo", "--model", "no-such-model"], "neither an existing folder nor the name", id="model"),
        pytest.param(["demo", "--seeds", "0"], "'--seeds'", id="seeds"),
        pytest.param(["demo", "--out", "taken"], "'thesis.tex'", id="out"),
        pytest.param(["demo", "--out", "taken", "--force"], "'thesis.tex'", id="out_forced"),
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
    monkeypatch.setattr("scgalore.demo.run_demo", lambda out, **options: calls.append((out, options)))
    scgalore("demo")
    scgalore(
        "demo", "--out", "x", "--model", "m", "--optimizer", "adamw", "--seeds", "5", "--random-weights", "--force"
    )
    (out, defaults), (other, given) = calls
    del defaults["say"], given["say"]
    assert out == Path("scgalore_demo")
    assert defaults == {
        "model": "scgpt-mini",
        "optimizer": "galore",
        "n_seeds": 3,
        "random_weights": False,
        "force": False,
    }
    assert other == Path("x")
    assert given == {"model": "m", "optimizer": "adamw", "n_seeds": 5, "random_weights": True, "force": True}
