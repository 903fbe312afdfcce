"""One training run: the same recipe, batches and measurements for every method.

`make_trainer` is the one place where a `transformers.Trainer` is set up; `train_run` drives it and watches over it.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import Subset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from eckart.linalg.random import seeded_generator
from eckart.processes import world
from eckart.tasks.fitting import parts_of
from eckart.tasks.instruments import FrozenFloor, PeakMemory, device, synchronize
from eckart.tasks.optimizers import make_optimizer
from eckart.tasks.options import LANGUAGE
from eckart.tasks.scoring import Evaluation, evaluate, lengths, scoring_batch
from eckart.tasks.task import Task

WARMUP = 0.1
"""Share of the steps in which the learning rate rises; it then falls linearly to zero."""
DIVERGED = 3.0
"""A run is given up when its loss is NaN or infinite, or when the median of `DIVERGED_STEPS` is above this multiple of
its first loss: one batch may well be hard."""
DIVERGED_STEPS = 5
FLOOR_PROBES = 5
"""Steps of a measured run after which the frozen floor takes the same batch."""
_CHECKPOINTING = {"use_reentrant": False}
NEIGHBOURS = 16
"""Batches whose examples are dealt to them by length."""


@dataclass(frozen=True)
class Recipe:
    """What decides a run besides its model: one learning rate for the method, one for the head, the optimiser."""

    steps: int
    batch_size: int
    learning_rate: float
    head_learning_rate: float
    seed: int = 0
    optimizer: str = "adamw"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Training:
    """What a run left: how it ended, its curves and its costs."""

    status: str = "complete"
    steps: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)
    validations: list[tuple[int, Evaluation]] = field(default_factory=list)
    step_seconds: float = math.nan
    step_time_ratio: float = math.nan
    peak_memory_mb: float = math.nan


def data_order(lengths: Sequence[int], steps: int, batch_size: int, seed: int) -> list[int]:
    """Indices of the training examples in the order they are seen, a function of the seed alone.

    Passes through the data, each shuffled and without the odd examples that fill no batch. The examples of `NEIGHBOURS`
    batches are then sorted by length and dealt to batches that are shuffled again, so that a batch holds examples of
    like length and little is spent on padding. A shorter run sees the first batches of a longer one.

    Args:
        lengths: tokens of each example.
        steps: batches wanted.
        batch_size: examples in a batch.
        seed: of the order.
    """
    generator = torch.Generator().manual_seed(seed)
    whole = len(lengths) - len(lengths) % batch_size or len(lengths)
    order: list[int] = []
    while len(order) < steps * batch_size:
        shuffled = torch.randperm(len(lengths), generator=generator).tolist()[:whole]
        for start in range(0, whole, NEIGHBOURS * batch_size):
            near = sorted(shuffled[start : start + NEIGHBOURS * batch_size], key=lengths.__getitem__)
            batches = [near[i : i + batch_size] for i in range(0, len(near), batch_size)]
            for batch in torch.randperm(len(batches), generator=generator).tolist():
                order += batches[batch]
    return order[: steps * batch_size]


def loss_beside(task: Task, recipe: Recipe) -> Callable[[nn.Module, int], Tensor]:
    """The loss of a model on a batch of training examples that the run does not train on, another one each step; where
    it trains on all, of any."""
    sizes = lengths(task.train)
    seen = data_order(sizes, recipe.steps, recipe.batch_size, recipe.seed)
    spare = torch.tensor(sorted(set(range(len(sizes))) - set(seen)))
    spare = torch.arange(len(sizes)) if len(spare) < recipe.batch_size else spare

    def loss(model: nn.Module, step: int) -> Tensor:
        drawn = torch.randperm(len(spare), generator=seeded_generator("beside", recipe.seed, step))
        batch = task.collator([task.train[int(i)] for i in spare[drawn[: recipe.batch_size]]])
        where = next(model.parameters()).device
        found: Tensor = model(**{name: value.to(where) for name, value in batch.items()}).loss
        return found

    return loss


def in_head(name: str, head_modules: Iterable[str]) -> bool:
    """Whether a parameter belongs to the task's head."""
    return any(f".{head}." in f".{name}." for head in head_modules)


