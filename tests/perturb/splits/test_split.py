import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.perturb.labels.conditions import Conditions
from scgalore.perturb.labels.parsing import canonical_name, parse_condition
from scgalore.perturb.splits.gears import GROUPS, split_by_genes
from scgalore.perturb.splits.split import KINDS, PerturbationSplit, split_conditions

GEARS = json.loads(gzip.decompress((Path(__file__).parent / "data" / "gears_splits.json.gz").read_bytes()))
CASES = [case for case in GEARS["cases"] if "error" not in case]
PART_OF_LETTER = {"t": "train", "v": "validation", "e": "test", "d": "dropped"}
GROUP_OF_LETTER = dict(zip("012s", GROUPS, strict=True))
OF_CELLS = {"cell", "context"}
OF_NAMES = [kind for kind, how in KINDS.items() if "gene" in how.pert_kinds and kind not in OF_CELLS | {"custom"}]


def split(labels: list[str], kind: str = "simulation", *, seed: int = 42, **options: Any) -> PerturbationSplit:
    return split_conditions(Conditions.from_labels(labels), kind, seed=seed, **options)


def parts_of(found: PerturbationSplit) -> dict[str, set[str]]:
    return {part: set(getattr(found, part)) for part in PART_OF_LETTER.values()}


def options_of(case: dict[str, Any]) -> dict[str, Any]:
    options = {}
    if case["split"].startswith("simulation"):
        options["train_gene_set_size"] = case["train_gene_set_size"]
    extra = case.get("extra", {})
    if extra:
        options |= {"test_perts": extra["test_perts"].split("_")} | {
            k: v for k, v in extra.items() if k != "test_perts"
        }
    return options


def case_id(case: dict[str, Any]) -> str:
    extra = "-only" if case.get("extra", {}).get("only_test_set_perts") else "-perts" if "extra" in case else ""
    return f"{case['list']}-{case['split']}-{case['seed']}-{case['train_gene_set_size']}{extra}"


def test_the_fixture_has_eighty_splits() -> None:
    assert len(CASES) == 80
    assert {case["split"].removesuffix("(DataSplitter)") for case in CASES} == set(OF_NAMES)


def test_splits_of_gears_label_by_label(subtests: pytest.Subtests) -> None:
    for case in CASES:
        kind, labels = case["split"].removesuffix("(DataSplitter)"), GEARS["lists"][case["list"]]
        conditions = Conditions.from_labels(labels)
        found = split_conditions(conditions, kind, seed=case["seed"], **options_of(case))
        expected: dict[str, str] = {}
        for label, letter in zip(labels, case["parts"], strict=True):
            if parse_condition(label):
                name = canonical_name(parse_condition(label))
                # Where GEARS draws two labels of one perturbation apart, the stricter part holds for both.
                expected[name] = min(expected.get(name, letter), letter, key="evtd".index)
        of_name = {name: part for part, names in parts_of(found).items() for name in names}
        with subtests.test(case_id(case)):
            assert of_name == {name: PART_OF_LETTER[letter] for name, letter in expected.items()}
            # Only where labels are drawn can two labels of one perturbation be drawn apart.
            assert not found.moved or case["split"] in {"no_test", "combo_seen2"}
            assert found.cell_labels(conditions).tolist() == [
                None if part == "dropped" else part
                for part in (of_name.get(name, "train") for name in map(canonical_name, map(parse_condition, labels)))
            ]


def test_groups_of_gears(subtests: pytest.Subtests) -> None:
    for case in CASES:
        labels = GEARS["lists"][case["list"]]
        found = split(labels, case["split"].removesuffix("(DataSplitter)"), seed=case["seed"], **options_of(case))
        with subtests.test(case_id(case)):
            if "groups" in case:
                theirs: dict[str, set[str]] = {group: set() for group in GROUPS}
                for label, letter in zip(labels, case["groups"], strict=True):
                    if letter != "-":
                        theirs[GROUP_OF_LETTER[letter]].add(canonical_name(parse_condition(label)))
                assert {group: set(names) for group, names in found.groups.items()} == theirs
            assert sorted(name for names in found.groups.values() for name in names) == sorted(found.test)


