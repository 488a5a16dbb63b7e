"""The network against arrays of the original program."""

import numpy as np
import pytest
import torch
from tests.parity_plugin import compare
from torch.nn import functional as F

from scgalore.data.vocab import GeneVocab
from scgalore.model import SCGPT
from scgalore.nn import Encoded
from scgalore.nn.scgpt import CellExpressionDecoder
from scgalore.objectives.losses import elastic_similarity

pytestmark = pytest.mark.usefixtures("each_kernel")

ZEROED = "torch's fast path leaves hidden states at padding 0, ours ordinary numbers; compared with ours set to 0"
FIRST_LABEL = (
    "each cell is normalised by its own batch, in scGPT by the first label of the mini-batch; "
    "compared with ours normalised by that label"
)


# The network of the released weights --------------------------------------------------------


@pytest.fixture(scope="module")
def base(original):
    return original.arrays("base")


def at_padding(network, output, padding):
    """Replace what a decoder made of hidden states at padding by what it makes of zeros."""
    zeros = torch.zeros(1, 1, network.config.d_model)
    of_zeros, _ = network.expression(Encoded(zeros, zeros, zeros[:, 0]), zeros[..., 0])
    return torch.where(padding, of_zeros, output)


@pytest.mark.parametrize("weights", ["full_wqkv", "full_impl_wqkv", "full_in_proj"])
def test_encoder_and_heads(original, base, agree, weights):
    network, batch = original.network(f"model/{weights}.pt"), original.batch()
    encoded = network.encode(batch.genes, batch.values, batch.padding)
    agree("base/encoder_output_autograd", encoded.hidden, base["encoder_output_autograd"])
    zeroed = encoded._replace(hidden=encoded.hidden.masked_fill(batch.padding[..., None], 0))
    agree("base/encoder_output", zeroed.hidden, base["encoder_output"], instead=ZEROED)
    agree("base/mlm_output", network.expression(zeroed, batch.values)[0], base["mlm_output"], instead=ZEROED)
    agree("base/gene_token_embs", encoded.genes, base["gene_token_embs"])
    agree("base/value_embs", network.value_encoder(batch.values), base["value_embs"])
    agree("base/cell_emb", encoded.cell, base["cell_emb"])
    agree("base/mvc_output", network.expression_from_cell(encoded)[0], base["mvc_output"])
    agree("base/cls_output", network.read_head("classes", encoded.cell), base["cls_output"])


def test_official_layout_has_the_same_encoder(original, base):
    network, batch = original.network("model/best_model.pt"), original.batch()
    assert network.config.heads == {}
    encoded = network.encode(batch.genes, batch.values, batch.padding)
    assert compare("cell_emb", encoded.cell, base["cell_emb"]).holds


def test_values_saturate(original, base, agree):
    values = torch.from_numpy(base["clamp_values"])
    agree("base/clamp_value_embs", original.network().value_encoder(values), base["clamp_value_embs"])


def test_average_over_tokens(original, base, agree):
    network, batch = original.network(cell_style="avg-pool"), original.batch()
    encoded = network.encode(batch.genes, batch.values, batch.padding)
    n_real = (~batch.padding).sum(dim=1, keepdim=True)
    agree(
        "base/cell_emb_avg-pool",
        encoded.cell * n_real / batch.padding.shape[1],
        base["cell_emb_avg-pool"],
        instead="ours is the mean over real tokens, scGPT's divides by all; compared with ours x real / all tokens",
    )
    agree(
        "base/cell_emb_avg-pool_autograd",
        encoded.hidden.mean(dim=1),
        base["cell_emb_avg-pool_autograd"],
        instead="ours leaves padding out; compared with the mean of our hidden states over all positions",
    )


def test_average_weighted_by_values(original, base, agree):
    network, batch = original.network(cell_style="w-pool"), original.batch()
    encoded = network.encode(batch.genes, batch.values, batch.padding)
    agree("base/cell_emb_w-pool", encoded.cell, base["cell_emb_w-pool"])
    agree(
        "base/cell_emb_w-pool_autograd",
        F.normalize((encoded.hidden * batch.values[..., None]).sum(dim=1), dim=1),
        base["cell_emb_w-pool_autograd"],
        instead="ours leaves padding out; compared with our hidden states weighted at all positions",
    )


def test_generation(original, base, agree):
    network, batch = original.network(), original.batch()
    cell = network.encode(batch.genes, batch.values, batch.padding).cell
    for name, values in [("values", batch.values), ("no_values", None)]:
        generated = network.generate(cell, batch.genes, values, batch.padding)
        whole = at_padding(network, generated, batch.padding)
        agree(f"base/generate_{name}", whole, base[f"generate_{name}"], instead=ZEROED)


