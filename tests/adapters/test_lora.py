"""LoRA against PEFT's own, and its scalings."""

from __future__ import annotations

import math

import peft
import pytest
import torch
from adapter_cases import MLP, Host, adapted, host, inputs, layers, rows, seeded
from torch import Tensor, nn

from eckart.adapters import LoRAConfig
from eckart.errors import InputError


@pytest.mark.parametrize("rslora", [False, True])
def test_equals_pefts_lora(rslora: bool) -> None:
    """The same factors give PEFT's output and gradients."""
    options = {"r": 3, "lora_alpha": 5.0, "use_rslora": rslora}
    ours = adapted("lora", seeded(MLP, torch.float64), init_weights=False, **options)
    theirs = peft.get_peft_model(
        seeded(MLP, torch.float64), peft.LoraConfig(target_modules=["up", "down"], **options)
    )
    pairs = []
    for layer, name in zip(layers(ours), ("up", "down"), strict=True):
        mine, other = layer.eckart_adapters["default"], getattr(theirs.base_model.model, name)
        pairs += [
            (mine.lora_A, other.lora_A["default"].weight),
            (mine.lora_B, other.lora_B["default"].weight),
        ]
    with torch.no_grad():
        for mine, other in pairs:
            other.copy_(mine)
    x = rows(dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad)


def test_scaling_of_the_factors() -> None:
    for options, expected in (({}, 16 / 4), ({"use_rslora": True}, 8), ({"lora_alpha": 4.0}, 1)):
        [layer] = layers(adapted("lora", host("linear"), init_weights=False, r=4, **options))
        adapter = layer.eckart_adapters["default"]
        torch.testing.assert_close(
            adapter.delta_weight(), expected * adapter.lora_B @ adapter.lora_A, rtol=1e-6, atol=1e-7
        )


def test_start_is_kaiming_uniform_and_repeats_with_the_seed() -> None:
    def start(seed: int) -> torch.Tensor:
        model = adapted(
            "lora", seeded(lambda: nn.Sequential(nn.Linear(400, 50))), target_modules=["0"], seed=seed
        )
        return layers(model)[0].eckart_adapters["default"].lora_A.detach()

    a = start(0)
    bound = 1 / math.sqrt(400)
    assert a.abs().max() <= bound
    assert abs(a.std() / (bound / math.sqrt(3)) - 1) < 0.03
    assert torch.equal(start(0), a)
    assert not torch.equal(start(1), a)


def test_embedding_starts_with_zero_rows_that_learn() -> None:
    """A one-hot input would make Kaiming's A vanish: A is zero and B normal, so the rows seen move at once."""
    model, x = adapted("lora", host("embedding"), r=4), inputs("embedding")
    adapter = layers(model)[0].eckart_adapters["default"]
    assert not adapter.lora_A.count_nonzero()
    model(x).square().sum().backward()
    seen = torch.zeros(20, dtype=torch.bool)
    seen[x.unique()] = True
    assert torch.equal(adapter.lora_A.grad.abs().sum(0) > 0, seen)


@pytest.mark.parametrize("r", [0, -2, 2.5])
def test_refuses_what_is_no_rank(r: float) -> None:
    with pytest.raises(InputError, match=f"r is {r}"):
        adapted("lora", host("linear"), r=r)


def test_default_rank_is_lowered_on_a_small_layer() -> None:
    model = adapted("lora", host("linear-tall"))
    assert layers(model)[0].eckart_adapters["default"].lora_A.shape == (6, 6)
    assert LoRAConfig().r is None


@pytest.mark.parametrize(("r", "copied"), [(15, True), (16, False)])
def test_few_columns_of_b_are_multiplied_as_rows(r: int, copied: bool) -> None:
    """The shape in which the products of both passes are fast; ten times at r = 3."""
    model = adapted(
        "lora", seeded(lambda: Host(nn.Linear(20, 24))), r=r, route="factored", init_weights=False
    )
    [layer] = layers(model)
    adapter, x = layer.eckart_adapters["default"], rows(width=20)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        model(x).sum().backward()
    factors = [t for t in saved if t.shape == (r, 24)]
    assert [t.is_contiguous() for t in factors] == [copied]
    expected = x.sum(0) @ adapter.lora_A.detach().t() * adapter.scale
    torch.testing.assert_close(adapter.lora_B.grad, expected.expand(24, r))