class TestNorman:
    labels: list[str] = GEARS["lists"]["norman"]

    def test_published_sizes(self) -> None:
        conditions = Conditions.from_labels(self.labels)
        found = split_conditions(conditions, "simulation", seed=42)
        part, n = np.unique(found.cell_labels(conditions).astype(str), return_counts=True)
        assert dict(zip(part, n, strict=True)) == {"train": 152, "validation": 33, "test": 99}  # labels, with ctrl
        assert [len(names) for names in (found.train, found.validation, found.test)] == [118, 27, 91]
        assert {group: len(names) for group, names in found.groups.items()} == {
            "combo_seen0": 2,
            "combo_seen1": 39,
            "combo_seen2": 23,
            "unseen_single": 27,
        }

    def test_partners_in_validation_are_counted(self) -> None:
        found = split(self.labels)
        doubles = [name for name in found.test if "+" in name]
        assert len(doubles) == 64
        assert sum(set(name.split("+")) <= set(found.train) for name in doubles) == 16
        partners = found.partners_in_validation()
        assert partners
        assert all(set(name.split("+")) & set(found.validation) for name in partners)
        assert not any(set(name.split("+")) & set(found.validation) for name in set(doubles) - set(partners))

    @given(order=st.permutations(GEARS["lists"]["toy"]), seed=st.integers(0, 2**32 - 1))
    def test_simulation_does_not_depend_on_the_order_of_labels(self, order: list[str], seed: int) -> None:
        assert parts_of(split(order, seed=seed)) == parts_of(split(GEARS["lists"]["toy"], seed=seed))

    def test_spelling_of_singles_does_not_matter_for_simulation(self) -> None:
        merged = [
            label.removeprefix("ctrl+") + "+ctrl" if label.startswith("ctrl+") else label for label in self.labels
        ]
        assert len(set(merged)) == 237
        for seed in (1, 2, 3, 42):
            assert parts_of(split(merged, seed=seed)) == parts_of(split(self.labels, seed=seed))

    def test_other_spellings_of_the_same_labels_give_the_same_split(self) -> None:
        plain = [label.removeprefix("ctrl+").removesuffix("+ctrl").replace("+", "_") for label in self.labels]
        assert parts_of(split(plain)) == parts_of(split(self.labels))


names = st.lists(st.sampled_from("ABCDEFGHIJKL"), min_size=1, max_size=2, unique=True).map("+".join)
label_lists = st.lists(names, min_size=8, max_size=40, unique=True).map(lambda labels: ["ctrl", *labels])
seeds = st.integers(0, 2**32 - 1)


class TestNoLeak:
    @given(labels=label_lists, kind=st.sampled_from(OF_NAMES), seed=seeds)
    def test_every_perturbation_is_in_one_part(self, labels: list[str], kind: str, seed: int) -> None:
        conditions = Conditions.from_labels([*labels, *"ABCDEFGHIJKL"])
        found = split_conditions(conditions, kind, seed=seed)
        everywhere = [*found.train, *found.validation, *found.test, *found.dropped]
        assert sorted(everywhere) == sorted(conditions.perturbations)
        grouped = [name for group in found.groups.values() for name in group]
        assert sorted(grouped) == sorted(found.test)

    @given(labels=label_lists, seed=seeds)
    def test_held_out_genes_are_in_no_training_label(self, labels: list[str], seed: int) -> None:
        found = split([*labels, *"ABCDEFGHIJKL"], seed=seed)
        held = set(found.groups["unseen_single"])
        assert not held & {gene for name in (*found.train, *found.validation) for gene in name.split("+")}
        for name in found.groups["combo_seen0"]:
            assert set(name.split("+")) <= held
        for name in found.groups["combo_seen2"]:
            assert not set(name.split("+")) & held

    @given(labels=label_lists, kind=st.sampled_from(["single", "combo_seen0", "combo_seen1"]), seed=seeds)
    def test_hit_genes_are_in_no_training_label(self, labels: list[str], kind: str, seed: int) -> None:
        found = split([*labels, *"ABCDEFGHIJKL"], kind, seed=seed, test_size=0.3)
        hit = {name for name in found.test if "+" not in name}
        assert hit
        assert not hit & {gene for name in (*found.train, *found.validation) for gene in name.split("+")}

    def test_labels_drawn_apart_are_held_out_together(self) -> None:
        labels = ["ctrl", *(label for a, b in zip("ACEGI", "BDFHJ", strict=True) for label in (f"{a}+{b}", f"{b}+{a}"))]
        conditions = Conditions.from_labels(labels)
        seen = 0
        for seed in range(20):
            found = split_conditions(conditions, "combo_seen2", seed=seed, test_size=0.3, validation_size=0.2)
            seen += len(found.moved)
            parts = parts_of(found)
            assert not parts["train"] & parts["test"]
            assert set(found.moved) <= parts["test"] | parts["validation"]
        assert seen > 0

    def test_global_random_state_is_left_alone(self) -> None:
        before = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
        split(GEARS["lists"]["toy"])
        assert (np.random.get_state()[1] == before).all()  # type: ignore[index]  # noqa: NPY002


