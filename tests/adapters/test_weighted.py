"""Several adapters as one, hints that do not mislead, and what of PEFT has no counterpart here."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from peft.helpers import rescale_adapter_scale
from peft.utils.hotswap import hotswap_adapter
from torch import nn

import eckart
from eckart.adapters import EckartLayer
from eckart.errors import InputError


class Net(nn.Module):
    """A convolution, an embedding and two linear layers, the first of which ends in the name of another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 8)
        self.conv = nn.Conv1d(8, 6, 3, padding=1)
        self.up = nn.Linear(6, 10)
        self.inner = nn.ModuleDict({"up": nn.Linear(10, 4)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner["up"](self.up(self.conv(self.embed(x).mT).mT).relu())


TARGETS = ["embed", "conv", "up"]
X = torch.arange(18).reshape(2, 9)


def several(method: str) -> peft.PeftModel:
    model = eckart.adapt(Net(), method, r=2, target_modules=TARGETS, adapter_name="a", init_weights=False)
    config = eckart.adapters.make_config(
        method, r=2, target_modules=["conv", "up"], init_weights=False, seed=1
    )
    model.add_adapter("b", config)
    return model


def deltas(model: peft.PeftModel, name: str) -> dict[str, torch.Tensor]:
    layers = [module for module in model.modules() if isinstance(module, EckartLayer)]
    return {
        layer.shape.name: layer.get_delta_weight(name).detach()
        for layer in layers
        if name in layer.eckart_adapters
    }


@pytest.mark.parametrize(
    ("method", "combination"), [("lora", "cat"), ("lora", "svd"), ("bone", "svd"), ("randlora", "svd")]
)
def test_the_sum_of_delta_weights(method: str, combination: str) -> None:
    model = several(method)
    model.add_weighted_adapter(["a", "b"], [0.7, -1.5], "c", combination_type=combination)
    a, b, c = (deltas(model, name) for name in "abc")
    assert a.keys() == c.keys() == {"embed", "conv", "up", "inner.up"}
    for name, found in c.items():
        expected = 0.7 * a[name] - 1.5 * b.get(name, torch.zeros(()))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert model.active_adapters == ["a"] and not any(
        p.requires_grad for name, p in model.named_parameters() if ".c." in name
    )
    model.set_adapter("c")
    merged = model(X)
    torch.testing.assert_close(model.merge_and_unload()(X), merged, atol=1e-4, rtol=1e-4)


def test_the_sum_of_factors_is_pefts() -> None:
    def pefts() -> peft.PeftModel:
        model = peft.get_peft_model(Net(), peft.LoraConfig(r=2, target_modules=["up"]), "a")
        model.add_adapter("b", peft.LoraConfig(r=2, target_modules=["up"], lora_alpha=5))
        return model

    theirs = pefts()
    ours = eckart.adapt(Net(), "lora", r=2, lora_alpha=8, target_modules=["up"], adapter_name="a")
    ours.add_adapter("b", eckart.adapters.make_config("lora", r=2, lora_alpha=5, target_modules=["up"]))
    generator = torch.Generator().manual_seed(0)
    for name in ("up", "inner.up"):
        for adapter in "ab":
            layer = theirs.base_model.model.get_submodule(name)
            own = ours.base_model.model.get_submodule(name).eckart_adapters[adapter]
            for side in ("lora_A", "lora_B"):
                weight = getattr(layer, side)[adapter].weight
                weight.data = torch.randn(weight.shape, generator=generator)
                getattr(own, side).data = weight.data.clone()
    for model in (theirs, ours):
        model.add_weighted_adapter(["a", "b"], [0.4, -2.0], "c", combination_type="linear")
        model.set_adapter("c")
    torch.testing.assert_close(ours(X), theirs(X), atol=1e-4, rtol=1e-4)


def test_a_rank_for_the_sum() -> None:
    model = several("lora")
    model.add_weighted_adapter(["a", "b"], [1, 1], "c", svd_rank=1)
    assert {torch.linalg.matrix_rank(d.flatten(1)).item() for d in deltas(model, "c").values()} == {1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a", "x"], [1, 1], "c"), "adapters names 'x'"),
        ((["a"], [1], "b"), "'b' is taken"),
        ((["a", "b"], [1], "c"), "1 weights for adapters"),
        ((["a", "a"], [1, 1], "c"), "named once"),
        (([], [], "c"), "0 weights"),
        ((["a"], [float("nan")], "c"), "finite"),
        ((["a"], [1], "c", "ties"), "'ties'"),
        ((["a"], [1], "c", "cat", 3), "svd_rank is 3"),
        ((["a"], [1], "c", "svd", 0), "svd_rank is 0"),
        ((["a", "b"], [1, 1], "c", "cat"), "needs two factors, and 'a' is snell"),
    ],
)
def test_sums_that_are_refused(arguments: tuple[object, ...], message: str) -> None:
    model = several("snell")
    with pytest.raises(InputError, match=message):
        model.add_weighted_adapter(*arguments)
    assert set(model.peft_config) == {"a", "b"}


def test_modules_trained_in_full_are_not_summed() -> None:
    model = eckart.adapt(Net(), "lora", r=2, target_modules=["conv"], modules_to_save=["embed"])
    with pytest.raises(InputError, match="trains whole modules"):
        model.add_weighted_adapter(["default"], [1.0], "c")


def test_what_peft_has_for_its_own_lora_alone(tmp_path: Path) -> None:
    model = eckart.adapt(Net(), "bone", r=2, target_modules=["up"])
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="scaling is only supported"), rescale_adapter_scale(model, 0.5):
        pass
    with pytest.raises(ValueError, match="Hotswapping only supports"):
        hotswap_adapter(model, str(tmp_path), "default")
    with pytest.raises(ValueError, match="not compatible with the `PeftMixedModel`"):
        peft.PeftMixedModel(Net(), eckart.adapters.BoneConfig(r=2, target_modules=["up"]))


@pytest.mark.parametrize("option", ["use_dora", "loftq_config", "alpha_pattern", "bias"])
def test_options_of_pefts_lora_get_no_hint_at_another(option: str) -> None:
    with pytest.raises(
        InputError, match=f"no option '{option}', which only PEFT's own LoraConfig has: it has"
    ):
        eckart.adapt(Net(), "lora", r=2, target_modules=["up"], **{option: None})


@pytest.mark.parametrize("method", ["dora", "adalora", "pissa", "LoHa", "vera"])
def test_methods_of_pefts_get_no_hint_at_another(method: str) -> None:
    with pytest.raises(InputError, match="it is PEFT's own"):
        eckart.adapt(Net(), method)
