"""The training of `eckart adapt`: scored as it goes on, ended when that no longer helps, taken up after a kill."""

from __future__ import annotations

import errno
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from eckart.files import disk_is_full
from eckart.jobs.adapt.checkpoints import KeepWhole, last_whole
from eckart.jobs.adapt.job import Job
from eckart.jobs.adapt.reports import reporters
from eckart.processes import is_first, shared
from eckart.tasks.scoring import evaluate, scoring_batch
from eckart.tasks.trainer import Recipe, make_trainer
from eckart.tensors import load_state, save_state

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor

    from eckart.tasks.task import Task

Log = Mapping[str, Any]
BEST = "best.safetensors"
"""In a checkpoint: what was trained, as it was at the best evaluation so far."""


def validations(history: Sequence[Log]) -> list[dict[str, Any]]:
    """The evaluations of a log, each with its step."""
    return [{"step": log["step"], **log["validation"]} for log in history if "validation" in log]


def best(scored: Sequence[Mapping[str, Any]], greater_is_better: bool) -> int | None:
    """The place of the best evaluation, of equal ones the first; None where none has a finite score."""
    sign = 1 if greater_is_better else -1
    finite = [place for place, one in enumerate(scored) if math.isfinite(one["score"])]
    return max(finite, key=lambda place: sign * scored[place]["score"], default=None)


class Follow(TrainerCallback):
    """Scores the validation split as the run goes on, keeps what was best, and stops a run that is lost or done.

    What it decides by is the log, which is part of a checkpoint; the best state is put beside it.
    """

    def __init__(
        self,
        task: Task,
        job: Job,
        on_step: Callable[[int, int], None] | None,
        reports: Sequence[TrainerCallback],
    ) -> None:
        self.task, self.job, self.on_step, self.reports = task, job, on_step, reports
        self.state: dict[str, Tensor] = {}
        self.kept = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step
        if step % self.job.validate_every == 0 or step == self.job.steps:
            self._score(args, state, control, kwargs["model"])
        if self.on_step is not None:
            self.on_step(step, self.job.steps)

    def _score(self, args: Any, state: Any, control: Any, model: PeftModel) -> None:
        size = scoring_batch(self.task, self.job.batch_size)
        evaluation = evaluate(model, self.task, self.task.validation, size)
        state.log_history.append({"step": state.global_step, "validation": asdict(evaluation)})
        scored = validations(state.log_history)
        place = best(scored, self.task.greater_is_better)
        if self.job.keep == "best" and place == len(scored) - 1:
            self.state = {name: value.detach().cpu().clone() for name, value in _state(model).items()}
            self.kept = state.global_step
        without = len(scored) - 1 - (-1 if place is None else place)
        if self.job.patience is not None and without >= self.job.patience:
            control.should_training_stop = True
            control.should_save = False  # a run taken up at this step would go on
        told = {f"eval_{self.task.metric}": evaluation.score, "eval_loss": evaluation.loss}
        told |= {f"eval_{name}": value for name, value in evaluation.also.items()}
        for report in self.reports:
            report.on_log(args, state, control, logs=dict(told), model=model)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not math.isfinite(loss := float((logs or {}).get("loss", 0.0))):
            raise FloatingPointError(
                f"the loss is {loss} at step {state.global_step}: lower --lr or check the data"
            )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.state and state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            save_state(folder / BEST, self.state, self.kept)


def _state(model: PeftModel) -> dict[str, Tensor]:
    """What a method has trained, and the head."""
    from peft import get_peft_model_state_dict

    state: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return state


def train(
    model: PeftModel,
    task: Task,
    job: Job,
    checkpoints: Path,
    report_to: Sequence[str],
    on_step: Callable[[int, int], None] | None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Train to the end, and leave the model as it is to be kept.

    Returns:
        the log, and for metrics.json: the seconds, the step it was taken up at, the last one, and that of the weights.
    """
    from peft import set_peft_model_state_dict

    reports = reporters(report_to, checkpoints.parent) if is_first() else []
    follow = Follow(task, job, on_step, reports)
    trainer = make_trainer(
        model,
        task,
        Recipe(
            job.steps, job.batch_size, job.lr, job.head_lr, job.seed, job.optimizer, job.optimizer_options
        ),
        callbacks=[*reports, follow, KeepWhole()],
        output_dir=str(checkpoints),
        save_strategy="steps",
        save_steps=job.save_every,
        save_total_limit=2,
    )
    last = shared(lambda: last_whole(checkpoints))
    if last is not None and (last / BEST).is_file():
        follow.state, follow.kept = load_state(last / BEST, "the best state of the run")
    start = time.monotonic()
    try:
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    except RuntimeError as error:  # all that torch.save says of a full disk
        if disk_is_full(error, checkpoints):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(checkpoints)) from error
        raise
    if follow.state:
        set_peft_model_state_dict(model, {n: v.to(trainer.args.device) for n, v in follow.state.items()})
    return trainer.state.log_history, {
        "seconds": round(time.monotonic() - start, 1),
        "resumed_at_step": 0 if last is None else int(last.name.rpartition("-")[2]),
        "parts_of_a_batch": trainer.args.gradient_accumulation_steps,
        "last_step": trainer.state.global_step,
        "kept_step": follow.kept or trainer.state.global_step,
    }
