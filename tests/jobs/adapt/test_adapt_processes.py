"""Two processes under torchrun (gloo) end with the adapter of one, and take up a run that was killed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import WORDS, save_gpt2
from two_processes import launch

from eckart.errors import InputError
from eckart.jobs.adapt.checks import check_processes

GIVEN: dict[str, Any] = {
    "method": "lora",
    "budget": "20%",
    "steps": 6,
    "batch_size": 4,
    "gradient_accumulation": 2,
    "save_every": 2,
    "validate_every": 2,
    "keep": "best",
    "max_length": 16,
    "lr": 0.01,
}


def work(arguments: dict[str, Any]) -> None:
    """One process of the two; with ``kill_at`` the first ends there, without a word."""
    from eckart.jobs.adapt.finetuning import finetune

    last = arguments.pop("kill_at", None)
    told = []

    def on_step(step: int, steps: int) -> None:
        told.append(step)
        if step == last:
            os.kill(os.getpid(), 9)

    metrics = finetune(**arguments, on_step=on_step)
    assert bool(told) == (os.environ["RANK"] == "0"), "the first alone tells how it goes"
    assert metrics["last_step"] == arguments["steps"]


def test_two_end_with_the_adapter_of_one_after_a_kill(tmp_path: Path) -> None:
    """Answers are of unequal length: the loss is the mean over the tokens of the whole batch, however many each has."""
    from eckart.jobs.adapt.finetuning import finetune

    rows = [
        {"prompt": " ".join(WORDS[i % 5 : i % 5 + 3]), "completion": " ".join(WORDS[: 1 + 2 * (i % 4)])}
        for i in range(40)
    ]
    data = tmp_path / "talk.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = save_gpt2(tmp_path / "gpt2")
    config = json.loads((model / "config.json").read_text())
    config |= dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    (model / "config.json").write_text(json.dumps(config))
    given = {**GIVEN, "model": str(model), "data": str(data), "kind": "chat"}
    one = finetune(**given, output=tmp_path / "one")
    two = {**given, "output": str(tmp_path / "two")}
    with pytest.raises(AssertionError):
        launch(__file__, json.dumps({**two, "kill_at": 5}))
    assert not (tmp_path / "two" / "metrics.json").exists()
    launch(__file__, json.dumps({**two, "resume": True}))
    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert metrics["resumed_at_step"] == 4 and metrics["kept_step"] == one["kept_step"]
    assert metrics["test"]["score"] == pytest.approx(one["test"]["score"], abs=1e-4)
    losses, wanted = ([loss for _, loss in told["losses"]] for told in (metrics, one))
    assert losses == pytest.approx(wanted, abs=1e-3)
    a, b = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert a.keys() == b.keys() and any(value.abs().max() > 1e-3 for value in a.values())
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-4)


def test_what_they_cannot_do_together(monkeypatch: pytest.MonkeyPatch) -> None:
    check_processes(3, 1, False)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_processes(4, 2, False)
    with pytest.raises(InputError, match="3 examples at once cannot be dealt to 2 processes"):
        check_processes(3, 1, False)
    with pytest.raises(InputError, match="--batch-size auto in 2 processes"):
        check_processes(4, "auto", False)
    with pytest.raises(InputError, match="--loram in 2 processes"):
        check_processes(4, 1, True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="launch it without FSDP"):
        check_processes(4, 1, False)


if __name__ == "__main__":
    work(json.loads(sys.argv[1]))
