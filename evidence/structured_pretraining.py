"""Low-rank, SLTrain, LOST and Spectron against full rank: loss curves of tiny code models of equal size.

Every arm is a Llama on the source of Python's standard library; all but two have the parameters of the first,
a full model of a smaller width. Each arm's rate is the best of a grid that grows until its best is inside, by the
validation loss of a shorter run; for Trion so is the share of the rate at which AdamW moves what is no hidden matrix.
Then three seeds each, which see the same sequences in the same order in all arms.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from benchmarks._harness import table
from eckart.jobs.pretrain.preparation import Prepared, prepare
from eckart.jobs.pretrain.regimes import regime_of
from eckart.jobs.pretrain.training import build, optimizer_of
from eckart.layers import ReLoRALinear
from evidence._grids import least
from evidence._record import Rows, keep, kept

SLUG = "structured-pretraining"
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
    """One way of training: width, layers and optimiser, and the middles of its grids."""

    name: str
    width: int
    method: str = "full"
    options: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "adamw"
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    middle: float = 3e-3
    share: float | None = None

    def told(self) -> dict[str, Any]:
        """What of it is in each of its rows, so that a later run knows whether they are of the same arm."""
        hidden = ("name", "middle", "share")
        return {"arm": self.name, **{k: v for k, v in asdict(self).items() if k not in hidden}}

    def shared(self, i: int) -> Arm:
        """This arm with the i-th share of the grid, or itself where there is none."""
        if self.share is None:
            return self
        given = {**self.optimizer_options, "adamw_scale": self.share * STEP**i}
        return replace(self, optimizer_options=given, share=None)


NARROW_NAME, WIDE_NAME = f"full, width {NARROW}", f"full, width {WIDTH}"
BASELINES = (NARROW_NAME, WIDE_NAME)
QUARTER = {"rank_ratio": 0.25}
DCT = {**QUARTER, "error_feedback": "int8"}
GALORE = {**QUARTER, "update_gap": 50}

ARMS = (
    Arm(NARROW_NAME, NARROW),
    Arm(WIDE_NAME, WIDTH),
    Arm("low-rank", WIDTH, "low-rank", {"r": 21}),
    Arm("low-rank, Spectron", WIDTH, "low-rank", {"r": 21}, "spectron", middle=3e-2),
    Arm("SLTrain", WIDTH, "sltrain", {"r": 19, "sparsity": 0.03}),
    Arm("LOST", WIDTH, "lost", {"r": 19, "sparsity": 0.03}),
    Arm("ReLoRA", WIDTH, "relora", {"r": 21, "rewarm": 8}),
    Arm(f"DCTAdamW, width {NARROW}", NARROW, optimizer="dct-adamw", optimizer_options=DCT),
    Arm(
        f"Trion, width {NARROW}", NARROW, optimizer="trion", optimizer_options=QUARTER, middle=3e-2, share=0.3
    ),
    Arm(f"GaLore, width {NARROW}", NARROW, optimizer="galore", optimizer_options=GALORE, middle=1e-2),
    Arm(f"Muon, width {NARROW}", NARROW, optimizer="muon", middle=1e-2),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=320, help="updates of a final run")
    parser.add_argument("--tuning-steps", type=int, default=120, help="updates of a run that tries a rate")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--run", default="structured", metavar="DIR", help="of the tokens; structured")
    parser.add_argument(
        "--resume", action="store_true", help="keep what the rows have of the same arms and steps"
    )


def model_of(arm: Arm, seed: int, end: int, of_layers: dict[str, Any]) -> nn.Module:
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
    return build(config, arm.method, seed, of_layers)


def sequences(split: Any, indices: Sequence[int]) -> Tensor:
    return torch.stack([split[int(i)]["input_ids"] for i in indices])


def numbers(model: nn.Module) -> int:
    """Of the model that the method leaves: ReLoRA's factors are merged."""
    merged = sum(p.numel() for m in model.modules() if isinstance(m, ReLoRALinear) for p in m.factors)
    return sum(p.numel() for p in model.parameters()) - merged


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
    regime, of_layers = regime_of(arm.method, arm.options, seed)
    model: Any = model_of(arm, seed, data.tokenizer.eos_token_id, of_layers)
    optimizer = optimizer_of(model, arm.optimizer, lr, 0.0, False, dict(arm.optimizer_options))
    assert optimizer is not None
    if regime is not None:
        regime.attach(model, optimizer, steps=steps)
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