# Variants -----------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["category", "scaling", "batchnorm"])
def test_input_styles(original, agree, style):
    theirs = original.arrays("styles")
    network, batch = original.network(f"styles/{style}.pt"), original.batch()
    values = torch.from_numpy(theirs[f"{style}_values"]) if style != "batchnorm" else batch.values
    encoded = network.encode(batch.genes, values, batch.padding)
    agree(f"styles/{style}/cell_emb", encoded.cell, theirs[f"{style}/cell_emb"])
    whole = at_padding(network, network.expression(encoded, values)[0], batch.padding)
    agree(f"styles/{style}/mlm_output", whole, theirs[f"{style}/mlm_output"], instead=ZEROED)
    agree(f"styles/{style}/mvc_output", network.expression_from_cell(encoded)[0], theirs[f"{style}/mvc_output"])


def test_decoder_from_cell_alone(original, base, agree):
    decoder = CellExpressionDecoder(32, 32, zero_probabilities=False)
    decoder.load_state_dict(original.checkpoint("styles/mvc_inner_product.pt").tensors)
    expression, _ = decoder(torch.from_numpy(base["cell_emb"]), torch.from_numpy(base["gene_token_embs"]))
    agree("styles/mvc_decoder/inner product", expression, original.arrays("styles")["mvc_decoder/inner product"])


def heads_of_batches(network, encoded, batch, labels):
    """Outputs of an integration network under upstream's names."""
    hidden = encoded.hidden.masked_fill(batch.padding[..., None], 0)
    expression, nonzero = network.expression(encoded._replace(hidden=hidden), batch.values, batches=labels)
    from_cell, nonzero_from_cell = network.expression_from_cell(encoded, batches=labels)
    return {
        "cell_emb": encoded.cell,
        "mlm_output": expression,
        "mlm_zero_probs": nonzero,
        "mvc_output": from_cell,
        "mvc_zero_probs": nonzero_from_cell,
        "dab_output": network.discriminate(encoded),
    }


def test_batches_one_at_a_time(original, agree):
    theirs = original.arrays("integration")
    network, batch = original.network("integration/best_model.pt"), original.batch()
    for label in (0, 1):
        labels = torch.full((6,), label)
        encoded = network.encode(batch.genes, batch.values, batch.padding, batches=labels)
        for name, output in heads_of_batches(network, encoded, batch, labels).items():
            instead = ZEROED if name.startswith("mlm") else ""
            agree(f"integration/b{label}/{name}", output, theirs[f"b{label}/{name}"], instead=instead)
        agree(
            f"integration/b{label}/cls_output",
            network.read_head("classes", encoded.cell),
            theirs[f"b{label}/cls_output"],
        )
        similarity = elastic_similarity(encoded.cell, 0.8)
        agree(f"integration/b{label}/loss_ecs", similarity, theirs[f"b{label}/loss_ecs"])
    agree("integration/encode_batch_cls", encoded.cell, theirs["encode_batch_cls"])


def test_mixed_batches(original, agree):
    theirs = original.arrays("integration")
    network, batch = original.network("integration/best_model.pt"), original.batch()
    first = batch.conditions["batches"][:1].expand(6)
    as_upstream = network.encode(batch.genes, batch.values, batch.padding, batches=first)
    for name, output in heads_of_batches(network, as_upstream, batch, batch.conditions["batches"]).items():
        agree(f"integration/mixed/{name}", output, theirs[f"mixed/{name}"], instead=FIRST_LABEL)
    ours = network.encode(batch.genes, batch.values, batch.padding, batches=batch.conditions["batches"]).cell.detach()
    own = np.stack(
        [theirs[f"b{label}/cell_emb"][row] for row, label in enumerate(batch.conditions["batches"].tolist())]
    )
    assert compare("cell_emb of mixed batches", ours, own).holds


@pytest.fixture(scope="module")
def perturb(original):
    theirs = original.arrays("perturb")
    n_cells = len(theirs["expr"])
    genes = torch.from_numpy(theirs["gene_ids"]).expand(n_cells, -1)
    return theirs, genes, torch.from_numpy(theirs["expr"]), torch.from_numpy(theirs["pert_flags"]).long()


