"""Repeat the measurement behind a claim of docs/evidence.

    python -m evidence                 the claims
    python -m evidence SLUG --help     what one measures, and its options
    python -m evidence SLUG            measure, print and keep the rows in evidence/results/SLUG.json

`make docs` then writes the pages from the rows.
"""

from __future__ import annotations

import argparse
import ast
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).resolve().parent


def claims() -> dict[str, str]:
    """Slug → the claim, which is the first line of its script; nothing is imported."""
    scripts = sorted(path for path in HERE.glob("*.py") if not path.name.startswith("_"))
    lines = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "" for path in scripts)
    return {
        path.stem.replace("_", "-"): line.partition("\n")[0]
        for path, line in zip(scripts, lines, strict=True)
    }


def main(argv: Sequence[str]) -> None:
    """Run one claim's script, or list them all."""
    parser = argparse.ArgumentParser(
        prog="python -m evidence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="slug", metavar="SLUG", title="claims")
    for slug, line in claims().items():
        command = commands.add_parser(
            slug, help=line.replace("%", "%%"), formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if slug in argv[:1]:
            script = import_module(f"evidence.{slug.replace('-', '_')}")
            command.description = script.__doc__
            script.arguments(command)
    options = parser.parse_args(argv)
    if options.slug is None:
        parser.print_help()
        return

    from evidence._record import keep

    warnings.simplefilter("ignore")
    keep(options.slug, script.run(options))


if __name__ == "__main__":
    main(sys.argv[1:])
