"""The metric that decides, by its name: one of the task's, one of the library `evaluate`, or a function of a module."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eckart.errors import InputError, first_line
from eckart.extras import require
from eckart.tasks.metrics import Metric, Outcomes

LIBRARY = "evaluate:"
"""What stands before the name of a metric of `evaluate`."""
LOWER = ("mae", "mape", "mase", "mse", "rmse", "smape", "brier_score", "cer", "wer", "ter", "perplexity")
"""Metrics of `evaluate` of which less is better."""
Said = Callable[[Outcomes], tuple[np.ndarray, np.ndarray]]


def chosen(name: str | None, known: Mapping[str, Metric], said: Said | None, kind: str) -> Metric:
    """The metric that decides: one of those known by its name, ``evaluate:NAME``, or a function ``module:function``.

    A function is given the labels and what the model says, as those of `sklearn.metrics` are, and gives a number.
    Greater is better, unless its name ends with ``_error``, ``_loss`` or ``_deviance`` (scikit-learn's habit).

    Args:
        name: as the user gave it; None for the first that is known.
        known: by name.
        said: labels and what is said, of outcomes; None where an example has no single label.
        kind: of the task, for messages.

    Raises:
        InputError: no such metric, or one that cannot be had.
    """
    if name is None:
        return next(iter(known.values()))
    if name in known:
        return known[name]
    names = ", ".join(known)
    if ":" not in name:
        raise InputError(
            f"--metric {name}: a task of {kind} has {names}; or give evaluate:NAME or module:function"
        )
    if said is None:
        raise InputError(
            f"--metric {name}: an example of {kind} has no single label to score; choose {names}"
        )
    library = name.startswith(LIBRARY)
    short = Path(name.removeprefix(LIBRARY)).stem if library else name.rpartition(":")[2]
    function = _of_library(name, short) if library else imported(name, "--metric")
    lower = short in LOWER if library else short.endswith(("_error", "_loss", "_deviance"))

    def whole(outcomes: Outcomes) -> float:
        try:
            return float(function(*said(outcomes)))
        except (ValueError, TypeError, IndexError, KeyError) as error:
            raise InputError(f"--metric {name} cannot score this task: {first_line(error)}") from None

    return Metric(short, whole=whole, greater_is_better=not lower)


def _of_library(name: str, short: str) -> Callable[..., Any]:
    """A metric of `evaluate` as a function of labels and what is said.

    Raises:
        InputError: the library is not installed, or its metric cannot be had: most are fetched from the hub.
    """
    library = require("evaluate", extra="evaluate")
    try:
        metric = library.load(name.removeprefix(LIBRARY))
    except Exception as error:  # of the hub's, of the metric's own file, and of what that imports
        reason = first_line(error).rstrip(".")
        raise InputError(
            f"--metric {name} cannot be had: {reason}; `evaluate` fetches its metrics from the hub, so give the path "
            "of one that is here, or module:function"
        ) from None

    def function(labels: np.ndarray, told: np.ndarray) -> Any:
        # what a metric defines; around it `compute` writes its inputs to a file, 60 ms in each call of the jackknife
        found = metric._compute(references=labels, predictions=told)
        return found[short] if short in found else next(iter(found.values()))

    return function


def imported(name: str, argument: str) -> Callable[..., Any]:
    """The function ``module:function``.

    Raises:
        InputError: no such module or function.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise InputError(
            f"{argument} {name}: {first_line(error)}; give module:function of an importable module"
        ) from None
    if not callable(found):
        raise InputError(f"{argument} {name} is no function")
    made: Callable[..., Any] = found
    return made
