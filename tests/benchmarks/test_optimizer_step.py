import json
from pathlib import Path

import pytest
import torch
from benchmarks import optimizer_step as bench
from benchmarks.optimizer_step import DEFAULT, FUSED, GAP, OURS, PACKAGE, PACKAGE_GAP, Sizes, summary

TINY = Sizes(n_tokens=203, d_model=24, n_layers=2, n_genes=40)


def test_summary_of_ours_is_that_of_a_whole_cycle_and_ignores_one_disturbed_step() -> None:
    cycle = [1e-3] * (GAP - 1) + [5e-3]
    disturbed = [*cycle[:3], 1.0, *cycle[4:]]
    found = summary(OURS, [0.1, *cycle, *disturbed, *cycle])
    assert found == pytest.approx({"first": 100, "plain": 1, "slowest": 5, "amortised": (GAP + 4) / GAP})


def test_summary_of_the_package_spreads_its_refresh_over_its_gap() -> None:
    seconds = ([9e-3] + [1e-3] * (GAP - 1)) * 3
    found = summary(PACKAGE, [20e-3, *seconds[1:]])
    assert found == pytest.approx({"first": 20, "plain": 1, "slowest": 9, "amortised": 1 + 8 / PACKAGE_GAP})


def test_every_side_takes_every_step_on_the_same_gradients() -> None:
    sides = {side.name: side for side in bench.time_steps(TINY, "rows", rank=4, n_cycles=1)}
    assert set(sides) == {OURS, PACKAGE, FUSED, DEFAULT}
    assert {len(clock) for side in sides.values() for clock in (side.cpu, side.wall)} == {1 + GAP}
    fused, default = (dict(sides[name].module.named_parameters()) for name in (FUSED, DEFAULT))
    for name, param in fused.items():
        torch.testing.assert_close(param, default[name], rtol=0, atol=1e-6)
    start = dict(TINY.network().named_parameters())["transformer_encoder.layers.0.linear1.weight"]
    for side in sides.values():
        assert not torch.equal(side.module.get_parameter("transformer_encoder.layers.0.linear1.weight"), start)


def test_both_galores_project_the_same_weights() -> None:
    def projected(optimizer: torch.optim.Optimizer) -> set[str]:
        return {name for group in optimizer.param_groups if group.get("rank") for name in group["param_names"]}

    sides = bench.make_sides(TINY.network(), rank=4)
    assert projected(sides[0].optimizer) == projected(sides[1].optimizer) != set()


def test_counter_moved_forward_makes_the_package_refresh_once() -> None:
    network = TINY.network()
    side = bench.Side(PACKAGE, network, bench.package_optimizer(network, rank=4))
    gradients = bench.Gradients(network)
    gradients.give_to(network)
    state = side.optimizer.state[network.mvc_decoder.W.weight]
    changed = []
    for number in range(6):
        gradients.turn_to(number)
        if number == 3:
            side.move_to_refresh()
        before = state["projector"].ortho_matrix if state else None
        side.step()
        changed.append(state["projector"].ortho_matrix is not before)
    assert changed == [True, False, False, True, False, False]


def test_gradients_turn_slowly() -> None:
    network = TINY.network()
    gradients = bench.Gradients(network)
    name = "transformer_encoder.layers.0.linear1.weight"
    gradients.turn_to(0)
    first = gradients.tensors[name].clone()
    similar = []
    for step in (1, 60):
        gradients.turn_to(step)
        similar.append(float(torch.cosine_similarity(first.flatten(), gradients.tensors[name].flatten(), dim=0)))
    assert similar[0] > 0.99
    assert similar[1] < 0.7


def test_state_is_the_formula_and_counters_and_what_the_checkpoint_holds() -> None:
    for row in bench.measure_state(TINY, [4]):
        assert row["kept"] == row["checkpoint"]
        if row["what"].startswith(PACKAGE):
            assert row["kept"] > row["formula"]
        else:
            assert 0 < row["kept"] - row["formula"] < 1000  # four bytes for each tensor under AdamW


def test_results_are_written_with_a_line_for_each_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "QUICK", TINY)
    bench.main(["--quick", "--tables", "full", "--ranks", "8", "--out", str(tmp_path)])
    text = (tmp_path / "optimizer_step.md").read_text()
    assert text in capsys.readouterr().out
    assert "amortised step against galore-torch, table full, rank 8: claim: at least 5x; measured" in text
    assert "heads and rows projected, rank 128: claim: at most 18 %; measured" in text
    results = json.loads((tmp_path / "optimizer_step.json").read_text())
    assert {len(row["cpu_seconds"]) for row in results["times"]} == {1 + GAP}
