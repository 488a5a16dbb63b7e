"""Agents, which are genes, or compounds at doses, and the names made of them; labels of genes are tested with conditions."""

import math

from hypothesis import given
from hypothesis import strategies as st

from scgalore.perturb.labels.parsing import Agent, agents_of, at_dose, canonical_name, subject_of

DOSE = st.floats(1e-6, 1e6)
NAME = st.text(min_size=1)


@given(compound=NAME, dose=DOSE)
def test_a_compound_at_a_dose_is_taken_apart_again(compound: str, dose: float) -> None:
    agent = at_dose(compound, dose)
    found = Agent.of(agent)
    assert found.subject == compound == subject_of(agent)
    assert found.dose is not None
    assert math.isclose(found.dose, dose, rel_tol=1e-5)
    assert at_dose(found.subject, found.dose) == agent
    assert agents_of(canonical_name([agent])) == (agent,)


def test_genes_are_themselves() -> None:
    for gene in ("KLF1", "HLA-A", "TRA@", "C1orf43"):
        assert Agent.of(gene) == (gene, None)
    assert agents_of(canonical_name(["KLF1", "BAK1"])) == ("BAK1", "KLF1")
    assert agents_of(canonical_name([])) == ()
