"""Peak memory of a training step, the model and the optimiser's state included: SaRA at a tenth of the weights against
training all of them, and SNELLA against LoRA. Counted tensor by tensor: what an allocator keeps of freed ones, and what
NumPy copies to select SNELL's and SNELLA's threshold (one matrix), is not in it.

Run: python benchmarks/chosen_weights_memory.py [--tokens 128 1024]
"""

from __future__ import annotations

import argparse
import warnings

from _arms import ARMS as WRAPS
from _harness import MODELS, make_arm, make_step, save, table

from eckart.tasks.instruments import PeakMemory

ARMS = ("all weights", "sara", "lora", "snell", "snella")
STEPS = 2
"""The first makes the optimiser's state."""


def peak(arm: str, tokens: int) -> float:
    """MiB of all tensors alive at once, from the making of the model on."""
    with PeakMemory([]) as memory:
        step = make_step(make_arm("d1024", WRAPS[arm]), "d1024", tokens)
        memory.peak = memory.current  # what making it took is gone
        for _ in range(STEPS):
            step()
    return memory.peak / 2**20


def main() -> None:
    """Print and save one row for each token count and arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", nargs="+", type=int, default=[128, 1024])
    warnings.filterwarnings("ignore")
    matrix = MODELS["d1024"][2] ** 2 * 4 / 2**20
    rows = []
    for tokens in parser.parse_args().tokens:
        peaks = {arm: peak(arm, tokens) for arm in ARMS}
        rows += [
            {
                "model": "d1024",
                "tokens": tokens,
                "arm": arm,
                "peak MiB": found,
                "x all weights": found / peaks["all weights"],
                "x lora": found / peaks["lora"],
                "matrices above lora": (found - peaks["lora"]) / matrix,
            }
            for arm, found in peaks.items()
        ]
    table(rows)
    save("chosen_weights_memory", rows)


if __name__ == "__main__":
    main()
