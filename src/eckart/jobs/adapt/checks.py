"""What can be wrong with a run before anything is loaded: its directory, and options that the run itself sets."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from eckart.arguments import check_least
from eckart.errors import InputError
from eckart.files import Inputs, check_apart, check_output
from eckart.hub import check_upload
from eckart.jobs.adapt.reports import report_names
from eckart.jobs.earlier import read_earlier
from eckart.processes import world
from eckart.tasks.options import AUTO

CHECKPOINTS, RUN, METRICS, CARD = "checkpoints", "run.json", "metrics.json", "README.md"
PUSH, KEEP = "--push-to-hub", ("last", "best")
_SET_BY_THE_RUN = {
    "seed": "give seed itself, which is that of the whole run",
    "target_modules": "give target_modules itself",
    "modules_to_save": "the task's head is trained and saved",
    "task_type": "the task decides it",
    "peft_type": "the method decides it",
}


def earlier_run(
    directory: Path, *, resume: bool, overwrite: bool, inputs: Inputs | None = None
) -> dict[str, Any] | None:
    """What run.json says when resuming; None for a new run.

    Raises:
        InputError: nothing to resume, or a directory that holds something when nothing is said about it, or
            that is, holds or lies in an input.
    """
    check_apart(directory, inputs or {})
    run = directory / RUN
    if resume:
        if not run.is_file():
            raise InputError(f"--resume: {directory} holds no run to go on with: leave --resume out")
        return read_earlier(run, "run", dict[str, Any])
    if run.is_file() and not overwrite:
        done = (directory / METRICS).is_file()
        raise InputError(
            f"--output {directory} holds {'a finished' if done else 'an unfinished'} run: "
            f"{'' if done else 'continue it with --resume, '}choose another directory or pass --overwrite"
        )
    check_output(directory, overwrite=overwrite)
    return None


def refuse_taken(options: Iterable[str]) -> None:
    """Refuse options of a method that the run sets.

    Raises:
        InputError: naming one and where to give it.
    """
    if taken := set(options) & _SET_BY_THE_RUN.keys():
        raise InputError(f"option {min(taken)!r} is not one to give here: {_SET_BY_THE_RUN[min(taken)]}")


def check_processes(part: int, parts: int | str, loram: bool) -> None:
    """Refuse what several processes of a launcher cannot do together.

    Args:
        part: examples of each part of a batch.
        parts: of a batch, or "auto".
        loram: whether the base is pruned.

    Raises:
        InputError: naming the option.
    """
    if (many := world()) == 1:
        return
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise InputError(
            "adapt does not share the weights of the model among processes: launch it without FSDP, by torchrun"
        )
    if loram:
        raise InputError(f"--loram in {many} processes: start one")
    if parts == AUTO:
        raise InputError(f"--batch-size auto in {many} processes: give a number")
    if part % many:
        raise InputError(f"--batch-size: {part} examples at once cannot be dealt to {many} processes equally")


def check_outcome(
    keep: str, patience: int | None, report_to: str | Sequence[str] | None, push_to_hub: str | None
) -> list[str]:
    """Refuse what cannot be kept, shown or uploaded of a run.

    Returns:
        where the run is shown, as a list.

    Raises:
        InputError: naming the option.
    """
    if keep not in KEEP:
        raise InputError(f"--keep {keep}: choose {' or '.join(KEEP)}")
    check_least(1, patience=patience)
    names = report_names(report_to)
    if push_to_hub is not None:
        check_upload(push_to_hub, PUSH)
    return names
