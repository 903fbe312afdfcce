"""A small corpus, and the arguments of a run that takes a second."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty documents of made-up code."""
    directory, rng = tmp_path_factory.mktemp("corpus"), random.Random(0)
    for i in range(60):
        lines = (f"def f{rng.randrange(20)}(x): return x + {rng.randrange(9)}" for _ in range(30))
        (directory / f"f{i}.py").write_text("\n".join(lines))
    return directory


@pytest.fixture(scope="session")
def arch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two blocks."""
    path = tmp_path_factory.mktemp("arch") / "config.json"
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    path.write_text(
        json.dumps({"model_type": "llama", "vocab_size": 300, "max_position_embeddings": 32, **sizes})
    )
    return path


@pytest.fixture
def run(corpus: Path, arch: Path, tmp_path: Path) -> Any:
    """`pretrain` with small arguments; the directory is tmp_path/"run" unless given."""
    from eckart.jobs.pretrain.pretraining import pretrain

    def call(**given: Any) -> Any:
        arguments = {
            "output": tmp_path / "run",
            "data": str(corpus),
            "vocabulary": 300,
            "length": 32,
            "steps": 4,
            "batch": 2,
            "eval_steps": 2,
            "save_steps": 2,
        }
        return pretrain(str(arch), **{**arguments, **given})

    return call
