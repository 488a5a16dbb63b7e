from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import flops, harness, peers, run
from benchmarks.embedding import cosine_distances
from benchmarks.harness import Answer, Report, Side, Spread, growth, interleave, ratio
from benchmarks.inputs import Size
from benchmarks.scaling import fit_line
from benchmarks.side import measured, saved_for_backward, storages_of
from benchmarks.training_step import cells_that_fit
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from scgalore.nn import SCGPTNetwork

TINY = Size(n_tokens=53, d_model=16, n_heads=2, n_layers=3)
times = st.floats(1e-3, 1e3)

ECHO = """
from benchmarks.side import serve
import os
def fail(): raise ValueError("on purpose")
def leave(): os._exit(3)
serve({"add": lambda a, b: print("noise") or a + b, "fail": fail, "leave": leave})
"""


def answers(walls: list[float], *, cpu: float = 1.0, rss: int = 0, peak: int = 0) -> list[Answer]:
    return [Answer(None, wall, cpu, rss, peak) for wall in walls]


def report(*, quick: bool = False) -> Report:
    return harness.begin("name", "Title", argparse.Namespace(quick=quick, threads=torch.get_num_threads()))


@given(st.lists(st.tuples(times, times), min_size=1, max_size=9))
def test_ratio_is_paired_by_round(pairs: list[tuple[float, float]]) -> None:
    slow, fast = (answers(list(column)) for column in zip(*pairs, strict=True))
    found = ratio(slow, fast)
    each = [one / other for one, other in pairs]
    assert (found.low, found.high) == (pytest.approx(min(each)), pytest.approx(max(each)))
    assert found.median == pytest.approx(np.median(each))


def test_ratio_does_not_see_a_machine_that_slows_down_for_both() -> None:
    found = ratio(answers([2, 20, 4]), answers([1, 10, 2]))
    assert found == Spread(2, 2, 2)


def test_ratio_counts_work_that_only_one_side_did() -> None:
    assert ratio(answers([3.0]), answers([1.5]), factor=2).median == 4


def test_rounds_alternate_between_the_sides() -> None:
    asked: list[str] = []

    def task(name: str) -> Answer:
        asked.append(name)
        return Answer(name, 1, 1, 0, 0)

    found = interleave({"A": lambda: task("A"), "B": lambda: task("B")}, 3, "test")
    assert asked == ["A", "B"] * 3
    assert {name: len(some) for name, some in found.items()} == {"A": 3, "B": 3}


def test_growth_is_over_what_was_held_before_the_first_call() -> None:
    assert growth([*answers([1], rss=100, peak=150), *answers([1], rss=140, peak=170)]) == 70


def test_spread_of_one_number_shows_no_range() -> None:
    assert Spread.of([1.234]).text() == "1.23"
    assert Spread.of([1, 2, 6]).text("{:.0f}") == "2 (1 to 6)"


def test_side_answers_in_its_own_process_and_survives_its_own_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "echo_side.py").write_text(ECHO)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Side("echo_side", threads=1) as side:
        answer = side.ask("add", a=2, b=3)
        assert answer.value == 5
        assert answer.peak >= answer.rss > 0
        with pytest.raises(RuntimeError, match="on purpose"):
            side.ask("fail")
        assert side.ask("add", a="x", b="y").value == "xy"
        with pytest.raises(RuntimeError, match="ended with status 3"):
            side.ask("leave")


def test_a_file_holds_the_last_run_on_each_processor(tmp_path: Path) -> None:
    def finish(cpu: str, flags: list[str], note: str) -> list[str]:
        made = report()
        made.machine |= {"cpu": cpu, "flags": flags}
        made.note(note)
        made.finish(tmp_path)
        text = (tmp_path / "name.md").read_text()
        return [line for line in text.splitlines() if line.startswith(("<!--", "run"))]

    legacy = report()
    legacy.machine |= {"cpu": "EPYC", "flags": []}
    legacy.note("run of an earlier version")
    (tmp_path / "name.md").write_text(legacy.markdown())
    (tmp_path / "name.json").write_text(json.dumps(legacy.record()))
    old = ["<!-- EPYC -->", "run of an earlier version"]
    assert finish("Xeon", ["avx2"], "run 1") == ["<!-- Xeon (avx2) -->", "run 1", *old]
    assert finish("Xeon", ["avx2", "amx_bf16"], "run 2")[:4] == [
        "<!-- Xeon (avx2, amx_bf16) -->",
        "run 2",
        "<!-- Xeon (avx2) -->",
        "run 1",
    ]
    assert finish("Xeon", ["avx2"], "run 3") == [
        "<!-- Xeon (avx2) -->",
        "run 3",
        "<!-- Xeon (avx2, amx_bf16) -->",
        "run 2",
        *old,
    ]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lets the peak be reset")
def test_peak_is_that_of_the_call_and_not_of_an_earlier_one() -> None:
    size = 200_000_000

    def fill() -> None:
        np.ones(size, dtype=np.uint8)

    large, small = measured(fill), measured(lambda: None)
    assert large["peak"] - large["rss"] > 0.9 * size
    assert small["peak"] - small["rss"] < 0.5 * size


def test_saved_bytes_count_a_storage_once_and_no_parameters() -> None:
    layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    x = torch.randn(5, 8)
    # Kept are the input, and the output of the ReLU, which its own backward and the second layer share.
    assert saved_for_backward(lambda: layers(x).sum(), storages_of(layers)) == 2 * 5 * 8 * 4


@pytest.mark.parametrize("s", [7, 20])
def test_operations_of_training_are_those_that_torch_counts(s: int) -> None:
    network = SCGPTNetwork(TINY.config(pad_id=50)).eval()
    config = network.config
    genes, values = torch.randint(0, 50, (2, s)), torch.randint(0, 51, (2, s)).float()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        encoded = network.encode(genes, values)
        network.expression(encoded, values)
        network.expression_from_cell(encoded)
    assert counter.get_total_flops() == 2 * flops.forward(config, s)


