"""Processes that torchrun starts, on this machine and over the loopback."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "SCGALORE_PROGRESS": "0",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}


def torchrun(module: str, *words: Any, n: int = 2) -> "subprocess.CompletedProcess[str]":
    """Run a module in ``n`` processes and wait for all of them."""
    # Without --standalone a port would have to be named, and another run may have it.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    return run([*command, f"--nproc_per_node={n}", "-m", module, *map(str, words)])


def run(command: list[Any], *, timeout: float = 580, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a command from the repository's folder, without the words of a launcher that runs this test."""
    launchers = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
    kept = {
        name: value for name, value in os.environ.items() if name not in launchers and not name.startswith("SLURM_")
    }
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**kept, **ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, errors = process.communicate(timeout=timeout)
    except BaseException:
        process.terminate()  # upon which torchrun ends its own processes
        process.communicate()
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, errors)
