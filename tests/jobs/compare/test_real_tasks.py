"""`compare` on real model directories and data files of every kind of task, as small as they come."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import WORDS, save_bert, save_gpt2, save_resnet, save_vit

from eckart.jobs.compare.comparison import compare

SMALL = {"methods": "lora", "budget": "20%", "steps": 3, "seeds": 1, "batch_size": 4, "progress": False}


def sentences(directory: Path) -> Path:
    words = random.Random(0)
    rows = []
    for i in range(60):
        told = WORDS[:4] if i % 2 else WORDS[4:8]
        rows.append(
            {"text": " ".join([*words.sample(WORDS[8:], 4), words.choice(told)]), "label": f"kind{i % 2}"}
        )
    pd.DataFrame(rows).to_csv(directory / "data.csv", index=False)
    return directory / "data.csv"


def prose(directory: Path) -> Path:
    words = random.Random(0)
    lines = [" ".join(words.choices(WORDS, k=12)) for _ in range(200)]
    (directory / "data.txt").write_text("\n".join(lines))
    return directory / "data.txt"


def pictures(directory: Path) -> Path:
    numbers = np.random.default_rng(0)
    labels = np.arange(48) % 2
    images = numbers.integers(0, 120, (48, 16, 16, 3), dtype=np.uint8) + 100 * labels[
        :, None, None, None
    ].astype(np.uint8)
    np.savez(directory / "data.npz", images=images, labels=labels)
    return directory / "data.npz"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("save", "data"), [(save_bert, sentences), (save_vit, pictures), (save_resnet, pictures)]
)
def test_classification(tmp_path: Path, save: Any, data: Any) -> None:
    model = save(tmp_path / "model")
    results = compare(str(model), str(data(tmp_path)), output=tmp_path / "out", max_length=16, **SMALL)
    final = results[results["stage"] == "final"].set_index("method")
    assert set(final.index) == {"head-only", "full", "lora", "trivial"}
    assert final.loc["trivial", "score"] == pytest.approx(0.5, abs=0.25)
    final = final.drop("trivial")
    assert (final["status"] == "complete").all() and final["error"].eq("").all()
    assert final["score"].between(0, 1).all() and (final["metric"] == "accuracy").all()
    assert final.loc["lora", "trainable_parameters"] > 0 and (final["head_parameters"] > 0).all()
    assert (final["step_time_ratio"] > 0).all()
    assert (tmp_path / "out" / "report.html").exists()


def test_language_modelling_scores_the_frozen_model_as_it_is(tmp_path: Path) -> None:
    model = save_gpt2(tmp_path / "model")
    results = compare(str(model), str(prose(tmp_path)), output=tmp_path / "out", max_length=16, **SMALL)
    final = results[results["stage"] == "final"].set_index("method")
    assert (final["status"] == "complete").all()
    assert final.loc["trivial", "label"] == "unigram" and 0 < final.loc["trivial", "score"] < 20
    assert (final["metric"] == "bits_per_token").all() and not final["greater_is_better"].any()
    assert final.loc["head-only", "steps"] == 0 and (final["head_parameters"] == 0).all()
    assert "head-only" not in set(results[results["stage"] == "tune"]["method"])
    assert final.loc["full", "score"] < final.loc["head-only", "score"], "training helps: fewer bits"
