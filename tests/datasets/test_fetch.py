import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import anndata as ad
import pytest
from anndata import AnnData
from tests.datasets.layouts import GENES, gears, h5ad, scperturb, zipped
from tests.serving import Server, serving

from scgalore import datasets
from scgalore._fetch import RemoteFile
from scgalore._settings import settings
from scgalore.datasets import DatasetEntry, fetch_dataset, get_entry, list_datasets
from scgalore.datasets.fetch import fetch_entry, load_entry
from scgalore.errors import DownloadError, OptionError

MEMBER = "perturb_processed.h5ad"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("scgalore._fetch.RETRY_WAITS", (0.0, 0.0))
    content = h5ad(gears(), tmp_path)
    # The folders of GEARS' archives, and what the archiver of a Mac adds.
    archive = zipped({"norman/": b"", f"norman/{MEMBER}": content, f"__MACOSX/norman/._{MEMBER}": b"resource fork"})
    files = {"norman.zip": archive, "mirror.zip": archive, "plain.h5ad": h5ad(scperturb(), tmp_path)}
    with (
        settings.override(cachedir=tmp_path / "cache", offline=False, progress=False),
        serving(files) as server,
    ):
        server.files[MEMBER] = content
        yield server


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def archived(server: Server) -> DatasetEntry:
    """An entry like that of GEARS' Norman archive."""
    file = RemoteFile(
        "norman.zip", (server.url + "norman.zip", server.url + "mirror.zip"), None, sha256(server.files["norman.zip"])
    )
    member = RemoteFile(MEMBER, (), None, sha256(server.files[MEMBER]))
    return replace(get_entry("norman_2019_gears"), name="small", file=file, member=member)


@pytest.fixture
def plain(server: Server) -> DatasetEntry:
    content = server.files["plain.h5ad"]
    file = RemoteFile("plain.h5ad", (server.url + "plain.h5ad",), md5=hashlib.md5(content).hexdigest())
    return replace(get_entry("norman_2019_scperturb"), name="plain", file=file)


def folder_of(entry: DatasetEntry) -> Path:
    return settings.cachedir / "datasets" / entry.name


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_only_the_h5ad_of_an_archive_is_kept(server: Server, archived: DatasetEntry) -> None:
    path = fetch_entry(archived)
    assert path == folder_of(archived) / MEMBER
    assert content_of(path.parent) == {MEMBER: server.files[MEMBER]}
    assert fetch_entry(archived) == path
    assert server.asked == ["norman.zip"]


def test_web_page_instead_of_an_archive_sends_to_the_mirror(server: Server, archived: DatasetEntry) -> None:
    server.manners["norman.zip"] = ["page"]
    assert content_of(fetch_entry(archived).parent) == {MEMBER: server.files[MEMBER]}
    assert server.asked == ["norman.zip", "mirror.zip"]


def test_all_addresses_fail(server: Server, archived: DatasetEntry) -> None:
    server.manners |= {"norman.zip": ["page"], "mirror.zip": ["altered"]}
    with pytest.raises(DownloadError) as caught:
        fetch_entry(archived)
    message = str(caught.value)
    for part in ("Data set 'small'", "a web page instead", "a web page", archived.file.sha256, "source='gears'"):
        assert part in message
    assert str(folder_of(archived) / "norman.zip") in message
    assert not settings.cachedir.exists()


def test_archive_saved_by_hand_is_unpacked_without_network(server: Server, archived: DatasetEntry) -> None:
    with settings.override(offline=True):
        with pytest.raises(DownloadError, match=r"settings\.offline is on"):
            fetch_entry(archived)
        folder_of(archived).mkdir(parents=True)
        (folder_of(archived) / "norman.zip").write_bytes(server.files["norman.zip"])
        assert content_of(fetch_entry(archived).parent) == {MEMBER: server.files[MEMBER]}
    assert server.asked == []


