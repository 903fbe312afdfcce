"""benchmarks/gpu.py runs on a CPU with tiny sizes, so that it is sound on the day a GPU is at hand."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def gpu() -> Iterator[ModuleType]:
    """The script, as it is run: from its own folder."""
    sys.path.insert(0, str(BENCHMARKS))
    import gpu

    yield gpu
    sys.path.remove(str(BENCHMARKS))


def test_steps_are_measured_against_the_floor(gpu: ModuleType) -> None:
    rows = gpu.run("steps", CPU, True, time.monotonic() + 300, ["peft lora", "svfit"])
    assert {(row["arm"], row["tokens"], row["route"]) for row in rows} >= {
        ("svfit, width 64", tokens, route) for tokens in (16, 32) for route in ("factored", "folded")
    } | {("peft lora, width 64", 16, "")}
    for row in rows:
        assert "error" not in row, row
        assert row["ms"] > 0 and row["x frozen floor"] > 0 and row["numbers"] > 0
        assert row["waits for"] == "not measured" and row["peak MiB"] is None


def test_files_cross_between_host_and_device(gpu: ModuleType) -> None:
    rows = gpu.run("files", CPU, True, time.monotonic() + 300, ["svfit, float32", "loldu, bfloat16"])
    assert len(rows) == 8
    assert all(row["delta"] < 1e-5 for row in rows), rows


def test_numbers_are_those_of_the_host(gpu: ModuleType) -> None:
    rows = gpu.run("numbers", CPU, True, time.monotonic() + 300, ["S4D", "metric rankme", "Spectron", "lord"])
    assert len(rows) == 5
    assert all(row["relative error"] < 1e-4 for row in rows), rows


def test_a_failure_and_what_no_time_is_left_for_are_rows(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("no such kernel")

    def arms(device: torch.device, small: bool):
        yield "bad", fail
        yield "good", lambda: [{"ms": 1.0}]
        yield "late", lambda: time.sleep(0) or monkeypatch.setattr(time, "monotonic", lambda: 1e9) or []
        yield "after", fail

    monkeypatch.setitem(gpu.PARTS, "steps", (1.0, arms))
    assert gpu.run("steps", CPU, True, time.monotonic() + 60) == [
        {"part": "steps", "arm": "bad", "error": "RuntimeError: no such kernel"},
        {"part": "steps", "arm": "good", "ms": 1.0},
        {"part": "steps", "arm": "after", "error": "not run: no time left"},
    ]


def test_results_are_saved_with_the_machine_and_a_gpu_is_asked_for(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(gpu.PARTS, "parity", (1.0, lambda device, small: iter([("one", lambda: [{"x": 1}])])))
    monkeypatch.setattr(
        sys, "argv", ["gpu.py", "--device", "cpu", "--small", "--parts", "parity", "--output", str(tmp_path)]
    )
    gpu.main()
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["rows"] == [{"part": "parity", "arm": "one", "x": 1}]
    assert written["machine"]["torch"] == torch.__version__
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main()
    assert "no GPU is at hand" in capsys.readouterr().err
