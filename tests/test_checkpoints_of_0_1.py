"""What version 0.1 wrote is read by this one: adapters of every method, a comparison, a fine-tuned model.

tests/fixtures/v0.1 was written by its write.py with the code at commit 13906f4.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, BertForSequenceClassification

import eckart
from eckart.errors import InputError

FIXTURES = Path(__file__).resolve().parent / "fixtures" / "v0.1"
ADAPTERS = sorted(path.name for path in (FIXTURES / "adapters").iterdir())


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files in a directory where they may be written to; the paths that they hold are relative to it."""
    shutil.copytree(FIXTURES, tmp_path / "v0.1")
    monkeypatch.chdir(tmp_path / "v0.1")
    return tmp_path / "v0.1"


def base() -> nn.Module:
    model = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 6)).eval()
    model.load_state_dict(load_file(FIXTURES / "base.safetensors"))
    return model


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_gives_what_it_gave(name: str, tmp_path: Path) -> None:
    folder = FIXTURES / "adapters" / name
    seen = load_file(folder / "outputs.safetensors")
    x, y = seen["x"], seen["y"]
    model = PeftModel.from_pretrained(base(), folder).eval()
    assert not torch.allclose(y, base()(x), atol=1e-3), "the fixture trained nothing"
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)

    model.save_pretrained(tmp_path)
    old, new = (load_file(at / "adapter_model.safetensors") for at in (folder, tmp_path))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[key], new[key]) for key in old)


def test_a_comparison_of_0_1_is_left_as_it_was(copy: Path) -> None:
    """Its runs were planned otherwise: it is not gone on with, and nothing in it changes."""
    before = {path.name: path.read_bytes() for path in (copy / "compare").iterdir() if path.is_file()}
    with pytest.raises(InputError, match="it is of an earlier version, which planned its runs otherwise"):
        eckart.compare(
            "bert",
            "reviews.csv",
            methods="lora,svfit",
            budget="1k",
            steps=6,
            seeds=2,
            batch_size=8,
            output="compare",
            progress=False,
        )
    assert {path.name: path.read_bytes() for path in (copy / "compare").iterdir() if path.is_file()} == before


def test_report_is_built_from_the_files_alone(copy: Path) -> None:
    from eckart.jobs.compare.report import build_report

    assert "full fine-tuning" in build_report(copy / "compare").read_text("utf-8")


def test_fine_tuned_model_gives_its_scores(copy: Path) -> None:
    from eckart.jobs.adapt.finetuning import finetune
    from eckart.tasks.scoring import evaluate
    from eckart.tasks.task import load_task

    metrics = json.loads((copy / "adapt" / "metrics.json").read_text("utf-8"))
    again = finetune(
        "bert",
        "reviews.csv",
        "randlora",
        output="adapt",
        options={"r": 2},
        steps=8,
        batch_size=8,
        resume=True,
    )
    assert again == metrics

    config = AutoConfig.from_pretrained("adapt")
    network = BertForSequenceClassification.from_pretrained(
        "bert", config=config, ignore_mismatched_sizes=True
    )
    task = load_task("bert", "reviews.csv")
    found = evaluate(PeftModel.from_pretrained(network, "adapt").eval(), task, task.test, 16)
    assert found.score == metrics["test"]["score"]
    assert found.loss == pytest.approx(metrics["test"]["loss"], rel=1e-5)
