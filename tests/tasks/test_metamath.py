"""The protocol of PEFT's MetaMathQA board: prompt, loss, what is left out, schedule, and what counts as an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from task_checks import refuse
from tiny_models import WORDS, save_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from eckart.adapters import adapt
from eckart.errors import InputError
from eckart.tasks.kinds.chat import IGNORED, render
from eckart.tasks.kinds.metamath import LETTERS, NEW_TOKENS, final_answer
from eckart.tasks.options import beyond_data, check_recipe
from eckart.tasks.task import Task, load_task
from eckart.tasks.trainer import Recipe, make_trainer


@pytest.fixture(scope="module")
def llama(root: Path) -> Path:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 48}
    config = LlamaConfig(vocab_size=40, num_hidden_layers=2, max_position_embeddings=1024, **shape)
    LlamaForCausalLM(config).save_pretrained(root / "meta-llama")
    save_tokenizer(root / "meta-llama", pad="[PAD]")
    return root / "meta-llama"


@pytest.fixture(scope="module")
def maths(root: Path) -> Path:
    """MetaMathQA to train on, with its columns, and GSM8K to be scored on, with others."""
    draw, folder = np.random.default_rng(0), root / "maths"
    folder.mkdir()

    def told(number: int) -> str:
        return " ".join(draw.choice(WORDS, number))

    train = [
        {"query": told(4), "response": f"{told(3)} The answer is: {i % 4}", "type": "x"} for i in range(24)
    ]
    query = "a" * 700
    train += [{"query": query, "response": "b" * (LETTERS - 701 + more), "type": "x"} for more in (0, 1)]
    scored = [{"question": told(4), "answer": f"{told(3)}\n#### {i % 4}"} for i in range(8)]
    for part, rows in (("train", train), ("validation", scored), ("test", scored)):
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def task(llama: Path, maths: Path) -> Task:
    return load_task(llama, maths, recipe="metamath", metric="exact_match", max_length=64)


def test_prompt_and_loss(task: Task) -> None:
    tokenizer: Any = task.processor
    asked, answered = (
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "The answer is: 2"},
    )
    prompt = "Question: 1 + 1? Think step by step.\nAnswer:"
    assert render([asked], tokenizer, prompt=True).removeprefix(tokenizer.bos_token or "") == prompt
    whole = render([asked, answered], tokenizer)
    assert whole.endswith(f"{prompt}The answer is: 2{tokenizer.eos_token or ''}")
    assert all(row["labels"] == row["input_ids"] for row in task.train.rows)  # type: ignore[attr-defined]
    for row in task.test.rows:  # type: ignore[attr-defined]
        assert row["labels"][0] == IGNORED and row["labels"][-1] == row["input_ids"][-1]
    assert task.form.answer_tokens == NEW_TOKENS  # type: ignore[attr-defined]


def test_long_examples_are_left_out(task: Task) -> None:
    assert len(task.train) == 25, "1,300 letters are in, 1,301 are not"  # type: ignore[arg-type]
    notes = " ".join(task.data.notes)
    assert "train: 1 of 26 are longer than 1,300 letters" in notes
    assert "train: columns query, response" in notes, "beside question and answer of the others"


def test_schedule_and_decay(task: Task) -> None:
    model = adapt(task.fresh_model(0), "lora", r=2, target_modules="all-linear")
    trainer = make_trainer(model, task, Recipe(20, 4, 1e-2, 1e-2))
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.1}  # type: ignore[union-attr]
    assert trainer.args.max_grad_norm == 1.0
    trainer.train()
    rates = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log]
    wanted = [i / 2 if i < 2 else (1 + np.cos(np.pi * (i - 2) / 18)) / 2 for i in range(20)]
    assert rates == pytest.approx([1e-2 * share for share in wanted]), "two of warm-up, then half a cosine"


def test_other_tasks_are_as_they_were(llama: Path, maths: Path) -> None:
    plain = load_task(llama, maths, kind="chat", max_length=64)
    trainer = make_trainer(
        adapt(plain.fresh_model(0), "lora", r=2, target_modules="all-linear"), plain, Recipe(4, 4, 1e-2, 1e-2)
    )
    assert trainer.args.lr_scheduler_type == "linear"
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.0}  # type: ignore[union-attr]
    assert len(plain.train) == 26 and plain.training == {}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so it is $4^2$.The answer is: 16", 16.0),
        ("The answer is: 3 The answer is: 4.", 4.0),
        ("#### 1,000", "1,000"),
        ("x\n#### 7\nmore", 7.0),
        ("The answer is 20/35", 20 / 35),
        ("The final answer is: 50%!", 50.0),
        ("The answer is: \\frac{1}{2}", "\\frac{1}{2}"),
        ("The answer is: 1/0", "1/0"),
        ("The answer is: 1/2/3", "1/2/3"),
        ("#### 3 The answer is: 5", 5.0),
        ("it is 5", None),
    ],
)
def test_what_counts_as_an_answer(text: str, answer: float | str | None) -> None:
    assert final_answer(text) == answer


def test_recipes_are_refused(llama: Path, maths: Path) -> None:
    refuse(llama, maths, "--recipe gsm", "choose metamath", recipe="gsm")
    refuse(
        llama, maths, "--recipe metamath is of --kind chat", "causal-lm", recipe="metamath", kind="causal-lm"
    )
    with pytest.raises(InputError, match="--recipe x"):
        check_recipe("x", "auto")
    assert check_recipe(None, "regression") == "regression" and check_recipe("metamath", "auto") == "chat"
    assert beyond_data({"recipe": "metamath", "kind": "chat"}) == {"recipe": "metamath"}
