"""One whole training step of the original program: losses, gradients, clipping, Adam."""

import pytest
import torch
from torch.nn import functional as F

from scgalore.objectives import Classification, MaskedExpression
from scgalore.objectives.losses import elastic_similarity, masked_mse, masked_relative_error, negative_log_bernoulli

pytestmark = pytest.mark.usefixtures("each_kernel")

EMBEDDING = "encoder.embedding.weight"
SOME_ROWS = f"{EMBEDDING}[pad,cls,0:5]"


def gradients(network):
    """Gradients under upstream's names."""
    found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    found[SOME_ROWS] = found[EMBEDDING][[200, 201, 0, 1, 2, 3, 4]]
    return {name.replace("Wqkv.", "in_proj_"): gradient for name, gradient in found.items()}


# Annotation and masked expression together ------------------------------------------------------------------------


def fine_tuning_step(original, dtype):
    """Everything `train_step.npz` holds, and the gradients after clipping."""
    network, batch = original.network().train().to(dtype), original.batch()
    values, targets = batch.values.to(dtype), batch.targets["expression"].to(dtype)
    encoded = network.encode(batch.genes, values, batch.padding)
    expression, _ = network.expression(encoded, values)
    from_cell, _ = network.expression_from_cell(encoded)
    found = {
        "loss_gep": masked_mse(expression, targets, batch.targets["masked"]),
        "loss_mvc": masked_mse(from_cell, targets, batch.targets["masked"]),
        "loss_cls": F.cross_entropy(network.read_head("classes", encoded.cell), batch.targets["labels"]),
        "loss_ecs_x10": 10 * elastic_similarity(encoded.cell, 0.8),
    }
    found["loss"] = torch.stack(list(found.values())).sum()
    found["loss"].backward()
    found["mre"] = masked_relative_error(expression, targets, batch.targets["masked"])
    found |= {f"grad/{name}": gradient for name, gradient in gradients(network).items()}
    found["grad_norm"] = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    clipped = gradients(network)
    torch.optim.Adam(network.parameters(), lr=1e-4, eps=1e-4).step()
    found |= {f"after/{name.replace('Wqkv.', 'in_proj_')}": p for name, p in network.named_parameters()}
    return found, clipped


def test_objectives(original, agree):
    network, batch, theirs = original.network().train(), original.batch(), original.arrays("train_step")
    masked = MaskedExpression()(network, batch)
    agree("train_step/loss_gep", masked.parts["mse"], theirs["loss_gep"])
    agree("train_step/loss_mvc", masked.parts["mse_from_cell"], theirs["loss_mvc"])
    agree("train_step/loss_cls", Classification(5)(network, batch).total, theirs["loss_cls"])


def test_fine_tuning(original, agree):
    theirs = original.arrays("train_step")
    (ours, clipped), (exact, _) = (fine_tuning_step(original, dtype) for dtype in (torch.float32, torch.float64))
    compared = {name for name in ours if name.startswith("grad/")} - {f"grad/{EMBEDDING}"}
    assert compared == {name for name in theirs if name.startswith("grad/")}
    for name in theirs:
        agree(f"train_step/{name}", ours[name], theirs[name], exact=exact[name])
    names = [name for name in clipped if name != EMBEDDING]
    norm = float(theirs["grad_norm"])
    agree(
        "train_step/grad (clipped)",
        torch.cat([clipped[name].flatten() for name in names]),
        torch.cat([torch.from_numpy(theirs[f"grad/{name}"]).flatten() for name in names]) / norm,
    )


def test_padding_and_absent_genes_are_not_trained(original):
    ours, _ = fine_tuning_step(original, torch.float32)
    batch = original.batch()
    before, after = original.network().state_dict()[EMBEDDING], ours[f"after/{EMBEDDING}"]
    changed = (before != after).any(dim=1).nonzero().flatten().tolist()
    assert changed == sorted(set(batch.genes.unique().tolist()) - {200})


# Integration: batch labels, their norms, the adversary, explicit zeros --------------------------------------------


def integration_step(original, dtype):
    """Everything that `integration.npz` holds of a training step."""
    network, batch = original.network("integration/best_model.pt").train().to(dtype), original.batch()
    values, targets = batch.values.to(dtype), batch.targets["expression"].to(dtype)
    labels = torch.ones(6, dtype=torch.int64)  # one batch at a time, as its norm needs it upstream
    encoded = network.encode(batch.genes, values, batch.padding, batches=labels)
    found = {"train/cell_emb": encoded.cell, "train/dab_output": network.discriminate(encoded)}
    heads = {
        "mlm": network.expression(encoded, values, batches=labels),
        "mvc": network.expression_from_cell(encoded, batches=labels),
    }
    for head, (expression, nonzero) in heads.items():
        found |= {f"train/{head}_output": expression, f"train/{head}_zero_probs": nonzero}
        mse, zeros = {"mlm": ("gep", "nzlp"), "mvc": ("mvc", "mvc_nzlp")}[head]
        found[f"train_loss/{mse}"] = masked_mse(expression, targets, batch.targets["masked"])
        found[f"train_loss/{zeros}"] = negative_log_bernoulli(nonzero, targets, batch.targets["masked"])
    found["train/loss_ecs"] = elastic_similarity(encoded.cell, 0.8)
    found["train_loss/ecs_x10"] = 10 * found["train/loss_ecs"]
    found["train_loss/dab"] = F.cross_entropy(found["train/dab_output"], batch.conditions["batches"])
    total = torch.stack([value for name, value in found.items() if name.startswith("train_loss/")]).sum()
    total.backward()
    found["train_loss/total"] = total
    found |= {f"grad/{name}": gradient for name, gradient in gradients(network).items()}
    for label, norm in enumerate(network.dsbn.bns):
        found |= {f"train/bn{label}_running_mean": norm.running_mean, f"train/bn{label}_running_var": norm.running_var}
    return found


def test_integration(original, agree):
    theirs = original.arrays("integration")
    ours, exact = (integration_step(original, dtype) for dtype in (torch.float32, torch.float64))
    names = [name for name in theirs if name.startswith(("train/", "train_loss/", "grad/"))]
    assert len(names) == 20
    for name in names:
        agree(f"integration/{name}", ours[name], theirs[name], exact=exact[name])


# Perturbation -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def perturbation_step(original):
    theirs = original.arrays("perturb")
    z = {name: torch.from_numpy(theirs[name]) for name in ("gene_ids", "expr", "pert_flags", "target")}
    network = original.network("perturb/default.pt", pert_pad_id=0).train()
    encoded = network.encode(z["gene_ids"].expand(4, -1), z["expr"], flags=z["pert_flags"].long())
    expression, _ = network.expression(encoded, z["expr"])
    loss = masked_mse(expression, z["target"], torch.ones_like(z["target"], dtype=torch.bool))
    loss.backward()
    return network, loss, theirs


def test_perturbation(perturbation_step, agree):
    network, loss, theirs = perturbation_step
    agree("perturb/train_loss", loss, theirs["train_loss"])
    agree("perturb/grad_pert_encoder", network.pert_encoder.weight.grad, theirs["grad_pert_encoder"])
    bias = network.decoder.bias_decoder.fc[4].weight.grad
    agree("perturb/grad_bias_decoder_out", bias, theirs["grad_bias_decoder_out"])


def test_the_flag_of_padding_is_not_trained(perturbation_step):
    gradient = perturbation_step[0].pert_encoder.weight.grad
    assert not gradient[0].any()
    assert gradient[1].any()
