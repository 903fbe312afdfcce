"""Time and peak memory of `eckart compress`, a process for each method; rows that are there already are kept.

A fifth of the linear layers removed, 64 blocks of 256 tokens of calibration, one thread. Needs text:

    python benchmarks/compression_cost.py --model smollm2 --data DIR
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _harness import RESULTS, save, table

NAME = "compression_cost"
METHODS = "modegpt,whitened-svd,lord,welore,svd"
WORDS = (
    *(
        "--kind",
        "causal-lm",
        "--ratio",
        "0.2",
        "--calibration",
        "64",
        "--max-length",
        "256",
        "--batch-size",
        "4",
    ),
    *("--limit", "train=64", "--limit", "validation=4", "--limit", "test=4"),
)


def measured(model: str, data: str, method: str) -> dict[str, Any]:
    """One run of the command; to be called in a process that has no other child of that size."""
    with tempfile.TemporaryDirectory() as place:
        output = Path(place, "small")
        words = ["--model", model, "--data", data, "--method", method, "--output", str(output), *WORDS]
        start = time.perf_counter()
        code = "import sys; from eckart.cli.app import main; sys.exit(main())"
        subprocess.run([sys.executable, "-c", code, "compress", *words], check=True, capture_output=True)
        seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        found = json.loads((output / "metrics.json").read_text("utf-8"))
    return {
        "method": method,
        "removed": found["removed"],
        "compressing s": found["seconds"],
        "command s": round(seconds, 1),
        "processor s": round(used.ru_utime + used.ru_stime, 1),
        "peak MiB": round(used.ru_maxrss / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", required=True, help="directory of train and test text")
    parser.add_argument("--methods", default=METHODS, help="names with commas")
    parser.add_argument("--one", action="store_true", help="print the row of the one method that is named")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measured(arguments.model, arguments.data, arguments.methods)))
        return
    path = RESULTS / f"{NAME}.json"
    rows = json.loads(path.read_text("utf-8"))["rows"] if path.is_file() else []
    for method in arguments.methods.split(","):
        if method in {row["method"] for row in rows}:
            continue
        words = ["--model", arguments.model, "--data", arguments.data, "--methods", method, "--one"]
        told = subprocess.run([sys.executable, __file__, *words], check=True, capture_output=True, text=True)
        rows.append(json.loads(told.stdout.splitlines()[-1]))
        save(NAME, rows)
    table(rows)


if __name__ == "__main__":
    main()
