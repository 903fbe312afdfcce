"""A rule inside transformers' Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from eckart.errors import InputError


class Attachable(Protocol):
    """What acts on a model while its optimiser steps: a `Rule`, or a layer's own procedure."""

    @property
    def slug(self) -> str:
        """Its name in files and messages."""

    def attach(self, model: Any, optimizer: Any, *, steps: int | None = None) -> Any:
        """Begin to act."""

    def detach(self) -> None:
        """Stop."""

    def save(self, path: str | Path) -> None:
        """Write its state."""

    def load(self, path: str | Path) -> None:
        """Read its state."""


class RuleCallback(TrainerCallback):
    """Attaches a rule when training begins, and keeps its state beside the Trainer's own.

    Lifecycle:
        on_train_begin  the rule is attached; when resumed, its state is read from the checkpoint
        on_save         its state is written into the new checkpoint, as ``rule-<slug>.safetensors``
        on_train_end    the rule is detached

    Args:
        rule: the rule.
        resume_from: the checkpoint that is resumed, where the training arguments do not name it.
    """

    def __init__(self, rule: Attachable, resume_from: str | Path | None = None) -> None:
        self.rule, self.resume_from = rule, resume_from

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rule.attach(kwargs["model"], kwargs["optimizer"], steps=state.max_steps)
        if state.global_step == 0:
            return
        resumed = self.resume_from or args.resume_from_checkpoint
        folder = (
            Path(resumed) if isinstance(resumed, str | Path) else self._checkpoint(args, state.global_step)
        )
        if not (folder / self._name).is_file():
            raise InputError(
                f"checkpoint {folder} has no {self._name}: it was written without the rule {self.rule.slug}"
            )
        self.rule.load(folder / self._name)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.rule.save(self._checkpoint(args, state.global_step) / self._name)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rule.detach()

    @property
    def _name(self) -> str:
        return f"rule-{self.rule.slug}.safetensors"

    @staticmethod
    def _checkpoint(args: Any, step: int) -> Path:
        return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