@pytest.mark.parametrize(
    ("weights", "parts"),
    [("default", {}), ("relu_adaptive", {"decoder_activation": "ReLU", "adaptive_bias": True}), ("mvc_cls_ecs", {})],
)
def test_perturbation(original, perturb, agree, weights, parts):
    theirs, genes, values, flags = perturb
    network = original.network(f"perturb/{weights}.pt", pert_pad_id=0, **parts)
    encoded = network.encode(genes, values, flags=flags)
    agree(f"perturb/{weights}/mlm_output", network.expression(encoded, values)[0], theirs[f"{weights}/mlm_output"])
    if weights == "default":
        agree("perturb/encoder_output", encoded.hidden, theirs["encoder_output"])
        agree("perturb/pred_perturb/all", network.expression(encoded, values)[0], theirs["pred_perturb/all"])
    if weights == "mvc_cls_ecs":
        agree(
            "perturb/mvc_cls_ecs/cls_output",
            network.read_head("classes", encoded.cell),
            theirs["mvc_cls_ecs/cls_output"],
        )
        from_cell, _ = network.expression_from_cell(encoded)
        agree("perturb/mvc_cls_ecs/mvc_output", from_cell, theirs["mvc_cls_ecs/mvc_output"])
        loss = elastic_similarity(encoded.cell, 0.3)
        agree("perturb/mvc_cls_ecs/loss_ecs", loss, theirs["mvc_cls_ecs/loss_ecs"])


def test_perturbation_of_expressed_genes(original, perturb, agree):
    theirs, genes, values, flags = perturb
    network = original.network("perturb/default.pt", pert_pad_id=0)
    kept = (values != 0).any(dim=0)
    assert not kept.all()
    predicted = torch.zeros_like(values)
    encoded = network.encode(genes[:, kept], values[:, kept], flags=flags[:, kept])
    predicted[:, kept] = network.expression(encoded, values[:, kept])[0]
    agree(
        "perturb/pred_perturb/batch-wise",
        predicted,
        theirs["pred_perturb/batch-wise"],
        instead="which genes run is the caller's choice; compared with ours on the genes expressed in the batch, others 0",
    )


def test_genes_that_the_vocabulary_lacks(original, perturb):
    theirs = perturb[0]
    vocab = GeneVocab.from_file(original.folder() / "vocab.json")
    ids = vocab.ids(theirs["gene_names"].tolist())
    np.testing.assert_array_equal(np.where(ids < 0, vocab.pad_id, ids), theirs["gene_ids"])
    assert (ids < 0).sum() == 5


# RNA and protein ----------------------------------------------------------------------------


def spelled(tensors, attention):
    """Tensors under the names that a program with this attention writes."""
    names = {"impl": ("self_attn._impl.Wqkv.", "self_attn._impl.out_proj."), "torch": ("self_attn.in_proj_",) * 2}
    if attention == "flash":
        return tensors
    wqkv, out = names[attention]
    out = out if attention == "impl" else "self_attn.out_proj."
    return {
        name.replace("self_attn.Wqkv.", wqkv).replace("self_attn.out_proj.", out): tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("weights", ["mod_only", "mod_batch"])
def test_multiomic(original, agree, weights):
    theirs, modalities = original.arrays("multiomic"), torch.from_numpy(original.arrays("multiomic")["mod_types"])
    network, batch = original.network(f"multiomic/{weights}.pt"), original.batch()
    batches = batch.conditions["batches"] if weights == "mod_batch" else None
    context = {"modalities": modalities, "batches": batches}
    encoded = network.encode(batch.genes, batch.values, batch.padding, **context)
    agree(f"multiomic/{weights}/cell_emb", encoded.cell, theirs[f"{weights}/cell_emb"])
    hidden = encoded.hidden.masked_fill(batch.padding[..., None], 0)
    predicted = network.expressions(encoded._replace(hidden=hidden), batch.values, **context)
    agree(f"multiomic/{weights}/mlm_output", predicted[""][0], theirs[f"{weights}/mlm_output"], instead=ZEROED)
    agree(f"multiomic/{weights}/mvc_output", predicted["_from_cell"][0], theirs[f"{weights}/mvc_output"])
    agree(
        f"multiomic/{weights}/cls_output",
        network.read_head("classes", encoded.cell),
        theirs[f"{weights}/cls_output"],
    )


@pytest.mark.parametrize("attention", ["flash", "impl", "torch"])
def test_multiomic_files_load_whatever_attention_wrote_them(original, tmp_path, attention):
    folder = original.folder("multiomic/mod_batch.pt")
    tensors = torch.load(folder / "best_model.pt", weights_only=True)
    for file in ("args.json", "vocab.json"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    torch.save({f"module.{name}": x for name, x in spelled(tensors, attention).items()}, tmp_path / "best_model.pt")
    model = SCGPT.from_pretrained(tmp_path)
    assert not model.load_report.random
    assert model.network.config.n_modalities == 5
    loaded = model.network.state_dict()
    for name, tensor in tensors.items():
        if not name.startswith("cls_decoder."):
            assert torch.equal(loaded[name], tensor), name
