"""One run of a comparison: a method, a learning rate, a seed; from a fresh model to a row of the results."""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from eckart.adapters._kept import Kept
from eckart.jobs.compare.contender import Contender, checkpoint_bytes
from eckart.jobs.compare.examples import SCORES, pack
from eckart.jobs.compare.names import TRIVIAL
from eckart.jobs.compare.plan import FINAL
from eckart.jobs.compare.setbacks import is_setback
from eckart.jobs.compare.study import Run
from eckart.tasks.environment import machine, versions
from eckart.tasks.fitting import parts_of
from eckart.tasks.forgetting import bits_of
from eckart.tasks.instruments import FrozenFloor, PeakMemory, device
from eckart.tasks.scoring import Scored, lengths, score_examples, scoring_batch
from eckart.tasks.task import Task
from eckart.tasks.trainer import Recipe, Training, data_order, in_head, train_run

WHAT = ["run_id", "stage", "method", "label", "options", "budget"]
SIZE = ["trainable_parameters", "head_parameters", "saved_bytes"]
HOW = ["lr", "seed", "steps", "status"]
SCORE = [
    *("validation_score", "score", "ci_low", "ci_high", "metric", "greater_is_better", "also", "forgetting"),
]
COST = ["step_time_ratio", "step_seconds", "peak_memory_mb", "seconds"]
USE = ["forward_ratio", "generation_ratio", "prepare_seconds"]
COLUMNS = [*WHAT, *SIZE, *HOW, *SCORE, *COST, *USE, "error", "versions", "machine"]
"""The columns of ``results.csv``."""
CURVE_POINTS = 200
"""Points kept of a training curve."""


@dataclass
class Result:
    """What a run left: its row, its curve (step, split, loss, score), what it made of each example, the rank of each
    layer, and the model."""

    row: dict[str, Any]
    curve: list[list[Any]] = field(default_factory=list)
    scored: Scored | None = None
    ranks: dict[str, int] = field(default_factory=dict)
    model: nn.Module | None = None


def _finite(value: Any) -> Any:
    """The value, or None for a float that JSON and a table cannot tell."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _thin(points: Sequence[Any]) -> list[Any]:
    """At most `CURVE_POINTS` of a curve's points, first and last among them."""
    last, parts = len(points) - 1, CURVE_POINTS - 1
    return list(points) if last <= parts else [points[round(i * last / parts)] for i in range(parts + 1)]


