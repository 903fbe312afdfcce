"""The program `eckart`: its commands by what they are for, and what becomes of their errors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, cast

import typer

from eckart import __version__
from eckart.cli.adapt import adapt
from eckart.cli.command import command
from eckart.cli.compare import compare
from eckart.cli.compress import compress
from eckart.cli.compression import compare_compression
from eckart.cli.console import fail, silence
from eckart.cli.dimension import measure_dimension
from eckart.cli.export import export
from eckart.cli.federate import federate
from eckart.cli.inspect import inspect
from eckart.cli.interrupts import as_interrupts
from eckart.cli.measure import measure
from eckart.cli.merge import merge
from eckart.cli.methods import methods
from eckart.cli.options import flag
from eckart.cli.pretrain import pretrain
from eckart.cli.recover import complete, eigenvector
from eckart.cli.report import report
from eckart.cli.run import run
from eckart.errors import InputError

COMMANDS: Mapping[str, Sequence[Callable[..., Any]]] = {
    "Choose a method and train": (compare, report, adapt, pretrain, federate, methods),
    "Make models smaller": (compress, compare_compression),
    "Look into models": (inspect, measure, measure_dimension),
    "Use an adapter elsewhere": (merge, export, run),
}
"""Every command under the heading that `eckart --help` shows it below: a new one is entered here."""
NAMES: Mapping[Callable[..., Any], str] = {
    compare_compression: "compare compression",
    measure_dimension: "measure intrinsic-dimension",
}
"""Commands whose name is not that of their function: of two words, the first of which is a command too."""
GROUPS: Mapping[str, tuple[str, Sequence[Callable[..., Any]]]] = {
    "recover": (
        "Complete a matrix of ratings; find the top singular vectors of a stream of rows.",
        (complete, eigenvector),
    ),
}
"""Commands of two words, by the first of them, with what they have in common."""

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
# click's UsageError, which newer versions of typer bring along and no longer take from click.
UsageError = cast(type[typer.BadParameter], typer.BadParameter.__base__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for bad usage or input, 1 for a failure, 130 for an
    interrupt (143 and 129 for SIGTERM and SIGHUP, which end a command in the same way).

    Args:
        arguments: the words after ``eckart``; those of this process when None.
    """
    words = _joined(sys.argv[1:] if arguments is None else list(arguments))
    debug = "--debug" in words
    try:
        with silence(debug), as_interrupts() as signals:
            code = app(words, prog_name="eckart", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except InputError as error:
        fail(error, str(error), debug=debug)
        return BAD_INPUT
    except UsageError as error:
        if not words or words in ([group] for group in GROUPS):  # the help was shown instead
            return BAD_INPUT
        fail(error, error.format_message(), debug=debug)
        return BAD_INPUT
    except Exception as error:
        fail(error, f"{type(error).__name__}: {error}", debug=debug)
        return FAILED
    if code == INTERRUPTED:
        with suppress(OSError):  # after a hang-up there may be nobody to tell
            print("eckart: interrupted", file=sys.stderr, flush=True)
        return 128 + signals[0] if signals else INTERRUPTED
    return code if isinstance(code, int) else OK


def _joined(words: list[str]) -> list[str]:
    """The words, those of a command whose name has two as one."""
    name = " ".join(words[:2])
    return [name, *words[2:]] if name in NAMES.values() else words


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"eckart {__version__}")
        raise typer.Exit()


def _root(
    version: Annotated[
        bool, flag("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _group(help: str, **options: Any) -> typer.Typer:
    """A group of commands, which shows its help when it is called alone."""
    return typer.Typer(
        help=help,
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **options,
    )


def _build() -> typer.Typer:
    program = _group(
        "Every way of using low-rank and structured weights, and the evidence which one is best for you."
    )
    program.callback()(_root)
    for heading, functions in COMMANDS.items():
        for function in functions:
            program.command(NAMES.get(function), rich_help_panel=heading)(command(function))
    for name, (help, functions) in GROUPS.items():
        group = _group(help)
        for function in functions:
            group.command()(command(function))
        program.add_typer(group, name=name, rich_help_panel="Recover matrices")
    return program


app = _build()
