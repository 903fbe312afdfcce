"""Fine-tuning a prompt: what the run sets for it, what it leaves, and that it resumes to the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import save_bert, save_gpt2, save_reviews
from transformers import AutoConfig, AutoModelForSequenceClassification

from eckart.errors import InputError
from eckart.jobs.adapt.finetuning import finetune
from eckart.tasks.scoring import evaluate
from eckart.tasks.task import load_task

SETTINGS: dict[str, Any] = {
    "steps": 6,
    "batch_size": 8,
    "save_every": 2,
    "validate_every": 3,
    "max_length": 24,
    "budget": "10%",
}


class Stop(Exception):
    """A run is taken away."""


@pytest.mark.parametrize(
    "save", [save_bert, lambda folder: save_gpt2(folder, pad="[PAD]")], ids=["bert", "gpt2"]
)
def test_a_prompt_is_tuned_resumed_and_loaded(save: Any, tmp_path: Path) -> None:
    model, data = str(save(tmp_path / "model")), str(save_reviews(tmp_path / "reviews.csv"))
    whole = finetune(model, data, "dept", output=tmp_path / "whole", **SETTINGS)
    options, width = whole["options"], 16
    assert options["max_length"] == 24  # the task's
    assert whole["target_modules"] is None
    count = options["num_virtual_tokens"] * width + options["r"] * (24 + width)
    assert whole["trainable_parameters"] == count
    assert 0.9 < count / (0.1 * whole["base_parameters"]) <= 1

    def stop(step: int, steps: int) -> None:
        if step == 5:
            raise Stop

    with pytest.raises(Stop):
        finetune(model, data, "dept", output=tmp_path / "cut", on_step=stop, **SETTINGS)
    resumed = finetune(model, data, "dept", output=tmp_path / "cut", resume=True, **SETTINGS)
    assert resumed["resumed_at_step"] == 4
    assert resumed["losses"] == whole["losses"]
    assert resumed["test"] == whole["test"]
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("cut", "whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    base = AutoModelForSequenceClassification.from_pretrained(
        model, config=AutoConfig.from_pretrained(tmp_path / "whole"), ignore_mismatched_sizes=True
    )
    loaded = PeftModel.from_pretrained(base, tmp_path / "whole").eval()
    task = load_task(model, data, max_length=24)
    assert evaluate(loaded, task, task.test, 16).loss == pytest.approx(whole["test"]["loss"], abs=1e-6)
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "PeftModel.from_pretrained" in card
    assert "eckart merge" not in card


def test_a_prompt_and_its_update_have_learning_rates_of_their_own(tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[list[dict[str, Any]]] = []
    adamw = torch.optim.AdamW

    def remember(groups: list[dict[str, Any]], **options: Any) -> Any:
        seen.append(
            [{"lr": group["lr"], "shapes": [tuple(p.shape) for p in group["params"]]} for group in groups]
        )
        return adamw(groups, **options)

    monkeypatch.setattr(torch.optim, "AdamW", remember)
    model, data = str(save_bert(tmp_path / "model")), str(save_reviews(tmp_path / "reviews.csv"))
    sizes = {"num_virtual_tokens": 5, "r": 3, "offset_lr_scale": 0.01}
    settings = {**SETTINGS, "budget": None, "options": sizes, "lr": 0.2, "head_lr": 0.5}
    finetune(model, data, "dept", output=tmp_path / "run", **settings)
    (groups,) = seen
    assert [(group["lr"], group["shapes"]) for group in groups[:2]] == [
        (0.2, [(5, 16)]),
        (pytest.approx(0.002), [(24, 3), (3, 16)]),
    ]
    assert groups[2]["lr"] == 0.5
    written = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert (written["num_virtual_tokens"], written["max_length"], written["r"]) == (5, 24, 3)


def test_what_a_prompt_has_no_use_for(tmp_path: Path) -> None:
    model, data = str(save_bert(tmp_path / "model")), str(save_reviews(tmp_path / "reviews.csv"))
    with pytest.raises(InputError, match="dept adapts no layer: leave it out"):
        finetune(model, data, "dept", output=tmp_path / "run", target_modules=["query"])
    with pytest.raises(InputError, match="129 positions, of which this model has 128"):
        finetune(
            model,
            data,
            "dept",
            output=tmp_path / "run",
            **{**SETTINGS, "options": {"num_virtual_tokens": 105}},
        )
    assert not (tmp_path / "run").exists()