@dataclass
class Runner:
    """Does the runs of a comparison.

    Args:
        task: model and data.
        batch_size: examples in a step.
        budget: as it was given, for the rows.
        on_step: told in words where the run is.

    Attributes:
        before: bits of a token of the task's general text by the model as it is given; None until they are needed.
        kept: decompositions of the base's weights, which every run of a method asks for again.
    """

    task: Task
    batch_size: int
    budget: str
    on_step: Callable[[str], None] = lambda words: None
    before: float | None = field(default=None, init=False)
    kept: Kept = field(default_factory=Kept, init=False)

    def do(self, run: Run, contender: Contender | None) -> Result:
        """Do a run. What goes wrong in it is recorded in its row; what goes wrong around it is raised.

        Args:
            run: from the plan.
            contender: the method; None for the frozen floor.
        """
        start = time.perf_counter()
        result = Result(self.blank_row(run, contender))
        try:
            if contender is None:
                self._floor(run, result)
            else:
                self._train(run, contender, result)
        except Exception as error:
            if is_setback(error):
                result.model = None
                raise
            words = " ".join(f"{type(error).__name__}: {error}".split())
            result.row |= {"status": "failed", "error": words[:500]}
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        result.row["seconds"] = time.perf_counter() - start
        result.row = {name: _finite(value) for name, value in result.row.items()}
        return result

    def blank_row(self, run: Run, contender: Contender | None) -> dict[str, Any]:
        """The part of a row that is known before the run."""
        options = dict(contender.options) if contender else {}
        if contender and contender.config and self.task.head_modules:
            options["head_lr"] = run.parameters.get("head_lr")
        return dict.fromkeys(COLUMNS) | {
            "run_id": run.id,
            "stage": run.parameters["stage"],
            "method": run.parameters["method"],
            "label": contender.label if contender else "frozen floor",
            "options": json.dumps(options, default=str),
            "budget": self.budget if contender and contender.at_budget else "",
            "lr": run.parameters.get("lr"),
            "seed": run.parameters["seed"],
            "steps": run.parameters["steps"],
            "status": "complete",
            "metric": self.task.metric,
            "greater_is_better": self.task.greater_is_better,
            "error": "",
            "versions": json.dumps(versions()),
            "machine": json.dumps(machine()),
        }

    def _train(self, run: Run, contender: Contender, result: Result) -> None:
        steps, seed, row = run.parameters["steps"], run.parameters["seed"], result.row
        final = run.parameters["stage"] == FINAL
        base = self.task.fresh_model(seed).to(device())
        floor = FrozenFloor(base) if final and steps else None
        general = self.task.general if final else None
        if general is not None and self.before is None:
            self.before = bits_of(base, general)
        start = time.perf_counter()
        with self.kept.in_use():
            result.model = model = contender.prepare(base, self.task, seed)
        prepared = time.perf_counter() - start
        row |= self._sizes(model)
        if steps:
            rates = (run.parameters["lr"], run.parameters["head_lr"])
            recipe = Recipe(steps, self.batch_size, *rates, seed, contender.optimizer)
            training = train_run(
                model,
                self.task,
                recipe,
                floor=floor,
                callbacks=[r.callback() for r in contender.rules(self.task, recipe)],
                on_step=lambda step: self.on_step(f"{contender.label}, step {step} of {steps}"),
            )
            if training.status == "complete":
                result.model = model = contender.finish(model, self.task, seed)
                if not final:
                    found = self._score(model, self.task.validation).evaluation()
                    training.validations.append((steps, found))
            self._record(training, result)
        if final and row["status"] == "complete":
            self.on_step(f"{contender.label}, scoring the test split")
            result.scored = self._score(model, self.task.test)
            found = result.scored.evaluation(self.task.groups)
            row |= {"score": found.score, "ci_low": found.ci_low, "ci_high": found.ci_high}
            row["also"] = json.dumps(found.also)
            row |= contender.costs(model, self.task, prepared)
            result.ranks = contender.ranks(model)
            row["status"] = "complete" if math.isfinite(found.score) else "diverged"
            if general is not None and self.before is not None:
                row["forgetting"] = bits_of(model, general) - self.before

    def _score(self, model: nn.Module, split: Dataset[Any]) -> Scored:
        return score_examples(model, self.task, split, scoring_batch(self.task, self.batch_size))

    def _record(self, training: Training, result: Result) -> None:
        costs = ("status", "steps", "step_seconds", "step_time_ratio", "peak_memory_mb")
        result.row |= {key: getattr(training, key) for key in costs}
        losses = [[step, "train", _finite(loss), None] for step, loss in _thin(training.losses)]
        scores = [[step, "validation", _finite(v.loss), _finite(v.score)] for step, v in training.validations]
        result.curve = losses + scores
        if training.validations:
            _, last = training.validations[-1]
            result.row |= {"validation_score": last.score, "validation_loss": last.loss}

    def _sizes(self, model: nn.Module) -> dict[str, int]:
        """Numbers trained in the method and in the head, and the bytes of a checkpoint with both."""
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        head = sum(p.numel() for name, p in trained if in_head(name, self.task.head_modules))
        plain = sum(p.numel() * p.element_size() for _, p in trained)
        return {
            "trainable_parameters": sum(p.numel() for _, p in trained) - head,
            "head_parameters": head,
            "saved_bytes": checkpoint_bytes(model) if isinstance(model, PeftModel) else plain,
        }

    def _floor(self, run: Run, result: Result) -> None:
        """Step time and memory of the frozen base, on its own; the runs' ratios are measured anew beside each."""
        steps = run.parameters["steps"]
        model = self.task.fresh_model(0).to(device())
        floor = FrozenFloor(model)
        size = self.batch_size // parts_of(floor.model, self.task, self.batch_size)
        order = data_order(lengths(self.task.train), steps + 1, size, 0)
        loader = DataLoader(Subset(self.task.train, order), size, collate_fn=self.task.collator)
        batches = [{name: value.to(device()) for name, value in batch.items()} for batch in loader]
        with PeakMemory([*model.parameters(), *model.buffers()]) as memory:
            floor.step(batches[0])
        result.row |= {
            "trainable_parameters": 0,
            "head_parameters": 0,
            "step_seconds": self.batch_size // size * median(floor.step(batch) for batch in batches[1:]),
            "step_time_ratio": 1.0,
            "peak_memory_mb": memory.peak / 1e6,
        }


def trivial_record(runner: Runner) -> dict[str, Any]:
    """The record of the predictor that looks at no input: nothing is trained for it."""
    label, scores = runner.task.trivial()
    row = runner.blank_row(
        Run(f"{FINAL}/{TRIVIAL}", {"stage": FINAL, "method": TRIVIAL, "seed": 0, "steps": 0}), None
    )
    found = Scored(scores, math.nan, None).evaluation(runner.task.groups)
    row |= {"label": label, "score": found.score, "ci_low": found.ci_low, "ci_high": found.ci_high}
    row |= {"trainable_parameters": 0, "head_parameters": 0, "saved_bytes": 0}
    return {"row": row, "curve": [], SCORES: pack(scores)}


def left_out(runner: Runner, contender: Contender) -> dict[str, Any]:
    """The row of a method that does not take part: failed, with the reason."""
    parameters: Mapping[str, Any] = {"stage": FINAL, "method": contender.name, "seed": None, "steps": 0}
    row = runner.blank_row(Run(f"{FINAL}/{contender.name}", parameters), contender)
    return row | {"status": "failed", "error": contender.reason}
