"""What a run leaves: tables of rounds and clients, a report page, checkpoints, and in the end a PEFT adapter.

run.json                     the plan
checkpoints/round-0003.safetensors   the server's model after each round (the last two), with the tables so far
rounds.csv, clients.csv, report.html
adapter_model.safetensors, adapter_config.json, …, README.md, metrics.json      when the run is over
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.errors import InputError
from eckart.escapes import named_cells
from eckart.files import atomic_directory, atomic_write
from eckart.jobs.federate.card import model_card
from eckart.jobs.federate.page import page

if TYPE_CHECKING:
    from eckart.federated.flower import RoundReport
    from eckart.federated.state import ServerState
    from eckart.jobs.federate.plan import Plan
    from eckart.tasks.scoring import Evaluation
    from eckart.tasks.task import Task

RUN, METRICS, CARD = "run.json", "metrics.json", "README.md"
CHECKPOINTS, FAILURE = "checkpoints", "failure.json"
ROUND_COLUMNS = (
    "round",
    "asked",
    "clients",
    "refused",
    "score",
    "ci_low",
    "ci_high",
    "loss",
    "client_score",
    "client_score_min",
    "bias",
    "error",
    "bytes_down",
    "bytes_up",
    "seconds",
    "server_seconds",
    "epsilon",
)
CLIENT_COLUMNS = ("round", "client", "examples", "loss", "score", "score_after", "seconds", "refused")
KEPT = 2
"""Checkpoints that stay."""

Row = dict[str, Any]


@dataclass
class Tables:
    """The rows so far."""

    rounds: list[Row] = field(default_factory=list)
    clients: list[Row] = field(default_factory=list)

    def add(self, report: RoundReport, evaluation: Evaluation, epsilon: float | None) -> None:
        """A finished round."""
        known = [m["score"] for m in report.metrics.values() if not math.isnan(m.get("score", math.nan))]
        outcome = report.outcome
        self.rounds.append(
            {
                "round": report.round,
                "asked": len(report.asked),
                "clients": len(outcome.clients),
                "refused": len(outcome.refused),
                "score": evaluation.score,
                "ci_low": evaluation.ci_low,
                "ci_high": evaluation.ci_high,
                "loss": evaluation.loss,
                "client_score": sum(known) / len(known) if known else None,
                "client_score_min": min(known) if known else None,
                "bias": outcome.bias,
                "error": outcome.error,
                "bytes_down": report.bytes_down,
                "bytes_up": report.bytes_up,
                "seconds": round(report.seconds, 3),
                "server_seconds": round(report.server_seconds, 4),
                "epsilon": epsilon,
            }
        )
        for client in report.asked:
            said = report.metrics.get(client, {})
            row = {"round": report.round, "client": client, "examples": said.get("num-examples")}
            for name in ("loss", "score", "score_after", "seconds"):
                value = said.get(name)
                row[name] = None if value is None or math.isnan(value) else value
            self.clients.append(row | {"refused": outcome.refused.get(client, "")})

    def write(self, directory: Path, title: str, metric: str) -> None:
        """The two CSV files and the page, each whole or not at all."""
        for name, columns, rows in (
            ("rounds.csv", ROUND_COLUMNS, self.rounds),
            ("clients.csv", CLIENT_COLUMNS, self.clients),
        ):
            text = io.StringIO()
            writer = csv.DictWriter(text, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(map(named_cells, rows))
            _write(directory / name, text.getvalue())
        _write(directory / "report.html", page(title, metric, self.rounds, self.clients))


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write_text(text, encoding="utf-8")


def keep(
    directory: Path, state: ServerState, plan: Plan, tables: Tables, spent: Mapping[str, Any] | None
) -> None:
    """Write a round's checkpoint and drop those before the last `KEPT`."""
    folder = directory / CHECKPOINTS
    state.save(
        folder / f"round-{state.round:04d}.safetensors",
        strategy=plan.strategy,
        fingerprint=plan.fingerprint,
        tables=asdict(tables),
        spent=spent,
    )
    for old in sorted(folder.glob("round-*.safetensors"))[:-KEPT]:
        old.unlink()


