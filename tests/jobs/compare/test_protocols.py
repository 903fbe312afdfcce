"""`compare --recipe metamath`: the dry run says the protocol in full, and results come out in the board's columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tiny_models import WORDS, save_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from eckart.cli import main
from eckart.errors import InputError
from eckart.jobs.compare.comparison import compare
from eckart.jobs.compare.protocols import settle

PROTOCOL = {
    "model": "meta-llama/Llama-3.2-3B",
    "train": "meta-math/MetaMathQA: query, response, at most 1,300 letters together",
    "validation": "50 of openai/gsm8k's train split",
    "test": "openai/gsm8k's test split, 1,319",
    "prompt": "Question: {query} Think step by step.\\nAnswer:",
    "loss": "every token of question and answer",
    "precision": "bfloat16, adapters in float32",
    "steps": "5,000",
    "step": "4 examples",
    "longest example": "768 tokens",
    "optimiser": "AdamW, weight decay 0.1, gradients cut to norm 1",
    "schedule": "cosine to 0 after a warm-up over a tenth of the steps",
    "generation": "greedy, at most 300 new tokens, 800 in all",
    "source": "https://github.com/huggingface/peft/tree/main/method_comparison/MetaMathQA",
}


def test_a_dry_run_prints_the_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["compare", "--recipe", "metamath", "--data", "maths", "--model", "llama", "--dry-run"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {name: told[name]["recipe"] for name in PROTOCOL} == PROTOCOL
    here = {name: value["here"] for name, value in told.items()}
    assert (here["steps"], here["step"]) == ("5,000; tuning runs half as many", "4 examples")
    assert (here["longest example"], here["precision"]) == ("768 tokens", "bf16, adapters in fp32")
    assert here["validation"] == "the validation split, at most 50" and here["test"] == "the test split"
    assert here["size"] == "0.5% for every method" and here["seeds"] == "0, 1, 2, 3, 4"
    reduced = ["--steps", "20", "--batch-size", "2", "--dtype", "fp32", "--seeds", "1", "--budget", "90k"]
    assert main([*words, *reduced, "--limit", "test=24", "--lr", "1e-4,3e-4", "--json"]) == 0
    here = {name: value["here"] for name, value in json.loads(capsys.readouterr().out).items()}
    assert (here["steps"], here["step"]) == ("20; tuning runs half as many", "2 examples")
    assert (here["precision"], here["seeds"]) == ("fp32, adapters in fp32", "0")
    assert here["test"] == "the test split, at most 24" and here["learning rate"].endswith(
        "of 0.0001, 0.0003"
    )
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in PROTOCOL) and "Nothing was trained" in shown
    assert main(["compare", "--dry-run"]) == 0 and "44; tuning" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_what_is_given_wins() -> None:
    asked: dict[str, Any] = {"steps": None, "seeds": 2, "batch_size": "auto", "max_length": None}
    preset, spent, options = settle(False, "maths", asked, {"dtype": "fp32", "recipe": "metamath"})
    assert spent == {"steps": 5000, "seeds": 2, "batch_size": 4, "max_length": 768}
    parts = {"gradient_accumulation": "auto"}
    assert options == {"dtype": "fp32", "metric": "exact_match", "recipe": "metamath", **parts}
    assert (preset.validation, preset.test) == (50, None)
    with pytest.raises(InputError, match="--recipe metamath needs --data"):
        settle(False, None, asked, {"recipe": "metamath"})


def test_results_in_the_boards_columns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 48}
    config = LlamaConfig(vocab_size=40, num_hidden_layers=1, max_position_embeddings=1024, **shape)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    save_tokenizer(tmp_path / "llama", pad="[PAD]")
    rows = [
        {"query": f"{WORDS[i % 5]} {WORDS[i % 7]}", "response": f"The answer is: {i % 3}"} for i in range(40)
    ]
    (tmp_path / "maths.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "out"
    results = compare(
        str(tmp_path / "llama"),
        str(tmp_path / "maths.jsonl"),
        methods="lora",
        budget="20%",
        recipe="metamath",
        steps=4,
        seeds=1,
        batch_size=2,
        max_length=32,
        learning_rates=[1e-3],
        limits={"validation": 2, "test": 2},
        output=output,
        progress=False,
    )
    board = pd.read_csv(output / "metamath.csv")
    theirs = ["experiment_name", "peft_type", "total_time", "train_time", "test_accuracy", "train_loss"]
    theirs += ["accelerator_memory_max", "file_size", "created_at", "task_name", "model_id", "train_samples"]
    assert set(theirs) <= set(board.columns)
    row = board.set_index("peft_type").loc["LORA"]
    lora = results[(results["method"] == "lora") & (results["stage"] == "final")].iloc[0]
    assert row["test_accuracy"] == lora["score"] and row["file_size"] == lora["saved_bytes"]
    assert row["train_time"] == pytest.approx(4 * lora["step_seconds"]) and row["train_samples"] == 8
    assert row["num_trainable_params"] == lora["trainable_parameters"]
    curves = pd.read_csv(output / "curves.csv")
    mine = curves[(curves["run_id"] == lora["run_id"]) & (curves["split"] == "train")]
    assert row["train_loss"] == pytest.approx(mine["loss"].mean())
    about = json.loads((output / "compare.json").read_text())
    assert about["identity"]["recipe"] == "metamath" and "--recipe metamath" in about["command"]
    assert about["task"]["dtype"] == "bf16" and about["task"]["metric"] == "exact_match"
