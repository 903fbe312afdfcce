"""What can be refused before torch is loaded: places that hold nothing, methods and options that are not there."""

from __future__ import annotations

from pathlib import Path

from eckart.arguments import read_budget
from eckart.catalog import check_options, find_adapter, find_rule
from eckart.errors import InputError
from eckart.jobs.compare.names import AT, LABELS, pruned_share
from eckart.jobs.compare.peft_methods import peft_name
from eckart.tasks.optimizers import check_optimizer


def check_file(path: str | Path, name: str) -> None:
    """Refuse a file that is not there or may not be read.

    Raises:
        InputError: naming it.
    """
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise InputError(f"{name} {path} cannot be read: {error.strerror}") from None


def check_methods(methods: str) -> None:
    """Refuse names with commas of which one is no method and no baseline.

    Raises:
        InputError: naming it.
    """
    for word in methods.split(","):
        name, at, optimizer = word.strip().partition(AT)
        if at:
            check_optimizer(optimizer)
        if name and name != "all" and name not in LABELS:
            if peft_name(name):
                continue
            adapter, *rules = name.split("+")
            if pruned_share(adapter) is None:
                find_adapter(adapter)
            for rule in rules:
                find_rule(rule)


def check_method(method: str, options: dict[str, object], budget: str | None) -> None:
    """Refuse a method that is not known, options that it lacks, and what is no budget.

    Raises:
        InputError: naming it.
    """
    check_options(find_adapter(method), options)
    if budget is not None:
        read_budget(budget)
