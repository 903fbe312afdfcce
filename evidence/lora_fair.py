"""Federated strategies: LoRA-FAIR's loss at λ = 0 is the noise of its start; who is exact, and what scores make of it.

On random factors (96 × 64, rank 8, 6 clients) the relative error of each way to aggregate, and of the gradient form by
start and λ. With ``--data NAME=DIR`` (may be repeated; ``docstrings=`` is the built-in set) every arm also trains
MiniLM over the same clients, seeds and rounds, without Flower in between. Each finished run is kept at once, and a run
that is there is not repeated. A run takes 45 seconds of one idle core.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from typing import Any

import torch

from eckart.federated import LoRAFAIR, aggregate
from eckart.federated.rounds import Round, Update
from eckart.jobs.federate import client, lora
from eckart.jobs.federate.plan import Plan
from eckart.jobs.federate.server import begin
from eckart.tasks.scoring import evaluate
from eckart.tasks.task import load_task
from evidence._record import Rows, keep, kept

ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "FedIT": ("fedit", {}),
    "LoRA-FAIR (ridge)": ("lora-fair", {}),
    "LoRA-FAIR (sgd, λ 0, noisy start)": ("lora-fair", {"solver": "sgd", "lam": 0.0, "start": "xavier"}),
    "FLoRA": ("flora-stacking", {}),
    "LoRA-FAIR (sgd, λ 0, zero start)": ("lora-fair", {"solver": "sgd", "lam": 0.0}),
    "FFA-LoRA": ("ffa-lora", {}),
    "FlexLoRA": ("flexlora", {}),
}
PARTITIONS = {"sst2": "dirichlet:1", "docstrings": "dirichlet:0.3"}
CLIENTS, ROUNDS, TRAIN, RANK = 6, 6, 240, 8


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


def plan_for(
    name: str, data: str, seed: int, slug: str, options: dict[str, Any], seeds_task: dict[str, Any]
) -> Plan:
    return Plan(
        model=None,
        data=data or None,
        task=seeds_task,
        fingerprint="",
        strategy=slug,
        options=options,
        clients=CLIENTS,
        fraction=1.0,
        min_clients=CLIENTS,
        rounds=ROUNDS,
        partition=PARTITIONS.get(name, "dirichlet:1"),
        ranks=[RANK],
        lora_alpha=2.0 * RANK,
        target_modules=["query", "value"],
        local_epochs=1,
        batch_size=16,
        lr=2e-3,
        head_lr=5e-3,
        robust=None,
        malicious=0,
        clip=None,
        noise=0.0,
        delta=None,
        norm_ratio=math.inf,
        seed=seed,
    )


def train(name: str, data: str, seed: int, slug: str, options: dict[str, Any]) -> dict[str, Any]:
    """One arm with one seed: scores, aggregation errors and bytes."""
    given = {"max_length": 32, "limits": {"train": TRAIN, "validation": 436}}
    plan = plan_for(name, data, seed, slug, options, given)
    task = load_task(plan.model, plan.data, seed=seed, **given)
    plan = dataclasses.replace(plan, fingerprint=task.fingerprint)
    state, began = begin(task, plan), time.monotonic()
    biases, errors, up, down, server = [], [], 0, 0, 0.0
    score = math.nan
    for number in range(1, ROUNDS + 1):
        message = state.message(plan.rule(), RANK)
        taken = Round(state, plan.rule(), list(range(CLIENTS)), norm_ratio=math.inf)
        for k in range(CLIENTS):
            sent = {key: value.clone() for key, value in message.items()}
            tensors, said = client.local_round(plan, k, sent, number=number, fresh_seed=state.fresh_seed)
            down += sum(v.numel() * 4 for v in message.values())
            up += sum(v.numel() * 4 for v in tensors.values())
            mark = time.process_time()
            taken.add(Update(k, tensors, RANK, said["num-examples"]))
            server += time.process_time() - mark
        mark = time.process_time()
        outcome = taken.finish(CLIENTS)
        server += time.process_time() - mark
        state = outcome.state
        biases.append(outcome.bias)
        errors.append(outcome.error)
        if number == ROUNDS:
            model = lora.server_model(task, state, seed)
            score = evaluate(model, task, task.validation, 64).score
    return {
        "data": name,
        "seed": seed,
        "score": score,
        "bias": biases,
        "error": errors,
        "bytes_up": up,
        "bytes_down": down,
        "server_seconds": server,
        "seconds": time.monotonic() - began,
    }


def arguments(parser: argparse.ArgumentParser) -> None:
    """The data sets, and how many seeds and which arms of them."""
    parser.add_argument("--data", action="append", default=[], metavar="NAME=DIR", help="may be repeated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", help=f"names with semicolons; all when left out: {'; '.join(ARMS)}")


def run(options: argparse.Namespace) -> Rows:
    """The algebra, and what is not there yet of the training runs."""
    torch.set_num_threads(1)
    rows = algebra() + [row for row in kept("lora-fair") if "data" in row]
    for seed in range(options.seeds):
        for arm in options.arms.split(";") if options.arms else ARMS:
            slug, given = ARMS[arm]
            for name, _, place in (data.partition("=") for data in options.data):
                key = {"arm": arm, "data": name, "seed": seed}
                if not any(key.items() <= row.items() for row in rows):
                    rows.append({"arm": arm} | train(name, place, seed, slug, given))
                    keep("lora-fair", rows)
                    print(
                        f"{name} seed {seed}  {arm}: {rows[-1]['score']:.4f}, error {rows[-1]['error'][-1]:.4f}"
                    )
    return rows
