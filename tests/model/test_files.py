import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from scgalore.errors import OptionError, WeightsError
from scgalore.model import FAMILIES, SCGPT
from scgalore.model.files import read_model

LABELS: dict[str, Any] = {"labels_key": "bulk_labels", "max_epochs": 2, "batch_size": 32, "lr": 1e-3}


@pytest.fixture
def trained(few: AnnData, model: SCGPT) -> SCGPT:
    # As in the real labels: names that HDF5 would take for paths.
    few.obs["bulk_labels"] = few.obs["bulk_labels"].cat.rename_categories(lambda name: f"CD4+/{name}")
    model.train(few, **LABELS)
    return model


class TestRoundTrip:
    def test_loaded_model_is_the_saved_one(self, few: AnnData, trained: SCGPT, tmp_path: Path) -> None:
        trained.save(tmp_path / "model")
        loaded = SCGPT.load(tmp_path / "model")
        assert loaded.classes == trained.classes
        assert loaded.classes[0].startswith("CD4+/")
        assert loaded.vocab == trained.vocab
        assert loaded.network.config == trained.network.config
        assert loaded.is_trained
        assert not loaded.network.training
        pd.testing.assert_frame_equal(loaded.history, trained.history, check_exact=True)
        pd.testing.assert_frame_equal(loaded.predict(few), trained.predict(few), check_exact=True)
        np.testing.assert_array_equal(loaded.get_latent_representation(few), trained.get_latent_representation(few))

    def test_every_tensor_is_accounted_for(self, trained: SCGPT, tmp_path: Path) -> None:
        trained.save(tmp_path / "model")
        report = SCGPT.load(tmp_path / "model").load_report
        assert report is not None
        assert set(report.loaded) == set(trained.network.state_dict())
        assert (report.random, report.ignored) == ((), ())

    def test_provenance_names_file_and_origin(self, trained: SCGPT, tmp_path: Path) -> None:
        trained.save(tmp_path / "first")
        first = SCGPT.load(tmp_path / "first")
        assert first.provenance["name"] == str(tmp_path / "first")
        assert first.provenance["layout"] == "scgalore"
        assert first.provenance["base"] == trained.provenance["name"] == "fine-tuned random"
        assert len(first.provenance["sha256"]) == 64
        first.save(tmp_path / "second")
        second = SCGPT.load(tmp_path / "second")
        assert second.provenance["base"] == str(tmp_path / "first")
        assert second.provenance["sha256"] == first.provenance["sha256"]  # the same weights are the same file

    def test_untrained_model_has_no_history(self, model: SCGPT, tmp_path: Path) -> None:
        model.save(tmp_path / "model")
        loaded = SCGPT.load(tmp_path / "model")
        assert not loaded.is_trained
        assert loaded.history.empty
        assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
            "README.md",
            "config.json",
            "model.safetensors",
            "vocab.json",
        ]

    def test_training_goes_on_from_a_loaded_model(self, few: AnnData, trained: SCGPT, tmp_path: Path) -> None:
        trained.save(tmp_path / "model")
        models = [trained, SCGPT.load(tmp_path / "model")]
        for model in models:
            model.train(few, **LABELS)
        assert all(
            torch.equal(one, other)
            for one, other in zip(*(model.network.state_dict().values() for model in models), strict=True)
        )

    def test_existing_folder_is_kept(self, trained: SCGPT, tmp_path: Path) -> None:
        trained.save(tmp_path / "model")
        before = (tmp_path / "model" / "model.safetensors").read_bytes()
        with pytest.raises(OptionError, match="overwrite=True"):
            trained.save(tmp_path / "model")
        assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
        trained.save(tmp_path / "model", overwrite=True)

    def test_config_of_others_is_refused(self, model: SCGPT, tmp_path: Path) -> None:
        model.save(tmp_path / "model")
        path = tmp_path / "model" / "config.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps({"network": content["network"]}))
        with pytest.raises(WeightsError, match=r"config\.json was not written by scgalore"):
            read_model(tmp_path / "model", FAMILIES)

    def test_damaged_history_is_refused(self, trained: SCGPT, tmp_path: Path) -> None:
        trained.save(tmp_path / "model")
        (tmp_path / "model" / "history.csv").write_text("nonsense\n1")
        with pytest.raises(WeightsError, match=r"history\.csv"):
            read_model(tmp_path / "model", FAMILIES)


