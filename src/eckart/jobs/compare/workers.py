"""Further processes of this machine that share the runs of a comparison: one for each GPU, or a few cores each."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from eckart.arguments import check_least
from eckart.errors import InputError
from eckart.files import sweep
from eckart.tasks.options import AUTO

CORES = 4
"""Of each worker where there is no GPU: further ones are of little use to a small model."""
GRACE_SECONDS = 10.0
"""How long workers are waited for when all is done; a run that one is in the middle of is then free again."""
_RUN = "from eckart.cli import main; raise SystemExit(main())"


def check_workers(workers: int | str) -> None:
    """Refuse what is no number of processes.

    Raises:
        InputError: it is none.
    """
    if isinstance(workers, str) and workers != AUTO:
        raise InputError(f"workers is {workers!r}: give a whole number of at least 1, or auto")
    if not isinstance(workers, str):
        check_least(1, workers=workers)


def environments(workers: int | str) -> list[dict[str, str]]:
    """What each worker's environment has besides this process's; the first is this process.

    Args:
        workers: their number, or "auto" for one for each GPU, else one for every `CORES` cores.
    """
    import torch

    gpus = torch.cuda.device_count()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    number = (gpus or max(1, cores // CORES)) if isinstance(workers, str) else workers
    threads = {"OMP_NUM_THREADS": str(max(1, cores // number))}
    if not gpus:
        return [threads] * number
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    return [{**threads, "CUDA_VISIBLE_DEVICES": seen[i % gpus]} for i in range(number)]


@contextmanager
def workers_beside(workers: int | str, words: Sequence[str], directory: Path) -> Iterator[None]:
    """Have further workers do the same comparison while the block does; none is left after it.

    Args:
        workers: as `environments`.
        words: of `eckart compare`, without the program's name.
        directory: of the results.
    """
    import torch

    own, *others = environments(workers)
    threads = torch.get_num_threads()
    silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started: list[subprocess.Popen[bytes]] = []
    try:
        for more in others:
            command, environment = [sys.executable, "-c", _RUN, *words], {**os.environ, **more}
            started.append(subprocess.Popen(command, env=environment, start_new_session=True, **silent))  # type: ignore[call-overload]
        if others:
            torch.set_num_threads(min(threads, int(own["OMP_NUM_THREADS"])))
        yield
        for process in started:
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                break
    finally:
        torch.set_num_threads(threads)
        for process in started:
            process.kill()
            process.wait()
        if started:
            sweep(directory)