class TestSimulationOptions:
    def test_wanted_genes_are_held_out_and_the_number_of_seen_genes_stays(self) -> None:
        labels = GEARS["lists"]["norman"]
        wanted = ["KLF1", "CEBPA", "ETS2"]
        plain, with_wanted = split(labels), split(labels, test_perts=wanted)
        assert set(wanted) <= set(with_wanted.groups["unseen_single"])
        n_held = [len(found.groups["unseen_single"]) for found in (plain, with_wanted)]
        assert n_held[0] == n_held[1]
        only = split(labels, test_perts=wanted, only_test_set_perts=True)
        assert set(only.groups["unseen_single"]) == set(wanted)
        assert only.groups["combo_seen1"]

    def test_too_many_wanted_genes_are_refused(self) -> None:
        genes = [[gene] for gene in "ABCDEFGH"]
        with pytest.raises(OptionError, match="only 0 others can replace them"):
            split_by_genes(
                [tuple(g) for g in genes],
                seed=0,
                train_gene_set_size=1.0,
                combo_seen2_train_frac=0.75,
                validation_size=0.1,
                test_perts=["A"],
                only_test_set_perts=False,
            )

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"test_perts": ["TP53"]}, "TP53, which no perturbation"),
            ({"test_perts": "G1_G2"}, "expected a list of names"),
            ({"only_test_set_perts": True}, "Pass test_perts"),
            ({"train_gene_set_size": 1.5}, "from 0 to 1"),
            ({"train_gene_set_size": float("nan")}, "from 0 to 1"),
            ({"validation_size": "a"}, "from 0 to 1"),
            ({"test_size": 0.2}, r"test_size cannot be used with kind='simulation', which takes train_gene_set_size"),
        ],
    )
    def test_wrong_options_are_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(OptionError, match=message):
            split(GEARS["lists"]["toy"], **options)

    def test_unknown_kinds_and_hopeless_data_are_refused(self) -> None:
        with pytest.raises(OptionError, match="'simulation', .*'custom'"):
            split(["ctrl", "A"], "random")
        with pytest.raises(DataError, match="All cells are control"):
            split(["ctrl", "ctrl"])
        with pytest.raises(DataError, match="remain for training"):
            split(["ctrl", "A"])
        with pytest.raises(DataError, match=r"more, such as 'A\+B\+C'"):
            split(["ctrl", "A+B+C", "A"])
        assert split(["ctrl", "A", "B+A+C"], "custom", parts={"test": ["A+B+C"]}).test == ("A+B+C",)


def test_doubles_are_dropped_by_simulation_single() -> None:
    found = split(GEARS["lists"]["toy"], "simulation_single", seed=1)
    assert {name.count("+") for name in found.dropped} == {1}
    assert {name.count("+") for name in (*found.train, *found.validation, *found.test)} == {0}
    singles = [label for label in GEARS["lists"]["toy"] if "ctrl" in label]
    assert parts_of(split(singles, "simulation", seed=1)) == parts_of(found) | {"dropped": set()}


