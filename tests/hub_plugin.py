"""A stand-in for the Hugging Face Hub, and one user who is logged in there."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.hub import TOKEN, Hub, serving_hub

from scgalore._settings import settings


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub without repositories; the cache is empty."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its protocol is not spoken here
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serving_hub() as server, settings.override(cachedir=tmp_path / "cache", offline=False, progress=False):
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        huggingface_hub.close_session()
        yield server
    huggingface_hub.close_session()
