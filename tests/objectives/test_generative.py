from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.test_masked_expression import CLS, PAD, batch_of, masked_genes, rows_of
from tests.prepared import prepared

import scgalore as sg
from scgalore.adapters.base import split_packed
from scgalore.data.sampler import BatchRequest
from scgalore.data.split import random_split
from scgalore.errors import OptionError
from scgalore.nn import SCGPTConfig, SCGPTNetwork
from scgalore.nn.layout import Padded
from scgalore.objectives import GenerativeExpression, MaskedExpression
from scgalore.objectives.losses import masked_mse
from scgalore.train import TrainConfig, trace
from scgalore.train.trace import Shape, trace_step


def network_of(**parts):
    torch.manual_seed(0)
    sizes = {"d_model": 8, "n_heads": 2, "d_hid": 12, "n_layers": 3, "dropout": 0.0, "generative": True, **parts}
    network = SCGPTNetwork(SCGPTConfig(n_tokens=CLS + 1, pad_id=PAD, **sizes)).eval()
    for parameter in network.parameters():  # biases and norms start at 0 and 1, where a forgotten one would not show
        torch.nn.init.normal_(parameter, std=0.5)
    return network


def cells(n=6, n_genes=12, seed=0):
    """Cells of different lengths, the first of them with one gene."""
    rng = np.random.default_rng(seed)
    x = rng.poisson(np.linspace(0.3, 2, n)[:, None], (n, n_genes))
    x[0] = 0
    x[0, 3] = 1
    return batch_of(x)


def corrupted(batch, seed=0, **options):
    return GenerativeExpression(**options).corrupt(batch, seed=seed, draw=0)


# A plain transcription --------------------------------------------------------------------------------------------


def by_hand(network, genes, values, generated, cell=None):
    """Last states of one cell without padding, token by token and key by key, in float64."""
    weight = {name: tensor.detach().double() for name, tensor in network.state_dict().items()}

    def norm(x, name):
        x = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
        return x * weight[f"{name}.weight"] + weight[f"{name}.bias"]

    def affine(x, name):
        return weight[f"{name}.weight"] @ x + weight[f"{name}.bias"]

    states = []
    for gene, value, hidden in zip(genes.tolist(), values.tolist(), generated.tolist(), strict=True):
        x = norm(weight["encoder.embedding.weight"][gene], "encoder.enc_norm")
        if hidden:
            x = x + weight["flag_encoder.weight"][1]
        else:
            number = torch.tensor([value], dtype=torch.float64)
            hidden_layer = affine(number, "value_encoder.linear1").relu()
            x = x + norm(affine(hidden_layer, "value_encoder.linear2"), "value_encoder.norm")
        states.append(x)
    if cell is not None:
        states[0] = cell.double()
    width = network.config.d_model // network.config.n_heads
    for layer in range(network.config.n_layers):
        path = f"transformer_encoder.layers.{layer}"
        packed = [affine(x, f"{path}.self_attn.Wqkv").chunk(3) for x in states]
        after = []
        for i, x in enumerate(states):
            seen = [j for j in range(len(states)) if not generated[j] or (j == i and generated[i])]
            context = torch.zeros(0, dtype=torch.float64)
            for head in range(network.config.n_heads):
                part = slice(head * width, (head + 1) * width)
                scores = torch.stack([packed[i][0][part] @ packed[j][1][part] for j in seen]) / width**0.5
                mixed = sum(p * packed[j][2][part] for p, j in zip(scores.softmax(dim=0), seen, strict=True))
                context = torch.cat([context, mixed])
            x = norm(x + (context if generated[i] else affine(context, f"{path}.self_attn.out_proj")), f"{path}.norm1")
            fed = affine(affine(x, f"{path}.linear1").relu(), f"{path}.linear2")
            after.append(norm(x + fed, f"{path}.norm2"))
        states = after
    return torch.stack(states)


