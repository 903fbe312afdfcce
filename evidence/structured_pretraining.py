"""Low-rank, SLTrain, LOST and Spectron against full rank: loss curves of tiny code models of equal size.

Every arm is a Llama on the source of Python's standard library; all but the last have the parameters of the first,
a full model of a smaller width. Each arm's rate is the best of a grid that grows until its best is inside, by the
validation loss of a shorter run; then three seeds each, which see the same sequences in the same order in all arms.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from benchmarks._harness import table
from eckart.jobs.pretrain.preparation import Prepared, prepare
from eckart.jobs.pretrain.training import build, optimizer_of
from evidence._record import Rows, keep

VOCABULARY, LENGTH, BATCH = 1024, 128, 8
WIDTH, NARROW, BLOCKS, HEADS = 96, 64, 3, 4
POINTS = 5
"""Points of a curve."""
HELD_OUT = 96
"""Sequences of the validation split, and of the test split, evenly spread."""
STEP = math.sqrt(10)
"""From one rate of a grid to the next."""


@dataclass(frozen=True)
class Arm:
    """One way of training: width, layers and optimiser, and the middle of its grid of rates."""

    name: str
    width: int
    method: str = "full"
    options: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "adamw"
    middle: float = 3e-3


NARROW_NAME = f"full, width {NARROW}"

ARMS = (
    Arm(NARROW_NAME, NARROW),
    Arm("low-rank", WIDTH, "low-rank", {"r": 21}),
    Arm("low-rank, Spectron", WIDTH, "low-rank", {"r": 21}, "spectron", 3e-2),
    Arm("SLTrain", WIDTH, "sltrain", {"r": 19, "sparsity": 0.03}),
    Arm("LOST", WIDTH, "lost", {"r": 19, "sparsity": 0.03}),
    Arm(f"full, width {WIDTH}", WIDTH),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=320, help="updates of a final run")
    parser.add_argument("--tuning-steps", type=int, default=120, help="updates of a run that tries a rate")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--run", default="structured", metavar="DIR", help="of the tokens; structured")


def model_of(arm: Arm, seed: int, end: int) -> nn.Module:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=arm.width,
        intermediate_size=8 * arm.width // 3,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        max_position_embeddings=LENGTH,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return build(config, arm.method, seed, dict(arm.options))


def sequences(split: Any, indices: Sequence[int]) -> Tensor:
    return torch.stack([split[int(i)]["input_ids"] for i in indices])


@torch.inference_mode()
def losses(model: Any, ids: Tensor) -> np.ndarray:
    """Nats a token of each sequence."""
    model.eval()
    found = []
    for part in ids.split(32):
        logits = model(input_ids=part).logits[:, :-1]
        nats = nn.functional.cross_entropy(logits.transpose(1, 2), part[:, 1:], reduction="none")
        found.append(nats.mean(1))
    model.train()
    return torch.cat(found).double().numpy()


def train(
    arm: Arm, lr: float, steps: int, seed: int, data: Prepared, points: Sequence[int]
) -> tuple[Any, list[float]]:
    """The trained model and its validation loss at these steps; inf from where the loss is no number."""
    model: Any = model_of(arm, seed, data.tokenizer.eos_token_id)
    optimizer = optimizer_of(model, arm.optimizer, lr, 0.0, False, {})
    assert optimizer is not None
    warm = max(1, steps // 10)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda t: min(
            (t + 1) / warm, 0.55 + 0.45 * math.cos(math.pi * max(0, t - warm) / max(1, steps - warm))
        ),
    )
    order = torch.randperm(len(data.splits["train"]), generator=torch.Generator().manual_seed(seed))
    held = sequences(data.splits["validation"], spread(data, "validation"))
    curve: list[float] = []
    for t in range(steps):
        ids = sequences(data.splits["train"], [order[(t * BATCH + i) % len(order)] for i in range(BATCH)])
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        if t + 1 in points:
            loss = float(losses(model, held).mean())
            curve.append(loss if math.isfinite(loss) else math.inf)
            if curve[-1] == math.inf:
                return model, curve + [math.inf] * (len(points) - len(curve))
    return model, curve


def spread(data: Prepared, split: str) -> np.ndarray:
    return np.linspace(0, len(data.splits[split]) - 1, HELD_OUT).astype(int)


def tune(arm: Arm, steps: int, data: Prepared) -> tuple[float, Rows]:
    """The best rate, inside of those that were tried, and what each gave."""
    tried: dict[int, float] = {}

    def score(i: int) -> float:
        if i not in tried:
            tried[i] = train(arm, arm.middle * STEP**i, steps, 0, data, [steps])[1][-1]
        return tried[i]

    for i in (-1, 0, 1):
        score(i)
    while (best := min(tried, key=score)) in (min(tried), max(tried)) and len(tried) < 9:
        score(best - 1)
        score(best + 1)
    rows = [
        {"part": "rates", "arm": arm.name, "lr": arm.middle * STEP**i, "validation": tried[i]}
        for i in sorted(tried)
    ]
    return arm.middle * STEP**best, rows


def finals(arm: Arm, lr: float, options: argparse.Namespace, data: Prepared) -> Rows:
    """A row for every seed."""
    rows: Rows = []
    test = sequences(data.splits["test"], spread(data, "test"))
    points = [round(options.steps * (i + 1) / POINTS) for i in range(POINTS)]
    for seed in range(options.seeds):
        begun = time.process_time()
        model, curve = train(arm, lr, options.steps, seed, data, points)
        seconds = time.process_time() - begun
        size = sum(p.numel() for p in model.parameters())
        row = {"part": "run", "arm": arm.name, "parameters": size, "lr": lr, "seed": seed}
        row |= {"steps": points, "validation": curve, "test": float(losses(model, test).mean())}
        rows.append(row | {"seconds": seconds})
    return rows


def paired(rows: Rows) -> Rows:
    """The arms' losses minus those of the narrower full model: of the same seeds and test sequences."""
    tests = {(r["arm"], r["seed"]): r["test"] for r in rows if r["part"] == "run"}
    found: Rows = []
    for arm in dict.fromkeys(arm for arm, _ in tests):
        gaps = [test - tests[NARROW_NAME, seed] for (name, seed), test in tests.items() if name == arm]
        row = {"part": "paired", "arm": arm, "against": NARROW_NAME, "difference": float(np.mean(gaps))}
        found.append(row | {"half of the 95 % interval": half_interval(gaps)})
    return found


def run(options: argparse.Namespace) -> Rows:
    given = {"data": "stdlib", "column": "text", "tokenizer": None}
    data = prepare({**given, "vocabulary": VOCABULARY, "length": LENGTH}, Path(options.run))
    rows: Rows = []
    for arm in ARMS:
        lr, tried = tune(arm, options.tuning_steps, data)
        done = finals(arm, lr, options, data)
        rows += [*tried, *done]
        table([{k: r[k] for k in ("arm", "lr", "seed", "test", "seconds")} for r in done])
        keep("structured-pretraining", [*rows, *paired(rows)])  # an hour's work is not lost with the last arm
    return [*rows, *paired(rows)]


def half_interval(means: list[float]) -> float:
    """t₀.₉₇₅ s/√K of the seeds' means."""
    student = float(stats.t.ppf(0.975, len(means) - 1))
    return student * float(np.std(means, ddof=1)) / math.sqrt(len(means))
