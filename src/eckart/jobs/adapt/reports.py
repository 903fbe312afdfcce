"""Where the curves of a run are shown: TensorBoard, Weights & Biases, MLflow, through transformers' callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.errors import InputError

if TYPE_CHECKING:
    from transformers import TrainerCallback

REPORTS = ("tensorboard", "wandb", "mlflow")
REPORTED = "runs"
"""In the directory of a run: what TensorBoard reads, unless TENSORBOARD_LOGGING_DIR says where."""


def report_names(names: str | Sequence[str] | None) -> list[str]:
    """Where to report, each once.

    Args:
        names: with commas, or a list.

    Raises:
        InputError: a name that is not known, or whose package is not installed.
    """
    given = names.split(",") if isinstance(names, str) else names or ()
    found = list(dict.fromkeys(name.strip() for name in given))
    for name in found:
        if name not in REPORTS:
            raise InputError(f"--report-to {name}: choose of {', '.join(REPORTS)}, with commas")
        spec = find_spec(name)
        if (
            spec is None or spec.origin is None
        ):  # a directory of that name, such as the runs of W&B, is no package
            raise InputError(f"--report-to {name}: {name} is not installed: pip install {name}")
    return found


def reporters(names: Sequence[str], directory: Path) -> list[TrainerCallback]:
    """transformers' callbacks of these names.

    Args:
        names: of `REPORTS`.
        directory: of the run.
    """
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    made: list[Any] = [kind() for kind in get_reporting_integration_callbacks(list(names))]
    for name, callback in zip(names, made, strict=True):
        if name == "tensorboard" and callback.logging_dir is None:
            callback.logging_dir = str(directory / REPORTED)
    return made