@pytest.mark.parametrize("s", [7, 20])
def test_operations_of_embedding_are_those_that_torch_counts(s: int) -> None:
    network = SCGPTNetwork(TINY.config(pad_id=50)).eval()
    genes, values = torch.randint(0, 50, (2, s)), torch.randint(0, 51, (2, s)).float()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        network.encode(genes, values, cell_only=True)
    assert counter.get_total_flops() == 2 * flops.embedding(network.config, s)
    looked_up = flops.embedding(network.config, s, tables=True)
    assert looked_up == flops.embedding(network.config, s) - flops.value_encoder(network.config, s)


@given(st.floats(1e-6, 1e-3), st.floats(1e-10, 1e-6))
def test_fit_finds_the_line_that_made_the_numbers(a: float, b: float) -> None:
    lengths = [100, 200, 400, 800]
    found = fit_line(lengths, [a + b * s for s in lengths])
    assert found == pytest.approx((a, b, 0), rel=1e-6, abs=1e-12)


def test_distance_of_nearly_equal_embeddings_keeps_its_digits(tmp_path: Path) -> None:
    angle = 1e-6
    np.save(tmp_path / "a.npy", np.array([[1.0, 0.0], [0.0, 2.0]]))
    np.save(tmp_path / "b.npy", np.array([[np.cos(angle), np.sin(angle)], [3.0, 0.0]]))
    found = cosine_distances(tmp_path / "a.npy", tmp_path / "b.npy")
    assert found == pytest.approx([angle**2 / 2, 1], rel=1e-6)


@given(st.integers(1, 64), st.integers(1, 10**9), st.integers(1, 10**11))
def test_cells_that_fit_are_a_part_of_the_batch_that_fits(n_cells: int, each: int, available: int) -> None:
    found = cells_that_fit(n_cells, each, available)
    assert 1 <= found <= n_cells
    assert found == 1 or found * each <= 0.85 * available
    assert found == n_cells or n_cells * each > 0.85 * available


def test_results_are_written_with_machine_claims_and_one_line_a_run(tmp_path: Path) -> None:
    for _ in range(2):
        made = report()
        made.table("Seconds.", ("a", "b"), [(1, 2)])
        made.claim("speed", "at least 2x", "3x", holds=True)
        made.claim("size", "at most 1x", "3x", holds=False)
        made.finish(tmp_path)
    text = (tmp_path / "name.md").read_text()
    assert f"torch {torch.__version__}" in text
    assert "| a | b |\n| --- | --- |\n| 1 | 2 |" in text
    assert "- speed: claim: at least 2x; measured 3x: holds" in text
    assert "- size: claim: at most 1x; measured 3x: **does not hold**" in text
    assert json.loads((tmp_path / "name.json").read_text())["claims"][1]["holds"] is False
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 2


def test_quick_run_judges_nothing() -> None:
    made = report(quick=True)
    made.claim("speed", "at least 2x", "3x", holds=True)
    assert made.claims[0]["holds"] is None
    assert "claims are not tested" in made.markdown()


def test_quick_run_writes_no_results_unless_asked() -> None:
    assert harness.results_folder(harness.parser("x").parse_args(["--quick"])) is None
    assert harness.results_folder(harness.parser("x").parse_args([])) == harness.RESULTS
    assert harness.results_folder(harness.parser("x").parse_args(["--quick", "--out", "here"])) == Path("here")


def test_peak_is_positive() -> None:
    assert harness.matmul_peak(torch.float32, size=64, repeats=2) > 0


def test_run_knows_every_script_of_the_folder() -> None:
    folder = Path(run.__file__).parent
    # A script with the options of the harness; the older ones have their own.
    calls = ("parser(__doc__)", "options_of(__doc__")
    scripts = {path.stem for path in folder.glob("*.py") if any(call in path.read_text() for call in calls)}
    assert scripts == set(run.SCRIPTS)


def test_run_lists_the_scripts_when_asked_for_one_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["no-such-script"]) == 2
    text = capsys.readouterr().out
    assert all(name in text for name in (*run.SCRIPTS, "all"))


def test_documented_page_includes_the_result_of_every_script() -> None:
    pages = "".join(page.read_text() for page in (harness.ROOT / "docs").rglob("*.md"))
    for name in run.SCRIPTS:
        assert f"../benchmarks/results/{name}.md\n" in pages


def test_stand_in_of_torchtext_keeps_a_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peers.write_stubs(tmp_path, ["torchtext.vocab"])
    monkeypatch.syspath_prepend(str(tmp_path))
    vocab = __import__("torchtext.vocab").vocab
    made = vocab.vocab({"a": 3, "rare": 1, "b": 2}, min_freq=2)
    made.append_token("d")
    made.insert_token("c", 2)
    assert made.get_itos() == ["a", "b", "c", "d"]
    assert made.get_stoi() == {"a": 0, "b": 1, "c": 2, "d": 3}
    with pytest.raises(RuntimeError, match="not found"):
        made["e"]
    made.set_default_index(0)
    assert made(["d", "e"]) == [3, 0]


def test_peer_with_a_vocabulary_of_its_own_gets_no_stand_in_for_torchtext(tmp_path: Path) -> None:
    (tmp_path / "scgpt" / "tokenizer").mkdir(parents=True)
    (tmp_path / "scgpt" / "tokenizer" / "vocab_compat.py").touch()
    assert peers.write_stubs(tmp_path, ["torchtext.vocab", "datasets"]) == ["datasets"]
    assert not (tmp_path / "torchtext").exists()
