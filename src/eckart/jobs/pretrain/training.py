"""The pieces of a pretraining run: the model, its optimiser, a Trainer that can be stopped at any moment."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.training_args import OptimizerNames

from eckart.errors import InputError, first_line
from eckart.files import atomic_write
from eckart.jobs.pretrain.architectures import LLAMA
from eckart.jobs.pretrain.regimes import Regime
from eckart.layers import ReLoRA, convert
from eckart.layers._structured import STRUCTURED
from eckart.optim import PerLayer, Spectron, hidden_groups
from eckart.tasks.heads import looks_ahead
from eckart.tasks.optimizers import OPTIMIZERS, make_optimizer
from eckart.training._callback import RuleCallback

FULL = "full"
SPECTRON = "spectron"
"""Made here: it asks for the model, whose factors it pairs."""
ALONE = ("adamw", "adamw-8bit", "adamw-4bit")
"""Optimisers that can step inside the backward pass."""
WHOLE = "whole.json"
"""Lies in a checkpoint that was written to its end."""


def build(config: Any, method: str, seed: int, options: dict[str, Any]) -> nn.Module:
    """A model with its random start, full or structured.

    Raises:
        InputError: an unknown method, an option that a layer cannot have, or a config that is of no model.
    """
    from transformers import AutoModelForCausalLM, set_seed

    if method != FULL and method not in STRUCTURED:
        raise InputError(f"--method {method}: choose one of {', '.join((FULL, *sorted(STRUCTURED)))}")
    if method == FULL and options:
        raise InputError(
            f"--option {next(iter(options))}: the full model has no options; choose another --method"
        )
    set_seed(seed)
    try:
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    except (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError) as error:
        raise InputError(f"--arch: no model can be made of its config ({first_line(error)})") from error
    return model if method == FULL else convert(model, method, seed=seed, **options)


def rehearse(config: Any, method: str, of_layers: dict[str, Any], of_optimizer: list[Any]) -> None:
    """Make model and optimiser without memory, so that what they refuse is refused before anything is written.

    Args:
        config: of a model of the same layers.
        method, of_layers: as `build` takes them.
        of_optimizer: the arguments of `optimizer_of` after the model.

    Raises:
        InputError: as `build` and `optimizer_of`.
    """
    with torch.device("meta"):
        optimizer_of(build(config, method, 0, of_layers), *of_optimizer)


def check_causal(config: Any, arch: str, length: int) -> None:
    """Refuse a model whose outputs look at tokens that come later: its loss would be that of copying.

    Args:
        config: of the model, which is made for it, unless it is one of `LLAMA`.
        arch: what the user gave.
        length: tokens of a sequence.

    Raises:
        InputError: it does.
    """
    if arch in LLAMA:
        return
    model = build(config, FULL, 0, {})
    if looks_ahead(model, min(length, 16)):
        raise InputError(
            f"--arch {arch}: {type(model).__name__} sees the tokens that it is to predict; give a decoder's config "
            "(is_decoder: true)"
        )


def check_optimizer(name: str) -> None:
    """Refuse an optimiser that neither this package nor transformers has.

    Raises:
        InputError: the name and what is known.
    """
    known = {*OPTIMIZERS, SPECTRON, *(one.value for one in OptimizerNames)}
    if name not in known:
        shown = ", ".join((*OPTIMIZERS, SPECTRON))
        raise InputError(f"--optimizer {name}: choose one of {shown}, or a name of transformers' optim")


def optimizer_of(
    model: nn.Module, name: str, lr: float, weight_decay: float, per_layer: bool, options: dict[str, Any]
) -> Optimizer | None:
    """The optimiser over the model, or None where the Trainer makes its own.

    Raises:
        InputError: an option that the optimiser has not, or per-layer steps of what looks at more than one parameter.
    """
    if per_layer and name not in ALONE:
        raise InputError(f"--per-layer with --optimizer {name}: choose {', '.join(ALONE)}")
    if name == SPECTRON:
        try:
            return Spectron(model, lr, **{"weight_decay": weight_decay, **options})
        except TypeError as error:
            raise InputError(f"--optimizer-option: {name} {str(error).partition(') ')[2]}") from None
    if name not in OPTIMIZERS:
        if options:
            raise InputError(f"--optimizer-option {next(iter(options))}: {name} takes none here")
        return None
    groups = hidden_groups(model, weight_decay)
    if per_layer:
        return PerLayer(groups, lambda group: make_optimizer(name, [group], lr, options))
    return make_optimizer(name, groups, lr, options)


class Checkpoints(TrainerCallback):
    """Marks a checkpoint as whole once all of it is on disk."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the mark."""
        if state.is_world_process_zero:
            directory = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            with atomic_write(directory / WHOLE) as temporary:
                temporary.write_text(json.dumps({"step": state.global_step}) + "\n")


def last_whole(directory: Path, steps: int) -> Path | None:
    """The newest checkpoint that was written to its end and has steps left to make, or None.

    From one that has none left, transformers 5 makes a step too many.
    """
    whole = {int(mark.parent.name.rpartition("-")[2]): mark.parent for mark in directory.glob(f"*/{WHOLE}")}
    return max(((step, path) for step, path in whole.items() if step < steps), default=(0, None))[1]


