"""What holds for every method on every kind of layer. Methods come from the registry: none is named here."""

from __future__ import annotations

import copy
import json
import pickle
from itertools import islice
from pathlib import Path

import pytest
import torch
from adapter_cases import (
    MLP,
    Host,
    adapted,
    add,
    config,
    every_layer,
    every_method,
    gradients,
    host,
    inputs,
    layers,
    parameters,
    rows,
    seeded,
    train,
)
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from eckart.adapters import get_config, saved_bytes, target_shapes, trainable_parameters

HALF = [torch.bfloat16, torch.float16]


def payload(path: Path) -> int:
    """Bytes of a safetensors file without its header."""
    data = (path / "adapter_model.safetensors").read_bytes()
    return len(data) - 8 - int.from_bytes(data[:8], "little")


def forward_and_gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
    """Output, gradients of every parameter and of the input, for a loss that weighs every output differently."""
    model.zero_grad()
    if x.is_floating_point():
        x = x.clone().requires_grad_()
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return y.detach(), gradients(model), x.grad if x.is_floating_point() else None


# --- the start -------------------------------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("route", ["factored", "folded"])
def test_starts_at_the_base_model(slug: str, kind: str, route: str) -> None:
    base, x = host(kind), inputs(kind)
    expected = base(x)
    model = adapted(slug, base, route=route)
    [layer] = layers(model)
    if not get_config(slug).zero_at_start:
        assert layer.get_delta_weight("default").count_nonzero()
    else:
        assert not layer.get_delta_weight("default").count_nonzero()
        assert torch.equal(model(x), expected)


@every_layer
def test_init_weights_false_starts_elsewhere(slug: str, kind: str) -> None:
    base, x = host(kind), inputs(kind)
    expected = base(x)
    model = adapted(slug, base, init_weights=False)
    start = dict(parameters(adapted(slug, host(kind))))
    for name, parameter in parameters(model).items():
        assert not torch.equal(parameter, start[name]), name
    assert (model(x) - expected).abs().max() > 1e-4


@every_layer
def test_trains_all_its_parameters_and_nothing_else(slug: str, kind: str) -> None:
    model, x = adapted(slug, host(kind), init_weights=False), inputs(kind)
    before = copy.deepcopy(model.state_dict())
    model.train()
    train(model, x, steps=3, lr=0.5)
    trained = parameters(model)
    assert trained
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != (name in trained), name


# --- counts ----------------------------------------------------------------------------------------------------------


@every_layer
def test_counts_follow_the_formulas(slug: str, kind: str, tmp_path: Path) -> None:
    base = host(kind)
    shapes = target_shapes(base, config(slug))
    model = adapted(slug, base)
    model.save_pretrained(tmp_path)
    wanted = config(slug).trainable_parameters(shapes)
    assert trainable_parameters(model) == wanted
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == wanted
    assert config(slug).saved_bytes(shapes) == saved_bytes(model) == payload(tmp_path)


@every_method
def test_bytes_with_what_else_could_be_made_again_follow_the_formulas(slug: str, tmp_path: Path) -> None:
    model, chosen = adapted(slug, seeded(MLP), save_basis=True), config(slug, save_basis=True)
    model.save_pretrained(tmp_path)
    assert chosen.saved_bytes(target_shapes(seeded(MLP), chosen)) == saved_bytes(model) == payload(tmp_path)


@every_method
@given(data=st.data())
def test_counts_follow_the_formulas_for_any_shapes(slug: str, data: st.DataObject) -> None:
    sizes = st.integers(1, 24)
    widths = data.draw(st.lists(st.tuples(sizes, sizes), min_size=1, max_size=3), label="(out, in)")
    base = seeded(lambda: nn.ModuleDict({f"m{i}": Host(nn.Linear(n, m)) for i, (m, n) in enumerate(widths)}))
    shapes = target_shapes(base, config(slug))
    knob = config(slug).knob
    values = list(islice(config(slug).knob_values(shapes), 64))
    options = {knob: data.draw(st.sampled_from(values), label=knob)} if values else {}
    chosen = config(slug, **options)
    model = get_peft_model(base, chosen)
    assert trainable_parameters(model) == chosen.trainable_parameters(shapes)
    assert saved_bytes(model) == chosen.saved_bytes(shapes)


