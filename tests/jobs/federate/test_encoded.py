"""A client's examples in Flower's context: the second message reads nothing and trains the same."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from federate_cases import plan_of
from flwr.app import RecordDict
from tiny_models import WORDS, save_bert, save_gpt2

from eckart.jobs.federate import client, encoded
from eckart.jobs.federate.encoded import ARRAYS, FACTS, own_task, pack, recall, unpack, whole_task
from eckart.jobs.federate.plan import PEFT_LORA
from eckart.jobs.federate.server import begin
from eckart.tasks.task import load_task


@pytest.fixture(autouse=True)
def fresh_process():
    whole_task.cache_clear()
    yield
    whole_task.cache_clear()


def test_a_later_message_reads_no_data_and_trains_the_same(files, monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task(files["model"], files["data"], max_length=16)
    plan = plan_of(files, task, PEFT_LORA)
    message, context = begin(task, plan).start(4), RecordDict()
    one, said = client.local_round(plan, 1, message, number=1, fresh_seed=0, context=context)
    assert set(context) == {ARRAYS, FACTS}
    whole_task.cache_clear()
    monkeypatch.setattr(encoded, "load_task", None)  # whoever reads fails
    two, again = client.local_round(plan, 1, message, number=1, fresh_seed=0, context=context)
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[key]) for key, value in one.items())
    assert {k: v for k, v in said.items() if k != "seconds"} == {
        k: v for k, v in again.items() if k != "seconds"
    }
    with pytest.raises(TypeError):  # another client's are not taken
        client.local_round(plan, 2, message, number=1, fresh_seed=0, context=context)


def test_text_in_blocks(tmp_path: Path) -> None:
    draw = random.Random(0)
    (tmp_path / "text.txt").write_text("\n".join(" ".join(draw.choices(WORDS, k=8)) for _ in range(120)))
    files = {"model": str(save_gpt2(tmp_path / "gpt2")), "data": str(tmp_path / "text.txt")}
    task = load_task(files["model"], files["data"], max_length=16)
    plan = replace(plan_of(files, task, PEFT_LORA), target_modules=["c_attn"], partition="contiguous")
    context = RecordDict()
    first = own_task(plan, 0, None, None, context)
    whole_task.cache_clear()
    second = own_task(plan, 0, None, None, context)
    assert len(first.train) == len(second.train) > 0
    one, two = (t.collator([t.train[i] for i in range(2)]) for t in (first, second))
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[key]) for key, value in one.items())


def test_other_files_of_the_model_are_noticed(files, tmp_path: Path) -> None:
    task = load_task(files["model"], files["data"], max_length=16)
    plan = plan_of(files, task, PEFT_LORA)
    context, other = RecordDict(), save_bert(tmp_path / "bert")
    own_task(plan, 1, None, files["model"], context)
    mark = json.loads(str(context.config_records[FACTS]["json"]))["mark"]
    assert recall(context, mark, plan, files["model"]) is not None
    assert recall(context, "another", plan, files["model"]) is None
    config = other / "config.json"
    config.write_text(config.read_text().replace("{", '{\n  "note": 1,', 1))
    assert recall(context, mark, plan, str(other)) is None


def test_large_sets_are_not_kept(files, monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task(files["model"], files["data"], max_length=16)
    context = RecordDict()
    monkeypatch.setattr(encoded, "MOST_BYTES", 100)
    own_task(plan_of(files, task, PEFT_LORA), 1, None, None, context)
    assert not context


def test_weights_of_classes_are_counted_anew(files) -> None:
    task = load_task(files["model"], files["data"], max_length=16)
    plan, context = plan_of(files, task, PEFT_LORA), RecordDict()
    plan = replace(plan, task={**plan.task, "class_weights": "balanced"})
    own = own_task(plan, 1, None, None, context)
    assert own.form.words.class_weights == "balanced" and not context


def test_packing() -> None:
    rows = [{"input_ids": [1, 2, 3], "labels": 1}, {"input_ids": [7], "labels": 0}]
    assert unpack(pack(rows)) == rows
    single = [{"input_ids": [4], "labels": [4]}, {"input_ids": [5], "labels": [5]}]
    assert unpack(pack(single)) == single
    assert all(value.dtype == np.int32 for value in pack(rows).values())
