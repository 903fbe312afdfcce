"""`eckart pretrain` on the command line: options reach the job, the report is printed, bad input is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eckart.cli import main


def test_a_run_with_its_options_and_its_config_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus").mkdir()
    for i in range(60):
        (tmp_path / "corpus" / f"{i}.txt").write_text(f"line {i}\n" * 20)
    words = [
        "pretrain",
        "--data",
        str(tmp_path / "corpus"),
        "--vocabulary",
        "260",
        "--length",
        "16",
        "--steps",
        "2",
    ]
    words += ["--batch", "2", "--method", "sltrain", "--option", "r=4", "--option", "sparsity=0.01"]
    words += ["--optimizer", "dct-adamw", "--optimizer-option", "rank=2"]
    assert main([*words, "--output", str(tmp_path / "a"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["method"], report["optimizer"], report["steps"]) == ("sltrain", "dct-adamw", 2)
    config = str(tmp_path / "a" / "config.yaml")
    assert main(["pretrain", "--config", config, "--output", str(tmp_path / "b")]) == 0
    printed = capsys.readouterr().out
    assert "sltrain" in printed and "activations" in printed and "Written:" in printed
    again = json.loads((tmp_path / "b" / "metrics.json").read_text())
    assert again["loss"] == report["loss"] and again["predicted"] == report["predicted"]


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--steps", "0", "--output", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.strip() == "eckart: error: steps is 0: give at least 1"
    assert not (tmp_path / "run").exists()
