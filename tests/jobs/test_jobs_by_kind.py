"""Every kind of task, through `adapt` and through `compare`."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import BAD, GOOD, WORDS, save_bert, save_gpt2, save_segformer

from eckart.jobs.adapt.finetuning import finetune
from eckart.jobs.compare.comparison import compare
from eckart.jobs.compare.leaderboard import forgetting_shown, leaderboard

SMALL: dict[str, Any] = {
    "methods": "lora",
    "budget": "20%",
    "steps": 2,
    "seeds": 1,
    "batch_size": 4,
    "progress": False,
}


def numbers(draw: random.Random, i: int) -> dict[str, Any]:
    words = draw.choices(WORDS, k=4)
    return {"sentence1": " ".join(words), "sentence2": words[0], "label": sum(map(len, words)) / 4}


def several(draw: random.Random, i: int) -> dict[str, Any]:
    words = draw.choices(WORDS, k=4)
    return {"text": " ".join(words), "labels": sorted({len(word) % 3 for word in words[:2]})}


def pairs(draw: random.Random, i: int) -> dict[str, Any]:
    words = draw.choices(WORDS, k=3)
    return {
        "premise": " ".join(words),
        "hypothesis": words[0] if i % 3 else "not",
        "label": ["no", "yes"][i % 3 > 0],
    }


def chat(draw: random.Random, i: int) -> dict[str, Any]:
    words = draw.choices(WORDS, k=3)
    return {"instruction": " ".join(words), "output": words[0]}


def choices(draw: random.Random, i: int) -> dict[str, Any]:
    words = draw.sample(WORDS, 5)
    return {"question": " ".join(words[:2]), "choices": words[: 2 + i % 2], "answer": "AB"[i % 2]}


def tags(draw: random.Random, i: int) -> dict[str, Any]:
    words = draw.choices(WORDS, k=5)
    return {
        "tokens": words,
        "ner_tags": ["B-P" if w in GOOD else "B-B" if w in BAD else "O" for w in words],
    }


def masks(directory: Path) -> Path:
    """Dark squares on bright grounds."""
    draw, squares = np.random.default_rng(0), np.zeros((40, 16, 16), np.uint8)
    for i, square in enumerate(squares):
        square[i % 6 : i % 6 + 7, i % 9 : i % 9 + 6] = 1
    images = draw.integers(100, 256, (40, 16, 16, 3), np.uint8) // (1 + 3 * squares[..., None])
    np.savez(directory / "data.npz", images=images.astype(np.uint8), masks=squares)
    return directory / "data.npz"


KINDS = {
    "regression": (numbers, save_bert, {}, "pearson", {"spearman", "rmse"}),
    "multi-label": (
        several,
        save_bert,
        {},
        "label_accuracy",
        {"micro_f1", "macro_f1", "auroc", "subset_accuracy"},
    ),
    "text-classification": (
        pairs,
        save_bert,
        {"metric": "macro_f1", "class_weights": "balanced"},
        "macro_f1",
        {"accuracy", "mcc", "auroc"},
    ),
    "chat": (
        chat,
        save_gpt2,
        {"generate": 2, "also": "general.txt"},
        "bits_per_answer_token",
        {"exact_match"},
    ),
    "multiple-choice": (choices, save_gpt2, {"metric": "accuracy_norm"}, "accuracy_norm", {"accuracy"}),
    "token-classification": (tags, save_bert, {}, "entity_f1", {"entity_macro_f1", "token_accuracy"}),
    "segmentation": (masks, save_segformer, {}, "dice", {"iou", "mean_iou", "pixel_accuracy"}),
}


def files(directory: Path, kind: str) -> tuple[str, str]:
    row, save, *_ = KINDS[kind]
    options = {"pad": "[PAD]"} if save is save_gpt2 else {}
    model = str(save(directory / "model", **options))
    if kind == "segmentation":
        return model, str(row(directory))
    draw = random.Random(0)
    rows = [row(draw, i) for i in range(60)]
    (directory / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return model, str(directory / "data.jsonl")


def options_of(directory: Path, kind: str) -> dict[str, Any]:
    """The options of a kind, with a general text where they name one."""
    *_, options, _, _ = KINDS[kind]
    if "also" not in options:
        return options
    path = directory / options["also"]
    path.write_text("".join(f"{' '.join(random.Random(i).choices(WORDS, k=8))}\n" for i in range(20)))
    return {**options, "also": str(path)}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("kind", KINDS)
def test_adapt(tmp_path: Path, kind: str) -> None:
    *_, metric, also = KINDS[kind]
    options = options_of(tmp_path, kind)
    told: list[dict[str, Any]] = []
    found = finetune(
        *files(tmp_path, kind),
        output=tmp_path / "out",
        options={"r": 2},
        steps=2,
        batch_size=4,
        max_length=16,
        on_task=told.append,
        **options,
    )
    assert (found["kind"], found["metric"]) == (kind, metric)
    assert set(found["test"]["also"]) == also and told[0]["kind"] == kind
    assert found["validation"]["also"].keys() <= also
    assert ("forgetting" in found) == ("also" in options)
    card = (tmp_path / "out" / "README.md").read_text()
    exec(compile(card.split("```python\n")[1].split("```")[0], "card", "exec"), {})


@pytest.mark.parametrize("kind", KINDS)
def test_compare(tmp_path: Path, kind: str) -> None:
    *_, metric, also = KINDS[kind]
    options = options_of(tmp_path, kind)
    results = compare(*files(tmp_path, kind), output=tmp_path / "out", max_length=16, **options, **SMALL)
    final = results[results["stage"] == "final"].set_index("method")
    assert final["error"].fillna("").eq("").all() and (final["status"] == "complete").all()
    assert (final["metric"] == metric).all()
    assert set(json.loads(final.loc["lora", "also"])) == also
    assert final.loc["trivial", "score"] == final.loc["trivial", "score"]
    about = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert about["task"]["kind"] == kind and about["task"]["also"]
    for name, value in options.items():
        option = name.replace("_", "-")
        assert about["identity"][name] == value and f"--{option} {value}" in about["command"]
    forgotten = final["forgetting"].dropna()
    assert set(forgotten.index) == ({"head-only", "full", "lora"} if "also" in options else set())
    if "also" in options:
        assert forgotten["head-only"] == 0 != forgotten["full"]
        board = leaderboard(results)
        shown = dict(zip(board["method"], forgetting_shown(board), strict=True))
        assert shown["head-only"] == "+0.000" and shown["trivial"] == "–"
        assert "Forgetting" in (tmp_path / "out" / "report.html").read_text()
    assert forgetting_shown(leaderboard(results.drop(columns="forgetting"))) is None, "an older study"
    examples = pd.read_parquet(tmp_path / "out" / "examples.parquet")
    mine = examples[examples["run_id"].str.contains("lora")]
    assert mine["score"].mean() == pytest.approx(final.loc["lora", "score"], rel=1e-4, abs=1e-6)
    assert (tmp_path / "out" / "report.html").exists()
