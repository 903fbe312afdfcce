"""The client: Flower's app, and what it does with a message. It keeps its data and sends what it trained.

Node config of a client: ``partition-id`` (who it is), and where it has data of its own ``data`` (a file, directory or
hub name instead of its part of the plan's data) and ``model`` (where the base model lies on this machine).
"""

from __future__ import annotations

import hashlib
import math
import time
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
        context=context.state,
    )
    content = RecordDict({"arrays": array_record(tensors), "metrics": MetricRecord(metrics)})  # type: ignore[arg-type]
    return Message(content, reply_to=message)


def local_round(
    plan: Plan,
    client: int,
    message: dict[str, Tensor],
    *,
    number: int,
    fresh_seed: int,
    data: str | None = None,
    model: str | None = None,
    context: RecordDict | None = None,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Train one client for one round, see `train_round`.

    Args:
        plan: the run.
        client: its number.
        message: tensors that the server sent.
        number: of the round, from 1.
        fresh_seed: see `ServerState.fresh_seed`.
        data: its own data instead of its part of the plan's.
        model: where its copy of the base model lies.
        context: what its node keeps for it from message to message.
    """
    import torch

    from eckart.jobs.federate.encoded import own_task

    torch.set_num_threads(1)
    task = own_task(plan, client, data, model, RecordDict() if context is None else context)
    return train_round(task, plan, client, message, number=number, fresh_seed=fresh_seed)


def train_round(
    task: Task, plan: Plan, client: int, message: dict[str, Tensor], *, number: int, fresh_seed: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Train one client for one round.

    Args:
        task: its train and validation splits are the client's own, see `own_task`.
        plan: the run.
        client: its number.
        message: tensors that the server sent.
        number: of the round, from 1.
        fresh_seed: see `ServerState.fresh_seed`.

    Returns:
        what it trained, by PEFT's keys; its numbers: examples, loss, score of the model as sent and after training on
        examples held out (NaN where it has too few), seconds.

    Raises:
        FloatingPointError: the loss became NaN or infinite.
    """
    from eckart.federated.state import complete
    from eckart.jobs.federate.local import LocalModel
    from eckart.tasks.scoring import evaluate
    from eckart.tasks.trainer import Recipe, make_trainer

    began = time.monotonic()
    examples, held_out = len(task.train), len(task.validation)  # type: ignore[arg-type]
    local = LocalModel(task, plan, plan.rank(client))
    local.load(*complete(message, local.shapes, plan.rank(client), fresh_seed))
    adapted = local.model
    steps = plan.local_epochs * math.ceil(examples / plan.batch_size)
    digest = hashlib.sha256(f"{plan.seed}/{number}/{client}".encode()).digest()
    seed = int.from_bytes(digest[:4], "little") >> 1
    recipe = Recipe(steps, min(plan.batch_size, examples), plan.lr, plan.head_lr, seed)
    trainer: Any = make_trainer(adapted, task, recipe, lr_scheduler_type="constant", warmup_steps=0)
    before = evaluate(adapted, task, task.validation, 64).score if held_out else math.nan
    adapted.train()
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    if not all(math.isfinite(loss) for loss in losses):
        raise FloatingPointError(f"the loss of client {client} is not finite: lower the learning rate")
    after = evaluate(adapted, task, task.validation, 64).score if held_out else math.nan
    return local.trained(), {
        "num-examples": float(examples),
        "loss": sum(losses) / len(losses),
        "score": before,
        "score_after": after,
        "seconds": time.monotonic() - began,
    }
