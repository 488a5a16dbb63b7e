"""The arms of the three claims, and what each is given.

A. Many small heads (LTE) train a GPT as well as all its parameters do.
B. LoRA fine-tunes a ViT to better accuracy, in fewer epochs, than full fine-tuning.
C. Adapters on attention are worth more than adapters on the MLP, with equally many parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from benchmarks.lowrank_claims.harness import Budget
from benchmarks.lowrank_claims.tasks import Cells, Characters, Digits
from benchmarks.lowrank_claims.training import Arm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.lowrank_claims.tasks import Task

# For parameters that every arm trains in addition to its own weights.
REST_LR, GPT_REST_LR = 3e-3, 6e-3
# Where searches begin: near the optimum in short trials.
FULL_LR, ADAPTER_LR, HEAD_LR = 1e-3, 3e-3, 1e-2
N_LABELLED = (10, 30)  # images of each digit, of which there are five

# (heads, rank): as many small heads as rank 64 has room for, and fewer or larger ones. One head is plain LoRA, which
# merging does not change. Sixteen heads of rank 64 would be 4.2 million numbers in place of 163,840, at ten times the time of a step.
HEADS_AND_RANKS = ((1, 4), (1, 16), (1, 64), (4, 4), (4, 16), (4, 64), (16, 4), (16, 16))
MERGE_EVERY = (1, 10)
GPT_BATCH = 16  # windows: one for each of 16 heads
VIT_BATCH, CELLS_BATCH = 10, 32

# Ranks at which the adapters have equally many parameters, by the shape of a block: adapters of rank r on q, k, v and
# out_proj have 8 d r numbers, on an MLP of width m 2 (d + m) r. In scGPT m = d, in our GPT and ViT m = 3 d.
EQUAL_RANKS = {
    "scGPT": {"attention": 6, "mlp": 12, "all": 4},
    "GPT": {"attention": 8, "mlp": 8, "all": 4},
    "ViT": {"attention": 8, "mlp": 8, "all": 4},
}
WORDS = {"attention": "attention only", "mlp": "MLP only", "all": "attention and MLP"}


@dataclass(frozen=True)
class Plan:
    """Lengths of the runs.

    Attributes
    ----------
    gpt_steps
        Steps of a GPT from random weights.
    gpt_tuning_steps, scgpt_steps
        Steps of fine-tuning.
    vit_epochs
        Epochs of fine-tuning.
    gpt_pretraining, vit_pretraining
        Steps of pre-training.
    budgets
        Trials and seeds of each claim.
    """

    gpt_steps: int
    gpt_tuning_steps: int
    scgpt_steps: int
    vit_epochs: int
    gpt_pretraining: int
    vit_pretraining: int
    budgets: dict[str, Budget]


FULL = Plan(400, 150, 100, 30, 1000, 400, {"A": Budget(3, 3), "B": Budget(3, 5), "C": Budget(3, 5)})
QUICK = Plan(2, 2, 1, 1, 2, 2, {letter: Budget(1, 1) for letter in "ABC"})


def all_arms(plan: Plan) -> list[Arm]:
    """Every arm, those that take longest first, so that no process works alone at the end."""
    return [*claim_a(plan), *claim_c(plan), *claim_b(plan)]


def claim_a(plan: Plan) -> list[Arm]:
    """LTE on all linear layers of the blocks, compared with full training with the same number of tokens, of steps, or both."""
    task, steps = Characters(GPT_REST_LR), plan.gpt_steps
    arms = [
        _lte(task, steps, *heads, merge_every) for heads in HEADS_AND_RANKS[::-1] for merge_every in _merges(*heads)
    ]
    arms.append(replace(_lte(task, steps, 4, 16, 10, scale=16.0), lr=FULL_LR / 10))
    full = Arm("A", task, "full", "matrices", steps, GPT_BATCH, FULL_LR)
    # A head of N sees a batch of GPT_BATCH / N: full training at that batch has as many steps of batches of the same size
    # ("step-matched"), and N times as many steps bring it to the same number of tokens.
    small = [replace(full, name=f"full, batch of {batch}", batch=batch) for batch in (GPT_BATCH // 4, GPT_BATCH // 16)]
    longer = replace(full, name="full, batch of 4, 4 times the steps", batch=GPT_BATCH // 4, steps=4 * steps)
    return [*arms, longer, full, *small]


def _merges(n_heads: int, rank: int) -> Sequence[int]:
    return MERGE_EVERY if n_heads > 1 and rank < 64 else MERGE_EVERY[-1:]


def _lte(task: Task, steps: int, n_heads: int, rank: int, merge_every: int, *, scale: float = 1.0) -> Arm:
    name = f"N={n_heads}, r={rank}"
    name += f", T={merge_every}" if n_heads > 1 else ""
    name += f", alpha={scale:g} r" if scale != 1 else ""
    options = {"n_heads": n_heads, "rank": rank, "merge_every": merge_every, "alpha": scale * rank}
    return Arm("A", task, name, "lte", steps, GPT_BATCH, FULL_LR, {**options, "targets": "all", "others": "train"})


def claim_b(plan: Plan) -> list[Arm]:
    """LoRA on a pre-trained ViT, compared with full fine-tuning and a new head alone."""
    arms = []
    for n_labelled in N_LABELLED:
        task = Digits(REST_LR, plan.vit_pretraining, n_labelled=n_labelled)
        epoch = n_labelled * len(task.classes) // VIT_BATCH
        # Constant learning rates: under a schedule, epochs to a target would mostly measure the schedule.
        length = {"steps": plan.vit_epochs * epoch, "batch": VIT_BATCH, "decay": False, "score_every": epoch}
        arms += [*_places("B", "ViT", task, length), _lora("B", task, 16, "all", length)]
    return arms


def claim_c(plan: Plan) -> list[Arm]:
    """LoRA on attention, MLP and both with equally many parameters; the ViT of claim B is the third network."""
    cells = {"steps": plan.scgpt_steps, "batch": CELLS_BATCH}
    text = {"steps": plan.gpt_tuning_steps, "batch": GPT_BATCH}
    other_play = Characters(GPT_REST_LR, plan.gpt_pretraining, plays=("richard_iii",), learnt=("coriolanus",))
    return [
        *_places("C", "scGPT", Cells(REST_LR), cells),
        *_places("C", "scGPT", Cells(REST_LR, labels=False), cells),
        *_places("C", "GPT", other_play, text),
    ]


def _places(claim: str, shape: str, task: Task, length: dict[str, Any]) -> list[Arm]:
    adapters = [_lora(claim, task, rank, targets, length) for targets, rank in EQUAL_RANKS[shape].items()]
    full = Arm(claim, task, "full", "full", lr=FULL_LR, **length)
    return [*adapters, full, Arm(claim, task, "head only", "head", lr=HEAD_LR, **length)]


def _lora(claim: str, task: Task, rank: int, targets: str, length: dict[str, Any]) -> Arm:
    options = {"rank": rank, "alpha": 2.0 * rank, "targets": targets, "others": "freeze"}
    return Arm(claim, task, f"LoRA r={rank}, {WORDS[targets]}", "lora", lr=ADAPTER_LR, options=options, **length)
