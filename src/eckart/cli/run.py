"""`eckart run`: another program, with eckart's methods known to PEFT in it."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from eckart.cli.command import Answer
from eckart.errors import InputError


def run(
    words: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND...", help="The program and its arguments.")
    ],
) -> Answer:
    """Start another program that loads adapters by PEFT, so that it knows the methods of eckart.

    Every Python that the program starts, and that has eckart installed, imports it first. Signals and the exit code are
    the program's own.

    Example: `eckart run -- lm_eval --model hf --model_args pretrained=base,peft=adapter --tasks sst2`
    """
    program = shutil.which(words[0])
    if program is None:
        raise InputError(f"{words[0]} is no program on the PATH: write eckart run -- COMMAND ARGUMENTS")
    spec = find_spec("eckart")
    assert spec is not None and spec.origin is not None
    first = [str(Path(spec.origin).parent / "startup")]
    path = os.pathsep.join([*first, *filter(None, [os.environ.get("PYTHONPATH")])])
    os.execve(program, words, {**os.environ, "PYTHONPATH": path})
