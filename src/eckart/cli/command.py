"""What every command has besides its own options: `--json`, `--config`, `--debug`, and an answer that is printed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from eckart.cli.config import read_config
from eckart.cli.console import show, show_json
from eckart.cli.options import COMMON, flag
from eckart.processes import is_first

if TYPE_CHECKING:
    from rich.table import Table

Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="YAML file with any of these options, or a run.json or compare.json; the command line wins.",
        callback=read_config,
        is_eager=True,
        rich_help_panel=COMMON,
    ),
]
Debug = Annotated[bool, flag("--debug", help="Print the full traceback of an error.", panel=COMMON)]
Json = Annotated[bool, flag("--json", help="Print JSON instead of a table.", panel=COMMON)]


@dataclass(frozen=True)
class Answer:
    """What a command has to say.

    Args:
        value: for ``--json``.
        shown: tables and lines for people.
    """

    value: Any
    shown: tuple[Table | str, ...]


def command(function: Callable[..., Answer]) -> Callable[..., None]:
    """A function with options as a command: with those that every command has, and its answer printed. A parameter that
    is a dataclass stands for the options that its fields are."""
    signature = inspect.signature(function, eval_str=True)
    groups: dict[str, Any] = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if is_dataclass(parameter.annotation)
    }
    common = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, default, kind in (("json_", False, Json), ("config", None, Config), ("debug", False, Debug))
    ]

    @functools.wraps(function)
    def run(json_: bool, config: Path | None, debug: bool, **given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        answer = function(**given)  # --config gave its defaults and --debug is for main
        if not is_first():
            return
        if json_:
            show_json(answer.value)
            return
        for part in answer.shown:
            show(part)

    own = (
        _options(groups[parameter.name]) if parameter.name in groups else [parameter]
        for parameter in signature.parameters.values()
    )
    parameters = [*(parameter for part in own for parameter in part), *common]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _options(group: Any) -> list[inspect.Parameter]:
    """The fields of a dataclass as parameters."""
    kinds = get_type_hints(group, include_extras=True)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [
        inspect.Parameter(field.name, kind, default=field.default, annotation=kinds[field.name])
        for field in fields(group)
    ]