# --- one ΔW, two routes ----------------------------------------------------------------------------------------------


@every_layer
def test_both_routes_are_the_layer_with_delta_added(slug: str, kind: str) -> None:
    """Output and all gradients, in float64, against the layer itself with W₀ + ΔW as its weight."""
    x = inputs(kind, torch.float64)
    results = {}
    for route in ("factored", "folded"):
        model = adapted(slug, host(kind, torch.float64), init_weights=False, route=route)
        model.train()
        results[route] = forward_and_gradients(model, x)
    [layer] = layers(model)
    state = {"weight": layer.base_layer.weight + layer.get_delta_weight("default")}
    layer.base_layer.padding_idx = None  # it only stops the gradient of the table, which is frozen
    model.zero_grad()
    leaf = x.clone().requires_grad_() if x.is_floating_point() else x
    y = torch.func.functional_call(layer.base_layer, state, (leaf,))
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    wanted = y.detach(), gradients(model), leaf.grad if x.is_floating_point() else None
    assert parameters(model).keys() <= wanted[1].keys()
    for route, result in results.items():
        torch.testing.assert_close(
            result, wanted, rtol=1e-9, atol=1e-11, msg=lambda text, route=route: f"{route}: {text}"
        )


@every_method
@given(data=st.data())
def test_routes_agree_for_any_shape_and_rank(slug: str, data: st.DataObject) -> None:
    out, width, tokens = (
        data.draw(st.integers(1, n), label=label) for n, label in ((20, "out"), (20, "in"), (9, "tokens"))
    )
    make = lambda: Host(nn.Linear(width, out))  # noqa: E731
    shapes = target_shapes(seeded(make), config(slug))
    values = list(islice(config(slug).knob_values(shapes), 64))
    options = {config(slug).knob: data.draw(st.sampled_from(values))} if values else {}
    x = rows(tokens, width, torch.float64)
    first, second = (
        forward_and_gradients(
            adapted(slug, seeded(make, torch.float64), init_weights=False, route=route, **options), x
        )
        for route in ("factored", "folded")
    )
    torch.testing.assert_close(first, second, rtol=1e-8, atol=1e-10)


@every_method
def test_gradients_are_the_derivatives_of_delta(slug: str) -> None:
    base = host("linear", torch.float64)
    [layer] = layers(adapted(slug, base, init_weights=False, **get_config(slug).exact_gradient))
    names, values = zip(*layer.eckart_adapters["default"].named_parameters(), strict=True)

    def delta(*values: Tensor) -> Tensor:
        state = dict(zip((f"eckart_adapters.default.{name}" for name in names), values, strict=True))
        return torch.func.functional_call(_Delta(layer), {f"layer.{key}": v for key, v in state.items()}, ())

    assert torch.autograd.gradcheck(delta, values)


class _Delta(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self) -> Tensor:
        return self.layer.get_delta_weight("default")


@every_method
def test_factored_route_keeps_no_matrix_for_backward(slug: str) -> None:
    """Nothing of the size of W is kept between forward and backward, except W₀ itself and frozen buffers."""
    tokens, out, width = 5, 24, 200
    base = seeded(lambda: Host(nn.Linear(width, out)))
    model = adapted(slug, base, init_weights=False, route="factored")
    [layer] = layers(model)
    frozen = {t.untyped_storage().data_ptr() for t in [layer.base_layer.weight, *model.buffers()]}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x = rows(tokens, width).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model(x)
    y.sum().backward()
    large = [
        tuple(t.shape)
        for t in kept
        if t.numel() >= out * width and t.untyped_storage().data_ptr() not in frozen
    ]
    assert not large