class Record:
    """The rows so far; what is there of the same arm and length is not measured again."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def row(self, wanted: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row that has all this in it; made, and kept at once, where there is none."""
        for row in self.rows:
            if wanted.items() <= row.items():
                return row
        self.rows.append({**wanted, **measure()})
        keep(SLUG, [*self.rows, *paired(self.rows)])
        return self.rows[-1]


def tune(arm: Arm, steps: int, data: Prepared, record: Record) -> tuple[Arm, float]:
    """The arm with the best share, and the best rate for it; neither is the outermost that was tried."""

    def score(one: Arm, i: int) -> float:
        lr = arm.middle * STEP**i
        wanted = {"part": "rates", **one.told(), "updates": steps, "lr": lr}
        found = record.row(wanted, lambda: {"validation": train(one, lr, steps, 0, data, [steps])[1][-1]})
        return float(found["validation"])

    def rate(one: Arm) -> int:
        return least(lambda i: score(one, i), most=9)

    def best_of(share: int) -> float:
        one = arm.shared(share)
        return score(one, rate(one))

    chosen = arm if arm.share is None else arm.shared(least(best_of, most=9))
    return chosen, arm.middle * STEP ** rate(chosen)


def final(arm: Arm, lr: float, steps: int, seed: int, data: Prepared, record: Record) -> dict[str, Any]:
    """The row of a seed."""
    points = [round(steps * (i + 1) / POINTS) for i in range(POINTS)]

    def measure() -> dict[str, Any]:
        begun = time.process_time()
        model, curve = train(arm, lr, steps, seed, data, points)
        seconds = time.process_time() - begun
        test = float(losses(model, sequences(data.splits["test"], spread(data, "test"))).mean())
        return {"parameters": numbers(model), "validation": curve, "test": test, "seconds": seconds}

    return record.row({"part": "run", **arm.told(), "lr": lr, "seed": seed, "steps": points}, measure)


def paired(rows: Rows) -> Rows:
    """The arms' losses minus those of each full model: of the same seeds and test sequences."""
    tests = {(r["arm"], r["seed"]): r["test"] for r in rows if r["part"] == "run"}
    found: Rows = []
    for arm, against in product(dict.fromkeys(arm for arm, _ in tests), BASELINES):
        seeds = [seed for name, seed in tests if name == arm and (against, seed) in tests]
        gaps = [tests[arm, seed] - tests[against, seed] for seed in seeds]
        if arm != against and len(gaps) > 1:
            row = {"part": "paired", "arm": arm, "against": against, "difference": float(np.mean(gaps))}
            found.append(row | {"half of the 95 % interval": half_interval(gaps)})
    return found


def run(options: argparse.Namespace) -> Rows:
    given = {"data": "stdlib", "column": "text", "tokenizer": None}
    data = prepare({**given, "vocabulary": VOCABULARY, "length": LENGTH}, Path(options.run))
    record = Record([row for row in kept(SLUG) if row["part"] != "paired"] if options.resume else [])
    wanted: Rows = []
    for arm in ARMS:
        chosen, lr = tune(arm, options.tuning_steps, data, record)
        done = [final(chosen, lr, options.steps, seed, data, record) for seed in range(options.seeds)]
        table([{k: r[k] for k in ("arm", "lr", "seed", "test", "seconds")} for r in done])
        tried = {"part": "rates", "arm": arm.name, "updates": options.tuning_steps}
        wanted += sorted(
            (row for row in record.rows if tried.items() <= row.items()),
            key=lambda row: (row["optimizer_options"].get("adamw_scale", 0), row["lr"]),
        )
        wanted += done
    return [*wanted, *paired(wanted)]


def half_interval(means: list[float]) -> float:
    """t₀.₉₇₅ s/√K of the seeds' means."""
    student = float(stats.t.ppf(0.975, len(means) - 1))
    return student * float(np.std(means, ddof=1)) / math.sqrt(len(means))
