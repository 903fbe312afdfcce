"""Tasks of lm-evaluation-harness, on which a trained language model is scored beside its own test split.

Source: L. Gao et al., The Language Model Evaluation Harness, https://github.com/EleutherAI/lm-evaluation-harness.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from eckart.errors import InputError, first_line
from eckart.extras import require
from eckart.quiet import quiet

EXTRA = "lm-eval"


@dataclass(frozen=True)
class Harness:
    """What a language model is asked.

    Attributes:
        manager: the library's, which finds tasks.
        asked: tasks, groups and files of tasks.
        told_of: the names whose scores are told: of a group not its members.
        limit: documents of each task at most; None for all.
        chat: whether a question is put through the model's chat template.
        tokenizer: of the model.
    """

    manager: Any
    asked: list[str]
    told_of: list[str]
    limit: int | None
    chat: bool
    tokenizer: Any

    def scores(self, model: nn.Module, batch_size: int) -> dict[str, float]:
        """What the harness says of a model: each number by ``task.metric``, or ``task.metric.filter``.

        Args:
            model: a causal language model of transformers, with or without an adapter.
            batch_size: documents at once.
        """
        evaluate = require("lm_eval", extra=EXTRA).simple_evaluate
        reader = require("lm_eval.models.huggingface", extra=EXTRA).HFLM
        training = model.training
        with _silence():
            found = evaluate(
                reader(pretrained=model, tokenizer=self.tokenizer, batch_size=batch_size),
                tasks=self.asked,
                task_manager=self.manager,
                limit=self.limit,
                apply_chat_template=self.chat,
                bootstrap_iters=0,
                log_samples=False,
                **dict.fromkeys(
                    ("random_seed", "numpy_random_seed", "torch_random_seed")
                ),  # leave ours as they are
            )
        model.train(training)
        told: dict[str, float] = {}
        for name in self.told_of:
            for key, value in found["results"].get(name, {}).items():
                metric, comma, part = key.partition(",")
                if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
                    told[f"{name}.{metric}" + ("" if part == "none" else f".{part}")] = float(value)
        return told


def load_harness(names: str, limit: int | None, tokenizer: Any, chat: bool) -> Harness:
    """Find tasks of the harness and load them, before anything is trained.

    Args:
        names: of tasks, groups or YAML files of tasks, with commas.
        limit, tokenizer: as `Harness` has them.
        chat: whether the model is used for conversations.

    Raises:
        InputError: the library is not installed, or a task cannot be had.
    """
    kind = require("lm_eval.tasks", extra=EXTRA).TaskManager
    asked = [name.strip() for name in names.split(",") if name.strip()]
    if not asked:
        raise InputError(f"--lm-eval {names!r} names no task")
    files = [name for name in asked if name.endswith((".yaml", ".yml"))]
    if missing := next((name for name in files if not Path(name).expanduser().is_file()), None):
        raise InputError(f"--lm-eval {missing}: no such file")
    asked = [str(Path(name).expanduser()) if name in files else name for name in asked]
    try:
        with _silence():
            manager = kind(include_defaults=len(files) < len(asked))
            loaded = manager.load(asked)
    except Exception as error:  # of the hub's, of the task's own code, and of what that imports
        raise InputError(
            f"--lm-eval {names} cannot be had: {first_line(error)}; most tasks fetch their data from the hub: give "
            "names that `lm-eval ls tasks` lists, or YAML files of tasks whose data are here"
        ) from None
    groups = loaded["groups"].values()
    inner = {task.task_name for group in groups for task in group.get_all_tasks()}
    inner |= {below.name for group in groups for below in group.get_all_groups()}
    told_of = [name for name in (*loaded["groups"], *loaded["tasks"]) if name not in inner]
    return Harness(manager, asked, told_of, limit, chat and bool(tokenizer.chat_template), tokenizer)


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing on the screen: neither the harness's progress bars nor what git, which it asks for a version, says."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with quiet(), redirect_stderr(io.StringIO()):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