# --- merging ---------------------------------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("dtype", [torch.float64, *HALF])
def test_merging_adds_delta_and_unmerging_restores_the_bits(slug: str, kind: str, dtype: torch.dtype) -> None:
    model, x = adapted(slug, host(kind, dtype), init_weights=False), inputs(kind, dtype)
    [layer] = layers(model)
    before, delta = layer.base_layer.weight.clone(), layer.get_delta_weight("default").detach()
    outputs = model(x)
    model.merge_adapter()
    wide = torch.promote_types(dtype, torch.float32)
    assert torch.equal(layer.base_layer.weight, (before.to(wide) + delta.to(wide)).to(dtype))
    if dtype == torch.float64:
        torch.testing.assert_close(model(x), outputs, rtol=1e-9, atol=1e-11)
    model.unmerge_adapter()
    assert torch.equal(layer.base_layer.weight, before)
    assert torch.equal(model(x), outputs)
    assert not layer.base_layer.weight.requires_grad


@every_layer
def test_merge_and_unload_gives_the_plain_layer(slug: str, kind: str) -> None:
    base, x = host(kind, torch.float64), inputs(kind, torch.float64)
    tree = [(name, type(module)) for name, module in base.named_modules()]
    model = adapted(slug, base, init_weights=False)
    outputs = model(x)
    plain = model.merge_and_unload()
    assert [(name, type(module)) for name, module in plain.named_modules()] == tree
    torch.testing.assert_close(plain(x), outputs, rtol=1e-9, atol=1e-11)


@every_method
def test_merging_while_training_state_stays(slug: str) -> None:
    """An adapter can be merged, used, unmerged and trained on; a merged model still knows its own ΔW."""
    model, x = adapted(slug, seeded(MLP, torch.float64), init_weights=False), rows(dtype=torch.float64)
    deltas = [layer.get_delta_weight("default").detach() for layer in layers(model)]
    model.merge_adapter()
    for layer, delta in zip(layers(model), deltas, strict=True):
        torch.testing.assert_close(layer.get_delta_weight("default"), delta, rtol=0, atol=0)
    with model.disable_adapter():
        torch.testing.assert_close(model(x), seeded(MLP, torch.float64)(x), rtol=0, atol=0)
    train(model, x)
    assert all(p.grad is not None for p in parameters(model).values())


# --- files -----------------------------------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("save_basis", [False, True])
def test_round_trip_through_a_file(slug: str, kind: str, save_basis: bool, tmp_path: Path) -> None:
    model, x = adapted(slug, host(kind), init_weights=False, save_basis=save_basis), inputs(kind)
    outputs = model(x)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert all(".eckart_adapters." in key for key in stored)
    loaded = PeftModel.from_pretrained(host(kind), tmp_path)
    assert torch.equal(loaded(x), outputs)
    assert not any(p.requires_grad for p in loaded.parameters())
    names = {name.replace(".default", "") for name in parameters(model)}
    frozen = {
        name
        for name, buffer in model.named_buffers()
        if "eckart_adapters" in name and buffer.is_floating_point()
    }
    if save_basis:
        assert len(stored) >= len(names) + len(frozen)
    else:
        assert names <= stored.keys()
        assert config(slug).saved_bytes(target_shapes(host(kind), config(slug))) == payload(tmp_path)


@every_method
@pytest.mark.parametrize("save_basis", [False, True])
def test_loads_under_another_name_and_with_empty_weights(slug: str, save_basis: bool, tmp_path: Path) -> None:
    model, x = adapted(slug, seeded(MLP), init_weights=False, save_basis=save_basis), rows()
    outputs = model(x)
    model.save_pretrained(tmp_path)
    for options in ({"adapter_name": "other"}, {"low_cpu_mem_usage": True}, {"is_trainable": True}):
        loaded = PeftModel.from_pretrained(seeded(MLP), tmp_path, **options)
        assert torch.equal(loaded.eval()(x), outputs), options
        assert not any(p.is_meta for p in loaded.parameters())
    loaded.load_adapter(tmp_path, adapter_name="third", low_cpu_mem_usage=True)
    loaded.set_adapter("third")
    assert torch.equal(loaded(x), outputs)


