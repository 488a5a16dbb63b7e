"""Runs of two processes that are killed and resumed, for ``test_pretraining.py``: ``python killed_pairs.py FOLDER SOURCES``.

Every attempt is two processes that run the command line as torchrun would start them, forked before anything is computed, so that
the imports are paid for once.
"""

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from tests.launching import ENVIRONMENT
from tests.pipeline.killed_runs import unharmed, while_writing
from tests.steps import is_step

import scgalore.pipeline.pretraining
import scgalore.train.runner
from scgalore.cli import app
from scgalore.objectives import MaskedExpression

SIZES = "d_model=16,n_heads=2,d_hid=32,n_layers=2,max_length=40"
OPTIONS: tuple[str, ...] = ("--model", "scgpt", "--sizes", SIZES, "--max-steps", "24", "--steps-per-epoch", "6")
OPTIONS += (
    "--batch-size",
    "4",
    "--block-size",
    "4",
    "--buffer-size",
    "16",
    "--validation-cells",
    "8",
    "--device",
    "cpu",
)
OPTIONS += (
    "--checkpoint-every",
    "4",
    "--optimizer",
    "apollo-mini",
    "--shard-optimizer",
    "--keep-best",
    "2",
    "--seed",
    "3",
)


def main(folder: Path, sources: str) -> None:
    """Run once without interruption, and once more with five."""
    begin, go_on = ["pretrain", sources, *OPTIONS], ["pretrain", "--resume"]
    attempts: list[tuple[str, list[str], int, Callable[[], Any]]] = [
        ("before the first checkpoint", begin, 1, in_step(3, training=True)),
        ("inside an epoch", go_on, 0, in_step(11, training=True)),
        ("while a checkpoint is written inside an epoch", go_on, 0, while_saving(2)),
        ("in the second validation", go_on, 1, in_step(3, training=False)),  # the first one looks for idle weights
        ("while metrics are written", go_on, 0, while_writing("metrics.json")),
        ("never", go_on, 0, unharmed),
    ]
    steps = []
    for number, (attempt, arguments, rank, die) in enumerate(attempts):
        killed = in_pair([*arguments, "--out", str(folder / "resumed")], rank, die, folder / f"{number}")
        assert killed == (attempt != "never"), attempt
        steps.append(last_step(folder / "resumed"))
    (folder / "steps.txt").write_text(" ".join(map(str, steps)), encoding="utf-8")
    assert not in_pair([*begin, "--out", str(folder / "whole")], 0, unharmed, folder / "whole_log")


def last_step(folder: Path) -> int:
    """Step of the checkpoint in the folder of a run; 0 without one."""
    path = folder / "checkpoints" / "last.ckpt"
    return int(torch.load(path, weights_only=True)["global_step"]) if path.exists() else 0


def in_pair(arguments: list[str], rank: int, die: Callable[[], Any], log: Path) -> bool:
    """Run the command in two processes, of which one dies, and then the other is killed too; whether that happened."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    children = {
        in_child(arguments, number, die if number == rank else unharmed, port, log): number for number in range(2)
    }
    codes: dict[int, int] = {}
    while children:
        child, status = os.wait()
        codes[children.pop(child)] = os.waitstatus_to_exitcode(status)
        if status:  # a launcher, or the system, does not leave the other alone
            for other in children:
                os.kill(other, signal.SIGKILL)
    assert codes[rank] in (0, -signal.SIGKILL), codes
    return codes[rank] != 0


def in_child(arguments: list[str], rank: int, die: Callable[[], Any], port: int, log: Path) -> int:
    """Fork a process that runs the command as one of two."""
    child = os.fork()
    if child:
        return child
    stream = os.open(f"{log}-{rank}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.environ |= {**ENVIRONMENT, "TORCHELASTIC_RUN_ID": "pair", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
    }
    torch.set_num_threads(1)
    try:
        with die():
            app(arguments)
    except SystemExit as exit_:
        os._exit(int(exit_.code or 0))
    except BaseException as error:  # noqa: BLE001 -- whatever it is, the parent must hear of it
        print(repr(error), flush=True)
    os._exit(99)


def in_step(number: int, *, training: bool) -> Callable[[], Any]:
    """Kill the process at a batch of training or of validation."""

    @contextmanager
    def die() -> Iterator[None]:
        loss, batches = MaskedExpression.__call__, count(1)

        def counted(self: Any, network: Any, batch: Any) -> Any:
            is_counted = is_step(network, batch) if training else not network.training
            if is_counted and next(batches) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return loss(self, network, batch)

        MaskedExpression.__call__ = counted  # type: ignore[method-assign]
        yield

    return die


def while_saving(number: int) -> Callable[[], Any]:
    """Kill the process when it has written a half of a checkpoint."""

    @contextmanager
    def die() -> Iterator[None]:
        save, calls = torch.save, count(1)

        def half(content: Any, path: Any, *args: Any, **options: Any) -> None:
            save(content, path, *args, **options)
            if isinstance(path, Path) and path.suffix == ".part" and next(calls) == number:
                whole = path.read_bytes()
                path.write_bytes(whole[: len(whole) // 2])
                os.kill(os.getpid(), signal.SIGKILL)

        torch.save = half  # type: ignore[assignment]
        yield

    return die


if __name__ == "__main__":
    assert scgalore.pipeline.pretraining  # imported before the first fork
    main(Path(sys.argv[1]), sys.argv[2])
