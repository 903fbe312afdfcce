"""Models and data that the tests of tasks share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_models import WORDS, save_bert, save_gpt2

from eckart.tasks.task import load_task

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 10, 12, 3), np.uint8)
LABELS = np.arange(60) % 3


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tasks")


@pytest.fixture(scope="session")
def reviews(root) -> Path:
    generator = np.random.default_rng(0)
    rows = []
    for i in range(60):
        words = [
            str(generator.choice(WORDS[:4] if i % 2 else WORDS[4:8])),
            *generator.choice(WORDS, 1 + i % 7),
        ]
        rows.append({"text": " ".join(map(str, words)), "label": ["bad", "good"][i % 2]})
    path = root / "reviews.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def corpus(root) -> Path:
    generator = np.random.default_rng(1)
    path = root / "corpus.txt"
    path.write_text("".join(" ".join(generator.choice(WORDS, 9)) + "\n" for _ in range(200)))
    return path


@pytest.fixture(scope="session")
def pictures(root) -> Path:
    np.savez(root / "pictures.npz", images=PIXELS, labels=LABELS)
    return root / "pictures.npz"


@pytest.fixture(scope="session")
def bert(root) -> Path:
    return save_bert(root / "bert", trained_pooler=True)


@pytest.fixture(scope="session")
def gpt2(root) -> Path:
    return save_gpt2(root / "gpt2")


@pytest.fixture(scope="session")
def task(bert, reviews):
    return load_task(bert, reviews, max_length=16)


@pytest.fixture(scope="session")
def embedded():
    return load_task(limits={"train": 24, "validation": 24, "test": 24})


@pytest.fixture
def broken(tmp_path, bert) -> Path:
    return shutil.copytree(bert, tmp_path / "broken")
