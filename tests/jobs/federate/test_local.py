"""A client's adapter: those of the LoRA family start where they are put and send their product; others are refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from federate_cases import plan_of, small
from torch import Tensor

from eckart.errors import InputError
from eckart.federated.state import KEY_A, KEY_B, complete
from eckart.jobs.federate import PEFT_LORA, client
from eckart.jobs.federate.encoded import whole_task
from eckart.jobs.federate.federating import federate
from eckart.jobs.federate.local import LocalModel, check_method
from eckart.jobs.federate.plan import Plan
from eckart.jobs.federate.server import begin
from eckart.tasks.task import Task, load_task

FAMILY = {
    PEFT_LORA: {},
    "peft:lora ": {"use_rslora": True, "lora_dropout": 0.25},
    "lora": {},
    "rslora": {},
    "lora-core": {"init": "factor"},
}


@pytest.fixture(scope="module")
def task(files: dict[str, str]) -> Task:
    return load_task(files["model"], files["data"], max_length=16)


def started(plan: Plan, task: Task) -> tuple[LocalModel, dict[str, Tensor]]:
    """A model that was sent random factors, and these."""
    model, generator = LocalModel(task, plan, 4), torch.Generator().manual_seed(1)
    message = begin(task, plan).start(4)
    message = {key: 0.1 * torch.randn(value.shape, generator=generator) for key, value in message.items()}
    model.load(message, {})
    return model, message


@pytest.mark.parametrize("method", FAMILY)
def test_the_update_is_the_servers_scaling_times_b_a(method: str, files, task: Task) -> None:
    """Whatever the adapter's own scaling: outputs are those of the base with s B A added to its weights."""
    plan = plan_of(files, task, method, **FAMILY[method])
    model, message = started(plan, task)
    folded = LocalModel(task, plan_of(files, task, PEFT_LORA), 4)
    products = {
        name: plan.scaling * message[KEY_B.format(name)] @ message[KEY_A.format(name)]
        for name in model.shapes
    }
    blank = {key: torch.zeros_like(value) if ".lora_B." in key else value for key, value in message.items()}
    folded.load(blank, products)
    ids = torch.arange(5, 15)[None]
    got, expected = (m.model.eval()(input_ids=ids).logits for m in (model, folded))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    for key, value in model.trained().items():
        torch.testing.assert_close(value, message[key], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", FAMILY)
def test_what_is_sent_is_the_product_that_was_trained(method: str, files, task: Task) -> None:
    """After steps on everything that trains, a core included, a plain LoRA of the factors sent is the same model."""
    plan = plan_of(files, task, method, **FAMILY[method])
    model, _ = started(plan, task)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    other = LocalModel(task, plan_of(files, task, PEFT_LORA), 4)
    other.load(model.trained(), {})
    ids = torch.arange(5, 15)[None]
    got, expected = (m.model.eval()(input_ids=ids).logits for m in (other, model))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_ours_and_pefts_lora_train_alike(files, task: Task) -> None:
    sent = {}
    for method in (PEFT_LORA, "lora"):
        plan = plan_of(files, task, method)
        message = begin(task, plan).start(4)
        sent[method], said = client.local_round(plan, 1, message, number=1, fresh_seed=0)
        assert said["num-examples"] == 29  # 96 rows over 3 clients, a tenth of 32 held out
    assert sent["lora"].keys() == sent[PEFT_LORA].keys()
    moved = 0.0
    for key, value in sent["lora"].items():
        torch.testing.assert_close(value, sent[PEFT_LORA][key], rtol=1e-3, atol=1e-4)
        moved += float(value.abs().sum()) if ".lora_B." in key else 0.0
    assert moved > 0


def test_a_frozen_a_stays_and_is_not_sent(files, task: Task) -> None:
    for method in (PEFT_LORA, "rslora"):
        plan = plan_of(files, task, method, strategy="ffa-lora")
        model, message = started(plan, task)
        trained = model.trained()
        assert set(message) - set(trained) == {KEY_A.format(name) for name in model.shapes}
        assert not any(layer.a.requires_grad for layer in model.layers.values())


def test_base_updates_are_added_to_the_weights_under_any_adapter(files, task: Task) -> None:
    outputs = []
    for method in (PEFT_LORA, "lora"):
        plan = plan_of(files, task, method)
        model, shapes = LocalModel(task, plan, 4), LocalModel(task, plan, 4).shapes
        generator = torch.Generator().manual_seed(3)
        update = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        start, _ = complete({k: v for k, v in begin(task, plan).head.items()}, shapes, 4, 0)
        model.load(start, update)
        outputs.append(model.model.eval()(input_ids=torch.arange(5, 15)[None]).logits)
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "options", "match"),
    [
        ("svfit", {}, "method svfit is not of the LoRA family"),
        ("bone", {}, "method bone is not of the LoRA family"),
        ("mos", {}, "method mos is not of the LoRA family"),
        ("dept", {}, "method dept is not of the LoRA family"),
        ("lora-core", {}, "method lora-core is not of the LoRA family"),  # its core starts at zero
        ("lorra", {}, "unknown method 'lorra'"),
        ("lora", {"alpha": 3}, "method lora has no option 'alpha'"),
        ("lora", {"r": 3}, "method option r has an option of its own"),
        ("lora", {"lora_alpha": 9.0}, "method option lora_alpha has an option of its own"),
        (
            PEFT_LORA,
            {"use_dora": True},
            "peft:lora has no option 'use_dora' here: it has lora_dropout, use_rslora",
        ),
    ],
)
def test_others_are_refused_in_one_line(method: str, options, match: str, files, task: Task) -> None:
    plan = plan_of(files, task, PEFT_LORA)
    shapes = begin(task, plan).shapes
    with pytest.raises(InputError, match=match) as refused:
        check_method(task, replace(plan, method=method, method_options=options), shapes)
    assert "\n" not in str(refused.value)


def test_a_core_cannot_be_frozen_with_a(files, task: Task) -> None:
    plan = plan_of(files, task, "lora-core", strategy="ffa-lora", init="factor")
    with pytest.raises(InputError, match=r"ffa-lora trains B alone, method lora-core trains .*lora_E too"):
        LocalModel(task, plan, 4)


def test_refusals_leave_nothing(files, tmp_path) -> None:
    with pytest.raises(InputError, match="method randlora is not of the LoRA family"):
        federate(**small(files, tmp_path / "run", method="randlora"))
    assert not (tmp_path / "run").exists()


def test_a_plan_of_before_methods_goes_on(files, task: Task) -> None:
    plan = plan_of(files, task, PEFT_LORA)
    old = {k: v for k, v in json.loads(plan.to_json()).items() if not k.startswith("method")}
    assert Plan.from_json(json.dumps(old)) == plan
    whole_task.cache_clear()