def test_unpacked_file_without_a_hash_of_its_own_is_remembered(server: Server, archived: DatasetEntry) -> None:
    assert archived.member is not None
    archived = replace(archived, member=replace(archived.member, sha256=""))
    path = fetch_entry(archived)
    assert set(content_of(path.parent)) == {MEMBER, f"{MEMBER}.sha256"}
    fetch_entry(archived)
    assert server.asked == ["norman.zip"]
    path.write_bytes(b"changed")
    fetch_entry(archived)
    assert server.asked == ["norman.zip"] * 2
    assert path.read_bytes() == server.files[MEMBER]
    # A file of unknown origin does not pass for the one of the archive.
    path.with_name(f"{MEMBER}.sha256").unlink()
    fetch_entry(archived)
    assert server.asked == ["norman.zip"] * 3


def repacked(server: Server, entry: DatasetEntry, files: dict[str, bytes]) -> DatasetEntry:
    server.files["norman.zip"] = zipped(files)
    return replace(entry, file=replace(entry.file, sha256=sha256(server.files["norman.zip"])))


def test_paths_in_an_archive_lead_nowhere(server: Server, archived: DatasetEntry, tmp_path: Path) -> None:
    content = server.files[MEMBER]
    for name in (f"../../../{MEMBER}", f"{tmp_path}/{MEMBER}"):
        entry = replace(repacked(server, archived, {name: content}), name="small")
        shutil.rmtree(settings.cachedir, ignore_errors=True)
        assert fetch_entry(entry) == folder_of(entry) / MEMBER
        assert list(tmp_path.rglob(MEMBER)) == [folder_of(entry) / MEMBER]


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"norman/other.h5ad": b""}, "contains 0 files called perturb_processed.h5ad"),
        ({f"a/{MEMBER}": b"", f"b/{MEMBER}": b""}, "contains 2 files"),
        ({f"norman/{MEMBER}": b"another"}, "does not have the sha256"),
    ],
)
def test_archive_without_the_right_file(
    server: Server, archived: DatasetEntry, files: dict[str, bytes], match: str
) -> None:
    entry = repacked(server, archived, files)
    with pytest.raises(DownloadError, match=match):
        fetch_entry(entry)
    assert set(content_of(folder_of(entry))) == {"norman.zip"}


def test_archive_that_is_none(server: Server, archived: DatasetEntry) -> None:
    server.files["norman.zip"] = b"no archive"
    with pytest.raises(DownloadError, match="could not be unpacked"):
        fetch_entry(replace(archived, file=replace(archived.file, sha256=sha256(b"no archive"))))


def test_data_of_an_archive_in_canonical_form(archived: DatasetEntry, tmp_path: Path) -> None:
    adata = load_entry(archived)
    assert list(adata.obs["perturbation"]) == ["control", "KLF1", "KLF1", "TP53+KLF1"]
    assert set(adata.obs["cell_type"]) == {"K562"}
    assert list(adata.var_names) == list(GENES.values())
    record = adata.uns["dataset"]
    assert record["name"] == "small"
    assert record["licence"].startswith("CC0")
    assert "doi:10.1126/science.aax4438" in record["citation"]
    assert record["sha256"] == archived.file.sha256
    assert record["expression"] == "log-normalised"
    adata.write_h5ad(tmp_path / "written.h5ad")
    assert ad.read_h5ad(tmp_path / "written.h5ad").uns["dataset"]["citation"] == record["citation"]


def test_data_as_their_authors_made_them(plain: DatasetEntry) -> None:
    adata = load_entry(plain, canonical=False)
    assert list(adata.obs["perturbation"]) == ["control", "KLF1", "TP53_KLF1"]
    assert "perturbation_original" not in adata.obs
    assert adata.uns["dataset"]["md5"] == plain.file.md5
    assert "perturbation_original" in load_entry(plain).obs