@pytest.mark.parametrize("prompted", [False, True])
def test_states_are_those_of_a_plain_transcription(prompted):
    network, batch = network_of(), corrupted(cells())
    generated = batch.conditions["generated"]
    assert generated.any(dim=1).sum() >= 4
    cell = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)) if prompted else None
    expected = []
    for row, hidden in enumerate(batch.padding):
        tokens = (x[row, ~hidden] for x in (batch.genes, batch.values, generated))
        expected.append(by_hand(network, *tokens, cell=None if cell is None else cell[row]))
    for exact in (network, network.double()):
        values = batch.values.to(exact.gene_table.weight)
        given_cell = None if cell is None else cell.to(values)
        encoded = exact.encode(batch.genes, values, batch.padding, generated=generated, cell=given_cell)
        atol = 1e-5 if values.dtype == torch.float32 else 1e-12
        for row, states in enumerate(expected):
            ours = encoded.hidden[row, ~batch.padding[row]].double()
            torch.testing.assert_close(ours, states, rtol=0, atol=atol)
            torch.testing.assert_close(encoded.cell[row].double(), states[0], rtol=0, atol=atol)


def test_gradients_are_those_of_the_mask_written_out():
    network, batch = network_of().double(), corrupted(cells())
    generated, values = batch.conditions["generated"], batch.values.double()
    layer, x = network.transformer_encoder.layers[0].self_attn, torch.randn(*values.shape, 8, dtype=torch.float64)

    def gradients(mixed):
        network.zero_grad()
        mixed[~batch.padding].square().sum().backward()
        return [p.grad.clone() for p in layer.parameters()]

    ours = gradients(layer(x, Padded(batch.padding, x.shape[1], generated)))
    q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in layer.Wqkv(x).chunk(3, dim=-1))
    unseen = (batch.padding | generated)[:, None, None, :] & ~torch.eye(x.shape[1], dtype=torch.bool)
    scores = (q @ k.transpose(-1, -2) / 2).masked_fill(unseen, -torch.inf).softmax(dim=-1)
    mixed = (scores @ v).transpose(1, 2).flatten(-2)
    expected = gradients(torch.where(generated[..., None], mixed, layer.out_proj(mixed)))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


# What must not matter ---------------------------------------------------------------------------------------------


STYLES = [{}, {"cell_style": "avg-pool"}, {"cell_style": "w-pool"}, {"value_style": "scaling"}]


@pytest.mark.parametrize("parts", STYLES, ids=["cls", "avg-pool", "w-pool", "scaling"])
def test_nothing_depends_on_what_is_generated(parts):
    network, batch = network_of(**parts), corrupted(cells())
    generated = batch.conditions["generated"]
    objective = GenerativeExpression(from_cell_prompt=True)

    def everything(batch):
        encoded = network.encode(batch.genes, batch.values, batch.padding, generated=batch.conditions["generated"])
        predicted = [prediction for prediction, _ in objective.predictions(network, batch).values()]
        return [encoded.cell, encoded.hidden, *predicted]

    cell, hidden, *predicted = everything(batch)
    assert len(predicted) == 3
    # Their values are not read, whatever they are.
    for value in (7.0, torch.nan):
        for a, b in zip(
            everything(replace(batch, values=batch.values.masked_fill(generated, value))),
            (cell, hidden, *predicted),
            strict=True,
        ):
            assert torch.equal(a, b)
    # Other generated genes change only themselves.
    column = generated.sum(dim=0).argmax()
    changed = torch.zeros_like(generated)
    changed[:, column] = generated[:, column]
    assert changed.sum() > 1
    others = everything(replace(batch, genes=batch.genes.where(~changed, (batch.genes + 1) % PAD)))
    assert torch.equal(others[0], cell)
    for a, b in zip(others[1:], (hidden, *predicted), strict=True):
        assert torch.equal(a[~changed], b[~changed])
        assert not torch.isclose(a[changed], b[changed]).any()


def test_what_is_perceived_does_matter():
    network, batch = network_of(), corrupted(cells())
    generated = batch.conditions["generated"]
    encoded = network.encode(batch.genes, batch.values, batch.padding, generated=generated)
    values = batch.values + (~generated & ~batch.padding)
    other = network.encode(batch.genes, values, batch.padding, generated=generated)
    assert not torch.isclose(other.cell, encoded.cell).all(dim=1).any()
    assert not torch.isclose(other.hidden[generated], encoded.hidden[generated]).all(dim=1).any()


