"""What a run writes of itself repeats it, to the bit."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from tiny_models import save_bert, save_reviews

from eckart.cli import main
from eckart.jobs.repeat import adapt_options, compare_options, pretrain_options


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    torch.set_num_threads(1)
    data = save_reviews(tmp_path / "reviews.csv", 60)
    data.write_text(data.read_text().replace("text,label", "words,label", 1))
    return ["--model", str(save_bert(tmp_path / "bert")), "--data", str(data), "--text-column", "words"]


@pytest.mark.parametrize("written", ["config.yaml", "run.json"])
def test_adapt(tmp_path: Path, files: list[str], written: str) -> None:
    told = (
        "--method lora --option r=2 --option lora_alpha=3 --steps 3 --batch-size auto --seed 5 --metric mcc"
    )
    told += (
        " --max-length 16 --limit train=32 --limit test=8 --dtype bf16 --keep best --patience 2 --lr 0.003"
    )
    assert main(["adapt", *files, *told.split(), "--output", str(tmp_path / "one")]) == 0
    assert (
        main(["adapt", "--config", str(tmp_path / "one" / written), "--output", str(tmp_path / "two")]) == 0
    )
    for file in ("adapter_model.safetensors", "run.json", "config.yaml"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
    assert "--config config.yaml" in (tmp_path / "one" / "config.yaml").read_text()
    again = [
        "adapt",
        "--config",
        str(tmp_path / "one" / written),
        "--seed",
        "6",
        "--output",
        str(tmp_path / "three"),
    ]
    assert main(again) == 0, "the command line wins"
    assert yaml.safe_load((tmp_path / "three" / "config.yaml").read_text())["seed"] == 6


def test_compare(tmp_path: Path, files: list[str]) -> None:
    told = "--methods lora --budget 20% --steps 2 --seeds 1 --batch-size 8 --max-length 16 --metric macro_f1"
    told += " --lr 1e-3 --limit validation=6 --quantize int8"
    assert main(["compare", *files, *told.split(), "--output", str(tmp_path / "one")]) == 0
    for number, written in enumerate(("config.yaml", "compare.json")):
        config = ["--config", str(tmp_path / "one" / written)]
        assert main(["compare", *config, "--output", str(tmp_path / str(number))]) == 0
        tables = [pd.read_csv(tmp_path / where / "results.csv") for where in ("one", str(number))]
        kept = ["run_id", "score", "ci_low", "validation_score", "trainable_parameters", "metric"]
        pd.testing.assert_frame_equal(*(table[kept] for table in tables))
    full = tables[0].set_index("method").loc["full"]
    assert (
        full["status"] == "failed"
        and "full fine-tuning is left out: the base is kept in int8" in full["error"]
    )


def test_options_of_a_run() -> None:
    job = {
        **{"model": "m", "data": None, "fingerprint": "f", "method": "lora", "budget": None, "steps": 3},
        **{"options": {"r": 2}, "optimizer_options": {}, "target_modules": ["a", "b"]},
        "task": {"kind": "chat", "label_column": None, "limits": {"train": 3}, "generate": 4},
        "loram": {"ratio": 0.5, "criterion": "random", "align": 2, "align_lr": 5e-5, "int8": True},
    }
    assert adapt_options(job) == {
        **{"model": "m", "method": "lora", "steps": 3, "target-modules": ["a", "b"], "option": {"r": 2}},
        **{"limit": {"train": 3}, "kind": "chat", "generate": 4},
        **{"loram": 0.5, "loram-criterion": "random", "loram-align": 2, "loram-int8": True},
    }
    command = (
        "eckart compare --data 'a b.csv' --limit train=3 --limit test=4 --quick --output x --lr 1e-3,1e-2"
    )
    assert compare_options(command) == {
        **{"data": "a b.csv", "limit": ["train=3", "test=4"], "quick": True, "lr": "1e-3,1e-2"}
    }
    given = {"arch": "llama-2m", "clip": 0.0, "seed": 0, "bf16": False, "tokenizer": None, "cuts": [0.5]}
    assert pretrain_options({**given, "options": {"r": 2}, "optimizer_options": {}, "eval_steps": 3}) == {
        **{"arch": "llama-2m", "clip": 0.0, "seed": 0, "cut": [0.5], "option": {"r": 2}, "eval-steps": 3}
    }
