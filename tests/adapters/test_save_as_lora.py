"""Method lora as PEFT's own LoRA: the same numbers in PEFT, read back as ours; what is none stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import eckart
from eckart.adapters import from_peft
from eckart.adapters._export import save_as_lora


class Net(nn.Module):
    """A layer of each kind, unequal sides, and one of two outputs, which caps the rank."""

    def __init__(self, groups: int = 1, padding_mode: str = "zeros") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(11, 6)
        self.conv = nn.Conv1d(6, 8, 3, padding=1, groups=groups, padding_mode=padding_mode)
        self.up = nn.Linear(8, 12)
        self.out = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.up(self.conv(self.table(x).mT).mT)))


class Mix(nn.Module):
    """The layer that GPT-2 has, whose weight lies the other way round."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = Conv1D(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(torch.nn.functional.one_hot(x % 7, 7).float())


X = torch.arange(9).view(1, 9)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"lora_alpha": 5.0},
    {"use_rslora": True, "lora_alpha": 3.0},
    {"rank_pattern": {"up": 2}, "dropout": 0.25},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_peft_computes_the_same_and_it_reads_back(options: dict[str, Any], tmp_path: Path) -> None:
    targets = ["table", "conv", "up", "out"]
    model = eckart.adapt(Net(), "lora", r=3, target_modules=targets, init_weights=False, **options).eval()
    outputs = model(X)
    assert save_as_lora(model, tmp_path)
    torch.testing.assert_close(model(X), outputs, rtol=0, atol=0)
    plain = PeftModel.from_pretrained(Net(), tmp_path).eval()
    config = plain.peft_config["default"]
    ranks = {
        key: len(value)
        for key, value in load_file(tmp_path / "adapter_model.safetensors").items()
        if "_A" in key
    }
    assert (config.peft_type, config.lora_alpha, config.lora_dropout, config.use_rslora) == (
        "LORA",
        options.get("lora_alpha", 16.0),
        options.get("dropout", 0.0),
        options.get("use_rslora", False),
    )
    assert sorted(ranks.values()) == sorted([3, 3, options.get("rank_pattern", {}).get("up", 3), 2])
    torch.testing.assert_close(plain(X), outputs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(from_peft(Net(), tmp_path).eval()(X), outputs, rtol=1e-4, atol=1e-5)


def test_a_weight_that_lies_the_other_way_round(tmp_path: Path) -> None:
    model = eckart.adapt(Mix(), "lora", r=2, target_modules=["mix"], init_weights=False).eval()
    assert save_as_lora(model, tmp_path)
    torch.testing.assert_close(
        PeftModel.from_pretrained(Mix(), tmp_path).eval()(X), model(X), rtol=1e-4, atol=1e-5
    )


def test_what_is_no_lora_of_pefts_is_not_written(tmp_path: Path) -> None:
    grown = eckart.adapt(Net(), "lora", r=3, target_modules=["up"])
    for *_, adapter in eckart.adapters.walk(grown):
        adapter.set_active(torch.tensor([True, False, True]))
    others = [
        grown,
        eckart.adapt(Net(), "bone", r=2, target_modules=["up"]),
        eckart.adapt(Net(groups=2), "lora", r=2, target_modules=["conv"]),
        eckart.adapt(Net(padding_mode="circular"), "lora", r=2, target_modules=["conv"], init_weights=False),
    ]
    for model in others:
        assert not save_as_lora(model, tmp_path)
    assert list(tmp_path.iterdir()) == []