def test_licence_and_citation_are_shown(plain: DatasetEntry, caplog: pytest.LogCaptureFixture) -> None:
    with settings.override(verbosity=2):
        fetch_entry(plain)
    assert plain.licence in caplog.text
    assert plain.citation in caplog.text


def test_unverifiable_data_are_refused_unasked(server: Server, plain: DatasetEntry) -> None:
    with pytest.raises(DownloadError, match=r"no sha256 is known for plain\.h5ad.*to_canonical\(adata"):
        fetch_entry(replace(plain, file=replace(plain.file, md5="")))
    assert server.asked == []
    assert not settings.cachedir.exists()


FUNCTIONS: list[tuple[Callable[..., AnnData], dict[str, str], str]] = [
    (datasets.perturbench_devel, {}, "perturbench_devel"),
    (datasets.norman_2019, {}, "norman_2019_gears"),
    (datasets.norman_2019, {"source": "scperturb"}, "norman_2019_scperturb"),
    (datasets.adamson_2016, {}, "adamson_2016_gears"),
    (datasets.adamson_2016, {"source": "scperturb_pilot"}, "adamson_2016_scperturb_pilot"),
    (datasets.adamson_2016, {"source": "scperturb_upr_epistasis"}, "adamson_2016_scperturb_upr_epistasis"),
    (datasets.adamson_2016, {"source": "scperturb_upr_perturb_seq"}, "adamson_2016_scperturb_upr_perturb_seq"),
    (datasets.dixit_2016, {}, "dixit_2016_scperturb"),
    (datasets.dixit_2016, {"source": "gears"}, "dixit_2016_gears"),
    (datasets.replogle_2022_k562_essential, {}, "replogle_2022_k562_essential_gears"),
    (datasets.replogle_2022_k562_essential, {"source": "scperturb"}, "replogle_2022_k562_essential_scperturb"),
    (datasets.replogle_2022_rpe1, {}, "replogle_2022_rpe1_gears"),
    (datasets.replogle_2022_rpe1, {"source": "scperturb"}, "replogle_2022_rpe1_scperturb"),
    (datasets.vcc_2025_h1, {}, "vcc_2025_h1"),
]


@pytest.mark.parametrize(("function", "options", "name"), FUNCTIONS)
def test_functions_ask_for_the_data_they_are_named_after(
    function: Callable[..., AnnData], options: dict[str, str], name: str
) -> None:
    with settings.override(offline=True), pytest.raises(DownloadError, match=f"'{name}'"):
        function(**options)


def test_every_data_set_has_a_function() -> None:
    assert {name for _, _, name in FUNCTIONS} == set(list_datasets())
    with pytest.raises(OptionError, match="norman_2019_scperturb"):
        datasets.norman_2019(source="scperturbs")  # type: ignore[arg-type]


def test_registered_devel_file_is_the_real_one(shared_data: Path, tmp_path: Path) -> None:
    real = shared_data / "perturbench_devel.h5ad"
    assert sha256(real.read_bytes()) == get_entry("perturbench_devel").file.sha256
    assert real.stat().st_size == get_entry("perturbench_devel").file.size
    with settings.override(cachedir=tmp_path, offline=True):
        folder = tmp_path / "datasets" / "perturbench_devel"
        folder.mkdir(parents=True)
        shutil.copyfile(real, folder / "devel.h5ad")
        adata = datasets.perturbench_devel()
        assert adata.shape == (5961, 500)
        assert adata.uns["dataset"]["name"] == "perturbench_devel"
        assert (adata.obs["perturbation"] == "control").sum() == 400


@pytest.mark.internet
@pytest.mark.slow
@pytest.mark.parametrize("name", ["perturbench_devel", "adamson_2016_scperturb_pilot", "norman_2019_gears"])
def test_registered_data_can_be_fetched(name: str, tmp_path: Path) -> None:
    with settings.override(cachedir=tmp_path):
        assert fetch_dataset(name).is_file()
