"""Ranks that differ from layer to layer: kept beside the results, and shown as a map."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from toy_task import ToyTask, install

import eckart
from eckart.adapters._walk import ranks_of
from eckart.errors import InputError
from eckart.jobs.compare.comparison import compare
from eckart.jobs.compare.reading import read_ranks
from eckart.jobs.compare.tables import rank_maps


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> ToyTask:
    import eckart.tasks.task as tasks

    torch.set_num_threads(1)
    monkeypatch.setattr(tasks, "load_task", tasks.load_task)  # put back what install replaces
    return install()


def study() -> tuple[pd.DataFrame, pd.DataFrame]:
    """A board of two arms, and their final runs with two seeds and a tuning run."""
    arms = [("lora+increlora", "LoRA + IncreLoRA"), ("lora", "LoRA")]
    board = pd.DataFrame([{"method": m, "label": label, "budget": "1k"} for m, label in arms])
    rows = [
        {"run_id": f"{stage}/{m}/{seed}", "stage": stage, "method": m, "label": label, "budget": "1k"}
        for m, label in arms
        for stage, seed in (("tune", 0), ("final", 0), ("final", 1))
    ]
    return board, pd.DataFrame(rows)


def test_a_map_has_a_line_a_block_and_the_mean_over_the_seeds() -> None:
    board, rows = study()
    ranks = {
        "tune/lora+increlora/0": {"h.0.attn.q": 100},
        "final/lora+increlora/0": {"h.0.attn.q": 4, "h.1.attn.q": 1, "h.1.mlp": 2, "head": 3},
        "final/lora+increlora/1": {"h.0.attn.q": 5, "h.1.attn.q": 1, "h.1.mlp": 2, "head": 3},
        "final/lora/0": {"h.0.attn.q": 2, "h.1.attn.q": 2},
    }
    (found,) = rank_maps(board, rows, ranks)
    assert found["label"] == "LoRA + IncreLoRA" and found["kinds"] == ["attn.q", "mlp", "head"]
    first, second, outside = found["lines"]
    assert (first["block"], second["block"], outside["block"]) == ("0", "1", "")
    assert first["cells"] == [{"rank": "4.5", "heat": "1.00"}, None, None]
    assert second["cells"] == [{"rank": "1", "heat": "0.22"}, {"rank": "2", "heat": "0.44"}, None]
    assert outside["cells"][2] == {"rank": "3", "heat": "0.67"}
    assert rank_maps(board, rows, {}) == []


def test_a_comparison_keeps_the_ranks_and_shows_those_that_differ(tmp_path: Path) -> None:
    results = compare(
        methods="lora-core+increlora",
        budget="3k",
        steps=20,
        seeds=1,
        batch_size=8,
        learning_rates=[1e-2],
        output=tmp_path / "out",
        progress=False,
    )
    kept = pd.read_csv(tmp_path / "out" / "ranks.csv")
    grown = kept[kept["run_id"] == "final/lora-core+increlora/seed=0"]
    assert len(grown) == 4 and grown["layer"].str.endswith(("query", "value")).all()
    assert set(kept["run_id"]) == {"final/lora-core+increlora/seed=0", "final/lora/seed=0"}
    assert read_ranks(tmp_path / "out")["final/lora/seed=0"].keys() == set(grown["layer"])
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    unequal = grown["rank"].nunique() > 1
    assert ('id="h-ranks"' in page) == unequal and len(results)
    compare(
        methods="lora", budget="3k", steps=1, seeds=1, batch_size=8, learning_rates=[1e-2],
        output=tmp_path / "out", overwrite=True, progress=False,
    )  # fmt: skip
    assert set(pd.read_csv(tmp_path / "out" / "ranks.csv")["run_id"]) == {"final/lora/seed=0"}


def test_ranks_are_those_in_use(tmp_path: Path) -> None:
    model = eckart.adapt(torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 4)), "lora", r=3)
    layer = next(layer for _, layer, _, _ in eckart.adapters.walk(model))
    layer.adapter("default").set_active(torch.tensor([True, False, True]))
    assert ranks_of(model) == {"0": 2, "1": 3}
    bias = eckart.adapt(torch.nn.Sequential(torch.nn.Linear(6, 5)), "mos", r=2, target_modules=["0"])
    assert set(ranks_of(bias)) <= {"0"}
    (tmp_path / "ranks.csv").write_text("run_id,layer\na,b\n")
    with pytest.raises(InputError, match=r"ranks\.csv is no table of ranks"):
        read_ranks(tmp_path)
