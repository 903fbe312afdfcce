"""What PEFT's users rely on, for every method: each adapted model is an ordinary `PeftModel`."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_cases import (
    SLUGS,
    assert_untouched,
    config,
    every_method,
    layers,
    parameters,
    seeded,
    snapshot,
)
from peft import (
    PeftModel,
    convert_to_lora,
    get_base_model_state_dict,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_base_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file, save_file
from tiny_models import bert_config
from torch import Tensor, nn
from transformers import BertForSequenceClassification
from transformers.pytorch_utils import Conv1D

import eckart
from eckart.adapters import get_config
from eckart.errors import InputError

X = torch.arange(90).view(9, 10)


class Perceptron(nn.Module):
    """10 → 20 → 2 with a dropout between: `first`, `second`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.second = nn.Linear(10, 20), nn.Dropout(0.5), nn.Linear(20, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x.to(self.first.weight.dtype)))
        return torch.log_softmax(self.second(self.drop(x)), -1)


class Tokens(nn.Module):
    """An embedding and a transformers Conv1D of a single output: `table`, `mix`, `out`."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix, self.out = nn.Embedding(100, 5), Conv1D(1, 5), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.log_softmax(self.out(torch.relu(self.mix(self.table(x))).flatten(1)), -1)


class Convolution(nn.Module):
    """One convolution over the input reshaped, and a classifier: `conv`, `out`."""

    def __init__(self, conv: nn.Module, shape: tuple[int, ...], features: int) -> None:
        super().__init__()
        self.conv, self.out, self.shape = conv, nn.Linear(features, 2), shape

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.out.weight.dtype).reshape(self.shape)
        return torch.log_softmax(self.out(torch.relu(self.conv(x)).flatten(1)), -1)


class Stack(nn.Module):
    """Three blocks of two square layers each, and a head: `blocks.<i>.first`, `blocks.<i>.second`, `head`."""

    def __init__(self) -> None:
        super().__init__()
        block = lambda: nn.ModuleDict({"first": nn.Linear(10, 10), "second": nn.Linear(10, 10)})  # noqa: E731
        self.blocks, self.head = nn.ModuleList(block() for _ in range(3)), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.tanh(block["second"](torch.tanh(block["first"](x.to(self.head.weight.dtype)))))
        return self.head(x)


@dataclass(frozen=True)
class Case:
    """A model and the layers of it to adapt."""

    make: Callable[[], nn.Module]
    targets: list[str] | str
    saved: tuple[str, ...] = ()

    def base(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        return seeded(self.make, dtype)

    def config(self, slug: str, **options: Any) -> Any:
        return config(slug, target_modules=self.targets, modules_to_save=list(self.saved) or None, **options)

    def model(self, slug: str, adapter_name: str = "default", seed: int = 0, **options: Any) -> PeftModel:
        torch.manual_seed(seed)
        return get_peft_model(self.base(), self.config(slug, **options), adapter_name=adapter_name).eval()


CASES = {
    "linear": Case(Perceptron, ["first", "second"]),
    "saved-head": Case(Perceptron, ["first"], saved=("second",)),
    "tokens": Case(Tokens, ["table", "mix"]),
    "conv1d": Case(lambda: Convolution(nn.Conv1d(1, 1, 2), (-1, 1, 10), 9), ["conv", "out"]),
    "conv2d": Case(
        lambda: Convolution(nn.Conv2d(10, 20, 3, padding=1, groups=2), (-1, 10, 3, 3), 180), ["conv", "out"]
    ),
}

every_case = pytest.mark.parametrize(("slug", "case"), [(slug, case) for slug in SLUGS for case in CASES])
every_plain_case = (
    pytest.mark.parametrize(  # a module trained in full belongs to one active adapter at a time
        ("slug", "case"), [(slug, name) for slug in SLUGS for name, case in CASES.items() if not case.saved]
    )
)


def fit(model: nn.Module, steps: int = 3, lr: float = 0.01, optimiser: type = torch.optim.SGD) -> None:
    """A few steps of classification."""
    model.train()
    steps_of = optimiser(model.parameters(), lr=lr)
    for _ in range(steps):
        steps_of.zero_grad()
        y = model(X)
        nn.functional.nll_loss(y, torch.arange(len(y)) % 2).backward()
        steps_of.step()
    model.eval()


def trainable(model: nn.Module) -> set[str]:
    """Names of the parameters that train."""
    return {name for name, p in model.named_parameters() if p.requires_grad}


def of(model: nn.Module, *adapters: str) -> set[str]:
    """Names of the parameters that belong to these adapters, trained modules included."""
    return {
        name for name, _ in model.named_parameters() if any(f".{adapter}." in name for adapter in adapters)
    }


# --- saving and loading ----------------------------------------------------------------------------------------------


@every_case
def test_files_of_a_saved_adapter(slug: str, case: str, tmp_path: Path) -> None:
    model = CASES[case].model(slug, init_weights=False)
    model.save_pretrained(tmp_path)
    written = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert {file.name for file in tmp_path.iterdir()} == written
    card = (tmp_path / "README.md").read_text()
    assert "library_name: peft" in card
    assert len(card) > 1000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = PeftModel.from_pretrained(CASES[case].base(), tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    assert torch.equal(loaded(X), model(X))


@every_method
def test_torch_files_are_read(slug: str, tmp_path: Path) -> None:
    model = CASES["linear"].model(slug, init_weights=False)
    model.save_pretrained(tmp_path, safe_serialization=False)
    assert not (tmp_path / "adapter_model.safetensors").exists()
    assert torch.equal(PeftModel.from_pretrained(CASES["linear"].base(), tmp_path)(X), model(X))


@every_case
def test_injection_without_a_peft_model(slug: str, case: str) -> None:
    model = inject_adapter_in_model(CASES[case].config(slug, init_weights=False), CASES[case].base()).eval()
    state = get_peft_model_state_dict(model)
    fresh = inject_adapter_in_model(CASES[case].config(slug), CASES[case].base()).eval()
    result = set_peft_model_state_dict(fresh, state)
    assert not result.unexpected_keys
    assert torch.equal(fresh(X), model(X))


@every_case
def test_loading_with_empty_weights(slug: str, case: str, tmp_path: Path) -> None:
    CASES[case].model(slug, init_weights=False).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(CASES[case].base(), tmp_path, low_cpu_mem_usage=True)
    result = loaded.load_adapter(tmp_path, adapter_name="other", low_cpu_mem_usage=True)
    assert not result.missing_keys
    assert {p.device.type for p in loaded.parameters()} == {"cpu"}
    empty = inject_adapter_in_model(CASES[case].config(slug), CASES[case].base(), low_cpu_mem_usage=True)
    assert any(p.is_meta for p in empty.parameters())


@every_method
def test_only_the_selected_adapters_are_saved(slug: str, tmp_path: Path) -> None:
    model = CASES["linear"].model(slug)
    count = len(get_peft_model_state_dict(model))
    for name in ("default2", "other_default", "foodefault_bar", "efaul"):
        model.add_adapter(name, CASES["linear"].config(slug))
    model.save_pretrained(tmp_path, selected_adapters=["default", "efaul"])
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == count
    assert len(load_file(tmp_path / "efaul" / "adapter_model.safetensors")) == count
    assert not (tmp_path / "default2").exists()


@every_method
def test_loading_with_a_given_config_or_device_map(slug: str, tmp_path: Path) -> None:
    model = CASES["linear"].model(slug, init_weights=False)
    model.save_pretrained(tmp_path)
    given = CASES["linear"].config(slug)
    loaded = PeftModel.from_pretrained(CASES["linear"].base(), tmp_path, config=given)
    assert loaded.peft_config["default"] is given
    assert given.inference_mode
    assert torch.equal(loaded(X), model(X))
    mapped = PeftModel.from_pretrained(CASES["linear"].base(), tmp_path, device_map={"": "cpu"})
    assert torch.equal(mapped(X), model(X))


@every_method
def test_a_model_card_that_is_there_is_kept(slug: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nmeta: hello\n---\nMy own words\n")
    CASES["linear"].model(slug).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "library_name: peft" in card
    assert "meta: hello" in card
    assert "My own words" in card


@every_case
def test_trained_parameters_survive_a_file(slug: str, case: str, tmp_path: Path) -> None:
    model = CASES[case].model(slug)
    fit(model, lr=1e-3, optimiser=torch.optim.Adam)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(CASES[case].base(), tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    assert torch.equal(loaded(X), model(X))


@every_method
def test_the_adapters_name_changes_nothing(slug: str) -> None:
    models = {
        name: CASES["linear"].model(slug, name, init_weights=False) for name in ("default", "adapter", "b-c")
    }
    first = models.pop("default")
    for name, other in models.items():
        assert torch.equal(other(X), first(X))
        renamed = {key.replace("default", name): value for key, value in first.state_dict().items()}
        assert renamed.keys() == other.state_dict().keys()
        assert all(torch.equal(value, other.state_dict()[key]) for key, value in renamed.items())


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("autocast", [True, False])
def test_adapters_have_the_dtype_peft_gives_them(
    slug: str, dtype: torch.dtype, autocast: bool, tmp_path: Path
) -> None:
    case, wanted = CASES["linear"], {torch.float32 if autocast else dtype}
    options = {"autocast_adapter_dtype": autocast}
    model = get_peft_model(case.base(dtype), case.config(slug), **options)
    model.add_adapter("other", case.config(slug), **options)
    prefix = model.base_model.prefix
    assert {p.dtype for name, p in model.named_parameters() if prefix in name} == wanted
    model.save_pretrained(tmp_path)
    for low in (False, True):
        loaded = PeftModel.from_pretrained(case.base(dtype), tmp_path, low_cpu_mem_usage=low, **options)
        loaded.load_adapter(tmp_path / "other", adapter_name="other", low_cpu_mem_usage=low, **options)
        assert {p.dtype for name, p in loaded.named_parameters() if prefix in name} == wanted
        loaded(X)


# --- training --------------------------------------------------------------------------------------------------------


@every_case
def test_gradients_reach_the_adapter_and_nothing_else(slug: str, case: str) -> None:
    model = CASES[case].model(slug)
    model.train()
    model(X).sum().backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None) == (name in of(model, "default")), name


@every_case
def test_every_trained_parameter_moves(slug: str, case: str) -> None:
    model = CASES[case].model(slug)
    before = copy.deepcopy(model.state_dict())
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        optimiser.zero_grad()
        model(X).sum().backward()
        optimiser.step()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != (name in of(model, "default")), name


@every_case
def test_layers_show_their_sizes(slug: str, case: str) -> None:
    for layer in layers(CASES[case].model(slug)):
        assert layer.in_features * layer.out_features == layer.base_layer.weight.numel()
        assert layer.weight is layer.base_layer.weight
        text = repr(layer)
        assert "default" in text
        assert f"in={layer.in_features}" in text
        assert f"out={layer.out_features}" in text


# --- merging ---------------------------------------------------------------------------------------------------------


@every_case
def test_merging_and_unmerging_in_half_precision(slug: str, case: str) -> None:
    model = get_peft_model(
        CASES[case].base(torch.float16), CASES[case].config(slug, init_weights=False)
    ).eval()
    first = model(X)
    for safe in (False, True):
        model.merge_adapter(safe_merge=safe)
        assert model(X).shape == first.shape
        model.unmerge_adapter()
        assert torch.equal(model(X), first)
    assert model.merge_and_unload()(X).dtype == torch.float16


@every_case
def test_merged_model_is_a_plain_model(slug: str, case: str, tmp_path: Path) -> None:
    model = CASES[case].model(slug, init_weights=False)
    plain, outputs = CASES[case].base()(X), model(X)
    assert not torch.allclose(outputs, plain, atol=1e-6, rtol=1e-6)
    merged = model.merge_and_unload(safe_merge=True)
    assert not any(isinstance(module, BaseTunerLayer) for module in merged.modules())
    assert not hasattr(merged, "peft_config")
    torch.testing.assert_close(merged(X), outputs, atol=1e-4, rtol=1e-4)
    assert torch.equal(pickle.loads(pickle.dumps(merged))(X), merged(X))
    save_file(merged.state_dict(), tmp_path / "model.safetensors")
    assert merged.state_dict().keys() == CASES[case].base().state_dict().keys()


@every_case
def test_unloading_gives_the_base_model_back(slug: str, case: str) -> None:
    plain = CASES[case].base().state_dict()
    base = CASES[case].model(slug, init_weights=False).unload()
    assert not any(isinstance(module, BaseTunerLayer) for module in base.modules())
    assert base.state_dict().keys() == plain.keys()
    assert all(torch.equal(value, plain[key]) for key, value in base.state_dict().items())


@every_method
def test_merging_twice_warns_and_changes_nothing(slug: str) -> None:
    model = CASES["linear"].model(slug, init_weights=False)
    model.merge_adapter()
    once = model(X)
    with pytest.warns(UserWarning, match="All adapters are already merged, nothing to do"):
        model.merge_adapter()
    assert torch.equal(model(X), once)
    model.unmerge_adapter()
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()


@every_case
def test_merging_is_the_same_in_training(slug: str, case: str) -> None:
    model = CASES[case].model(slug, init_weights=False, dropout=0.5).train()
    first, second = copy.deepcopy(model), copy.deepcopy(model)
    first.merge_adapter()
    second.merge_adapter()
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


@every_case
def test_safe_merge_refuses_a_broken_adapter(slug: str, case: str) -> None:
    model = CASES[case].model(slug, init_weights=False)
    with torch.no_grad():
        for p in parameters(model).values():
            p.fill_(float("nan"))
    for layer in layers(model):
        before = layer.base_layer.weight.clone()
        message = "NaNs detected in the merged weights. The adapter default seems to be broken"
        with pytest.raises(ValueError, match=message):
            layer.merge(safe_merge=True)
        assert torch.equal(layer.base_layer.weight, before)
        assert not layer.merged


@every_method
def test_safe_merge_does_not_touch_the_bias(slug: str) -> None:
    model = CASES["linear"].model(slug, init_weights=False)
    for layer in layers(model):
        with torch.no_grad():
            layer.base_layer.bias[0] = float("inf")
        bias = layer.base_layer.bias.clone()
        layer.merge(safe_merge=True)
        assert torch.equal(layer.base_layer.bias, bias)


@every_plain_case
def test_merging_some_of_several(slug: str, case: str) -> None:
    model = CASES[case].model(slug, init_weights=False)
    first = model(X)
    torch.manual_seed(1)
    model.add_adapter("other", CASES[case].config(slug, init_weights=False))
    model.set_adapter("other")
    second = model(X)
    model.set_adapter("default")
    for names, wanted in ((["default"], first), (["other"], second)):
        torch.testing.assert_close(
            copy.deepcopy(model).merge_and_unload(adapter_names=names)(X), wanted, atol=1e-3, rtol=1e-3
        )
    model.base_model.set_adapter(["default", "other"])
    both = model(X)
    batch, one_by_one = copy.deepcopy(model), model
    batch.merge_adapter(["default", "other"])
    one_by_one.merge_adapter(["default"])
    with pytest.warns(UserWarning, match="Already following adapters were merged"):
        one_by_one.merge_adapter(["other"])
    torch.testing.assert_close(batch(X), both, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(one_by_one(X), both, atol=1e-3, rtol=1e-3)
    one_by_one.unmerge_adapter()
    with one_by_one.disable_adapter():
        assert torch.equal(one_by_one(X), CASES[case].base()(X))


# --- disabling, switching, deleting ----------------------------------------------------------------------------------


@every_case
def test_a_disabled_adapter_is_the_base_model(slug: str, case: str) -> None:
    model = CASES[case].model(slug)
    plain = CASES[case].base()(X)
    if get_config(slug).zero_at_start:
        assert torch.equal(model(X), plain)
    fit(model, lr=0.01, optimiser=torch.optim.Adam)
    after = model(X)
    assert not torch.allclose(after, plain, atol=1e-5, rtol=1e-5)
    with model.disable_adapter():
        assert torch.equal(model(X), plain)
    assert torch.equal(model(X), after)
    model.merge_adapter()
    merged = model(X)
    torch.testing.assert_close(merged, after, atol=1e-4, rtol=1e-5)
    with model.disable_adapter():
        assert torch.equal(model(X), plain)
    torch.testing.assert_close(model(X), after, atol=1e-4, rtol=1e-5)


@every_method
def test_disabling_restores_what_was(slug: str) -> None:
    model = CASES["linear"].model(slug)
    found = layers(model)
    with model.disable_adapter():
        assert not model.has_active_enabled_adapter
        with model.disable_adapter():
            assert all(layer.disable_adapters for layer in found)
        assert all(layer.disable_adapters for layer in found)
        assert not trainable(model)
    assert not any(layer.disable_adapters for layer in found)
    assert trainable(model) == of(model, "default")
    model.disable_adapter_layers()
    with model.disable_adapter():
        pass
    assert all(layer.disable_adapters for layer in found)
    model.enable_adapter_layers()
    found[0].enable_adapters(False)
    with pytest.warns(UserWarning, match="some adapter layers that are enabled"), model.disable_adapter():
        pass
    assert not any(layer.disable_adapters for layer in found)


@every_method
def test_active_adapters(slug: str) -> None:
    model = CASES["linear"].model(slug)
    model.add_adapter("other", CASES["linear"].config(slug))
    assert (model.active_adapter, model.active_adapters) == ("default", ["default"])
    assert trainable(model) == of(model, "default")
    model.set_adapter("other")
    assert (model.active_adapter, model.active_adapters) == ("other", ["other"])
    assert trainable(model) == of(model, "other")
    model.base_model.set_adapter(["default", "other"])
    assert model.active_adapters == ["default", "other"]
    assert trainable(model) == of(model, "default", "other")
    model.set_adapter("default", inference_mode=True)
    assert not trainable(model)


@every_method
def test_a_taken_name_is_refused(slug: str) -> None:
    model = CASES["linear"].model(slug)
    before = snapshot(model)
    with pytest.raises(ValueError, match="already exists"):
        model.add_adapter("default", CASES["linear"].config(slug))
    assert_untouched(model, before)


@every_method
def test_adapters_that_share_some_layers(slug: str) -> None:
    base = seeded(Stack)
    model = get_peft_model(base, config(slug, target_modules=["blocks.0.first", "blocks.1.first"]))
    model.add_adapter("other", config(slug, target_modules=["blocks.1.first", "blocks.2.first"]))
    for name in ("default", "other", "default"):
        model.base_model.set_adapter([name])
        for block in base.blocks:
            assert block["first"].active_adapters == [name]
        assert trainable(model) == of(model, name)
        model(X).sum().backward()


@every_method
def test_modules_to_save_follow_the_adapter(slug: str) -> None:
    base = seeded(Stack)
    model = get_peft_model(base, config(slug, target_modules=["blocks.0.first"]))
    model.add_adapter(
        "other", config(slug, target_modules=["blocks.0.first"], modules_to_save=["blocks.0.second"])
    )
    second = base.blocks[0]["second"]
    assert isinstance(second, ModulesToSaveWrapper)
    for name, active in (("other", ["other"]), ("default", []), ("other", ["other"])):
        model.set_adapter(name)
        assert second.active_adapters == active
        assert second.modules_to_save["other"].weight.requires_grad == bool(active)
        model(X)
    model.add_adapter(
        "third", config(slug, target_modules=["blocks.0.first"], modules_to_save=["blocks.0.second"])
    )
    with pytest.raises(ValueError, match="Only one adapter can be set at a time"):
        model.base_model.set_adapter(["other", "third"])


@every_case
def test_deleting_adapters(slug: str, case: str) -> None:
    model = CASES[case].model(slug)
    model.add_adapter("gone", CASES[case].config(slug))
    with pytest.raises(ValueError, match="Adapter nobody does not exist"):
        model.delete_adapter("nobody")
    model.set_adapter("gone")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.delete_adapter("gone")
    assert model.active_adapters == ["default"]
    assert not of(model, "gone")
    for layer in layers(model):
        for container in (*layer.adapter_layer_names, *layer.other_param_names):
            assert "gone" not in getattr(layer, container)
    assert trainable(model) == of(model, "default")
    model.delete_adapter("default")
    assert model.active_adapters == []
    assert "default" not in model.peft_config
    assert torch.equal(model.base_model(X), CASES[case].base()(X))


@every_method
def test_a_merged_adapter_cannot_be_deleted(slug: str) -> None:
    model = CASES["linear"].model(slug, init_weights=False)
    model.merge_adapter()
    with pytest.raises(ValueError, match="while they are merged"):
        model.delete_adapter("default")
    assert all(layer.merged_adapters == ["default"] for layer in layers(model))
    model.unmerge_adapter()
    model.delete_adapter("default")


@every_method
def test_nothing_of_a_deleted_adapter_is_left(slug: str) -> None:
    model = CASES["linear"].model(slug, "foobar")
    holders = [model, model.base_model, *layers(model)]
    model.delete_adapter("foobar")
    for holder in holders:
        for name, value in vars(holder).items():
            assert not (isinstance(value, dict | list) and "foobar" in value), name
            assert not (isinstance(value, nn.ModuleDict) and "foobar" in value), name


@every_case
def test_base_model_state_dict(slug: str, case: str) -> None:
    plain = CASES[case].base().state_dict()
    model = CASES[case].model(slug)
    assert get_base_model_state_dict(model).keys() == plain.keys()
    with torch.no_grad():
        for p in model.get_base_model().parameters():
            p.add_(1)
    result = set_base_model_state_dict(model, plain, strict=False)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert all(torch.equal(value, plain[key]) for key, value in get_base_model_state_dict(model).items())


# --- what trains -----------------------------------------------------------------------------------------------------


@every_method
def test_set_requires_grad(slug: str) -> None:
    model = get_peft_model(seeded(Stack), config(slug, target_modules=["blocks.0.first"]))
    model.add_adapter("other", config(slug, target_modules=["blocks.0.first", "blocks.1.first"]))
    assert trainable(model) == of(model, "default")
    model.set_requires_grad("other")
    assert trainable(model) == of(model, "default", "other")
    model.set_requires_grad(["default", "other"], requires_grad=False)
    assert not trainable(model)


@every_method
@pytest.mark.parametrize("saved", [None, ["blocks.0.second"]])
@pytest.mark.parametrize("is_trainable", [False, True])
def test_what_trains_after_loading(
    slug: str, saved: list[str] | None, is_trainable: bool, tmp_path: Path
) -> None:
    settings = {"target_modules": ["blocks.0.first"], "modules_to_save": saved}
    get_peft_model(seeded(Stack), config(slug, **settings)).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(seeded(Stack), tmp_path, is_trainable=is_trainable)
    assert trainable(model) == (of(model, "default") if is_trainable else set())
    model.load_adapter(tmp_path, adapter_name="other", is_trainable=is_trainable)
    assert trainable(model) == (of(model, "default", "other") if is_trainable else set())
    model.load_adapter(tmp_path, adapter_name="opposite", is_trainable=not is_trainable)
    wanted = of(model, "default", "other") if is_trainable else of(model, "opposite")
    assert trainable(model) == wanted
    model.add_adapter("added", config(slug, **settings))
    assert trainable(model) == wanted


# --- configurations --------------------------------------------------------------------------------------------------


@every_method
def test_target_modules_must_be_given_or_known(slug: str) -> None:
    with pytest.raises(ValueError, match="Please specify `target_modules`"):
        get_peft_model(seeded(Perceptron), config(slug, target_modules=None))


@every_method
def test_all_linear_and_exclusions(slug: str) -> None:
    model = get_peft_model(seeded(Stack), config(slug, target_modules="all-linear", exclude_modules=["head"]))
    assert {layer.shape.name for layer in layers(model)} == {
        f"blocks.{i}.{n}" for i in range(3) for n in ("first", "second")
    }
    model = get_peft_model(
        seeded(Stack),
        config(slug, target_modules=["first"], layers_to_transform=[0, 2], layers_pattern="blocks"),
    )
    assert {layer.shape.name for layer in layers(model)} == {"blocks.0.first", "blocks.2.first"}


@every_method
def test_a_task_type_saves_the_head_it_trains(slug: str, tmp_path: Path) -> None:
    config_of_base = bert_config(num_hidden_layers=1)
    base = lambda: seeded(lambda: BertForSequenceClassification(config_of_base))  # noqa: E731
    torch.manual_seed(0)
    model = get_peft_model(
        base(), config(slug, target_modules=None, task_type="SEQ_CLS", init_weights=False)
    ).eval()
    with torch.no_grad():
        model.classifier.modules_to_save["default"].weight.fill_(0.5)
    assert {layer.shape.name.rpartition(".")[2] for layer in layers(model)} == {"query", "value"}
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), tmp_path)
    ids = torch.arange(12).view(2, 6)
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


@every_method
def test_status_and_counts(slug: str) -> None:
    model = CASES["linear"].model(slug)
    trained, everything = model.get_nb_trainable_parameters()
    assert trained == sum(p.numel() for p in parameters(model).values())
    assert everything == sum(p.numel() for p in model.parameters())
    status = model.get_model_status()
    assert status.active_adapters == ["default"]
    assert status.requires_grad == {"default": True}
    assert status.num_adapter_layers == 2


@every_method
def test_converting_to_lora(slug: str) -> None:
    model = CASES["linear"].model(slug, init_weights=False)
    assert model.supports_lora_conversion()
    lora, state = convert_to_lora(model, rank=2)
    converted = get_peft_model(CASES["linear"].base(), lora).eval()
    assert not set_peft_model_state_dict(converted, state).unexpected_keys
    deltas = {
        m.in_features: m.get_delta_weight("default") for m in converted.modules() if hasattr(m, "lora_A")
    }
    for layer in layers(model):
        delta = layer.get_delta_weight("default")
        error = torch.linalg.matrix_norm(deltas[layer.in_features] - delta)
        tail = torch.linalg.svdvals(delta)[2:].square().sum().sqrt()
        torch.testing.assert_close(error, tail, rtol=1e-3, atol=1e-5)


@every_method
@pytest.mark.parametrize("route", ["factored", "folded"])
def test_scaling_an_adapter(slug: str, route: str) -> None:
    model = CASES["linear"].model(slug, init_weights=False, route=route)
    layer, x = layers(model)[0], X.float()
    delta = layer.get_delta_weight("default").detach()

    def assert_scaled(scale: float) -> None:
        torch.testing.assert_close(layer.get_delta_weight("default"), scale * delta)
        torch.testing.assert_close(
            layer(x), layer.base_layer(x) + scale * x @ delta.t(), rtol=1e-4, atol=1e-4 * scale
        )

    layer.set_scale("default", 3.0)
    assert_scaled(3.0)
    layer.scale_layer(2.0)
    layer.unscale_layer(3.0)
    assert_scaled(2.0)
    layer.unscale_layer()
    assert_scaled(1.0)


def test_a_save_that_nobody_could_load_is_refused() -> None:
    """What diffusers' own models ask PEFT for when they save."""

    class Mixed(nn.Sequential):
        def save_lora_adapter(self) -> dict[str, Tensor]:
            return get_peft_model_state_dict(self)

    model = Mixed(nn.Linear(6, 6))
    inject_adapter_in_model(eckart.adapters.BoneConfig(r=2, target_modules=["0"]), model)
    with pytest.raises(
        InputError, match="diffusers reads LoRA alone and could not load what it saves of bone"
    ):
        model.save_lora_adapter()
