"""`finetune` with another optimiser: it reaches the adapter, a killed run goes on with its state, bad names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import save_bert, save_reviews

from eckart.errors import InputError
from eckart.jobs.adapt.finetuning import finetune

SETTINGS: dict[str, Any] = {
    "steps": 6,
    "batch_size": 8,
    "save_every": 2,
    "validate_every": 6,
    "options": {"r": 2},
    "lr": 1e-2,
}


class Stop(Exception):
    """Ends a run from inside."""


def stop(done: int, total: int) -> None:
    if done == 3:
        raise Stop


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("files")
    return str(save_bert(folder / "bert")), str(save_reviews(folder / "reviews.csv"))


@pytest.mark.parametrize(
    ("optimizer", "options"), [("muon", {"momentum": 0.9}), ("dct-adamw", {"rank": 1}), ("adamw", {})]
)
def test_a_killed_run_goes_on_with_the_optimisers_state(
    optimizer: str, options: dict[str, Any], files: tuple[str, str], tmp_path: Path
) -> None:
    given = {**SETTINGS, "optimizer": optimizer, "optimizer_options": options}
    metrics = finetune(*files, "lora", output=tmp_path / "whole", **given)
    assert metrics["optimizer"] == optimizer
    with pytest.raises(Stop):
        finetune(*files, "lora", output=tmp_path / "killed", on_step=stop, **given)
    job = json.loads((tmp_path / "killed" / "run.json").read_text())
    assert (job["optimizer"], job["optimizer_options"]) == (optimizer, options)
    resumed = finetune(*files, "lora", output=tmp_path / "killed", resume=True, **given)
    assert resumed["losses"] == metrics["losses"] and resumed["resumed_at_step"] == 2
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(InputError, match="optimizer is"):
        finetune(*files, "lora", output=tmp_path / "killed", resume=True, **{**given, "optimizer": "trion"})


def test_the_optimiser_decides_the_numbers(files: tuple[str, str], tmp_path: Path) -> None:
    losses = [
        finetune(*files, "lora", output=tmp_path / name, optimizer=name, **SETTINGS)["losses"]
        for name in ("adamw", "muon")
    ]
    assert losses[0][0] == losses[1][0] and losses[0][-1] != losses[1][-1]


def test_bad_input_is_refused_and_nothing_is_written(files: tuple[str, str], tmp_path: Path) -> None:
    for given, message in (
        ({"optimizer": "sgd"}, "--optimizer sgd: choose one of adamw"),
        ({"optimizer": "apollo", "resume": True}, "--resume"),
        ({"optimizer": "galore", "optimizer_options": {"rank": 99}}, "rank=99: params"),
    ):
        with pytest.raises(InputError, match=message):
            finetune(*files, "lora", output=tmp_path / "run", **SETTINGS, **given)
        assert not (tmp_path / "run" / "metrics.json").exists()
