"""Federated strategies: LoRA-FAIR's loss at λ = 0 is the noise of its start; who is exact, and what scores make of it.

On random factors (96 × 64, rank 8, 6 clients) the relative error of each way to aggregate, and of the gradient form by
start and λ. With ``--data NAME=DIR`` (may be repeated; ``docstrings=`` is the built-in set) every arm also trains
MiniLM over the same clients, seeds and rounds, without Flower in between. With the first seed each arm tries learning
rates until its best (by the validation split in the last rounds) has worse ones on both sides; the other seeds take
that one, and the test split is scored. Arms that send more than FedIT are scored a second time, where they have sent
as much. Each finished run is kept at once and not repeated. A run takes twenty seconds of one idle core; all arms on
two data sets with three seeds are eighty runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import math
import time
from dataclasses import dataclass, field
from functools import cache
from statistics import mean
from typing import Any

import numpy as np
import torch

from eckart.federated import LoRAFAIR, aggregate
from eckart.federated.flower import payload
from eckart.federated.rounds import Round, Update
from eckart.jobs.compare.examples import group_numbers, pack, unpack
from eckart.jobs.compare.paired import Scores
from eckart.jobs.federate import lora
from eckart.jobs.federate.client import train_round
from eckart.jobs.federate.encoded import part_of
from eckart.jobs.federate.plan import Plan
from eckart.jobs.federate.server import begin
from eckart.tasks.heads import Base
from eckart.tasks.scoring import score_examples
from eckart.tasks.task import Task, load_task
from evidence._grids import least
from evidence._record import Rows, keep, kept


@dataclass(frozen=True)
class Arm:
    """A strategy with its options, and the rank at which it sends what FedIT sends."""

    strategy: str
    options: dict[str, Any] = field(default_factory=dict)
    rank: int = 8


FEDIT = "FedIT"
ARMS = {
    FEDIT: Arm("fedit"),
    "LoRA-FAIR (ridge)": Arm("lora-fair"),
    "FLoRA": Arm("flora-stacking"),
    "LoRA-FAIR (sgd, λ 0, noisy start)": Arm("lora-fair", {"solver": "sgd", "lam": 0.0, "start": "xavier"}),
    "FlexLoRA": Arm("flexlora"),
    "FFA-LoRA, rank 16": Arm("ffa-lora", rank=16),
    "LoRA-FAIR (sgd, λ 0, zero start)": Arm("lora-fair", {"solver": "sgd", "lam": 0.0}),
    "FedEx-LoRA": Arm("fedex-lora"),
}
PARTITIONS = {"sst2": "dirichlet:0.5", "docstrings": "groups"}
"""Label skew, and feature skew: whole modules."""
CLIENTS, ROUNDS, TRAIN, RANK = 6, 6, 400, 8
JUDGED = 3
"""Last rounds whose mean validation score chooses the learning rate."""
MIDDLE, STEP = math.sqrt(1e-5), math.sqrt(10)
"""Of the grid of learning rates: where it begins, and from one to the next."""


def algebra() -> Rows:
    """Relative error of each way to aggregate random factors around a common pair."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    a, b = draw(8, 64) / 8, 0.15 * draw(96, 8)
    factors = [(a + 0.3 * draw(8, 64) / 8, b + 0.3 * 0.15 * draw(96, 8)) for _ in range(CLIENTS)]
    weights = [1.0] * CLIENTS
    exact = aggregate("fedavg", factors, weights).update(96, 64).dense()
    arms: dict[str, Any] = {
        "FedIT": "fedit",
        "ridge, λ 0": LoRAFAIR(lam=0.0),
        "ridge, λ 0.01": LoRAFAIR(),
    }
    for start in ("zero", "xavier"):
        for lam in (0.0, 0.01, 1.0):
            for steps in (1000, 5000):
                arms[f"sgd, {start} start, λ {lam:g}, {steps} steps"] = LoRAFAIR(
                    solver="sgd", lam=lam, start=start, steps=steps
                )
    arms["sgd on columns, zero start, λ 0.01, 1000 steps"] = LoRAFAIR(solver="sgd", discrepancy="columns")
    rows = []
    for name, strategy in arms.items():
        result = aggregate(strategy, factors, weights)
        got = result.update(96, 64).dense()
        rows.append(
            {
                "arm": name,
                "error": float((exact - got).norm() / exact.norm()),
                "cosine": float((exact * got).sum() / exact.norm() / got.norm()),
            }
        )
    return rows


