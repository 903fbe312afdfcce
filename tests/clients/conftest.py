"""Real clients in processes of their own, and tiny models for them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import save_gpt2

Start = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gpt2(tmp_path_factory.mktemp("gpt2"), pad="[PAD]")


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Run a script in a fresh Python; ``before`` stands before the interpreter."""

    def run(
        script: str, *arguments: object, before: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "client.py"
        path.write_text(script)
        command = [
            *before,
            *(() if "accelerate.commands.launch" in before else (sys.executable,)),
            str(path),
            *map(str, arguments),
        ]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)

    return run
