"""Models on a hub: published, loaded, and what goes wrong on the way."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from tests.hub import TOKEN, Hub, Repo
from typer.testing import CliRunner

import scgalore as sg
from scgalore._settings import settings
from scgalore.cli import app
from scgalore.errors import DownloadError, OptionError, UploadError, WeightsError
from scgalore.model import SCGPT, load
from scgalore.tasks.linear import PRIOR_ALONE
from scgalore.weights import bundle, unbundle

ORIGINAL = Path(__file__).parents[1] / "data" / "scgpt" / "model"
OPTIONS: dict[str, Any] = {"max_epochs": 1, "batch_size": 32, "test_size": 0.3}


@pytest.fixture
def published(hub: Hub, model: SCGPT) -> str:
    return model.push_to_hub("lab/cells", licence="MIT")


@contextmanager
def without_network(hub: Hub) -> Iterator[None]:
    """Nothing listens at the address of the hub."""
    from huggingface_hub import close_session, constants

    before, constants.ENDPOINT = constants.ENDPOINT, "http://127.0.0.1:9"
    close_session()
    try:
        yield
    finally:
        constants.ENDPOINT = before


class TestRoundTrip:
    def test_loaded_model_is_the_published_one(self, hub: Hub, published: str, model: SCGPT, few: AnnData) -> None:
        loaded = load("hf://lab/cells")
        assert loaded.provenance["name"] == published == f"hf://lab/cells@{hub.repos['lab/cells'].branches['main']}"
        assert loaded.licence == "MIT"
        np.testing.assert_array_equal(loaded.get_latent_representation(few), model.get_latent_representation(few))
        assert set(hub.repos["lab/cells"].files) == {
            *("README.md", "SHA256SUMS", "config.json", "model.safetensors", "vocab.json"),
        }

    def test_wherever_a_model_is_named(self, published: str, few: AnnData) -> None:
        sg.tl.embed(few, "hf://lab/cells")
        assert few.uns["embed"]["weights"]["name"] == published
        fitted = sg.tl.finetune(few, published, labels_key="bulk_labels", **OPTIONS)
        assert fitted.provenance["base"] == published
        assert fitted.licence == "MIT"

    def test_branch_and_commit(self, hub: Hub, published: str, make_model: Callable[..., SCGPT], few: AnnData) -> None:
        other = make_model(few.var_names, rng=1)
        address = other.push_to_hub("lab/cells", revision="next", licence="MIT")
        assert set(hub.repos["lab/cells"].branches) == {"main", "next"}
        for name, wanted in (("hf://lab/cells", published), ("hf://lab/cells@next", address), (published, published)):
            assert load(name).provenance["name"] == wanted

    def test_a_commit_in_the_cache_needs_no_network(self, hub: Hub, published: str) -> None:
        load("hf://lab/cells")
        n = len(hub.asked)
        load(published)
        assert hub.asked[n:] == []

    def test_files_of_an_earlier_model_are_replaced_and_no_others(self, hub: Hub, few: AnnData, model: SCGPT) -> None:
        sg.tl.finetune(few, model, labels_key="bulk_labels", **OPTIONS).push_to_hub("lab/cells")
        repo = hub.repos["lab/cells"]
        assert {"history.csv", "prior.safetensors"} <= set(repo.files)
        repo.commit("main", {**repo.files, "figure.png": b"own"})
        sg.model.load("scgpt-mini").push_to_hub("lab/cells")
        assert set(repo.files) == {
            "README.md",
            "SHA256SUMS",
            "config.json",
            "model.safetensors",
            "vocab.json",
            "figure.png",
        }
        assert load("hf://lab/cells").memory is None

    def test_adapter_folder_in_a_repository(self, hub: Hub, few: AnnData, published: str, tmp_path: Path) -> None:
        fitted = sg.tl.finetune(
            few,
            published,
            labels_key="bulk_labels",
            embedding="frozen",
            adapter="lora",
            adapter_options={"rank": 2},
            **OPTIONS,
        )
        fitted.save_adapter(tmp_path / "adapter")
        hub.repos["lab/adapter"] = Repo()
        hub.repos["lab/adapter"].commit(
            "main", {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
        )
        loaded = load("hf://lab/adapter")
        assert loaded.provenance["name"].startswith("hf://lab/adapter@")
        assert loaded.provenance["base"] == published
        pd.testing.assert_frame_equal(loaded.predict(few), fitted.predict(few), check_exact=False, rtol=1e-4, atol=1e-5)

    def test_layout_of_the_original_program(self, hub: Hub) -> None:
        hub.repos["lab/original"] = Repo()
        names = ("args.json", "vocab.json", "best_model.pt")
        files = {name: (ORIGINAL / name).read_bytes() for name in names}
        hub.repos["lab/original"].commit("main", {**files, "notes.txt": b"", "more/vocab.json": b"{}"})
        loaded = load("hf://lab/original")
        assert loaded.provenance["layout"] == "scgpt"
        assert loaded.licence == ""
        folder, _ = sg.weights.resolve_model_folder("hf://lab/original")
        assert {path.name for path in folder.iterdir()} == set(names)


class TestCard:
    @pytest.fixture
    def card(self, hub: Hub, few: AnnData, model: SCGPT, tmp_path: Path) -> str:
        model.save(tmp_path / "place of mine" / "start")
        start = load(tmp_path / "place of mine" / "start")
        fitted = sg.tl.finetune(few, start, labels_key="bulk_labels", **OPTIONS)
        fitted.push_to_hub("lab/types", licence="CC-BY-4.0")
        everything = b"".join(hub.repos["lab/types"].files.values())
        assert b"place of mine" not in everything, "paths of this machine are nobody's business"
        return hub.repos["lab/types"].files["README.md"].decode()

    def test_data_settings_scores_licence_and_how_to_load(self, card: str) -> None:
        assert card.startswith("---\nlibrary_name: scgalore\nlicense: cc-by-4.0\ntags:\n")
        assert "# lab/types\n" in card
        rows = {line.split("|")[1].strip(): line for line in card.splitlines() if line.startswith("| ")}
        assert "start" in rows["started from"]
        assert "test" in rows["cells"]
        assert "150 of 150" in rows["genes"]
        assert "bulk_labels" in rows["labels_key"]
        assert "galore" in rows["optimizer"]
        assert {"this model", PRIOR_ALONE, "most frequent class"} <= rows.keys()
        assert 'sg.model.load("hf://lab/types")' in card
        assert "Of the weights: CC-BY-4.0." in card

    def test_a_loaded_model_has_the_same_card(self, hub: Hub, card: str, tmp_path: Path) -> None:
        load("hf://lab/types").save(tmp_path / "again")
        again = (tmp_path / "again" / "README.md").read_text("utf-8")
        assert (
            again.partition("## Settings")[2].partition("## How")[0]
            == card.partition("## Settings")[2].partition("## How")[0]
        )

    def test_scores_that_are_given(self, hub: Hub, model: SCGPT, few: AnnData) -> None:
        fitted = sg.tl.finetune(few, model, **OPTIONS)
        table = pd.DataFrame({"ilisi": [0.25, 0.5]}, index=["X_scGPT", "Harmony"])
        fitted.push_to_hub("lab/cells", evaluation={"scores": table})
        assert "| Harmony   | 0.500 |" in hub.repos["lab/cells"].files["README.md"].decode()
        record = load("hf://lab/cells").result.record
        assert record is not None
        assert "Harmony" in record["evaluation"][1]

    def test_without_a_licence(self, hub: Hub, model: SCGPT, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING, "scgalore"):
            model.push_to_hub("lab/cells")
        assert "licence" in caplog.text
        assert "license:" not in hub.repos["lab/cells"].files["README.md"].decode()

    def test_unusual_licence_is_one_that_the_hub_takes(self, hub: Hub, model: SCGPT) -> None:
        model.push_to_hub("lab/cells", licence="Lab-1.0: ask us")
        assert "license: other\nlicense_name: lab-1.0\n" in hub.repos["lab/cells"].files["README.md"].decode()


class TestWhatIsChecked:
    def test_a_file_that_was_changed_after_it_was_published(self, hub: Hub, published: str) -> None:
        repo = hub.repos["lab/cells"]
        repo.commit("main", {**repo.files, "config.json": repo.files["config.json"] + b" "})
        with pytest.raises(WeightsError, match=r"config.json has the sha256 .* and SHA256SUMS lists"):
            load("hf://lab/cells")
        assert load(published).provenance["name"] == published

    def test_a_file_that_is_missing(self, hub: Hub, published: str) -> None:
        repo = hub.repos["lab/cells"]
        repo.commit("main", {name: content for name, content in repo.files.items() if name != "vocab.json"})
        with pytest.raises(WeightsError, match=r"hf://lab/cells lacks vocab.json, which its SHA256SUMS lists"):
            load("hf://lab/cells")

    def test_other_bytes_than_the_hub_has(self, hub: Hub, published: str) -> None:
        weights = hub.repos["lab/cells"].files["model.safetensors"]
        hub.sent[hashlib.sha256(weights).hexdigest()] = weights[::-1]
        with pytest.raises(DownloadError, match="model.safetensors was damaged"):
            load("hf://lab/cells")
        hub.sent.clear()
        assert load("hf://lab/cells").provenance["name"] == published

    def test_a_damaged_cache_is_mended(self, hub: Hub, published: str, tmp_path: Path) -> None:
        folder, _ = sg.weights.resolve_model_folder(published)
        blob = (folder / "model.safetensors").resolve()
        content = blob.read_bytes()
        blob.write_bytes(content[:-1] + b"\xff")
        assert load(published).provenance["name"] == published
        assert blob.read_bytes() == content

    @pytest.mark.parametrize(
        "sums", [b"", b"0123  config.json\n", b"0" * 64 + b"  ../config.json\n", b"0" * 64 + b"  /etc/passwd\n"]
    )
    def test_a_list_of_files_that_is_none(self, hub: Hub, published: str, model: SCGPT, sums: bytes) -> None:
        repo = hub.repos["lab/cells"]
        repo.commit("main", {**repo.files, "SHA256SUMS": sums})
        with pytest.raises(WeightsError, match="SHA256SUMS of hf://lab/cells has"):
            load("hf://lab/cells")
        model.push_to_hub("lab/cells")
        load("hf://lab/cells")

    def test_a_repository_without_a_model(self, hub: Hub) -> None:
        hub.repos["lab/notes"] = Repo()
        hub.repos["lab/notes"].commit("main", {"config.json": b"{}", "README.md": b"", "program.py": b"raise"})
        with pytest.raises(WeightsError, match="holds no weights, only"):
            load("hf://lab/notes")


class TestRefusals:
    @pytest.mark.parametrize(
        "address", ["hf://cells", "hf://lab/cells@", "hf://lab/cells/more", "hf://", "hf://lab/../x", "hf://lab/c@a b"]
    )
    def test_addresses(self, address: str) -> None:
        with pytest.raises(OptionError, match="is not the address of a model"):
            load(address)

    def test_private_without_a_token(self, hub: Hub, model: SCGPT, monkeypatch: pytest.MonkeyPatch) -> None:
        model.push_to_hub("lab/secret", private=True, licence="MIT")
        assert hub.repos["lab/secret"].private
        load("hf://lab/secret")
        monkeypatch.delenv("HF_TOKEN")
        settings.cachedir = settings.cachedir / "other"
        with pytest.raises(
            DownloadError, match=r"no repository lab/secret .* log in \(hf auth login\) or set HF_TOKEN"
        ):
            load("hf://lab/secret")
        with pytest.raises(UploadError, match=r"hf auth login"):
            model.push_to_hub("lab/other")
        assert "lab/other" not in hub.repos
        model.push_to_hub("lab/other", token=TOKEN)
        assert "lab/other" in hub.repos

    def test_what_is_to_be_private_is_not_put_into_a_public_repository(
        self, hub: Hub, published: str, model: SCGPT
    ) -> None:
        with pytest.raises(UploadError, match="exists and is public"):
            model.push_to_hub("lab/cells", private=True)
        assert len(hub.repos["lab/cells"].commits) == 2

    def test_unknown_revision(self, published: str) -> None:
        with pytest.raises(DownloadError, match="no such revision"):
            load("hf://lab/cells@v2")

    def test_names(self, hub: Hub, model: SCGPT) -> None:
        with pytest.raises(OptionError, match="Expected 'owner/name'"):
            model.push_to_hub("cells")
        assert hub.asked == []

    def test_no_network(self, hub: Hub, published: str, model: SCGPT, caplog: pytest.LogCaptureFixture) -> None:
        with without_network(hub):
            with pytest.raises(DownloadError, match=r"there is no connection to http://127.0.0.1:9"):
                load("hf://lab/cells")
            with pytest.raises(UploadError, match="there is no connection"):
                model.push_to_hub("lab/cells")
        load("hf://lab/cells")
        with without_network(hub):
            assert load("hf://lab/cells").provenance["name"] == published
        assert "from the cache" in caplog.text

    def test_offline(self, hub: Hub, published: str, model: SCGPT) -> None:
        n = len(hub.asked)
        with settings.override(offline=True), pytest.raises(DownloadError, match=r"sg.settings.offline .* is on"):
            load("hf://lab/cells")
        assert hub.asked[n:] == []
        load("hf://lab/cells")
        n = len(hub.asked)
        with settings.override(offline=True):
            assert load("hf://lab/cells").provenance["name"] == published
            with pytest.raises(UploadError, match="offline"):
                model.push_to_hub("lab/cells")
            assert hub.asked[n:] == []

    def test_without_the_package(self, monkeypatch: pytest.MonkeyPatch, model: SCGPT) -> None:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        for call in (lambda: load("hf://lab/cells"), lambda: model.push_to_hub("lab/cells")):
            with pytest.raises(OptionError, match=r"pip install 'scgalore\[hub\]'"):
                call()


@pytest.mark.parametrize("status", [403, 500])
def test_tokens_are_neither_written_nor_shown(
    hub: Hub,
    published: str,
    model: SCGPT,
    few: AnnData,
    status: int,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    sg.tl.embed(few, published)
    hub.status = status  # with the token in the answer
    with pytest.raises(UploadError) as upload:
        model.push_to_hub("lab/cells", token=TOKEN)
    settings.cachedir = settings.cachedir / "other"
    with pytest.raises(DownloadError) as download:
        load("hf://lab/cells")
    shown = "".join(traceback.format_exception(upload.value) + traceback.format_exception(download.value))
    shown += "".join(capfd.readouterr()) + caplog.text + repr(few.uns)
    assert str(status) in shown
    assert TOKEN not in shown
    files = [path for path in settings.cachedir.parent.rglob("*") if path.is_file()]
    assert files
    assert not any(TOKEN.encode() in path.read_bytes() for path in files)
    assert not any(TOKEN.encode() in content for content in hub.repos["lab/cells"].files.values())


class TestCommands:
    @staticmethod
    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, ["weights", *map(str, arguments)])

    def test_publish_and_pull(self, hub: Hub, model: SCGPT, tmp_path: Path) -> None:
        model.save(tmp_path / "model")
        (tmp_path / "model" / "README.md").write_text("# My own words\n")
        (tmp_path / "model" / "patients.csv").write_text("not for others")
        done = self.run("publish", tmp_path / "model", "lab/cells", "--private", "--licence", "MIT")
        assert done.exit_code == 0, done.output
        address = done.stdout.strip().splitlines()[-1]
        files = hub.repos["lab/cells"].files
        assert files["README.md"] == b"# My own words\n"
        assert "patients.csv" not in files
        pulled = self.run("pull", address)
        assert pulled.exit_code == 0, pulled.output
        folder = Path(pulled.stdout.strip().splitlines()[-1])
        assert (folder / "model.safetensors").read_bytes() == (tmp_path / "model" / "model.safetensors").read_bytes()

    def test_folder_of_the_original_program_is_published_as_safetensors(self, hub: Hub, tmp_path: Path) -> None:
        shutil.copytree(ORIGINAL, tmp_path / "model", ignore=shutil.ignore_patterns("full*"))
        assert self.run("publish", tmp_path / "model", "lab/original", "--licence", "MIT").exit_code == 0
        assert "model.safetensors" in hub.repos["lab/original"].files
        assert not any(name.endswith(".pt") for name in hub.repos["lab/original"].files)

    @pytest.mark.parametrize(
        "arguments", [("publish", "nowhere", "lab/x"), ("pull", "lab/x"), ("pull", "hf://lab/nothing")]
    )
    def test_errors_are_a_message(self, hub: Hub, arguments: tuple[str, ...]) -> None:
        done = self.run(*arguments)
        assert done.exit_code == 2
        assert done.stderr.startswith("Error: ")


def test_bundle_of_a_model_of_the_hub(hub: Hub, published: str, tmp_path: Path) -> None:
    path = bundle(["hf://lab/cells"], tmp_path / "weights.tar")
    with settings.override(cachedir=tmp_path / "elsewhere", offline=True):
        assert unbundle(path) == [published]
        assert load("hf://lab/cells").provenance["name"] == published
        assert load(published).provenance["name"] == published
    with settings.override(cachedir=tmp_path / "elsewhere"), without_network(hub):
        assert load(published).provenance["name"] == published


@pytest.mark.slow
def test_the_variable_of_the_hub(hub: Hub, published: str, tmp_path: Path) -> None:
    """With nothing but the environment, as a user has it."""
    code = "import scgalore as sg; print(sg.model.load('hf://lab/cells').provenance['name'])"
    own = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path),
        "SCGALORE_CACHEDIR": str(tmp_path / "own"),
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **own}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == published
    assert json.dumps(done.stderr) == '""'
