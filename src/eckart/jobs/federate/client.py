"""The client: Flower's app, and what it does with a message. It keeps its data and sends what it trained.

Node config of a client: ``partition-id`` (who it is), and where it has data of its own ``data`` (a file, directory or
hub name instead of its part of the plan's data) and ``model`` (where the base model lies on this machine).
"""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

if TYPE_CHECKING:
    from torch import Tensor

    from eckart.jobs.federate.plan import Plan
    from eckart.tasks.task import Task

app = ClientApp()


@app.query()
def who(message: Message, context: Context) -> Message:
    """Say which client this node is. Imports nothing heavy."""
    client = int(context.node_config["partition-id"])
    return Message(RecordDict({"metrics": MetricRecord({"client": client})}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round on this client's data."""
    from eckart.federated.flower import array_record, tensors_of
    from eckart.jobs.federate.plan import Plan

    config = dict(message.content.config_records["config"])
    tensors, metrics = local_round(
        Plan.from_json(str(config["plan"])),
        int(context.node_config["partition-id"]),
        tensors_of(message.content.array_records["arrays"]),
        number=int(config["round"]),  # type: ignore[arg-type]
        fresh_seed=int(config["fresh-seed"]),  # type: ignore[arg-type]
        data=context.node_config.get("data"),  # type: ignore[arg-type]
        model=context.node_config.get("model"),  # type: ignore[arg-type]
    )
    content = RecordDict({"arrays": array_record(tensors), "metrics": MetricRecord(metrics)})  # type: ignore[arg-type]
    return Message(content, reply_to=message)


@lru_cache(maxsize=2)
def _task(plan_json: str, data: str | None, model: str | None) -> tuple[Task, list[list[int]] | None]:
    """The task of this process, and the partition where the data are the plan's."""
    import torch

    from eckart.errors import InputError
    from eckart.jobs.federate.plan import Plan
    from eckart.tasks.task import load_task

    torch.set_num_threads(1)
    plan = Plan.from_json(plan_json)
    task = load_task(model or plan.model, data or plan.data, seed=plan.seed, **plan.task)
    if data is None:
        if model is None and task.fingerprint != plan.fingerprint:
            raise InputError("this client's model or data are not the server's: use the same files")
        return task, plan.split(task)
    return task, None


def local_round(
    plan: Plan,
    client: int,
    message: dict[str, Tensor],
    *,
    number: int,
    fresh_seed: int,
    data: str | None = None,
    model: str | None = None,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Train one client for one round.

    Args:
        plan: the run.
        client: its number.
        message: tensors that the server sent.
        number: of the round, from 1.
        fresh_seed: see `ServerState.fresh_seed`.
        data: its own data instead of its part of the plan's.
        model: where its copy of the base model lies.

    Returns:
        what it trained, by PEFT's keys; its numbers: examples, loss, score of the model as sent and after training on
        examples held out (NaN where it has too few), seconds.

    Raises:
        FloatingPointError: the loss became NaN or infinite.
    """
    from torch.utils.data import Subset

    from eckart.federated.state import complete
    from eckart.jobs.federate import lora
    from eckart.tasks.scoring import evaluate
    from eckart.tasks.trainer import Recipe, make_trainer

    began = time.monotonic()
    task, parts = _task(plan.to_json(), data, model)
    examples = list(range(len(task.train))) if parts is None else parts[client]  # type: ignore[arg-type]
    kept, held_out = hold_out(examples, plan.seed, client)
    own = replace(task, train=Subset(task.train, kept))
    adapted = lora.with_lora(task, plan.target_modules, plan.rank(client), plan.scaling, plan.seed)
    shapes, _ = lora.shapes_and_head(adapted)
    start, base = complete(message, shapes, plan.rank(client), fresh_seed)
    lora.add_to_base(adapted, base)
    lora.load_factors(adapted, start)
    freezes_a = plan.rule().freezes_a
    if freezes_a:
        for layer in lora.lora_layers(adapted).values():
            layer.lora_A["default"].weight.requires_grad_(False)
    steps = plan.local_epochs * math.ceil(len(kept) / plan.batch_size)
    digest = hashlib.sha256(f"{plan.seed}/{number}/{client}".encode()).digest()
    seed = int.from_bytes(digest[:4], "little") >> 1
    recipe = Recipe(steps, min(plan.batch_size, len(kept)), plan.lr, plan.head_lr, seed)
    trainer: Any = make_trainer(adapted, own, recipe, lr_scheduler_type="constant", warmup_steps=0)
    validation = Subset(task.train, held_out)
    before = evaluate(adapted, task, validation, 64).score if held_out else math.nan
    adapted.train()
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    if not all(math.isfinite(loss) for loss in losses):
        raise FloatingPointError(f"the loss of client {client} is not finite: lower the learning rate")
    after = evaluate(adapted, task, validation, 64).score if held_out else math.nan
    return lora.trained_tensors(adapted, freezes_a), {
        "num-examples": float(len(kept)),
        "loss": sum(losses) / len(losses),
        "score": before,
        "score_after": after,
        "seconds": time.monotonic() - began,
    }


def hold_out(examples: list[int], seed: int, client: int) -> tuple[list[int], list[int]]:
    """What a client trains on and what it scores on: a tenth, none of fewer than ten examples."""
    import numpy as np

    from eckart.jobs.federate.plan import HOLD_OUT

    order = np.random.default_rng([seed, client, 1]).permutation(len(examples)).tolist()
    count = int(HOLD_OUT * len(examples))
    return sorted(examples[i] for i in order[count:]), sorted(examples[i] for i in order[:count])