class HalfBase(Base):
    """A base whose models compute in bfloat16, their parameters in float32."""

    def fresh(self, seed: int) -> Any:
        model = super().fresh(seed)
        model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
        return model


@cache
def task_of(place: str, seed: int) -> Task:
    """The task of a seed, encoded once; its training examples are its own."""
    task = load_task(None, place or None, seed=seed, **_given())
    gc.collect()
    gc.freeze()  # the Trainer collects garbage at every start
    return dataclasses.replace(task, base=HalfBase(task.base.model, task.base.head_modules))


def _given() -> dict[str, Any]:
    return {"max_length": 24, "limits": {"train": TRAIN, "validation": 300}}


def plan_for(name: str, place: str, seed: int, arm: Arm, lr: float) -> Plan:
    """The run as `eckart federate` would have it."""
    return Plan(
        model=None,
        data=place or None,
        task=_given(),
        fingerprint=task_of(place, seed).fingerprint,
        strategy=arm.strategy,
        options=arm.options,
        clients=CLIENTS,
        fraction=1.0,
        min_clients=CLIENTS,
        rounds=ROUNDS,
        partition=PARTITIONS.get(name, "dirichlet:0.5"),
        ranks=[arm.rank],
        lora_alpha=2.0 * arm.rank,
        target_modules=["query", "value"],
        local_epochs=1,
        batch_size=16,
        lr=lr,
        head_lr=5e-3,
        robust=None,
        malicious=0,
        clip=None,
        noise=0.0,
        delta=None,
        norm_ratio=math.inf,
        seed=seed,
    )


@dataclass
class Federation:
    """A run under way: the server's model, and what the rounds cost and missed."""

    task: Task
    plan: Plan

    def __post_init__(self) -> None:
        self.state, self.rule = begin(self.task, self.plan), self.plan.rule()
        parts = enumerate(self.plan.split(self.task))
        self.clients = [part_of(self.task, part, self.plan.seed, k) for k, part in parts]
        self.biases: list[float] = []
        self.errors: list[float] = []
        self.bytes: list[int] = []
        self.server = 0.0

    def message(self) -> dict[str, torch.Tensor]:
        """What every client is sent next."""
        return self.state.message(self.rule, self.plan.ranks[0])

    def step(self) -> None:
        """One round of all clients."""
        message, sent = self.message(), 0
        taken = Round(self.state, self.rule, list(range(CLIENTS)), norm_ratio=math.inf)
        for k, own in enumerate(self.clients):
            copy = {key: value.clone() for key, value in message.items()}
            tensors, said = train_round(
                own, self.plan, k, copy, number=self.state.round + 1, fresh_seed=self.state.fresh_seed
            )
            sent += payload(message) + payload(tensors)
            mark = time.process_time()
            taken.add(Update(k, tensors, self.plan.ranks[0], said["num-examples"]))
            self.server += time.process_time() - mark
        mark = time.process_time()
        outcome = taken.finish(CLIENTS)
        self.server += time.process_time() - mark
        self.state = outcome.state
        self.biases.append(outcome.bias)
        self.errors.append(outcome.error)
        self.bytes.append(sent)

    def scores(self, split: Any) -> np.ndarray:
        """1 or 0 for each example, by the server's model."""
        model = lora.server_model(self.task, self.state, self.plan.seed)
        return score_examples(model, self.task, split, 64).scores


