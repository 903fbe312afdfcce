"""No training step stops at the host: one of each method runs on a make-believe card, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import eckart

SCRIPT = Path(__file__).parent / "shared" / "steps_on_a_card.py"
FOUND = {
    "reads": "waits for the card",
    "decides": "waits for the card",
    "copies away": "copies between host and card",
    "copies there": "copies between host and card",
    "meets": "Expected all tensors to be on the same device",
    "decomposes": "_linalg_svd waits for the card",
    "counts": "DynamicOutputShape",
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    output = tmp_path_factory.mktemp("card") / "found.jsonl"
    paths = [str(SCRIPT.parent), *sys.path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    process = subprocess.run(
        [sys.executable, str(SCRIPT), str(output)], env=environment, capture_output=True, text=True
    )
    assert not process.returncode, (process.stdout + process.stderr)[-3000:]
    return [json.loads(line) for line in output.read_text().splitlines()]


@pytest.mark.parametrize("kind", ["adapters", "layers", "optim", "training"])
def test_no_step_waits_for_the_card_or_meets_the_host(rows: list[dict[str, Any]], kind: str) -> None:
    found = {row["name"]: row["found"] for row in rows if row["kind"] == kind}
    assert not {name: what for name, what in found.items() if what}
    known = {method.slug for method in eckart.methods(kind)}
    missing = known - {name.partition(",")[0] for name in found}
    assert not missing


def test_metrics_take_states_of_the_card(rows: list[dict[str, Any]]) -> None:
    """They may read a number, but never mix devices."""
    found = {row["name"]: row["found"] for row in rows if row["kind"] == "metrics"}
    assert found and not {n: w for n, w in found.items() if any("device" in what for what in w)}


@pytest.mark.parametrize("fault", FOUND)
def test_a_fault_is_found(rows: list[dict[str, Any]], fault: str) -> None:
    [row] = [row for row in rows if row["kind"] == "faults" and row["name"] == fault]
    assert any(FOUND[fault] in what for what in row["found"])
