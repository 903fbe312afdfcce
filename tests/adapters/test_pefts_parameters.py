"""A LoRA on parameters in PEFT's layout: what we write is loaded by plain PEFT, what PEFT writes is loaded by us."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from expert_cases import BOTH, MODELS, adapt_experts, changed_by_hand, logits, moe, weights
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

import eckart
from eckart.adapters import export_lora, from_peft
from eckart.adapters._export import save_as_lora
from eckart.adapters._pefts_parameters import pack, peft_path, unpack
from eckart.errors import InputError


@pytest.mark.filterwarnings("ignore:all-linear leaves out .*router")
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("names", "modules"), [(BOTH, []), (BOTH, "all-linear"), (BOTH[1:], ["q_proj"])])
def test_our_lora_loads_in_plain_peft(kind: str, names: list[str], modules: Any, tmp_path: Path) -> None:
    options = {"r": 3, "lora_alpha": 5.0, "target_modules": modules, "target_parameters": names}
    model = adapt_experts(moe(kind), "lora", init_weights=False, **options)
    outputs = logits(model)
    assert save_as_lora(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"
    theirs = PeftModel.from_pretrained(moe(kind), tmp_path)
    torch.testing.assert_close(logits(theirs), outputs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits(theirs.merge_and_unload()), outputs, rtol=1e-5, atol=1e-6)
    ours = from_peft(moe(kind), tmp_path).eval()
    assert torch.equal(logits(ours), outputs)
    assert weights(ours).keys() == weights(model).keys()


def test_the_keys_are_pefts(tmp_path: Path) -> None:
    save_as_lora(adapt_experts(moe(), "lora", r=3, init_weights=False), tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    stem = "base_model.model.model.layers.1.mlp.experts"
    assert {key: tuple(value.shape) for key, value in stored.items() if key.startswith(stem)} == {
        f"{stem}.base_layer.lora_A.weight": (12, 16),
        f"{stem}.base_layer.lora_B.weight": (48, 12),
        f"{stem}.lora_A.weight": (12, 24),
        f"{stem}.lora_B.weight": (16, 12),
    }


@pytest.mark.parametrize("kind", MODELS)
def test_pefts_own_checkpoint_is_read(kind: str, tmp_path: Path) -> None:
    config = LoraConfig(
        r=20,
        lora_alpha=6,
        target_modules=["q_proj"],
        target_parameters=[BOTH[1], BOTH[0]],
        rank_pattern={"experts.down_proj": 3},
        alpha_pattern={"experts.gate_up_proj": 4},
        init_lora_weights=False,
    )
    torch.manual_seed(0)
    model = get_peft_model(moe(kind), config).eval()
    outputs = logits(model)
    model.save_pretrained(tmp_path)
    ours = from_peft(moe(kind), tmp_path).eval()
    torch.testing.assert_close(logits(ours), outputs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(changed_by_hand(kind, ours)), outputs, rtol=1e-4, atol=1e-5)
    ranks = {name: weight.adapter("default").factor_rank for name, weight in weights(ours).items()}  # type: ignore[attr-defined]
    assert {rank for name, rank in ranks.items() if "down" in name} == {3}
    assert max(ranks.values()) <= 16


@pytest.mark.parametrize("kind", ["mixtral", "llama4"])
@pytest.mark.parametrize("method", ["svfit", "bone"])
def test_every_method_is_exported(kind: str, method: str, tmp_path: Path) -> None:
    model = adapt_experts(moe(kind), method, r=2, target_modules=["q_proj"], init_weights=False)
    report = export_lora(model, tmp_path / "lora")
    assert report.exact and report.error < 1e-6
    assert [layer.name for layer in report.layers] == list(weights(model))
    for stack in ("gate_up_proj", "down_proj"):
        told = [layer for layer in report.layers if re.search(rf"0\..*experts\.{stack}\.", layer.name)]
        assert len({layer.r for layer in told}) == 1
        assert told[0].r == max(layer.rank for layer in told)
    theirs = PeftModel.from_pretrained(moe(kind), tmp_path / "lora")
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-4, atol=1e-6)


def test_an_export_may_be_cut_to_a_rank(tmp_path: Path) -> None:
    model = adapt_experts(moe(), "bone", r=4, init_weights=False)
    report = export_lora(model, tmp_path / "lora", 1)
    assert {layer.r for layer in report.layers} == {1}
    assert 0.05 < report.error < 1
    theirs = PeftModel.from_pretrained(moe(), tmp_path / "lora")
    assert not torch.allclose(logits(theirs), logits(model), atol=1e-5)


def test_ranks_that_differ_within_a_stack_are_exported_at_the_highest_and_not_saved_as_a_lora(
    tmp_path: Path,
) -> None:
    model = adapt_experts(moe(), "lora", r=2, rank_pattern={"down_proj.1": 3}, init_weights=False)
    assert not save_as_lora(model, tmp_path)
    report = export_lora(model, tmp_path / "lora")
    assert {layer.r for layer in report.layers if ".0.mlp.experts.down" in layer.name} == {3}
    theirs = PeftModel.from_pretrained(moe(), tmp_path / "lora")
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-4, atol=1e-6)


def test_no_server_takes_them(tmp_path: Path) -> None:
    model = adapt_experts(moe(), "lora", r=2)
    with pytest.raises(
        InputError, match=r"vllm takes no LoRA on a parameter such as .*: serve the merged model"
    ):
        export_lora(model, tmp_path / "lora", server="vllm")
    assert not (tmp_path / "lora").exists()


class Experts(nn.Module):
    """Two stacks and a matrix, stored (in, out); PEFT is told so where `is_transposed` says it."""

    def __init__(self, experts: int, is_transposed: bool) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(experts, 4, 6))
        self.gate = nn.Parameter(torch.randn(4, 6))
        self.down = nn.Parameter(torch.randn(experts, 6, 3))
        self.is_transposed = is_transposed

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(torch.bmm(x, self.up) * (x @ self.gate), self.down)


class Model(nn.Module):
    def __init__(self, experts: int = 2, is_transposed: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = Experts(experts, is_transposed)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pytest.mark.parametrize("is_transposed", [True, False])
def test_three_parameters_of_one_module_and_one_that_is_no_stack(is_transposed: bool, tmp_path: Path) -> None:
    names = ["inner.up", "inner.gate", "inner.down"]
    base = Model(is_transposed=is_transposed)
    assert [peft_path(base, name, names) for name in names] == [
        "inner.base_layer.base_layer",
        "inner.base_layer",
        "inner",
    ]
    assert peft_path(base, "inner.up", ["inner.up"]) == "inner"
    model = eckart.adapt(base, "lora", r=2, target_modules=[], target_parameters=names, init_weights=False)
    x = torch.randn(2, 5, 4)
    outputs = model(x)
    assert save_as_lora(model, tmp_path)
    theirs = PeftModel.from_pretrained(Model(is_transposed=is_transposed), tmp_path)
    torch.testing.assert_close(theirs(x), outputs, rtol=1e-4, atol=1e-5)
    assert torch.equal(from_peft(Model(is_transposed=is_transposed), tmp_path)(x), outputs)


def test_what_peft_computes_otherwise_is_not_written_as_its_lora(tmp_path: Path) -> None:
    """PEFT takes a stack of one matrix for a matrix that is stored (out, in), whatever it is told."""
    model = eckart.adapt(
        Model(1), "lora", r=2, target_modules=[], target_parameters=["inner.down"], init_weights=False
    )
    assert not save_as_lora(model, tmp_path)
    with pytest.raises(InputError, match=r"PEFT.* LoRA .*parameter inner\.down.*merge"):
        export_lora(model, tmp_path / "lora")
    assert not any(tmp_path.iterdir())
    assert all(not p.requires_grad for name, p in model.named_parameters() if "eckart" not in name)


def test_a_name_that_fits_a_second_parameter_in_peft(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.a = Experts(2, True), Model()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + self.a(x)

    model = eckart.adapt(
        Two(), "lora", r=2, target_modules=[], target_parameters=["inner.up"], exclude_modules=["a.inner.up"]
    )
    with pytest.raises(InputError, match=r"PEFT would put the LoRA of inner\.up on a\.inner\.up as well"):
        export_lora(model, tmp_path / "lora")


@pytest.mark.parametrize("kind", MODELS)
def test_taking_apart_is_the_inverse_of_putting_together(kind: str) -> None:
    model = moe(kind)
    name = next(
        name for name, _ in model.named_parameters() if re.search(r"\.0\..*experts\.down_proj$", name)
    )
    inner = 24 if kind in ("mixtral", "gpt-oss", "llama4") else 12
    pairs = [(torch.randn(3, inner), torch.randn(16, 3)) for _ in range(4)]
    for (a, b), (again_a, again_b) in zip(pairs, unpack(model, name, *pack(model, name, pairs)), strict=True):
        assert torch.equal(a, again_a) and torch.equal(b, again_b)
    with pytest.raises(
        InputError, match="which 4 matrices do not share: load the adapter on its own base model"
    ):
        unpack(model, name, torch.zeros(7, inner), torch.zeros(16, 7))
