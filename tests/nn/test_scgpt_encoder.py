import copy

import pytest
import torch
from torch.nn import functional as F

from scgalore.nn import SCGPTConfig, SCGPTNetwork
from scgalore.nn.scgpt_encoder import CellEncoder

pytestmark = pytest.mark.usefixtures("each_kernel")

PAD, CLS = 17, 18
LENGTHS = [16, 1, 9, 9, 5]
STYLES = {
    "cls": {},
    "avg-pool": {"cell_style": "avg-pool"},
    "w-pool": {"cell_style": "w-pool"},
    "scaling": {"value_style": "scaling"},
    "category": {"value_style": "category", "n_value_bins": 53, "mvc": False},
    "shared-norm": {"batch_norm": "shared"},
    "wide": {"d_model": 128, "d_hid": 128},
}


def small(**parts):
    torch.manual_seed(0)
    network = SCGPTNetwork(
        SCGPTConfig(n_tokens=20, pad_id=PAD, **{"d_model": 8, "n_heads": 2, "d_hid": 12, "n_layers": 2, **parts})
    )
    if network.bn is not None:
        torch.nn.init.normal_(network.bn.running_mean)
    return network.eval()


def cells(lengths=LENGTHS, lowest=-2):
    generator = torch.Generator().manual_seed(0)
    genes = [torch.cat([torch.tensor([CLS]), torch.randperm(PAD, generator=generator)[: n - 1]]) for n in lengths]
    values = [torch.cat([torch.tensor([lowest]), torch.randint(1, 51, (n - 1,), generator=generator)]) for n in lengths]
    return genes, [v.float() for v in values]


@pytest.mark.parametrize("levels", [range(-2, 51), None], ids=["table", "computed"])
@pytest.mark.parametrize("style", list(STYLES))
def test_cells_are_those_that_the_network_gives_one_by_one(style, levels):
    network = small(**STYLES[style])
    genes, values = cells(lowest=51 if style == "category" else -2)
    ours = CellEncoder(network, torch.arange(20), levels=levels)(torch.cat(genes), torch.cat(values), LENGTHS)
    with torch.no_grad():
        one_by_one = [network.encode(g[None], v[None]).cell for g, v in zip(genes, values, strict=True)]
    torch.testing.assert_close(ours, torch.cat(one_by_one), rtol=1e-6, atol=2e-6 if style != "w-pool" else 5e-6)
    assert not ours.requires_grad


def test_tokens_that_were_not_announced_are_an_error():
    network = small()
    genes, values = cells()
    known = CellEncoder(network, torch.cat(genes).unique(), levels=range(-2, 51))
    whole = CellEncoder(network, torch.arange(20), levels=range(-2, 51))
    inputs = torch.cat(genes), torch.cat(values), LENGTHS
    assert torch.equal(known(*inputs), whole(*inputs))
    few = CellEncoder(network, torch.tensor([CLS]), levels=range(-2, 51))
    with pytest.raises(IndexError):
        few(*inputs)


def test_bfloat16_is_close_and_leaves_the_network_as_it_is():
    network = small(d_model=64, n_heads=4, d_hid=64)
    before = copy.deepcopy(network.state_dict())
    genes, values = cells()
    exact, rough = (
        CellEncoder(network, torch.arange(20), levels=range(-2, 51), dtype=dtype)(
            torch.cat(genes), torch.cat(values), LENGTHS
        )
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    assert (1 - F.cosine_similarity(exact, rough)).max() < 1e-3
    after = network.state_dict()
    assert all(torch.equal(after[name], before[name]) and after[name].dtype == before[name].dtype for name in before)