@given(st.randoms(use_true_random=False), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_a_cell_is_the_same_in_any_batch(random, seed):
    network, batch, objective = network_of(), cells(), GenerativeExpression(from_cell_prompt=True)
    whole = objective.corrupt(batch, seed=seed, draw=1)
    expected = objective.predictions(network, whole)
    rows = random.sample(range(6), random.randint(1, 6))
    longest = int((~batch.padding[rows]).sum(dim=1).max())
    order = [0, *random.sample(range(1, longest), longest - 1)]  # `<cls>` is read at the first place; padding is cut
    part = rows_of(batch, rows)
    part = replace(part, genes=part.genes[:, order], values=part.values[:, order], padding=part.padding[:, order])
    if len(rows) == 1:
        part = replace(part, padded=False)
    part = objective.corrupt(part, seed=seed, draw=1)
    assert masked_genes(part) == [masked_genes(whole)[row] for row in rows]
    for way, (prediction, _) in objective.predictions(network, part).items():
        reference = expected[way][0][rows][:, order]
        real = ~part.padding
        torch.testing.assert_close(prediction[real], reference[real], rtol=1e-5, atol=1e-5)


def test_no_generated_token_is_no_mask():
    network, batch = network_of(), cells()
    none = torch.zeros_like(batch.padding)
    plain = network.encode(batch.genes, batch.values, batch.padding)
    masked = network.encode(batch.genes, batch.values, batch.padding, generated=none)
    real = ~batch.padding
    torch.testing.assert_close(masked.hidden[real], plain.hidden[real], rtol=0, atol=1e-6)


def test_the_cell_alone_is_the_same_cell():
    network, batch = network_of(), corrupted(cells())
    inputs = (batch.genes, batch.values, batch.padding)
    encoded = network.encode(*inputs, **batch.conditions)
    alone = network.encode(*inputs, **batch.conditions, cell_only=True)
    assert alone.hidden.shape[1] == 1
    torch.testing.assert_close(alone.cell, encoded.cell, rtol=0, atol=1e-6)


def test_query_key_and_value_may_be_three_layers():
    network, batch = network_of(), corrupted(cells())
    expected = network.encode(batch.genes, batch.values, batch.padding, **batch.conditions).hidden
    for layer in range(network.config.n_layers):
        split_packed(network, f"transformer_encoder.layers.{layer}.self_attn.Wqkv")
    ours = network.encode(batch.genes, batch.values, batch.padding, **batch.conditions).hidden
    torch.testing.assert_close(ours, expected, rtol=0, atol=5e-6)


def test_bfloat16_in_blocks_is_the_same_attention():
    torch.manual_seed(0)
    batch = corrupted(batch_of(np.random.default_rng(0).poisson(20, (3, PAD))))
    network = network_of(d_model=32, d_hid=32)
    with torch.autocast("cpu", dtype=torch.bfloat16), sg.settings.override(cpu_kernels="onednn"):
        ours = GenerativeExpression(from_cell_prompt=True)(network, batch)
    ours.total.backward()
    gradients = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16), sg.settings.override(cpu_kernels="torch"):
        theirs = GenerativeExpression(from_cell_prompt=True)(network, batch)
    theirs.total.backward()
    torch.testing.assert_close(ours.total, theirs.total, rtol=0.02, atol=0)
    for a, p in zip(gradients, network.parameters(), strict=True):
        assert (a - p.grad).norm() < 0.1 * p.grad.norm()


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_recomputed_blocks_have_the_same_gradients(dropout):
    batch, results = corrupted(cells()), []
    for recompute in (False, True):
        network = network_of(dropout=dropout).train()
        network.recompute = recompute
        torch.manual_seed(2)
        loss = GenerativeExpression(from_cell_prompt=True)(network, batch).total
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in network.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# The objective ----------------------------------------------------------------------------------------------------


