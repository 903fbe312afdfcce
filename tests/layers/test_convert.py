"""convert and to_dense: which layers, what a model remembers, saving and loading, refusals that change nothing."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

import eckart
from eckart.errors import InputError
from eckart.layers import LowRankLinear, convert, structured_layers, to_dense, trained_parameters
from eckart.layers._structured import STRUCTURED, build_layer, register_layer

METHODS: dict[str, dict[str, Any]] = {
    "sltrain": {"r": 3, "sparsity": 0.1, "train_scaling": True, "support": "row_balanced"},
    "lost": {"r": 3, "activation": "identity", "sparsity": 0.2},
    "low-rank": {"r": 3},
    "relora": {"r": 3, "lora_alpha": 6.0},
}
every = pytest.mark.parametrize("method", METHODS)
IDS = torch.arange(24).view(2, 12)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


def moved(model: nn.Module) -> nn.Module:
    """A step away from the start, so that nothing is zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


@every
def test_seven_layers_of_each_block_are_replaced_and_counted_before(method: str) -> None:
    model = llama()
    counted = trained_parameters(model, method, **METHODS[method])
    assert convert(model, method, **METHODS[method]) is model
    found = structured_layers(model)
    assert len(found) == 14 and "lm_head" not in found
    assert {type(layer).slug for layer in found.values()} == {method}
    assert type(model.lm_head) is nn.Linear and not any(layer.training for layer in found.values())
    assert counted == sum(p.numel() for p in model.parameters() if p.requires_grad)


@every
def test_transformers_saves_and_loads_it_whole(method: str, tmp_path: Path) -> None:
    model = moved(convert(llama(), method, **METHODS[method]))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.num_parameters() == model.num_parameters()
    assert all(p.requires_grad for p in loaded.parameters())
    loaded.train()
    loaded(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in loaded.parameters())
    spec = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert spec["quant_method"] == "eckart-structured" and len(spec["modules"]) == 14
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    torch.testing.assert_close(logits(half).float(), logits(model), rtol=0.1, atol=0.1)


@every
def test_a_state_dict_loads_into_a_model_of_another_seed(method: str) -> None:
    model = moved(convert(llama(), method, **METHODS[method]))
    other = convert(llama(), method, seed=9, **METHODS[method])
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other), logits(model))


@every
def test_dense_again_gives_the_same_numbers(method: str, tmp_path: Path) -> None:
    model = moved(convert(llama(), method, **METHODS[method]))
    before = logits(model)
    assert not structured_layers(to_dense(model))
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path).model.layers[1].mlp.up_proj) is nn.Linear


def test_a_layer_that_is_no_matrix_stays_and_so_does_the_rest() -> None:
    model = convert(llama(), "lost", r=3)
    convert(model, "low-rank", target_modules=["lm_head"], r=3)
    with pytest.raises(InputError, match=r"model\.layers\.0\.self_attn\.q_proj: activation='silu'"):
        to_dense(model)
    assert len(structured_layers(model)) == 15


@every
def test_a_seed_decides_everything_random(method: str) -> None:
    a, b, c = (convert(llama(), method, seed=s, **METHODS[method]) for s in (0, 0, 1))
    same = [torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)]
    assert all(same)
    assert method != "sltrain" or not torch.equal(logits(a), logits(c))
    if method == "sltrain":
        first, second = list(structured_layers(a).values())[:2]
        assert not torch.equal(first.sparse_index, second.sparse_index)


