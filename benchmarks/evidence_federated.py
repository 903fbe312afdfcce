"""What the federated strategies do to a model: their order on real data, their aggregation error, LoRA-FAIR's start.

    python benchmarks/evidence_federated.py [--data sst2=DIR] [--data docstrings=] [--seeds 3]

Without ``--data`` only the algebra runs: relative errors on random factors (96 × 64, rank 8, 6 clients). With it, every
arm trains MiniLM over the same clients, seeds and rounds, without Flower in between; each finished run is written at
once, and a run that is already there is not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from eckart.federated import LoRAFAIR, aggregate
from eckart.federated.rounds import Round, Update
from eckart.files import atomic_write
from eckart.jobs.federate import client, lora
from eckart.jobs.federate.plan import Plan
from eckart.jobs.federate.server import begin
from eckart.tasks.task import load_task
from eckart.tasks.trainer import evaluate

RESULTS = Path(__file__).parent / "results" / "evidence_federated.json"
PAGE = Path(__file__).parents[1] / "docs" / "evidence" / "lora-fair.md"
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


def algebra() -> list[dict[str, Any]]:
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
    import dataclasses

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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", action="append", default=[], metavar="NAME=DIR", help="may be repeated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", help="names with semicolons; all when left out")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {"rows": []}
    report = known | {
        "machine": platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "setting": {
            "clients": CLIENTS,
            "rounds": ROUNDS,
            "train": TRAIN,
            "rank": RANK,
            "partitions": PARTITIONS,
        },
        "algebra": algebra(),
    }
    _write(arguments.output, report)
    if arguments.output == RESULTS:
        page(report)
    for row in report["algebra"]:
        print(f"{row['arm']:50} error {row['error']:.4f}  cosine {row['cosine']:.4f}", flush=True)
    for seed in range(arguments.seeds):
        for arm in arguments.arms.split(";") if arguments.arms else ARMS:
            slug, options = ARMS[arm]
            for given in arguments.data:
                name, _, place = given.partition("=")
                key = {"arm": arm, "data": name, "seed": seed}
                if any(all(row[k] == v for k, v in key.items()) for row in report["rows"]):
                    continue
                row = {"arm": arm} | train(name, place, seed, slug, options)
                report["rows"].append(row)
                _write(arguments.output, report)
                told = f"{row['score']:.4f}  error {row['error'][-1]:.4f}  {row['seconds']:.0f} s"
                if arguments.output == RESULTS:
                    page(report)
                print(f"{name:12} seed {seed}  {arm:36} {told}", flush=True)


def page(report: dict[str, Any]) -> None:
    """Write the tables of docs/evidence/lora-fair.md."""
    algebra_rows = [
        f"| {row['arm']} | {row['error']:.4f} | {row['cosine']:.4f} |" for row in report["algebra"]
    ]
    parts = {"algebra": ["| | error | cosine |", "| --- | --- | --- |", *algebra_rows]}
    lines = [
        "| data | strategy | seeds | score | against FedIT | bias | error | MB down |",
        "| --- " * 8 + "|",
    ]
    setting = report["setting"]
    for name in dict.fromkeys(row["data"] for row in report["rows"]):
        base = {r["seed"]: r["score"] for r in report["rows"] if (r["data"], r["arm"]) == (name, "FedIT")}
        for arm in ARMS:
            rows = [r for r in report["rows"] if (r["data"], r["arm"]) == (name, arm)]
            if rows:
                lines.append(f"| {name} | {arm} | {len(rows)} | {_line(rows, base)} |")
    told = (
        f"{setting['clients']} clients, {setting['rounds']} rounds, {setting['train']} training examples, partitions "
        f"{', '.join(f'{k} {v}' for k, v in setting['partitions'].items())}; means over the seeds, differences "
        "paired by seed with their standard error."
    )
    parts["data"] = [*lines, "", told]
    text = PAGE.read_text("utf-8")
    for mark, new in parts.items():
        head, rest = text.split(f"<!-- {mark}:begin", 1)
        first, rest = rest.split("\n", 1)
        text = (
            f"{head}<!-- {mark}:begin{first}\n"
            + "\n".join(new)
            + f"\n<!-- {mark}:end"
            + rest.split(f"<!-- {mark}:end", 1)[1]
        )
    PAGE.write_text(text, "utf-8")


def _line(rows: list[dict[str, Any]], base: dict[int, float]) -> str:
    gaps = [row["score"] - base[row["seed"]] for row in rows if row["seed"] in base]
    gap = f"{statistics.mean(gaps):+.4f}" if gaps else "-"
    if len(gaps) > 1:
        gap += f" ± {statistics.stdev(gaps) / len(gaps) ** 0.5:.4f}"
    score = statistics.mean(row["score"] for row in rows)
    bias, error = (statistics.mean(row[key][-1] for row in rows) for key in ("bias", "error"))
    down = statistics.mean(row["bytes_down"] for row in rows) / 1e6
    return f"{score:.4f} | {gap} | {bias:.4f} | {error:.2g} | {down:.1f}"


def _write(path: Path, report: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
