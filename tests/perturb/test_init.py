"""The room loads its modules on first use."""

import pytest

from scgalore import perturb


def test_every_public_name_is_found_and_listed() -> None:
    assert set(perturb.__all__) <= set(dir(perturb))
    assert all(getattr(perturb, name) is not None for name in perturb.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'splitt'"):
        perturb.splitt  # noqa: B018
