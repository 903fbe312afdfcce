"""Does the matrix nuclear norm order models by size and training stage? Byte language models measured as they learn.

Trains byte-level Llamas of three widths on a text (Python's own docstrings when left out), and at six stages from
untrained to trained measures the hidden states of the same 200 held-out windows of exactly 256 bytes: the rank
correlation of each metric with the held-out loss, what shuffling the bytes does to the score, and what a rotation of
the feature space does. Ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from scipy.stats import spearmanr
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks._figure import line_chart
from benchmarks._harness import table
from eckart.data.read import read_data
from eckart.metrics import measure_states
from evidence._record import Rows

WIDTHS = (32, 64, 128)
WINDOW, WINDOWS, BATCH = 256, 200, 16
METRICS = ("matrix_nuclear_norm", "matrix_entropy", "nuclear_norm", "effective_rank", "stable_rank")


def byte_text(data: str | None, part: str) -> Tensor:
    """The texts of a split as one row of bytes."""
    texts = read_data(data, labelled=False).splits[part].inputs
    return torch.frombuffer(bytearray("\n".join(texts).encode()), dtype=torch.uint8).long()


def windows(text: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Windows of ``WINDOW`` bytes at random places."""
    starts = torch.randint(len(text) - WINDOW, (count, 1), generator=generator)
    return text[starts + torch.arange(WINDOW)]


def byte_llama(width: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=WINDOW,
            tie_word_embeddings=True,
        )
    )


@torch.no_grad()
def observe(model: LlamaForCausalLM, held_out: Tensor, shuffled: Tensor, seed: int) -> dict[str, float]:
    """Loss in bits a byte and the mean of every metric; the scores of shuffled bytes and of rotated features beside."""
    model.eval()
    states, mixed = (
        torch.cat([model.model(input_ids=ids).last_hidden_state for ids in rows.split(BATCH)])
        for rows in (held_out, shuffled)
    )
    nats = F.cross_entropy(model.lm_head(states[:, :-1]).flatten(0, 1), held_out[:, 1:].flatten()).item()
    width = states.shape[-1]
    rotation = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed))).Q
    found = {"bits_per_byte": nats / math.log(2)}
    for suffix, hidden, wanted in (
        ("", states, METRICS),
        ("_shuffled", mixed, METRICS[:2]),
        ("_rotated", states @ rotation, METRICS[:2]),
    ):
        values = measure_states(hidden, metrics=wanted)
        found |= {f"{name}{suffix}": value.double().mean().item() for name, value in values.items()}
    return found


def stages(steps: int) -> list[int]:
    """Six stages, from untrained to the last step, evenly spread on a logarithmic scale."""
    return [0, *np.unique(np.geomspace(max(steps // 32, 1), steps, 5).round().astype(int)).tolist()]


def train(width: int, seed: int, steps: int, train_text: Tensor, held_out: Tensor) -> list[dict[str, Any]]:
    torch.manual_seed(seed)
    model, generator = byte_llama(width), torch.Generator().manual_seed(seed)
    order = torch.rand(held_out.shape, generator=torch.Generator().manual_seed(1)).argsort(-1)
    shuffled = held_out.gather(-1, order)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 20))
    rows, wanted = [], set(stages(steps))
    for step in track(range(steps + 1), f"width {width}, seed {seed}"):
        if step in wanted:
            rows.append(
                {"width": width, "seed": seed, "step": step, **observe(model, held_out, shuffled, seed)}
            )
        model.train()
        ids = windows(train_text, BATCH, generator)
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        warm_up.step()
    return rows


def correlations(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each metric the rank correlation with the loss: over the stages of one network (mean and range of the runs),
    over those stages without the untrained one, over the widths at the end of training, and over everything."""
    runs = [
        [r for r in rows if (r["width"], r["seed"]) == key]
        for key in sorted({(r["width"], r["seed"]) for r in rows})
    ]
    last = max(r["step"] for r in rows)
    found = []
    for metric in METRICS:

        def rho(part: list[dict[str, Any]], metric: str = metric) -> float:
            return float(spearmanr([r[metric] for r in part], [r["bits_per_byte"] for r in part]).statistic)

        by_run = [rho(run) for run in runs]
        found.append(
            {
                "metric": metric,
                "stages": float(np.mean(by_run)),
                "stages, least": min(by_run),
                "stages, most": max(by_run),
                "stages without step 0": float(np.mean([rho(run[1:]) for run in runs])),
                "widths at the end": rho([r for r in rows if r["step"] == last]),
                "all": rho(rows),
            }
        )
    return found


def rotations(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By width and stage the scores: of the text, of its bytes shuffled, of rotated features; medians of the seeds."""
    found = []
    for width, step in sorted({(r["width"], r["step"]) for r in rows}):
        part = [r for r in rows if (r["width"], r["step"]) == (width, step)]
        names = ("bits_per_byte", *(f"{m}{s}" for m in METRICS[:2] for s in ("", "_shuffled", "_rotated")))
        found.append(
            {"width": width, "step": step} | {n: float(np.median([r[n] for r in part])) for n in names}
        )
    return found


def arguments(parser: argparse.ArgumentParser) -> None:
    """The text and the size of the study."""
    parser.add_argument("--data", help="a text, or a data set with texts; Python's docstrings when left out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)


def run(options: argparse.Namespace) -> Rows:
    """Train every width with every seed, and draw score and entropy against the loss."""
    train_text, test_text = byte_text(options.data, "train"), byte_text(options.data, "test")
    held_out = windows(test_text, WINDOWS, torch.Generator().manual_seed(0))
    rows = [
        row
        for seed in range(options.seeds)
        for width in WIDTHS
        for row in train(width, seed, options.steps, train_text, held_out)
    ]
    rho, rotated = correlations(rows), rotations(rows)
    table(rotated)
    table(rho)
    medians = {width: [r for r in rotated if r["width"] == width] for width in WIDTHS}
    for metric, title in (
        ("matrix_nuclear_norm", "Matrix nuclear norm"),
        ("matrix_entropy", "Matrix entropy"),
    ):
        line_chart(
            f"metrics-{metric.replace('_', '-')}",
            f"{title} of byte models as they learn",
            "held-out loss, bits a byte",
            title.lower(),
            {
                f"width {width}{label}": [(r["bits_per_byte"], r[f"{metric}{suffix}"]) for r in part]
                for width, part in medians.items()
                for suffix, label in (("", ""), ("_rotated", ", rotated"))
            },
            log_y=False,
        )
    return [
        *({"kind": "run", **row} for row in rows),
        *({"kind": "median of the seeds", **row} for row in rotated),
        *({"kind": "rank correlation with the loss", **row} for row in rho),
    ]