class TestExport:
    def test_upstream_layout_gives_the_same_embeddings(self, few: AnnData, trained: SCGPT, tmp_path: Path) -> None:
        trained.export_scgpt(tmp_path / "model")
        loaded = SCGPT.from_pretrained(tmp_path / "model")
        assert loaded.provenance["layout"] == "scgpt"
        assert loaded.classes == ()  # upstream has no place for their names
        np.testing.assert_array_equal(loaded.get_latent_representation(few), trained.get_latent_representation(few))
        with pytest.raises(OptionError, match="overwrite=True"):
            trained.export_scgpt(tmp_path / "model")


class TestFlags:
    """The flag embedding of generative pre-training, which released files hold and fine-tuned ones do not."""

    @pytest.fixture
    def released(self, model: SCGPT, tmp_path: Path) -> tuple[Path, torch.Tensor]:
        """A folder in the layout of the released files, with flags that were made elsewhere."""
        model.export_scgpt(tmp_path / "released")
        path = tmp_path / "released" / "best_model.pt"
        tensors = torch.load(path, weights_only=True)
        assert "flag_encoder.weight" not in tensors
        flags = torch.randn(2, 16, generator=torch.Generator().manual_seed(5))
        torch.save({**tensors, "flag_encoder.weight": flags}, path)
        return tmp_path / "released", flags

    def test_released_flags_are_loaded_saved_and_exported(
        self, released: tuple[Path, torch.Tensor], model: SCGPT, few: AnnData, tmp_path: Path
    ) -> None:
        folder, flags = released
        loaded = SCGPT.from_pretrained(folder)
        assert loaded.network.config == model.network.config.replace(generative=True)
        assert loaded.load_report is not None
        assert (loaded.load_report.random, loaded.load_report.ignored) == ((), ())
        loaded.save(tmp_path / "saved")
        loaded.export_scgpt(tmp_path / "exported")
        expected = {**model.network.state_dict(), "flag_encoder.weight": flags}
        for again in (folder, tmp_path / "saved", tmp_path / "exported"):
            tensors = SCGPT.from_pretrained(again).network.state_dict()
            assert tensors.keys() == expected.keys()
            assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
        kept = torch.load(tmp_path / "exported" / "best_model.pt", weights_only=True)
        assert torch.equal(kept["flag_encoder.weight"], flags)
        # Flags change nothing where nothing is generated.
        np.testing.assert_array_equal(loaded.get_latent_representation(few), model.get_latent_representation(few))

    def test_a_variant_keeps_what_is_there(self, released: tuple[Path, torch.Tensor], model: SCGPT) -> None:
        before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
        state = torch.random.get_rng_state()
        variants: list[Any] = [model.network.generative_variant(seed=seed) for seed in (0, 0, 1)]
        first, again, other = variants
        assert torch.equal(torch.random.get_rng_state(), state)
        for variant in (first, again, other):
            assert variant.generates
            tensors = variant.state_dict()
            assert tensors.keys() == before.keys() | {"flag_encoder.weight"}
            assert all(torch.equal(tensors[name], tensor) for name, tensor in before.items())
        assert torch.equal(first.flag_encoder.weight, again.flag_encoder.weight)
        assert not torch.equal(first.flag_encoder.weight, other.flag_encoder.weight)
        with torch.no_grad():
            first.decoder.fc[0].weight.zero_()
        own: Any = model.network
        assert torch.equal(own.decoder.fc[0].weight, before["decoder.fc.0.weight"])
        assert not model.network.generates
        folder, flags = released
        loaded: Any = SCGPT.from_pretrained(folder)
        assert torch.equal(loaded.network.generative_variant(seed=3).flag_encoder.weight, flags)

    def test_networks_with_and_without_flags_draw_the_same_weights(
        self, make_model: Callable[..., SCGPT], few: AnnData
    ) -> None:
        plain, with_flags = (make_model(few.var_names, generative=on).network.state_dict() for on in (False, True))
        assert with_flags.keys() - plain.keys() == {"flag_encoder.weight"}
        assert all(torch.equal(with_flags[name], tensor) for name, tensor in plain.items())

    def test_a_perturbation_network_keeps_them(self, released: tuple[Path, torch.Tensor]) -> None:
        folder, flags = released
        network = SCGPT.from_pretrained(folder).network
        variant: Any = network.perturbation_variant(network.config.n_tokens + 2, network.config.n_tokens, seed=0)
        assert torch.equal(variant.flag_encoder.weight, flags)


