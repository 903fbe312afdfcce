"""What S4D costs as the sequence grows: kernel, training step and recurrent step, beside a GRU and attention.

    python benchmarks/s4d_scaling.py [--lengths 1024,4096,16384,65536] [--width 64] [--seconds 4]

One layer each of equal width, forward and backward on one sequence, the arms taking turns within one process. Prints
the times as ratios to S4D's at the same length, and for each arm the exponent e of time ~ (L log L)^e: at most 1 where
the cost is that of a fast Fourier transform. Attention stops at 16,384 steps: four times as long takes sixteen times.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from _figure import line_chart
from _fit import exponent
from _harness import interleave, save, table
from torch import Tensor, nn

from eckart.layers import S4D

LONGEST_ATTENTION = 16_384
STEPS = 100  # recurrent steps in one measurement


def attention(layer: nn.MultiheadAttention, mask: Tensor, x: Tensor) -> Tensor:
    return layer(x, x, x, attn_mask=mask, is_causal=True, need_weights=False)[0]


def train_step(layer: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> None:
    layer.zero_grad()
    forward(x).square().mean().backward()


@torch.no_grad()
def recurrent_steps(layer: S4D, state: Tensor, x: Tensor) -> None:
    for _ in range(STEPS):
        _, state = layer.step(x, state)


def arms(length: int, width: int) -> dict[str, Callable[[], None]]:
    torch.manual_seed(0)
    x = torch.randn(1, length, width, requires_grad=True)
    s4d, gru = S4D(width, 64), nn.GRU(width, width, batch_first=True)
    with torch.no_grad():
        state = s4d.forward_with_state(x)[1]
    made = {
        "S4D": partial(train_step, s4d, s4d, x),
        "S4D, kernel alone": partial(train_step, s4d.kernel, lambda _: s4d.kernel(length), x),
        f"S4D, {STEPS} recurrent steps": partial(recurrent_steps, s4d.eval(), state, x[:, 0]),
        "GRU": partial(train_step, gru, lambda x: gru(x)[0], x),
    }
    if length <= LONGEST_ATTENTION:
        mixer = nn.MultiheadAttention(width, 4, batch_first=True)
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        made["attention"] = partial(train_step, mixer, partial(attention, mixer, mask), x)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", default="1024,2048,4096,8192,16384,32768,65536")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each length")
    options = parser.parse_args()

    rows: list[dict[str, Any]] = []
    for length in map(int, options.lengths.split(",")):
        times = interleave(arms(length, options.width), options.seconds)
        rows += [
            {"length": length, "arm": arm, "ms": 1e3 * t, "x S4D": t / times["S4D"]}
            for arm, t in times.items()
        ]
        print(f"length {length}: done", flush=True)
    table(rows)
    series = {
        arm: [(r["length"], r["ms"]) for r in rows if r["arm"] == arm] for arm in {r["arm"]: 0 for r in rows}
    }
    fits = []
    for arm, points in series.items():
        lengths, ms = np.array(points).T
        if len(points) > 1:
            nlogn = lengths * np.log2(lengths)
            fits.append(
                {
                    "arm": arm,
                    "exponent in L log L": exponent(nlogn, ms),
                    "last doubling": float(math.log(ms[-1] / ms[-2]) / math.log(nlogn[-1] / nlogn[-2])),
                }
            )
    if fits:
        table(fits)
        line_chart(
            "s4d-scaling",
            f"One layer of width {options.width}, forward and backward",
            "length of the sequence",
            "ms",
            series,
            log_x=True,
        )
    save("s4d_scaling", [*rows, *fits])


if __name__ == "__main__":
    main()