def last_kept(directory: Path, plan: Plan) -> tuple[ServerState, Tables, dict[str, Any] | None] | None:
    """The newest checkpoint that is whole; None where there is none.

    Raises:
        InputError: it is of another strategy or task.
    """
    from eckart.federated.state import ServerState

    for path in sorted((directory / CHECKPOINTS).glob("round-*.safetensors"), reverse=True):
        try:
            state, facts = ServerState.load(path)
        except InputError:
            continue
        for name in ("strategy", "fingerprint"):
            if facts[name] != getattr(plan, name):
                raise InputError(
                    f"checkpoint {path} is of {name} {facts[name]!r}, this run of {getattr(plan, name)!r}: "
                    "choose another directory or begin again with --overwrite"
                )
        return state, Tables(**facts["tables"]), facts["spent"]
    return None


def check_length(directory: Path, plan: Plan) -> dict[str, Any] | None:
    """What metrics.json holds where a run is over already; None where there are rounds to go.

    Raises:
        InputError: it has more rounds than the plan.
    """
    kept = last_kept(directory, plan)
    if kept is not None and kept[0].round > plan.rounds:
        raise InputError(
            f"rounds is {plan.rounds}: {directory} has {kept[0].round} already, give more or --overwrite"
        )
    path = directory / METRICS
    if kept is None or kept[0].round < plan.rounds or not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found if found["rounds"] == plan.rounds else None


def clear(directory: Path) -> None:
    """Remove what an earlier run left in a directory, and nothing else."""
    shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)
    for name in (RUN, METRICS, FAILURE, "rounds.csv", "clients.csv", "report.html"):
        (directory / name).unlink(missing_ok=True)


def fail(directory: Path, error: BaseException) -> None:
    """Leave word of what ended a run, for the process that waits for it."""
    kind = "input" if isinstance(error, InputError) else type(error).__name__
    _write(directory / FAILURE, json.dumps({"kind": kind, "message": str(error)}))


def finish(directory: Path, task: Task, state: ServerState, plan: Plan, tables: Tables) -> dict[str, Any]:
    """Score the final model on the test split and put adapter, card and numbers in place.

    Returns:
        what metrics.json holds.
    """
    from eckart.jobs.federate.lora import final_adapter
    from eckart.tasks.instruments import device
    from eckart.tasks.pretrained import base_name
    from eckart.tasks.scoring import evaluate

    model = final_adapter(task, state, plan.seed).to(device())
    config: Any = model.peft_config["default"]
    if plan.model is not None:
        config.base_model_name_or_path = base_name(plan.model)
    metrics = {
        "strategy": plan.strategy,
        "options": plan.options,
        "model": task.model_name,
        "data": task.data_name,
        "kind": task.kind,
        "labels": task.labels,
        "metric": task.metric,
        "greater_is_better": task.greater_is_better,
        "clients": plan.clients,
        "rounds": state.round,
        "ranks": sorted({config.r, *config.rank_pattern.values()}),
        "validation": asdict(evaluate(model, task, task.validation, 64)),
        "test": asdict(evaluate(model, task, task.test, 64)),
        "bytes_down": sum(row["bytes_down"] for row in tables.rounds),
        "bytes_up": sum(row["bytes_up"] for row in tables.rounds),
        "seconds": round(sum(row["seconds"] for row in tables.rounds), 1),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("eckart", "flwr", "torch", "transformers", "peft")},
        },
    }
    whole = directory / ".finished"
    with atomic_directory(whole, overwrite=True) as folder:
        model.save_pretrained(str(folder), save_embedding_layers=False)
        base: Any = model.get_base_model()
        base.config.save_pretrained(folder)
        if task.processor is not None:
            task.processor.save_pretrained(folder)
        (folder / METRICS).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        (folder / CARD).write_text(model_card(plan, metrics, directory), encoding="utf-8")
    for file in sorted(whole.iterdir(), key=lambda path: path.name == METRICS):
        os.replace(file, directory / file.name)
    whole.rmdir()
    return metrics