class TestRandomState:
    def test_loading_draws_nothing_from_the_user(self, model: SCGPT, tmp_path: Path) -> None:
        model.save(tmp_path / "model")
        state = torch.random.get_rng_state()
        SCGPT.load(tmp_path / "model")
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_heads_that_stay_random_are_always_the_same(self, few: AnnData, model: SCGPT, tmp_path: Path) -> None:
        model.export_scgpt(tmp_path / "model")
        path = tmp_path / "model" / "best_model.pt"
        tensors = torch.load(path, weights_only=True)
        torch.save({name: t for name, t in tensors.items() if not name.startswith("decoder.")}, path)
        heads = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            loaded = SCGPT.from_pretrained(tmp_path / "model")
            assert loaded.load_report is not None
            assert any(name.startswith("decoder.") for name in loaded.load_report.random)
            heads.append(loaded.network.decoder.state_dict()["fc.0.weight"])
        assert torch.equal(*heads)


WHOLE_HUMAN = """
import json, sys, time
import numpy as np, scanpy, anndata, scgalore as sg
from scgalore.model import FAMILIES, SCGPT
import scgalore.model.scgpt, scgalore.weights

def peak():
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024

folder = sys.argv[1]
before, started = peak(), time.perf_counter()
model = SCGPT.from_pretrained(folder)
seconds, added = time.perf_counter() - started, peak() - before
genes = [token for token in model.vocab.tokens if not token.startswith("<")][::60]
counts = np.random.default_rng(0).poisson(0.3, size=(4, len(genes))).astype(np.float32)
adata = anndata.AnnData(counts)
adata.var_names = genes
sg.tl.embed(adata, model)
norms = np.linalg.norm(adata.obsm["X_scGPT"], axis=1).tolist()
print(json.dumps({"seconds": seconds, "added": added, "shape": adata.obsm["X_scGPT"].shape, "norms": norms}))
"""


@pytest.fixture(scope="module")
def whole_human(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the size and layout of the released ones: 60,697 tokens, 12 layers x 512."""
    from scgalore.data.vocab import GeneVocab
    from scgalore.nn import SCGPTConfig

    folder = tmp_path_factory.mktemp("whole") / "scGPT_human"
    genes = [f"GENE{i}" for i in range(60_694)]
    vocab = GeneVocab.from_genes([*genes[:30_000], "<pad>", "<cls>", "<eoc>", *genes[30_000:]])
    model = SCGPT.from_config(SCGPTConfig(n_tokens=len(vocab), pad_id=vocab.pad_id), vocab)
    model.export_scgpt(folder)
    ids = vocab.to_dict()
    order = np.random.default_rng(0).permutation(len(ids))
    tokens = list(ids)
    (folder / "vocab.json").write_text(json.dumps({tokens[i]: ids[tokens[i]] for i in order}))
    path = folder / "best_model.pt"
    # The released file is older than the decoders' zero heads and holds the flags of pre-training.
    tensors = torch.load(path, weights_only=True)
    torch.save({**tensors, "flag_encoder.weight": torch.zeros(2, 512)}, path)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_whole_human_size(whole_human: Path, record_property: Callable[[str, object], None]) -> None:
    size = (whole_human / "best_model.pt").stat().st_size
    assert size > 200e6
    done = subprocess.run(
        [sys.executable, "-c", WHOLE_HUMAN, str(whole_human)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    record_property("seconds", found["seconds"])
    record_property("memory_added_per_file_size", found["added"] / size)
    print(f"from_pretrained: {found['seconds']:.2f} s, {found['added'] / size:.2f} x the file")
    assert found["added"] < 3 * size
    assert found["shape"] == [4, 512]
    assert found["norms"] == pytest.approx([1] * 4, abs=1e-5)
