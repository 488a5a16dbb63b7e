import pytest

from scgalore.errors import WeightsError
from scgalore.weights.scgpt import canonical_name, canonical_names

LAYER = "transformer_encoder.layers.3.self_attn."


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("encoder.embedding.weight", "encoder.embedding.weight"),
        ("module.encoder.embedding.weight", "encoder.embedding.weight"),
        ("gene_encoder.enc_norm.bias", "encoder.enc_norm.bias"),
        ("expr_decoder.fc.0.weight", "decoder.fc.0.weight"),
        ("transformer.layers.3.norm1.weight", "transformer_encoder.layers.3.norm1.weight"),
        ("transformer.layers.3.self_attn.in_proj_bias", LAYER + "Wqkv.bias"),
        ("module." + LAYER + "_impl.Wqkv.weight", LAYER + "Wqkv.weight"),
        (LAYER + "_impl.out_proj.bias", LAYER + "out_proj.bias"),
        (LAYER + "in_proj_weight", LAYER + "Wqkv.weight"),
        ("decoder.coeff_decoder.fc.0.weight", "decoder.coeff_decoder.fc.0.weight"),
        ("flag_encoder.weight", "flag_encoder.weight"),
    ],
)
def test_spellings(name: str, expected: str) -> None:
    assert canonical_name(name) == expected
    assert canonical_name(expected) == expected


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"'encoder.enc_norm.bias' and 'gene_encoder.enc_norm.bias' both"):
        canonical_names(["encoder.enc_norm.bias", "gene_encoder.enc_norm.bias"])
