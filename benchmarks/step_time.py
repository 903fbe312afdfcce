"""Step time (forward + backward + AdamW) against PEFT's own layers and against the frozen floor.

Run: python benchmarks/step_time.py [--models minilm d1024] [--tokens 128 1024 4096] [--seconds 20]
"""

from __future__ import annotations

import argparse
import warnings

from _arms import ARMS, PAIRS
from _harness import MODELS, interleave, make_arm, make_step, save, table


def main() -> None:
    """Print and save one row for each model, token count and arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--tokens", nargs="+", type=int, default=[128, 1024, 4096], help="tokens in a step")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seconds", type=float, default=20, help="time for each model and token count")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows = []
    for model in options.models:
        arms = {
            name: make_arm(model, ARMS[name])
            for name in {"frozen floor": None, **dict.fromkeys(options.arms)}
        }
        for tokens in options.tokens:
            times = interleave(
                {name: make_step(arm, model, tokens) for name, arm in arms.items()}, options.seconds
            )
            for name, seconds in times.items():
                rival = PAIRS.get(name)
                rows.append(
                    {
                        "model": model,
                        "tokens": tokens,
                        "arm": name,
                        "ms": 1e3 * seconds,
                        "x frozen floor": seconds / times["frozen floor"],
                        "x PEFT": seconds / times[rival] if rival in times else "",
                    }
                )
            table([row for row in rows if row["model"] == model and row["tokens"] == tokens])
    save("step_time", rows)


if __name__ == "__main__":
    main()
