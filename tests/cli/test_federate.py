"""`eckart federate`: words become the job's arguments, rounds are told as they end, refusals come before torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eckart.cli import main
from eckart.jobs.federate import federating

METRICS = {
    "strategy": "flexlora",
    "metric": "accuracy",
    "rounds": 2,
    "clients": 4,
    "bytes_up": 2_000_000,
    "bytes_down": 3_000_000,
    "validation": {"score": 0.5, "ci_low": 0.4, "ci_high": 0.6, "also": {}},
    "test": {"score": 0.75, "ci_low": 0.7, "ci_high": 0.8, "also": {"mcc": 0.5}},
}


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def federate(model, data, strategy, **options: Any) -> dict[str, Any]:
        seen.update(options, model=model, data=data, strategy=strategy)
        row = {
            "round": 1,
            "score": 0.5,
            "clients": 3,
            "refused": 1,
            "error": 0.01,
            "bytes_up": 1e6,
            "seconds": 2.0,
        }
        options["on_round"](row, 2)
        return METRICS

    monkeypatch.setattr(federating, "federate", federate)
    return seen


def test_words_become_arguments(given, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "federate --strategy flexlora --option threshold=0.9 --rank 4,8 --clients 4 --fraction 0.5 --rounds 2"
    )
    method = ("--method", "lora", "--method-option", "use_rslora=true")
    assert (
        main([*words.split(), *method, "--limit", "train=100", "--tls", "--output", str(tmp_path / "run")])
        == 0
    )
    assert given["options"] == {"threshold": 0.9}
    assert given["ranks"] == [4, 8]
    assert given["method"] == "lora"
    assert given["method_options"] == {"use_rslora": True}
    assert given["limits"] == {"train": 100}
    assert given["tls"] is True
    assert given["clients"] == 4
    shown = capsys.readouterr()
    assert "round 1/2: score 0.5000, 3 clients, 1 not used" in shown.err
    assert "2.0 MB up, 3.0 MB down" in shown.out
    assert "0.7500" in shown.out and "mcc 0.5000" in shown.out


def test_json(given, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["federate", "--json", "--output", str(tmp_path / "run")]) == 0
    assert json.loads(capsys.readouterr().out) == METRICS


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--strategy lora-fare", "unknown strategy 'lora-fare': did you mean 'lora-fair'?"),
        ("--method lorra", "unknown method 'lorra'"),
        ("--method rslora --method-option alpha=3", "has no option 'alpha'"),
        ("--rank 4,x", "--rank 4,x: write a whole number"),
        ("--rank 0", "ranks are [0]"),
        ("--partition even", "partition is 'even'"),
        ("--clients 0", "clients is 0"),
        ("--rounds 0", "rounds is 0"),
        ("--data nowhere.csv", "nowhere.csv"),
    ],
)
def test_refusals_come_before_torch(words: str, said: str, tmp_path: Path) -> None:
    code = f"""
import sys
from eckart.cli import main
code = main({["federate", *words.split(), "--output", str(tmp_path / "run")]!r})
assert not {{"torch", "flwr", "ray", "transformers"}} & set(sys.modules), "loaded"
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