@given(st.sampled_from([0.3, (0.25, 0.5, 0.75)]), st.integers(0, 99), st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_genes_are_chosen_as_masks_are(ratio, seed, draw):
    batch = cells()
    ours = GenerativeExpression(mask_ratio=ratio, mask_value=-3).corrupt(batch, seed=seed, draw=draw)
    masked = MaskedExpression(mask_ratio=ratio).corrupt(batch, seed=seed, draw=draw).targets["masked"]
    generated = ours.conditions["generated"]
    assert torch.equal(generated, masked)
    assert not generated[:, 0].any()
    assert not (generated & batch.padding).any()
    assert (ours.values[generated] == -3).all()
    assert torch.equal(ours.targets["expression"], batch.values)


def test_the_loss_is_the_sum_of_its_parts():
    network, batch = network_of(zero_probabilities=True), corrupted(cells())
    network.train()
    generated, expression = batch.conditions["generated"], batch.targets["expression"]
    encoded = network.encode(batch.genes, batch.values, batch.padding, generated=generated)
    prompted = network.encode(batch.genes, batch.values, batch.padding, generated=generated, cell=encoded.cell.detach())
    expected = {
        "mse": masked_mse(network.expression(encoded, batch.values)[0], expression, generated),
        "mse_from_cell": masked_mse(network.expression_from_cell(encoded)[0], expression, generated),
        "mse_from_prompt": masked_mse(network.expression(prompted, batch.values)[0], expression, generated),
    }
    loss = GenerativeExpression(from_cell_prompt=True)(network, batch)
    assert loss.parts.keys() == {
        f"{kind}{way}" for kind in ("mse", "zeros") for way in ("", "_from_cell", "_from_prompt")
    }
    for name, value in expected.items():
        torch.testing.assert_close(loss.parts[name], value.detach())
    torch.testing.assert_close(loss.total.detach(), sum(loss.parts.values()))
    once = GenerativeExpression()(network_of(mvc=False), batch)
    assert once.parts.keys() == {"mse"}


def test_gradients_of_each_part():
    network, batch = network_of(), corrupted(cells())

    def reached(objective, way):
        network.zero_grad()
        prediction = objective.predictions(network, batch)[way][0]
        masked_mse(prediction, batch.targets["expression"], batch.targets["masked"]).backward()
        return {n for n, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}

    objective = GenerativeExpression(from_cell_prompt=True)
    own, cell, prompt = (reached(objective, way) for way in ("", "_from_cell", "_from_prompt"))
    everything = {name for name, _ in network.named_parameters()}
    decoders = {n: {x for x in everything if x.startswith(n)} for n in ("decoder.", "mvc_decoder.")}
    # What the last block projects is read by no generated token.
    last = {f"transformer_encoder.layers.2.self_attn.out_proj.{x}" for x in ("weight", "bias")}
    assert own == prompt == everything - decoders["mvc_decoder."] - last
    assert "flag_encoder.weight" not in cell
    assert cell >= decoders["mvc_decoder."] | last
    assert network.flag_encoder.weight.grad[0].abs().sum() == 0
    assert network.flag_encoder.weight.grad[1].abs().sum() > 0


def test_cells_too_small_to_divide_teach_nothing():
    batch = corrupted(batch_of(np.eye(2, PAD)))
    assert not batch.conditions["generated"].any()
    network = network_of()
    GenerativeExpression(from_cell_prompt=True)(network, batch).total.backward()
    assert not any(p.grad is not None and p.grad.isnan().any() for p in network.parameters())


def test_loss_at_its_own_values_covers_every_pass():
    network, batch, objective = network_of(), corrupted(cells()), GenerativeExpression(from_cell_prompt=True)
    biases = [network.decoder.fc[-1].bias]
    generator, estimates = torch.Generator().manual_seed(0), []
    for _ in range(300):
        loss, n = objective.self_sampled(network, batch, generator)
        assert n == int(batch.targets["masked"].sum())
        estimates.append(n * torch.autograd.grad(loss, biases)[0].square().sum())
    estimates = torch.stack(estimates)
    # Two passes, whose values are drawn apart: each adds the second derivative of its squared error, which is 2.
    assert abs(estimates.mean() - 4) < 5 * estimates.std() / len(estimates) ** 0.5


def test_a_network_without_flags_says_so():
    network = network_of(generative=False)
    batch = corrupted(cells())
    with pytest.raises(OptionError, match=r"generative_variant"):
        GenerativeExpression(from_cell_prompt=True)(network, batch)
    with pytest.raises(OptionError, match=r"SCGPTConfig.generative is disabled"):
        network.encode(batch.genes, batch.values, batch.padding, **batch.conditions)


# Memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "gpu"), [("32-true", False), ("bf16-mixed", False), ("bf16-mixed", True)])
def test_a_step_is_traced_without_numbers(precision, gpu, monkeypatch):
    monkeypatch.setattr(trace, "_measured", None)  # tracing must not fall back to measuring
    network = network_of(d_model=16, n_layers=2).train()
    shape = Shape(4, 32, precision, gpu)
    once, twice, masked = (
        trace_step(network, objective, shape)
        for objective in (GenerativeExpression(), GenerativeExpression(from_cell_prompt=True), MaskedExpression())
    )
    assert twice.reached == {name for name, _ in network.named_parameters()}
    assert masked.reached == twice.reached - {"flag_encoder.weight"}
    assert masked.kept < once.kept < twice.kept


@pytest.mark.parametrize("kernels", ["torch", "onednn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mask_is_kept_once_for_all_layers(kernels, dtype):
    def kept(n_layers):
        network = network_of(n_layers=n_layers)
        batch = corrupted(batch_of(np.ones((2, PAD))))
        sizes = {}

        def keep(x):
            if x.dim() == 4 and x.shape[-2:] == (PAD + 1, PAD + 1):
                sizes[x.untyped_storage().data_ptr()] = x
            return x

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16),
            sg.settings.override(cpu_kernels=kernels),
        ):
            GenerativeExpression()(network, batch)
        return len(sizes)

    assert kept(1) == kept(4) == 1


# In a training run ------------------------------------------------------------------------------------------------


def trained(model, few, *, epochs, **options):
    """Train a generative copy of a model; the history is that of the run."""
    config = TrainConfig(max_epochs=epochs, batch_size=32, lr=2e-3, **options)
    made = prepared(
        model.cells(few), random_split(few.n_obs), config, objective=GenerativeExpression(from_cell_prompt=True)
    )
    made = replace(made, network=model.network.generative_variant(seed=0))
    model.fit(made)
    return model


RUNS = {
    "adamw": {},
    "galore": {"optimizer": "galore", "optimizer_options": {"rank": 4}},
    "lora": {"adapter": "lora", "adapter_options": {"rank": 2}},
    "sophia": {"optimizer": "sophia"},
    "rows": {"embedding": "rows", "gradient_checkpointing": True},
    "bfloat16": {"precision": "bf16-mixed"},
}


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_a_run_trains_the_flag_and_lowers_the_loss(options, few, model):
    before = model.network.generative_variant(seed=0).flag_encoder.weight
    history = trained(model, few, epochs=3, **options).history
    for part in ("validation_loss", "train_loss"):
        assert history[part].iloc[-1] < history[part].iloc[0]
    after = model.network.flag_encoder.weight
    assert not torch.equal(after[1], before[1])
    assert model.network.generates


# What it learns ---------------------------------------------------------------------------------------------------


def test_held_out_cells_are_generated_better_than_by_the_mean_of_each_gene(pbmc, make_model):
    """Blood cells, from the 40 genes that vary most: what a gene's mean misses is the type of the cell."""
    varies = np.argsort(-pbmc.X.toarray().var(axis=0))[:40]
    pbmc = pbmc[:, np.sort(varies)].copy()
    model = make_model(pbmc.var_names, d_model=32, dropout=0.0, generative=True)
    objective = GenerativeExpression(mask_ratio=(0.25, 0.5))
    network, cells_, rng = model.network.train(), model.cells(pbmc), np.random.default_rng(0)
    rows = rng.permutation(pbmc.n_obs)
    train, test = rows[:600], rows[600:]
    optimizer = torch.optim.Adam(network.parameters(), lr=6e-3)
    torch.nn.init.constant_(network.decoder.fc[-1].bias, 25)  # bins are 1 to 50
    for draw in range(120):
        batch = cells_.batch(BatchRequest(rng.choice(train, 32, replace=False)))
        optimizer.zero_grad()
        objective(network, objective.corrupt(batch, seed=0, draw=draw)).total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    seen, batch = cells_.batch(BatchRequest(train)), cells_.batch(BatchRequest(test))
    values, real = seen.values.where(seen.values > 0, torch.zeros(())), (seen.values > 0).float()
    n = torch.zeros(network.config.n_tokens).index_put((seen.genes,), real, accumulate=True)
    means = torch.zeros(network.config.n_tokens).index_put((seen.genes,), values, accumulate=True) / n.clamp(min=1)
    batch = objective.corrupt(batch, seed=1, draw=0)
    by_mean = masked_mse(means[batch.genes], batch.targets["expression"], batch.targets["masked"])
    with torch.no_grad():
        parts = GenerativeExpression(from_cell_prompt=True)(network.eval(), batch).parts
    assert parts["mse"] < 0.9 * by_mean
    assert parts["mse_from_prompt"] < 0.9 * by_mean