def train(name: str, place: str, seed: int, label: str, lr: float) -> dict[str, Any]:
    """One arm with one seed and learning rate: scores, aggregation errors and bytes."""
    arm, task, began = ARMS[label], task_of(place, seed), time.process_time()
    run = Federation(task, plan_for(name, place, seed, arm, lr))
    budget = 2 * CLIENTS * ROUNDS * payload(run.state.start(RANK)) if arm.rank == RANK else math.inf
    validation, early = [], None
    for number in range(1, ROUNDS + 1):
        run.step()
        if number > ROUNDS - JUDGED:
            validation.append(float(run.scores(task.validation).mean()))
        next_round = CLIENTS * (payload(run.message()) + payload(run.state.start(RANK)))
        if early is None and number < ROUNDS and sum(run.bytes) + next_round > budget:
            early = number, float(run.scores(task.test).mean())
    right = run.scores(task.test)
    return {
        "data": name,
        "arm": label,
        "seed": seed,
        "lr": lr,
        "validation": validation,
        "score": float(right.mean()),
        "score at FedIT's bytes": early[1] if early else float(right.mean()),
        "rounds at FedIT's bytes": early[0] if early else ROUNDS,
        "bias": run.biases,
        "error": run.errors,
        "bytes": run.bytes,
        "right": pack(right, np.int8),
        "server_seconds": run.server,
        "cpu_seconds": time.process_time() - began,
    }


def run_of(name: str, place: str, seed: int, label: str, lr: float) -> dict[str, Any]:
    """The kept row of a run, or that of a new one."""
    key = {"data": name, "arm": label, "seed": seed, "lr": lr}
    for row in kept("lora-fair"):
        if key.items() <= row.items():
            return row
    row = train(name, place, seed, label, lr)
    keep("lora-fair", [*kept("lora-fair"), row])
    print(
        f"{name} seed {seed} {label} lr {lr:.2g}: {mean(row['validation']):.4f} {row['score']:.4f}",
        flush=True,
    )
    return row


def tuned(name: str, place: str, label: str) -> float:
    """The learning rate of an arm: better than its neighbours on the grid."""

    def loss(i: int) -> float:
        try:
            return -mean(run_of(name, place, 0, label, MIDDLE * STEP**i)["validation"])
        except FloatingPointError:
            return 0.0

    return MIDDLE * STEP ** least(loss)


def paired(name: str, place: str, rows: Rows) -> Rows:
    """Each arm against FedIT, at its learning rate: paired by seed and test example."""
    found = [row for row in rows if row["data"] == name and row["chosen"]]
    arms = list(dict.fromkeys(row["arm"] for row in found))
    seeds = sorted({row["seed"] for row in found})
    means = np.full((len(arms), len(seeds)), np.nan)
    examples = {}
    for row in found:
        place_of = arms.index(row["arm"]), seeds.index(row["seed"])
        means[place_of], examples[place_of] = row["score"], unpack(row["right"], np.int8).astype(float)
    scores = Scores(means, examples, np.zeros(len(arms)), group_numbers(task_of(place, 0).groups))
    told = []
    for number, arm in enumerate(arms):
        gap = scores.difference(number, arms.index(FEDIT))
        if arm != FEDIT and gap is not None:
            told.append(
                {"part": "paired", "data": name, "arm": arm, "seeds": gap.seeds}
                | {"difference": gap.value, "low": gap.low, "high": gap.high}
            )
    return told


def arguments(parser: argparse.ArgumentParser) -> None:
    """The data sets, and how many seeds and which arms of them."""
    parser.add_argument("--data", action="append", default=[], metavar="NAME=DIR", help="may be repeated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", help=f"names with semicolons; all when left out: {'; '.join(ARMS)}")


def run(options: argparse.Namespace) -> Rows:
    """The algebra, and what is not there yet of the training runs."""
    torch.set_num_threads(1)
    places = dict(data.split("=", 1) for data in options.data)
    chosen: set[tuple[str, str, float]] = set()
    for label in options.arms.split(";") if options.arms else ARMS:
        for name, place in places.items():
            lr = tuned(name, place, label)
            chosen.add((name, label, lr))
            for seed in range(1, options.seeds):
                run_of(name, place, seed, label, lr)
    runs = [
        row | {"chosen": (row["data"], row["arm"], row["lr"]) in chosen or row.get("chosen", False)}
        for row in kept("lora-fair")
        if "lr" in row
    ]
    return algebra() + runs + [row for name, place in places.items() for row in paired(name, place, runs)]
