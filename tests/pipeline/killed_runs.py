"""Runs that are interrupted, killed and resumed, for ``test_interrupted.py``: ``python killed_runs.py FOLDER DATA``.

Every attempt is a process of its own that runs the command line, forked before anything is computed, so that the imports are
paid for once.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import is_fake

import scgalore.pipeline.runner
from scgalore.cli import app
from scgalore.objectives import Classification
from scgalore.pipeline.folder import RunFolder
from scgalore.train.checkpoint import WholeFiles

OPTIONS: tuple[str, ...] = (
    "--labels-key",
    "bulk_labels",
    "--model",
    "scgpt-mini",
    "--genes",
    "120",
    "--curriculum",
    "40,80,120",
)
OPTIONS += ("--epochs", "3", "--max-cells", "150", "--batch-size", "8", "--device", "cpu", "--seed", "3")


def main(folder: Path, data: str) -> None:
    """Run once without interruption, and once more with four."""
    begin = ["run", data, *OPTIONS]
    go_on = ["run", "--resume"]
    attempts: list[tuple[str, list[str], Callable[[], Any], int]] = [
        ("killed in the second phase", begin, in_training(1, signal.SIGKILL), -signal.SIGKILL),
        ("interrupted in the third phase", go_on, in_training(1, signal.SIGINT), 130),
        ("killed while writing metrics", go_on, while_writing("metrics.json"), -signal.SIGKILL),
        ("resumed", go_on, unharmed, 0),
    ]
    for number, (attempt, arguments, die, expected) in enumerate(attempts):
        code = in_child([*arguments, "--out", str(folder / "resumed")], die, folder / f"{number}.txt")
        assert code == expected, (attempt, code)
        if number == 0:
            (folder / "after_kill.txt").write_text("\n".join(sorted(names(folder / "resumed"))), encoding="utf-8")
    assert in_child([*begin, "--out", str(folder / "whole")], unharmed, folder / "whole.txt") == 0


def names(folder: Path) -> list[str]:
    """Files in a folder."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def in_child(arguments: list[str], die: Callable[[], Any], log: Path) -> int:
    """Give the exit code of a process that runs the command."""
    child = os.fork()
    if child == 0:
        stream = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        # A shell ignores it in what runs in the background.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)
        try:
            with die():
                app(arguments)
        except SystemExit as exit_:
            os._exit(int(exit_.code or 0))
        except BaseException as error:  # noqa: BLE001 -- whatever it is, the parent must hear of it
            print(repr(error), flush=True)
        os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def unharmed() -> Iterator[None]:
    """Let the run live."""
    yield


def in_training(n_saved: int, number: signal.Signals) -> Callable[[], Any]:
    """Send a signal at the third training step after a process has saved so many checkpoints."""

    @contextmanager
    def die() -> Iterator[None]:
        counts = {"saved": 0, "steps": 0}
        loss, save = Classification.__call__, WholeFiles.save_checkpoint

        def counted_loss(self: Any, network: Any, batch: Any) -> Any:
            if network.training and not is_fake(batch.genes) and counts["saved"] == n_saved:
                counts["steps"] += 1
                if counts["steps"] == 3:
                    signal.raise_signal(number)
            return loss(self, network, batch)

        def counted_save(self: Any, *args: Any, **options: Any) -> None:
            save(self, *args, **options)
            counts["saved"] += 1

        Classification.__call__ = counted_loss  # type: ignore[method-assign]
        WholeFiles.save_checkpoint = counted_save  # type: ignore[method-assign]
        yield

    return die


def while_writing(name: str) -> Callable[[], Any]:
    """Kill the process when it has written a file but not put it in its place."""

    @contextmanager
    def die() -> Iterator[None]:
        writing = RunFolder.writing

        @contextmanager
        def deadly(self: RunFolder, this: str) -> Iterator[Path]:
            with writing(self, this) as draft:
                yield draft
                if this == name:
                    os.kill(os.getpid(), signal.SIGKILL)

        RunFolder.writing = deadly  # type: ignore[method-assign, assignment]
        yield

    return die


if __name__ == "__main__":
    assert scgalore.pipeline.runner  # imported before the first fork
    main(Path(sys.argv[1]), sys.argv[2])