class TestCustom:
    labels = ["ctrl", "A+ctrl", "ctrl+A", "B+ctrl", "B+A", "C"]

    @pytest.mark.parametrize(
        "parts",
        [
            {"test": ["A+B"], "val": ["C"]},
            {"test": {"B+A"}, "validation": ("C",), "train": ["ctrl+A", "B"]},
            {"B+A": "test", "C": "valid", "A": "train", "B+ctrl": "train"},
            {"A+B": "test", "C": "val"},
        ],
    )
    def test_both_directions_and_all_spellings(self, parts: dict[str, Any]) -> None:
        found = split(self.labels, "custom", parts=parts)
        assert parts_of(found) == {"train": {"A", "B"}, "validation": {"C"}, "test": {"A+B"}, "dropped": set()}
        assert found.groups["combo_seen2"] == ("A+B",)

    def test_genes_seen_nowhere_else_are_unseen(self) -> None:
        found = split(["ctrl", "A", "B", "A+B", "C+D", "A+C"], "custom", parts={"test": ["A+B", "C+D", "A+C", "B"]})
        assert found.groups == {
            "combo_seen0": ("C+D",),
            "combo_seen1": ("A+B", "A+C"),
            "combo_seen2": (),
            "unseen_single": ("B",),
        }

    @pytest.mark.parametrize(
        ("parts", "error", "message"),
        [
            (None, OptionError, "needs parts="),
            ({}, OptionError, "needs parts="),
            ({"test": ["A"], "train": ["B"]}, OptionError, "lacks 2 perturbations, such as A[+]B, C"),
            ({"test": ["A"], "validation": ["ctrl+A"]}, OptionError, "'A' to both 'test' and 'validation'"),
            ({"test": ["ctrl"]}, OptionError, "control to 'test'"),
            ({"tests": ["A"]}, OptionError, "expected 'train'"),
            ({"A": "tests"}, OptionError, "expected 'train'"),
            ({"test": ["A"], "B": "train"}, OptionError, "mixes names and lists"),
            ({"test": ["Z"]}, MissingKeyError, "No perturbation 'Z'"),
            ({"test": ["A", "B", "A+B", "C"]}, DataError, "remain for training"),
        ],
    )
    def test_wrong_parts_are_refused(self, parts: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            split(self.labels, "custom", parts=parts)


class TestCells:
    labels = ["ctrl"] * 30 + ["A"] * 40 + ["B"] * 20 + [None] * 3
    contexts = ["x", "y", "z"] * 31

    def test_every_perturbed_cell_is_in_one_part_and_controls_train(self) -> None:
        conditions = Conditions.from_labels(self.labels)
        found = split_conditions(conditions, "cell", seed=0, test_size=0.25, validation_size=0.1)
        labels = found.cell_labels(conditions)
        assert set(labels[:30]) == {"train"}
        assert labels[90:].tolist() == [None] * 3
        assert [(labels[rows] == "test").sum() for rows in (slice(30, 70), slice(70, 90))] == [10, 5]
        assert found.train == found.test == ("A", "B")
        assert found.groups == dict.fromkeys(GROUPS, ())  # nothing tested is unseen

    def test_shares_hold_within_contexts(self) -> None:
        conditions = Conditions.from_labels(["ctrl"] * 3 + ["A"] * 90)
        found = split_conditions(conditions, "cell", seed=0, contexts=self.contexts, test_size=1 / 3)
        test = np.array(self.contexts)[found.cell_labels(conditions) == "test"]
        assert np.unique(test, return_counts=True)[1].tolist() == [10, 10, 10]

    def test_whole_contexts_are_held_out(self) -> None:
        conditions = Conditions.from_labels(self.labels)
        for seed in range(5):
            found = split_conditions(conditions, "context", seed=seed, contexts=self.contexts)
            labels = found.cell_labels(conditions)
            assert set(labels[:30]) == {"train"}
            of_context = [set(labels[30:90][np.array(self.contexts)[30:90] == name]) for name in "xyz"]
            assert sorted(map(sorted, of_context)) == [["test"], ["train"], ["validation"]]
            assert labels[90:].tolist() == [None] * 3

    def test_named_contexts_are_held_out(self) -> None:
        conditions = Conditions.from_labels(self.labels)
        found = split_conditions(
            conditions, "context", seed=1, contexts=self.contexts, test_contexts=["y"], validation_size=0
        )
        tested = np.flatnonzero(found.cell_labels(conditions) == "test")
        assert tested.tolist() == [i for i in range(30, 90) if self.contexts[i] == "y"]
        assert found.validation == ()

    def test_perturbations_of_held_out_contexts_only_are_unseen(self) -> None:
        conditions = Conditions.from_labels(["ctrl", "A", "ctrl", "A", "B"])
        found = split_conditions(conditions, "context", seed=0, contexts=["x", "x", "y", "y", "y"], test_contexts=["y"])
        assert (found.train, found.test, found.groups["unseen_single"]) == (("A",), ("A", "B"), ("B",))

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({}, OptionError, "context_key="),
            ({"contexts": contexts, "test_contexts": ["q"]}, OptionError, "no perturbed cell is in q"),
            (
                {"contexts": contexts, "test_contexts": ["x"], "validation_contexts": ["x"]},
                OptionError,
                "x cannot be in both",
            ),
            ({"contexts": contexts, "test_contexts": ["x", "y", "z"]}, DataError, "remain for training"),
        ],
    )
    def test_wrong_contexts_are_refused(self, options: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            split(self.labels, "context", **options)  # type: ignore[arg-type]
