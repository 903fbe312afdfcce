"""A client's own examples, encoded once and kept in Flower's context from message to message.

With processes every message starts a client anew. What it reads, splits and tokenises for the first one lies from then
on in the context that its SuperNode holds, as plain arrays of numbers, so that later messages load the model alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch.utils.data import Subset

from eckart.data.labels import CLASSES
from eckart.data.read import Data
from eckart.errors import InputError
from eckart.jobs.federate.plan import HOLD_OUT, Plan
from eckart.quiet import quiet
from eckart.tasks.encode import Rows, load_tokenizer
from eckart.tasks.heads import load_base
from eckart.tasks.kinds import KINDS
from eckart.tasks.kinds.kind import Encoded
from eckart.tasks.options import TaskOptions, Words, memory_of
from eckart.tasks.pretrained import check_weights, find_model
from eckart.tasks.task import Task, load_task

ARRAYS, FACTS = "eckart.arrays", "eckart.facts"
"""Entries of the context: the examples, and what they are of."""
MOST_BYTES = 2**26
"""Larger sets are encoded again: the context travels with every message between a node and its client."""
KEPT = ("text-classification", "causal-lm")
"""Kinds of tasks whose examples are whole numbers."""
LENGTHS = "#"
"""Name of the array of the sequences' lengths."""


def own_task(plan: Plan, client: int, data: str | None, model: str | None, context: RecordDict) -> Task:
    """The task of one client: it trains on ``train`` and scores on ``validation``, both its own.

    Args:
        plan: the run.
        client: its number.
        data: its own data instead of its part of the plan's.
        model: where its copy of the base model lies.
        context: what its node keeps for it; the examples are looked for there and left there.

    Raises:
        InputError: model or data that are not the server's; see `load_task`.
    """
    options = [plan.model, plan.data, plan.task, plan.fingerprint, plan.partition, plan.clients, plan.seed]
    mark = hashlib.sha256(json.dumps([*options, client, data, model]).encode()).hexdigest()
    if not whole_task.cache_info().currsize and (kept := recall(context, mark, plan, model)) is not None:
        return kept
    task, parts = whole_task(plan.to_json(), data, model)
    examples = list(range(len(task.train))) if parts is None else parts[client]  # type: ignore[arg-type]
    own = part_of(task, examples, plan.seed, client)
    remember(context, mark, own, model or plan.model)
    return own


def part_of(task: Task, examples: list[int], seed: int, client: int) -> Task:
    """The task with some of its training examples alone, a tenth of them held out as validation split."""
    trained, held_out = hold_out(examples, seed, client)
    return replace(task, train=Subset(task.train, trained), validation=Subset(task.train, held_out))


@lru_cache(maxsize=2)
def whole_task(plan_json: str, data: str | None, model: str | None) -> tuple[Task, list[list[int]] | None]:
    """The task of this process, and the partition where the data are the plan's."""
    plan = Plan.from_json(plan_json)
    task = load_task(model or plan.model, data or plan.data, seed=plan.seed, **plan.task)
    if data is not None:
        return task, None
    if model is None and task.fingerprint != plan.fingerprint:
        raise InputError("this client's model or data are not the server's: use the same files")
    return task, plan.split(task)


def hold_out(examples: list[int], seed: int, client: int) -> tuple[list[int], list[int]]:
    """What a client trains on and what it scores on: a tenth, none of fewer than ten examples."""
    order = np.random.default_rng([seed, client, 1]).permutation(len(examples)).tolist()
    count = int(HOLD_OUT * len(examples))
    return sorted(examples[i] for i in order[count:]), sorted(examples[i] for i in order[:count])


def remember(context: RecordDict, mark: str, task: Task, model: str | None) -> None:
    """Leave a client's examples in its context, where they are of a kind in `KEPT` and few enough."""
    if (facts := _facts(context)) is not None and facts["mark"] == mark:
        return
    trained, held_out = (list(split) for split in (task.train, task.validation))  # type: ignore[call-overload]
    if task.kind not in KEPT or task.form.words.class_weights:  # which hang on counts that are not kept
        return
    arrays = pack(trained + held_out)
    if sum(value.nbytes for value in arrays.values()) > MOST_BYTES:
        return
    known = {
        "mark": mark,
        "trained": len(trained),
        "kind": task.kind,
        "labels": task.labels,
        "data": task.data_name,
        "max_length": task.max_length,
        "fingerprint": task.fingerprint,
        "weights": check_weights(find_model(model, task.kind)),
    }
    context[ARRAYS] = ArrayRecord({name: Array(value) for name, value in arrays.items()})
    context[FACTS] = ConfigRecord({"json": json.dumps(known)})


def recall(context: RecordDict, mark: str, plan: Plan, model: str | None) -> Task | None:
    """The task that was left under a mark; None where there is none, or the model's files are others now."""
    if (facts := _facts(context)) is None or facts["mark"] != mark:
        return None
    kind, labels = facts["kind"], facts["labels"]
    checkpoint = find_model(model or plan.model, kind)
    if check_weights(checkpoint) != facts["weights"]:
        return None
    from transformers import DataCollatorWithPadding, default_data_collator

    data = Data(facts["data"], "text", {}, labels, CLASSES if labels else None)
    form = KINDS[kind](data, Words(plan.task.get("metric")))
    memory = memory_of(cast(TaskOptions, plan.task))
    rows = unpack({name: value.numpy() for name, value in context.array_records[ARRAYS].items()})
    with quiet():
        base = load_base(checkpoint, kind, form.outputs(), form.config(), memory)
        tokenizer = load_tokenizer(checkpoint, base.model, pad=bool(labels))
    collator = DataCollatorWithPadding(tokenizer) if labels else default_data_collator
    train, validation = Rows(rows[: facts["trained"]]), Rows(rows[facts["trained"] :])
    return Task.of(
        form,
        Encoded(train, validation, Rows([]), collator, tokenizer),
        base,
        model=checkpoint.name,
        fingerprint=facts["fingerprint"],
        max_length=facts["max_length"],
        memory=memory,
    )


def pack(rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Examples as an array for each of their names: numbers as a column, sequences one after the other."""
    arrays = {LENGTHS: np.array([len(row["input_ids"]) for row in rows], dtype=np.int32)}
    for name in rows[0]:
        values = [np.asarray(row[name], dtype=np.int32) for row in rows]
        arrays[name] = np.concatenate(values) if values[0].ndim else np.stack(values)[:, None]
    return arrays


def unpack(arrays: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """What `pack` was given, its sequences as lists."""
    lengths = arrays[LENGTHS]
    rows: list[dict[str, Any]] = [{} for _ in lengths]
    for name, values in arrays.items():
        if name != LENGTHS:
            parts = values[:, 0] if values.ndim == 2 else np.split(values, np.cumsum(lengths)[:-1])
            for row, part in zip(rows, parts, strict=True):
                row[name] = part.tolist()
    return rows


def _facts(context: RecordDict) -> dict[str, Any] | None:
    record = context.config_records.get(FACTS)
    return None if record is None else json.loads(str(record["json"]))
