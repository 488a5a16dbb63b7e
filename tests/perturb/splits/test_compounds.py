from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scgalore.errors import OptionError
from scgalore.perturb.labels.compounds import Compounds
from scgalore.perturb.labels.parsing import Agent
from scgalore.perturb.splits.split import KINDS, default_kind, split_conditions

DOSES = (0.1, 1.0, 10.0)
NAMES = ["a", "b", "c+d", "e", "f"]


def conditions(compounds: list[str] = NAMES, doses: tuple[float, ...] = DOSES) -> Compounds:
    labels = ["ctrl", *(name for name in compounds for _ in doses)]
    return Compounds.from_doses(labels, pd.Series([0.0, *(dose for _ in compounds for dose in doses)], name="dose"))


@given(
    compounds=st.lists(st.text("abc+@", min_size=1), unique=True, min_size=2, max_size=8),
    kind=st.sampled_from(["compound", "dose"]),
    seed=st.integers(0, 99),
    test_size=st.floats(0, 1),
)
@settings(max_examples=60)
def test_a_compound_or_a_dose_is_in_one_part_only(compounds: list[str], kind: str, seed: int, test_size: float) -> None:
    found = split_conditions(conditions(compounds), kind, seed=seed, test_size=test_size)
    parts = {name: part for part in ("train", "validation", "test") for name in getattr(found, part)}
    assert sorted(parts) == sorted(conditions(compounds).perturbations)
    assert found.train
    together: dict[Any, set[str]] = {}
    for name, part in parts.items():
        subject, dose = Agent.of(name)
        together.setdefault(subject if kind == "compound" else dose, set()).add(part)
    assert all(len(of_group) == 1 for of_group in together.values())


def test_what_is_named_is_held_out() -> None:
    found = split_conditions(conditions(), "compound", seed=0, test_compounds=["c+d"], validation_compounds=["a"])
    assert found.test == ("c+d@0.1", "c+d@1", "c+d@10")
    assert found.validation == ("a@0.1", "a@1", "a@10")
    assert found.groups == {"unseen_compound": found.test, "unseen_dose": ()}
    found = split_conditions(conditions(), "dose", seed=0, test_doses=[10], validation_size=0.0)
    assert {Agent.of(name).dose for name in found.test} == {10.0}
    assert found.validation == ()
    assert found.groups == {"unseen_compound": (), "unseen_dose": found.test}
    assert found.partners_in_validation() == ()


def test_the_default_holds_out_compounds() -> None:
    assert default_kind(conditions()) == "compound"
    assert split_conditions(conditions(), seed=3) == split_conditions(conditions(), "compound", seed=3)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        pytest.param(
            "compound",
            {"test_compounds": ["x"]},
            "test_compounds: no perturbed cell has 'x'; choose from 'a'",
            id="compound",
        ),
        pytest.param(
            "dose",
            {"test_doses": [2.0]},
            "test_doses: no perturbed cell has '2'; choose from '0.1', '1', '10'",
            id="dose",
        ),
        pytest.param("dose", {"test_doses": ["high"]}, "expected doses, as numbers", id="text"),
        pytest.param(
            "dose", {"test_doses": [1], "validation_doses": ["1.0"]}, "'1' cannot be in validation and test", id="both"
        ),
        pytest.param("dose", {"test_compounds": ["a"]}, "test_compounds cannot be used with kind='dose'", id="other"),
        pytest.param(
            "simulation",
            {},
            "kind='simulation'; expected one of 'compound', 'dose'.* the kinds for compounds",
            id="genes",
        ),
    ],
)
def test_options_are_checked(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        split_conditions(conditions(), kind, seed=0, **options)


def test_kinds_of_cells_are_for_both() -> None:
    both = {name for name, how in KINDS.items() if len(how.pert_kinds) == 2}
    assert both == {"no_split", "custom", "cell", "context"}
