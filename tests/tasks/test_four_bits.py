"""Frozen weights in four bits: the levels, the nearest of them, gradients through them, and every method on them."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from tiny_models import save_bert
from torch import nn

from eckart.adapters import ADAPTERS, adapt, load_adapted
from eckart.jobs.adapt.finetuning import finetune
from eckart.tasks.task import load_task
from eckart.tasks.trainer import Recipe, train_run

pytest.importorskip("torchao")

from eckart.tasks.four_bits import BLOCK, LEVELS, Code, FourBits

CODES: tuple[Code, ...] = ("int4", "nf4")
# Dettmers et al., 2023, appendix E, to four digits
NORMAL = [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0]
NORMAL += [0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0]


def weight(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.02


def test_levels() -> None:
    assert LEVELS["nf4"] == pytest.approx(NORMAL, abs=6e-5)
    assert LEVELS["int4"] == [-7 / 8 + i / 8 for i in range(16)]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("shape", [(3, 50), (7, 9), (2, 64), (1, 1)])
def test_each_number_is_the_nearest_level_of_its_block(code: Code, shape: tuple[int, int]) -> None:
    given = weight(*shape)
    found = FourBits.of(given, code)
    assert found.shape == given.shape and found.dtype == torch.float32
    told, made = given.flatten(), found.dequantize().flatten()
    for start in range(0, told.numel(), BLOCK):
        block = told[start : start + BLOCK]
        largest = block[block.abs().argmax()]
        scale = (largest.abs() if code == "nf4" else largest).bfloat16().float()
        nearest = (block[:, None] - scale * torch.tensor(LEVELS[code])).abs().min(1).values
        torch.testing.assert_close((made[start : start + BLOCK] - block).abs(), nearest, rtol=0, atol=1e-8)


def test_int4_uses_all_levels_and_meets_the_largest() -> None:
    given = -torch.arange(64.0)[None] / 63
    made = FourBits.of(given, "int4").dequantize()
    assert made[0, -1] == -1.0 and made[0, 0] == 0.0, "the largest in size, though negative"
    both = torch.cat([given, -given], dim=1).view(1, -1)[:, ::2]
    assert len(FourBits.of(both, "int4").dequantize().unique()) == 16


@pytest.mark.parametrize("code", CODES)
def test_zeros_and_size(code: Code) -> None:
    zeros = FourBits.of(torch.zeros(5, 5), code)
    assert not zeros.dequantize().any()
    large = FourBits.of(weight(64, 128), code)
    assert 8 * (large.codes.nbytes + large.scales.nbytes) / large.numel() == 4.25
    error = (large.dequantize() - weight(64, 128)).norm() / weight(64, 128).norm()
    assert 0.08 < error < 0.105, "a tenth of the weight, in the mean"


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_layer_and_its_gradient(code: Code, dtype: torch.dtype) -> None:
    layer = nn.Linear(50, 37)
    layer.weight = nn.Parameter(FourBits.of(weight(37, 50), code), requires_grad=False)
    layer = copy.deepcopy(layer).to(dtype)
    dense = cast(FourBits, layer.weight).dequantize().to(dtype)
    x = torch.randn(3, 5, 50, dtype=dtype, requires_grad=True)
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):  # type: ignore[func-returns-value]
        y = layer(x)
    assert y.dtype == dtype and torch.Size((37, 50)) not in kept, "it is made again, not kept"
    (ours,) = torch.autograd.grad(y.square().sum(), x)
    plain = F.linear(x, dense, layer.bias)
    (theirs,) = torch.autograd.grad(plain.square().sum(), x)
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(y, plain, **close)
    torch.testing.assert_close(ours, theirs, **close)
    torch.testing.assert_close(F.linear(x, layer.weight), F.linear(x, dense), **close)
    assert torch.equal(cast(FourBits, copy.deepcopy(layer).weight).codes, cast(FourBits, layer.weight).codes)


@pytest.fixture(scope="module")
def sure(root: Path) -> Path:
    return save_bert(root / "four", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def dense(model: Any) -> Any:
    """The same with ordinary weights."""
    for module in model.modules():
        if isinstance(getattr(module, "weight", None), FourBits):
            module.weight = nn.Parameter(module.weight.dequantize(), requires_grad=False)
    return model


@pytest.mark.parametrize("slug", sorted(ADAPTERS))
def test_every_method_trains_as_on_the_weights_they_stand_for(sure: Path, reviews: Path, slug: str) -> None:
    task = load_task(sure, reviews, max_length=16, quantize="nf4")
    curves = []
    for prepare in (lambda model: model, dense):
        model = adapt(prepare(task.fresh_model(0)), slug, budget="20%", modules_to_save=task.head_modules)
        training = train_run(model, task, Recipe(3, 8, 1e-2, 1e-2))
        curves.append([loss for _, loss in training.losses])
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)
    assert len(set(curves[0])) == 3


@pytest.mark.parametrize("code", CODES)
def test_an_adapter_of_four_bits_loads_on_the_model_itself(
    sure: Path, reviews: Path, tmp_path: Path, code: Code
) -> None:
    settings: dict[str, Any] = {"steps": 2, "batch_size": 8, "options": {"r": 2}, "quantize": code}
    metrics = finetune(str(sure), str(reviews), "bone", output=tmp_path / "run", **settings)
    assert metrics["task"]["quantize"] == code
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is not the one this bone checkpoint")
        load_adapted(str(sure), tmp_path / "run")