def test_names_choose_layers() -> None:
    for given, count in (
        (["q_proj", "v_proj"], 4),
        (r".*layers\.1.*", 7),
        (["lm_head"], 1),
        (["layers.0.mlp.up_proj"], 1),
    ):
        assert len(structured_layers(convert(llama(), "low-rank", target_modules=given, r=2))) == count


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("lora", {"r": 2}, "method='lora': choose one of lost, low-rank, maestro, relora, sltrain"),
        ("sltrain", {"r": 17}, r"model\.layers\.0\.self_attn\.q_proj: r=17: a layer of shape \(16, 16\)"),
        ("lost", {"r": 16}, r"q_proj: r=16: a layer of shape \(16, 16\) takes a whole number from 1 to 15"),
        ("low-rank", {"r": 17}, "r=17"),
        ("sltrain", {}, "r is missing: give the rank of the sltrain layers"),
        ("lost", {"r": 2, "rho": 0.1}, r"rho=0\.1: lost has the options activation, columns"),
        (
            "low-rank",
            {"r": 2, "target_modules": ["q"]},
            r"target_modules=\['q'\] matches no layer that can be replaced",
        ),
        ("low-rank", {"r": 2, "target_modules": "(q"}, r"target_modules='\(q': no regular expression"),
        ("low-rank", {"r": 2, "target_modules": ["norm"]}, "norm is a LlamaRMSNorm: only nn.Linear"),
        (
            "low-rank",
            {"r": 2, "target_modules": ["q_proj", "w_proj"]},
            "names 'w_proj', which no layer ends with",
        ),
        ("low-rank", {"r": 2, "target_modules": 3}, "target_modules=3: give a regular expression"),
        ("low-rank", {"r": 2, "seed": "a"}, "seed is 'a': give a whole number"),
        ("sltrain", {"r": 2, "sparsity": "0.1"}, r"sparsity='0\.1': give a share"),
        ("lost", {"r": 2, "sparsity": None}, "sparsity=None: give a share"),
    ],
)
def test_refusals_leave_the_model_as_it_was(method: str, given: dict[str, Any], message: str) -> None:
    model = llama()
    before = logits(model)
    with pytest.raises(InputError, match=message):
        convert(model, method, **given)
    assert not structured_layers(model) and torch.equal(logits(model), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (torch.compile, "wrapped in OptimizedModule: convert model._orig_mod"),
        (
            lambda model: get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])),
            "has an adapter: merge it",
        ),
        (
            lambda model: eckart.compress(model, "svd", ratio=0.3),
            "is compressed or quantised: convert the dense",
        ),
    ],
    ids=["compiled", "adapter", "compressed"],
)
def test_a_model_whose_linear_layers_are_parts_is_refused(change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        convert(change(llama()), "low-rank", r=2)


@pytest.mark.parametrize("method", [*METHODS, "maestro"])
def test_the_random_state_is_left_alone_and_layers_are_not_converted_twice(method: str) -> None:
    model, state = llama(), torch.get_rng_state()
    convert(model, method, **METHODS.get(method, {}))
    with pytest.raises(InputError, match="matches no layer that can be replaced"):
        convert(model, method, **METHODS.get(method, {}))
    to_dense(model)
    assert torch.equal(torch.get_rng_state(), state)


DAMAGE = {
    "sizes": (
        lambda spec: {**spec, "in_features": spec["in_features"] + 8},
        r"has shape .* its config\.json says",
    ),
    "a word": (lambda spec: {**spec, "radius": 3}, "'radius'.*restore the config"),
    "no size": (
        lambda spec: {k: v for k, v in spec.items() if k != "in_features"},
        "missing .*in_features.*restore the config",
    ),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("damage", [*DAMAGE, "missing", "cut short"])
def test_a_checkpoint_that_does_not_fit_its_config_is_refused(
    damage: str, method: str, tmp_path: Path
) -> None:
    convert(llama(), method, **METHODS[method]).save_pretrained(tmp_path)
    path, message = tmp_path / "model.safetensors", "is damaged or cut short"
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "missing":
        state, message = load_file(path), r"up_proj\..* is missing from the checkpoint"
        del state[next(name for name in state if ".up_proj." in name)]
        save_file(state, path, {"format": "pt"})
    else:
        change, message = DAMAGE[damage]
        config = json.loads((tmp_path / "config.json").read_text())
        modules = config["quantization_config"]["modules"]
        name = next(name for name in modules if name.endswith("up_proj"))
        modules[name] = change(modules[name])
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_the_backbone_and_other_heads_load_too(tmp_path: Path) -> None:
    model = moved(convert(llama(), "sltrain", r=3, sparsity=0.1))
    model.save_pretrained(tmp_path)
    for auto, part in ((AutoModel, lambda m: m), (AutoModelForSequenceClassification, lambda m: m.model)):
        loaded = part(auto.from_pretrained(tmp_path)).eval()
        with torch.no_grad():
            assert torch.equal(loaded(IDS)[0], model.model(IDS)[0])


def test_what_holds_no_layer_is_refused() -> None:
    with pytest.raises(InputError, match="matches no layer that can be replaced: the model has none"):
        convert(nn.Linear(40, 40), "low-rank", r=2, target_modules=".*")
    with pytest.raises(InputError, match="model is a str: give the module itself"):
        convert("gpt2", "low-rank", r=2)  # type: ignore[type-var]


def test_numbers_of_numpy_are_numbers() -> None:
    model = convert(llama(), "sltrain", r=np.int64(2), sparsity=np.float32(0.25))
    assert {layer.spec()["r"] for layer in structured_layers(model).values()} == {2}


def test_a_shared_weight_is_refused() -> None:
    model = llama()
    model.lm_head.weight = model.model.embed_tokens.weight
    with pytest.raises(InputError, match="lm_head shares its weight with another layer"):
        convert(model, "low-rank", target_modules=["lm_head"], r=2)


def test_a_weight_that_is_not_finite_is_refused_before_any_layer_is_replaced() -> None:
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    for method in ("lost", "low-rank"):
        with pytest.raises(InputError, match="holds NaN or infinity"):
            convert(model, method, r=2)
        assert not structured_layers(model)


def test_a_plain_low_rank_layer_is_the_best_approximation() -> None:
    linear = nn.Linear(10, 7, dtype=torch.float64)
    layer = LowRankLinear.from_linear(linear, 0, r=3)
    u, s, vh = torch.linalg.svd(linear.weight.detach())
    best = (u[:, :3] * s[:3]) @ vh[:3]
    torch.testing.assert_close(layer.dense_weight(), best, rtol=0, atol=1e-12)
    x = torch.randn(4, 10, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ best.mT + linear.bias, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.lora_A @ layer.lora_A.mT, s[:3].diag())


@every
def test_a_spec_makes_an_equal_layer(method: str) -> None:
    layer = STRUCTURED[method].from_linear(nn.Linear(10, 7), 3, **METHODS[method])
    again = build_layer(json.loads(json.dumps(layer.spec())))
    again.load_state_dict(layer.state_dict())
    x = torch.randn(3, 10)
    assert torch.equal(again(x), layer(x)) and repr(again) == repr(layer)
    copied = copy.deepcopy(layer)
    assert torch.equal(copied(x), layer(x))


def test_the_table_of_layers() -> None:
    with pytest.raises(InputError, match="layer 'lost' is registered twice"):
        register_layer("lost")(LowRankLinear)
    with pytest.raises(InputError, match="structured layer 'x' is not known"):
        build_layer({"method": "x"})


def test_a_plain_module_needs_no_transformers() -> None:
    code = (
        "import sys, torch, eckart; "
        "m = torch.nn.ModuleDict({'mlp': torch.nn.Linear(6, 5)}); "
        "eckart.layers.convert(m, 'sltrain', r=2, sparsity=0.2); m['mlp'](torch.ones(2, 6)).sum().backward(); "
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