@every_method
def test_a_decomposition_with_other_signs_rebuilds_the_same_adapter(
    slug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signs of singular vectors and of QR factors are a library's choice: loading must not depend on them."""
    model, x = adapted(slug, seeded(MLP), init_weights=False), rows()
    outputs = model(x)
    model.save_pretrained(tmp_path)

    def flip(decompose):
        def decomposed(*args, **kwargs):
            first, *middle, last = decompose(*args, **kwargs)
            signs = torch.tensor([-1.0, 1.0, -1.0, -1.0, 1.0] * 20)[: last.shape[-2]].to(last)
            return first * signs, *middle, signs.unsqueeze(-1) * last

        return decomposed

    for name in ("svd", "qr"):
        monkeypatch.setattr(torch.linalg, name, flip(getattr(torch.linalg, name)))
    loaded = PeftModel.from_pretrained(seeded(MLP), tmp_path)
    torch.testing.assert_close(loaded(x), outputs, rtol=1e-5, atol=1e-6)


@every_method
def test_configuration_is_plain_json(slug: str, tmp_path: Path) -> None:
    model = adapted(slug, seeded(MLP))
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    again = type(config(slug)).from_pretrained(tmp_path)
    ignored = {"base_check", "inference_mode", "auto_mapping"}
    for name, value in config(slug).to_dict().items():
        if name not in ignored:
            assert getattr(again, name) == value, name
    assert written["peft_type"] == config(slug).peft_type.value
    assert set(written["base_check"]) == {"up", "down"}


@every_method
def test_training_goes_on_where_it_was_saved(slug: str, tmp_path: Path) -> None:
    whole, x = adapted(slug, seeded(MLP)).train(), rows()
    train(whole, x, steps=2, lr=0.01)
    whole.save_pretrained(tmp_path)
    train(whole, x, steps=2, lr=0.01)
    resumed = PeftModel.from_pretrained(seeded(MLP), tmp_path, is_trainable=True)
    train(resumed, x, steps=2, lr=0.01)
    for name, parameter in parameters(whole).items():
        assert torch.equal(parameter, parameters(resumed)[name]), name


@every_method
def test_deepcopy_and_state_dict_hold_the_whole_adapter(slug: str) -> None:
    model, x = adapted(slug, seeded(MLP), init_weights=False), rows()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))
    train(twin, x)
    assert not torch.equal(twin(x), model(x))
    fresh = adapted(slug, seeded(MLP))
    fresh.load_state_dict(twin.state_dict())
    assert torch.equal(fresh(x), twin(x))
    assert torch.equal(model(x), adapted(slug, seeded(MLP), init_weights=False)(x))


# --- several adapters ------------------------------------------------------------------------------------------------


@every_layer
def test_active_adapters_add_up(slug: str, kind: str) -> None:
    base, x = host(kind, torch.float64), inputs(kind, torch.float64)
    plain = base(x)
    model = adapted(slug, base, init_weights=False)
    first = model(x)
    add(slug, model, init_weights=False)
    assert torch.equal(model(x), first)
    model.set_adapter("other")
    second = model(x)
    assert not torch.allclose(first, second)
    model.base_model.set_adapter(["default", "other"])
    torch.testing.assert_close(model(x), first + second - plain, rtol=1e-9, atol=1e-11)
    with model.disable_adapter():
        assert torch.equal(model(x), plain)
    model.merge_adapter(["default", "other"])
    torch.testing.assert_close(model(x), first + second - plain, rtol=1e-9, atol=1e-11)
    model.unmerge_adapter()
    model.set_adapter("default")
    assert torch.equal(model(x), first)
    model.delete_adapter("other")
    assert torch.equal(model(x), first)
    assert "other" not in model.peft_config
    assert not parameters(model, "other")