class Pace(TrainerCallback):
    """Times the updates, ends a run whose loss is no number, and tells how far it is.

    Attributes:
        tokens_per_second: of all processes, over the updates made so far.
    """

    def __init__(self, tokens: int, on_step: Callable[[int, int], None] | None) -> None:
        self.tokens, self.on_step = tokens, on_step
        self.seconds, self.steps, self.began = 0.0, 0, 0.0

    @property
    def tokens_per_second(self) -> float:
        """Zero before the first update."""
        return self.tokens * self.steps / self.seconds if self.seconds else 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop it."""
        self.seconds += time.perf_counter() - self.began
        self.steps += 1
        if self.on_step is not None:
            self.on_step(state.global_step, state.max_steps)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Look at the loss."""
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(float(loss)):
            raise InputError(
                f"--lr {args.learning_rate:g}: the loss is {loss} at step {state.global_step}; lower the rate"
            )


@contextmanager
def _of_this_run(checkpoint: str | None) -> Iterator[None]:
    """What goes wrong while a checkpoint is read, in one line."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"--resume: {checkpoint} is damaged or of another model or optimiser ({first_line(error)}); remove it to "
            "go on from the one before it, or start the run again"
        ) from error


class Pretrainer(Trainer):
    """A Trainer that knows its pace and its type of mixed precision."""

    pace: Pace
    mixed: torch.dtype | None
    regime: Regime | None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the Trainer does, with the rate that the last step was made at."""
        if isinstance(self.regime, ReLoRA) and "learning_rate" in logs:
            logs["learning_rate"] *= self.regime.share(self.state.global_step - 1)
        super().log(logs, start_time)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with _of_this_run(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """What transformers only warns of: weights of other names."""
        trained: Any = self.model
        named = dict(trained.named_parameters(remove_duplicate=False))
        loaded = {id(p) for name, p in named.items() if name not in load_result.missing_keys}
        lost = [name for name, p in named.items() if id(p) not in loaded]
        if lost or load_result.unexpected_keys:
            raise InputError(
                f"it has no {lost[0]}" if lost else f"{load_result.unexpected_keys[0]} is not known"
            )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _of_this_run(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
            for p, state in inner_optimizer(self).state.items():
                for name in ("exp_avg", "exp_avg_sq"):
                    if name in state and state[name].shape != p.shape:
                        raise InputError(
                            f"{name} is {tuple(state[name].shape)}, its parameter {tuple(p.shape)}"
                        )

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        """Of a sharded model; transformers' own asks the config how it was sharded, which only its own models know."""
        model: Any = self.model
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)


def trainer_of(
    given: dict[str, Any],
    directory: Path,
    model: nn.Module,
    optimizer: Optimizer | None,
    splits: dict[str, Any],
    on_step: Callable[[int, int], None] | None,
    regime: Regime | None,
) -> Pretrainer:
    """A Trainer: linear warm-up over a tenth of the steps, then a cosine to a tenth of the rate.

    Args:
        given: the arguments of `pretrain`.
        directory: of its checkpoints.
        model: to train.
        optimizer: over it, or None where transformers makes one.
        splits: train and validation sequences.
        on_step: called with (done, total).
        regime: what of the method acts in training, or None.
    """
    arguments = TrainingArguments(
        str(directory),
        max_steps=given["steps"],
        per_device_train_batch_size=given["batch"],
        per_device_eval_batch_size=given["batch"],
        gradient_accumulation_steps=given["accumulate"],
        learning_rate=given["lr"],
        weight_decay=given["weight_decay"],
        max_grad_norm=given["clip"],
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=math.ceil(0.1 * given["steps"]),
        bf16=given["bf16"],
        optim=given["optimizer"] if optimizer is None else "adamw_torch",
        eval_strategy="steps",
        eval_steps=given["eval_steps"],
        save_strategy="no" if given["fsdp"] else "steps",
        save_steps=given["save_steps"],
        save_total_limit=2,
        logging_steps=max(1, given["eval_steps"] // 10),
        logging_nan_inf_filter=False,
        seed=given["seed"],
        data_seed=given["seed"],
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
        prediction_loss_only=True,
        report_to=[],
        disable_tqdm=True,
    )
    passes = given["batch"] * given["accumulate"] * arguments.world_size
    pace = Pace(passes * given["length"], on_step)
    trainer = Pretrainer(
        model,
        arguments,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        optimizers=(optimizer, None),
        callbacks=[*(() if regime is None else (RuleCallback(regime),)), Checkpoints(), pace],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.pace, trainer.regime = pace, regime
    trainer.mixed = torch.bfloat16 if given["bf16"] else None
    return trainer


def inner_optimizer(trainer: Trainer) -> Optimizer:
    """The Trainer's optimiser without what accelerate wraps it in."""
    wrapped: Any = trainer.optimizer
    found: Optimizer = getattr(wrapped, "optimizer", wrapped)
    return found
