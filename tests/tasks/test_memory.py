"""Models made to fit: the loss curve stays that of float32 within the digits, and what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from task_checks import refuse
from tiny_models import WORDS, save_bert, save_resnet, save_tokenizer, save_vit
from transformers import LlamaConfig, LlamaForCausalLM

from eckart.adapters import adapt
from eckart.errors import InputError
from eckart.tasks import memory
from eckart.tasks.instruments import FrozenFloor
from eckart.tasks.options import Memory
from eckart.tasks.scoring import evaluate
from eckart.tasks.task import load_task
from eckart.tasks.trainer import Recipe, Training, train_run

RECIPE = Recipe(steps=20, batch_size=8, learning_rate=1e-2, head_learning_rate=3e-2)
SAVINGS: list[tuple[dict[str, Any], float]] = [
    ({"dtype": "bf16"}, 2e-2),
    ({"quantize": "int8"}, 1e-2),
    ({"dtype": "bf16", "quantize": "int8"}, 3e-2),
    ({"quantize": "int4"}, 2e-2),
    ({"quantize": "nf4"}, 2e-2),
    ({"dtype": "bf16", "quantize": "nf4"}, 4e-2),
    ({"quantize": "nf4", "gradient_checkpointing": True}, 2e-2),
    ({"gradient_checkpointing": True}, 1e-5),
    ({"gradient_accumulation": 4}, 1e-4),
    ({"dtype": "bf16", "gradient_checkpointing": True, "gradient_accumulation": 2}, 2e-2),
]
"""Options, and by which share the losses may differ from float32: bfloat16 has 8 bits, int8 7 and a sign, int4
and nf4 16 levels a block."""


@pytest.fixture(scope="module")
def answers(root: Path) -> Path:
    draw = np.random.default_rng(0)
    rows = [
        {"prompt": " ".join(draw.choice(WORDS, 1 + i % 5)), "completion": WORDS[i % 3]} for i in range(60)
    ]
    path = root / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def sure_bert(root: Path) -> Path:
    """Without dropout, whose draws would differ where a batch comes in parts."""
    return save_bert(root / "sure", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


@pytest.fixture(scope="module")
def llama(root: Path) -> Path:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 48}
    config = LlamaConfig(vocab_size=40, num_hidden_layers=2, max_position_embeddings=128, **shape)
    LlamaForCausalLM(config).save_pretrained(root / "llama")
    save_tokenizer(root / "llama")
    return root / "llama"


def curve(model: Path, data: Path, **options: Any) -> tuple[Training, torch.nn.Module, Any]:
    task = load_task(model, data, max_length=16, **options)
    adapted = adapt(
        task.fresh_model(0),
        "lora",
        r=4,
        target_modules="all-linear",
        modules_to_save=task.head_modules or None,
    )
    return train_run(adapted, task, RECIPE), adapted, task


@pytest.fixture(scope="module")
def plain(sure_bert: Path, llama: Path, reviews: Path, answers: Path) -> dict[str, Any]:
    return {
        name: ([loss for _, loss in curve(model, data)[0].losses], model, data)
        for name, model, data in (("classes", sure_bert, reviews), ("chat", llama, answers))
    }


@pytest.mark.parametrize("kind", ["classes", "chat"])
@pytest.mark.parametrize(
    ("options", "close"), SAVINGS, ids=lambda v: "-".join(v) if isinstance(v, dict) else ""
)
def test_losses_are_those_of_float32(plain: dict[str, Any], kind: str, options: Any, close: float) -> None:
    wanted, model, data = plain[kind]
    training, adapted, task = curve(model, data, **options)
    found = [loss for _, loss in training.losses]
    assert found == pytest.approx(wanted, rel=close)
    assert min(wanted) < 0.985 * wanted[0], "or nothing was trained"
    trained = {p.dtype for p in adapted.parameters() if p.requires_grad}
    assert trained == {torch.float32}
    assert np.isfinite(evaluate(adapted, task, task.test, 8).score)


def test_the_base_is_as_small_as_it_is_said(bert: Path, reviews: Path) -> None:
    base = load_task(bert, reviews, max_length=16, dtype="bf16").base
    for name, parameter in base.model.named_parameters():
        assert parameter.dtype == (torch.float32 if base.is_head(name) else torch.bfloat16), name
    small = load_task(bert, reviews, max_length=16, quantize="int8")
    weight = small.base.model.bert.encoder.layer[0].attention.self.query.weight
    assert type(weight).__name__ == "Int8Tensor" or "Quantized" in type(weight).__name__
    assert type(small.base.model.classifier.weight) is torch.nn.Parameter, "the head trains"
    seen = small.describe()
    assert (seen["dtype"], seen["quantize"], seen["device"]) == ("fp32", "int8", "cpu")


@pytest.mark.parametrize("options", [{"dtype": "bf16"}, {"gradient_accumulation": 2}])
def test_images(tmp_path: Path, pictures: Path, options: dict[str, Any]) -> None:
    task = load_task(save_vit(tmp_path / "vit"), pictures, **options)
    adapted = adapt(
        task.fresh_model(0), "lora", r=2, target_modules="all-linear", modules_to_save=task.head_modules
    )
    training = train_run(adapted, task, RECIPE, floor=FrozenFloor(task.fresh_model(0)))
    assert training.status == "complete" and np.isfinite(training.step_time_ratio)
    assert np.isfinite(training.peak_memory_mb)


def test_what_cannot_be_is_refused(
    tmp_path: Path, bert: Path, gpt2: Path, reviews: Path, pictures: Path
) -> None:
    refuse(bert, reviews, "--dtype half", "fp32, bf16 or fp16", dtype="half")
    refuse(bert, reviews, "--quantize int2", "choose int8, int4, nf4", quantize="int2")
    refuse(bert, reviews, "gradient_accumulation", gradient_accumulation=0)
    refuse(bert, reviews, "gradient_checkpointing", gradient_checkpointing="yes")
    refuse(save_resnet(tmp_path), pictures, "--quantize int8", "no linear layers", quantize="int8")
    refuse(tmp_path, pictures, "--gradient-checkpointing", "ResNet", gradient_checkpointing=True)
    if not torch.cuda.is_available():  # and said before anything is looked for
        refuse(tmp_path / "none", tmp_path / "none.csv", "--dtype fp16 needs a GPU", dtype="fp16")
    assert Memory(gradient_accumulation=4).part(16) == 4
    with pytest.raises(InputError, match="--gradient-accumulation 3 does not divide --batch-size 16"):
        Memory(gradient_accumulation=3).part(16)


def test_full_fine_tuning_that_cannot_fit_is_predicted() -> None:
    assert memory.full_memory(1000) == ""
    assert "16,000,000.0 GB" in memory.full_memory(10**15) and "left out" in memory.full_memory(10**15)
