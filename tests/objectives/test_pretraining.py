import pytest

from scgalore.errors import OptionError
from scgalore.model import SCGPT
from scgalore.objectives import PRETRAINING, GenerativeExpression, MaskedExpression, pretraining_objective


def test_a_network_is_trained_for_its_own_objective_unless_told(model: SCGPT) -> None:
    own = pretraining_objective(model.network)
    assert own == pretraining_objective(model.network, model.network.pretraining[0])
    assert set(model.network.pretraining) <= set(PRETRAINING)


def test_masked_values_are_those_of_the_network(model: SCGPT) -> None:
    config = model.network.config.replace(mask_value=-7.0)
    objective = pretraining_objective(type(model.network)(config), "masked", mask_ratio=(0.25, 0.75))
    assert objective == MaskedExpression(mask_value=-7.0, mask_ratio=(0.25, 0.75))


def test_another_objective_is_refused(model: SCGPT) -> None:
    with pytest.raises(OptionError, match="objective='next token': a SCGPTNetwork can be pre-trained for 'masked'"):
        pretraining_objective(model.network, "next token")


def test_options_are_those_of_the_objective(model: SCGPT) -> None:
    prompted = pretraining_objective(model.network, "generative", from_cell_prompt=True, mask_ratio=None)
    assert prompted == GenerativeExpression(mask_value=model.network.config.mask_value, from_cell_prompt=True)
    with pytest.raises(
        OptionError, match="from_cell_prompt=True is for objective='generative', but the objective is 'masked'"
    ):
        pretraining_objective(model.network, "masked", from_cell_prompt=True)
