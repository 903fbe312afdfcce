"""Two processes under torchrun (gloo): a test file that is run as a script is the worker of its own tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

WORLD = 2
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORLD}")
TRIES = 3
"""gloo loses a connection now and then while another test's processes start."""


def patiently(start: Callable[[], subprocess.CompletedProcess[str]]) -> subprocess.CompletedProcess[str]:
    """Start two processes, and again where gloo lost their connection; they must end well."""
    for _ in range(TRIES):
        done = start()
        if "Connection closed by peer" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr[-9000:]
    return done


def launch(script: str, *words: str) -> None:
    """Run a file with these words in two processes of one thread each; both must end well."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, *TORCHRUN, script, *words]
    patiently(
        lambda: subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=500, check=False
        )
    )


def reports(script: str, directory: Path) -> list[Any]:
    """What each process wrote to ``<rank>.json`` in the directory that was its word."""
    launch(script, str(directory))
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(WORLD)]


def failures_of(script: str, directory: Path) -> dict[str, str]:
    """What `try_all` found in either process."""
    return {key: text for found in reports(script, directory) for key, text in found.items()}


def try_all(directory: Path, cases: Callable[[int], Mapping[str, Callable[[], Any]]]) -> None:
    """The work of one process: call every case, and write the traceback of each that fails.

    Args:
        directory: of the report.
        cases: names and calls, from the rank; the process group stands when it is asked.
    """
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, failures = dist.get_rank(), {}
    for name, call in cases(rank).items():
        try:
            call()
        except Exception as error:  # the other process must not wait for this one
            failures[name] = "".join(traceback.format_exception(error)[-4:])
        dist.barrier()
    (directory / f"{rank}.json").write_text(json.dumps(failures))
    dist.destroy_process_group()