@every_method
def test_adapters_on_different_layers_live_apart(slug: str) -> None:
    model, x = adapted(slug, seeded(MLP), target_modules=["up"], init_weights=False), rows()
    first = model(x)
    add(slug, model, target_modules=["down"], init_weights=False)
    assert torch.equal(model(x), first)
    model.set_adapter("other")
    assert not torch.allclose(model(x), first)
    assert all(p.requires_grad for p in parameters(model, "other").values())
    assert not any(p.requires_grad for p in parameters(model).values())
    model.delete_adapter("default")
    assert parameters(model, "other") and not parameters(model)
    model(x).sum().backward()
    assert all(p.grad is not None for p in parameters(model, "other").values())


@every_method
def test_deleting_one_adapter_leaves_the_shared_state_of_another(slug: str) -> None:
    model, x = adapted(slug, seeded(MLP), init_weights=False), rows()
    add(slug, model, init_weights=False)
    model.set_adapter("other")
    outputs = model(x)
    model.delete_adapter("default")
    assert torch.equal(model(x), outputs)


# --- precision -------------------------------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
def test_half_precision_base(slug: str, kind: str, dtype: torch.dtype, autocast_adapter_dtype: bool) -> None:
    x = inputs(kind, dtype)
    settings = config(slug, init_weights=False)
    model = get_peft_model(host(kind, dtype), settings, autocast_adapter_dtype=autocast_adapter_dtype)
    kept = torch.float32 if autocast_adapter_dtype else dtype
    assert {p.dtype for p in parameters(model).values()} == {kept}
    for route in ("factored", "folded"):
        settings.route = route
        y = model(x)
        assert y.dtype == dtype
        assert torch.isfinite(y).all()
        y.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in parameters(model).values())


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast(slug: str, kind: str, dtype: torch.dtype) -> None:
    model, x = adapted(slug, host(kind, dtype), init_weights=False), inputs(kind, dtype)
    plain = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    torch.testing.assert_close(y.float(), plain.float(), rtol=0.05, atol=0.1)
    y.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in parameters(model).values())


# --- randomness ------------------------------------------------------------------------------------------------------


@every_method
def test_numbers_follow_from_the_seed_alone(slug: str) -> None:
    """Neither the global generator nor the order of the layers in the model has a say, and neither is disturbed."""

    def built(seed: int, noise: int, reverse: bool = False) -> dict[str, Tensor]:
        base = seeded(MLP)
        if reverse:
            base._modules = dict(reversed(base._modules.items()))
        torch.manual_seed(noise)
        state = torch.random.get_rng_state()
        model = get_peft_model(base, config(slug, seed=seed))
        assert torch.equal(torch.random.get_rng_state(), state)
        train(model, rows(), lr=1.0)
        deltas = {layer.shape.name: layer.get_delta_weight("default") for layer in layers(model)}
        return {**parameters(model), **deltas}

    first = built(seed=3, noise=0)
    assert all(value.count_nonzero() for name, value in first.items() if "eckart" not in name)
    again, reverse = built(seed=3, noise=1), built(seed=3, noise=0, reverse=True)
    assert again.keys() == first.keys()
    for other in (again, reverse):  # in another order another layer may own what all share
        assert {"up", "down"} <= other.keys()
        for name in first.keys() & other.keys():
            assert torch.equal(first[name], other[name]), name


@every_method
def test_dropout_acts_in_training_only(slug: str) -> None:
    model, x = adapted(slug, seeded(MLP), dropout=0.5, init_weights=False), rows()
    assert torch.equal(model(x), model(x))
    assert torch.equal(model(x), adapted(slug, seeded(MLP), init_weights=False)(x))
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(model(x), model(x))


@every_method
def test_state_dict_of_peft_holds_only_the_adapter(slug: str) -> None:
    model = adapted(slug, seeded(MLP), adapter_name="mine")
    state = get_peft_model_state_dict(model, adapter_name="mine")
    assert all(".eckart_adapters." in key and ".mine." not in key for key in state)
    assert sum(value.numel() * value.element_size() for value in state.values()) == saved_bytes(model, "mine")
