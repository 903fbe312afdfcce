"""Everything that is to be known of a GPU, in one run of a few minutes on one card.

Run: python benchmarks/gpu.py [--minutes 8] [--parts numbers files steps …]
Try: python benchmarks/gpu.py --device cpu --small --output /tmp/results

Parts, in order of worth: `numbers` (metrics, S4D, structured and compressed layers, optimisers against the host),
`files` (adapters saved here and loaded there), `properties` (adapters against the host), `parity` (the cases of the
tests), `rules` (training rules: time over the same adapter without, what a step waits for), `steps` (time over the
frozen floor, peak memory, what a step waits for) and `compiled` (the same through torch.compile, for the fewer tokens
alone: what takes its time is to compile, half a minute an arm on a CPU). What fails is a row with its error, also where
torch.compile gives up and would run eagerly, and the rest goes on; what no time is left for is a row "not run".
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _gpu_checks as checks
import torch
from _gpu_rules import rules
from _gpu_steps import steps
from _harness import RESULTS, save

Part = Callable[[torch.device, bool], Iterator[tuple[str, Callable[[], list[dict[str, Any]]]]]]
PARTS: dict[str, tuple[float, Part]] = {
    "numbers": (0.1, checks.numbers),
    "files": (0.15, checks.files),
    "properties": (0.1, checks.properties),
    "parity": (0.1, lambda device, small: checks.parity(device)),
    "rules": (0.1, rules),
    "steps": (0.45, lambda device, small: steps(device, small, compiled=False)),
    "compiled": (1.0, lambda device, small: steps(device, small, compiled=True)),
}
"""Of each part: the share of the time that is left when it begins which it may take, and its arms."""


def run(
    name: str, device: torch.device, small: bool, until: float, arms: list[str] | None = None
) -> list[dict[str, Any]]:
    """The rows of one part.

    Args:
        name: of `PARTS`.
        device: where to run.
        small: tiny sizes.
        until: when no further arm may begin, on `time.monotonic`.
        arms: these alone, by a part of their names; all when None.
    """
    rows = []
    for arm, measure in PARTS[name][1](device, small):
        if arms is not None and not any(wanted in arm for wanted in arms):
            continue
        first = {"part": name, "arm": arm}
        if time.monotonic() >= until:
            rows.append(first | {"error": "not run: no time left"})
            continue
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                found = measure()
            rows += [first | row for row in found]
        except Exception as error:
            rows.append(first | {"error": f"{type(error).__name__}: {error}"[:300]})
        torch._dynamo.reset()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


def main() -> None:
    """Save the rows after every part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--arms", nargs="+", help="these alone, by a part of their names")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of gpu.json")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU is at hand: try it with --device cpu --small --output FOLDER")
    warnings.filterwarnings("ignore")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    device, end, rows = torch.device(options.device), time.monotonic() + 60 * options.minutes, []
    for name in options.parts:
        now = time.monotonic()
        share = 1.0 if name == options.parts[-1] else PARTS[name][0]
        rows += run(name, device, options.small, now + share * max(end - now, 0.0), options.arms)
        failed = sum("error" in row for row in rows if row["part"] == name)
        print(f"{name}: {sum(row['part'] == name for row in rows)} rows, {failed} with an error", flush=True)
        save("gpu", rows, options.output)


if __name__ == "__main__":
    main()