def parameter_groups(model: nn.Module, task: Task, recipe: Recipe) -> list[dict[str, Any]]:
    """Groups for the optimiser: what the method trains, one for each factor on its learning rate that the method asks
    for, and the head, which is no matter of low rank, with a learning rate of its own."""
    from eckart.adapters import lr_scales

    scales = lr_scales(model)
    groups: dict[float, list[nn.Parameter]] = {recipe.learning_rate: []}
    head = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if in_head(name, task.head_modules):
            head.append(parameter)
        else:
            groups.setdefault(recipe.learning_rate * scales.get(name, 1.0), []).append(parameter)
    found: list[dict[str, Any]] = [{"params": params, "lr": rate} for rate, params in groups.items()]
    found.append({"params": head, "lr": recipe.head_learning_rate, "low_rank": False})
    decay = {"weight_decay": task.training["weight_decay"]} if "weight_decay" in task.training else {}
    return [{**group, **decay} for group in found if group["params"]]


def make_trainer(
    model: nn.Module,
    task: Task,
    recipe: Recipe,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    **arguments: Any,
) -> Trainer:
    """A `transformers.Trainer` for a task: fixed batches; where the task says nothing else no weight decay and a linear
    schedule, with warm-up.

    Args:
        model: the model, with ``requires_grad`` set on what trains.
        task: data, collator and the names of the head's modules.
        recipe: steps, batch size, learning rates, seed and optimiser.
        callbacks: further `TrainerCallback`s.
        arguments: fields of `TrainingArguments` that differ, such as ``output_dir`` and ``save_steps``.
    """
    memory = task.memory
    if memory.gradient_checkpointing:
        model.gradient_checkpointing_enable(_CHECKPOINTING)  # type: ignore[operator]  # before memory is counted
    parts = parts_of(model.to(device()), task, recipe.batch_size)
    settings: dict[str, Any] = {
        "output_dir": tempfile.gettempdir(),
        "max_steps": recipe.steps,
        "per_device_train_batch_size": recipe.batch_size // parts // world(),
        "gradient_accumulation_steps": parts,
        "gradient_checkpointing": memory.gradient_checkpointing,
        "gradient_checkpointing_kwargs": _CHECKPOINTING,
        "fp16": memory.dtype == "fp16",
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": max(1, round(WARMUP * recipe.steps)),
        "seed": recipe.seed,
        "use_cpu": device().type == "cpu",  # else processes without a GPU would not train together
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    args = TrainingArguments(**{**settings, **task.training, **arguments})
    args._n_gpu = min(
        args.n_gpu, 1
    )  # of several GPUs in one process, the Trainer would split each batch over all
    order = data_order(lengths(task.train), recipe.steps, recipe.batch_size, recipe.seed)
    model.to(args.device)
    groups = parameter_groups(model, task, recipe)
    optimizer = make_optimizer(recipe.optimizer, groups, recipe.learning_rate, recipe.optimizer_options)
    trainer = Trainer(
        model,
        args,
        data_collator=task.collator,
        train_dataset=Subset(task.train, order),
        callbacks=list(callbacks),
        optimizers=(optimizer, None),
    )
    trainer.remove_callback(PrinterCallback)
    # the mean over a batch that is cut into parts: of tokens by their number in all of it, else of equal parts
    trainer.model_accepts_loss_kwargs = task.kind in LANGUAGE
    return trainer


def _longest_batch(task: Task, recipe: Recipe) -> int:
    """The step with the longest examples, and so the largest memory, once the optimiser's state is in place."""
    sizes = lengths(task.train)
    order = data_order(sizes, recipe.steps, recipe.batch_size, recipe.seed)
    longest = [
        max(sizes[i] for i in order[s : s + recipe.batch_size])
        for s in range(0, len(order), recipe.batch_size)
    ]
    return max(range(2, recipe.steps + 1), key=lambda step: longest[step - 1], default=1)


class _Watch(TrainerCallback):
    """Follows a run: curves, early stops, and the step's time and memory beside the frozen floor's."""

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        rungs: Sequence[int],
        keep_going: Callable[[int, Evaluation], bool],
        floor: FrozenFloor | None,
        on_step: Callable[[int], None],
    ) -> None:
        self.task, self.recipe, self.rungs, self.keep_going = task, recipe, set(rungs), keep_going
        self.floor, self.on_step = floor, on_step
        self.training = Training()
        self.memory_step = _longest_batch(task, recipe) if floor else 0
        spread = np.linspace(2, recipe.steps, FLOOR_PROBES + 1) if floor else ()
        self.probes = {min(round(step), recipe.steps) for step in spread} - {self.memory_step}
        self.times: dict[int, float] = {}
        self.ratios: list[float] = []
        self.batch: dict[str, Any] = {}
        self.memory: PeakMemory | None = None
        self.measuring = ExitStack()

    def watch(self, model: nn.Module) -> Any:
        return model.register_forward_pre_hook(self._keep_batch, with_kwargs=True)

    def _keep_batch(self, _module: nn.Module, _args: Any, batch: dict[str, Any]) -> None:
        self.batch = batch

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        synchronize(args.device)
        if state.global_step + 1 == self.memory_step:
            model, optimizer = kwargs["model"], kwargs["optimizer"]
            kept = tree_leaves(list(optimizer.state.values()))
            known = [*model.parameters(), *model.buffers(), *(t for t in kept if isinstance(t, Tensor))]
            self.memory = self.measuring.enter_context(PeakMemory(known))
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        synchronize(args.device)
        step, seconds = state.global_step, time.perf_counter() - self.started
        self.training.steps = step
        if self.memory:
            self.training.peak_memory_mb = self.memory.peak / 1e6
            self.close()
        elif step > 1:
            self.times[step] = seconds
            if self.floor and step in self.probes:
                batch = {k: v for k, v in self.batch.items() if k != "num_items_in_batch"}
                parts = args.gradient_accumulation_steps
                self.ratios.append(seconds / (parts * self.floor.step(batch)))
        self.on_step(step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        step, loss, losses = state.global_step, float(logs["loss"]), self.training.losses
        losses.append((step, loss))
        recent = [value for _, value in losses[-DIVERGED_STEPS:]]
        high = len(recent) == DIVERGED_STEPS and median(recent) > DIVERGED * losses[0][1]
        if not math.isfinite(loss) or high:
            self.training.status = "diverged"
            control.should_training_stop = True
        elif step in self.rungs and not self.validate(step, kwargs["model"]):
            self.training.status = "pruned"
            control.should_training_stop = True

    def validate(self, step: int, model: nn.Module) -> bool:
        evaluation = evaluate(
            model, self.task, self.task.validation, scoring_batch(self.task, self.recipe.batch_size)
        )
        self.training.validations.append((step, evaluation))
        return self.keep_going(step, evaluation)

    def close(self) -> None:
        self.measuring.close()
        self.memory = None


def train_run(
    model: nn.Module,
    task: Task,
    recipe: Recipe,
    *,
    rungs: Sequence[int] = (),
    keep_going: Callable[[int, Evaluation], bool] = lambda step, evaluation: True,
    floor: FrozenFloor | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    on_step: Callable[[int], None] = lambda step: None,
) -> Training:
    """Train a model in place and say how it went.

    Args:
        model: the model, with ``requires_grad`` set on what trains.
        task: the data; only its train and validation splits are touched.
        recipe: steps, batch size, learning rates and seed.
        rungs: steps after which the validation split is scored.
        keep_going: asked at each rung with the step and the score; False ends the run as "pruned".
        floor: when given, step time (as a ratio to the floor's) and peak memory are measured.
        callbacks: further `TrainerCallback`s, such as those of rules.
        on_step: called after each step.

    Returns:
        the curves and costs; ``status`` is "complete", "pruned" or "diverged".
    """
    watch = _Watch(task, recipe, rungs, keep_going, floor, on_step)
    trainer = make_trainer(model, task, recipe, callbacks=[*callbacks, watch])
    hook = watch.watch(model)
    try:
        trainer.train()
    finally:
        watch.close()
        hook.remove()
    training = watch.training
    if watch.times:
        training.step_seconds = median(watch.times.values())
    if watch.ratios:
        training.step_time_ratio = median(watch.ratios)
    return training
