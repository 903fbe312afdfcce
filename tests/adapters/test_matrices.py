"""Adapters on the matrices of a parameter: every method on the experts of a small Mixtral, and those of others."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from adapter_cases import every_method, snapshot
from expert_cases import BOTH, IDS, MODELS, adapt_experts, changed_by_hand, logits, moe, weights
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

import eckart
from eckart.adapters import get_config, make_config, saved_bytes, target_shapes, trainable_parameters, walk
from eckart.adapters._matrices import EckartParameters
from eckart.errors import InputError

NAMES = [
    f"model.layers.{layer}.mlp.experts.{parameter}.{expert}"
    for layer in range(2)
    for parameter in ("gate_up_proj", "down_proj")
    for expert in range(4)
]


# --- every method ----------------------------------------------------------------------------------------------------


@every_method
def test_the_forward_is_that_of_the_changed_weights(slug: str) -> None:
    plain = logits(moe())
    if get_config(slug).zero_at_start:
        torch.testing.assert_close(logits(adapt_experts(moe(), slug)), plain, rtol=0, atol=0)
    model = adapt_experts(moe(), slug, init_weights=False)
    assert [name for name, *_ in walk(model)] == NAMES
    outputs = logits(model)
    assert not torch.allclose(outputs, plain, atol=1e-4)
    torch.testing.assert_close(outputs, logits(changed_by_hand("mixtral", model)), rtol=1e-5, atol=1e-6)
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    assert torch.equal(logits(model), outputs)
    model(IDS, labels=IDS).loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(".eckart_adapters." in name and p.grad is not None for name, p in trained.items())
    assert all(p.grad is None for name, p in model.named_parameters() if name not in trained)


@every_method
def test_merging_and_unloading(slug: str) -> None:
    base = moe()
    before, tree = copy.deepcopy(base.state_dict()), [(n, type(m)) for n, m in base.named_modules()]
    model = adapt_experts(base, slug, init_weights=False)
    outputs = logits(model)
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits(model), outputs)
    model.unmerge_adapter()
    assert torch.equal(logits(model), outputs)
    assert all(torch.equal(value, before[name]) for name, value in plain_state(model).items())
    merged = model.merge_and_unload()
    assert [(n, type(m)) for n, m in merged.named_modules()] == tree
    assert merged.state_dict().keys() == before.keys()
    torch.testing.assert_close(logits(merged), outputs)


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The base model's own tensors."""
    state = {k.removeprefix("base_model.model."): v for k, v in model.state_dict().items()}
    return {k.replace(".base_layer.", "."): v for k, v in state.items() if ".eckart_adapters." not in k}


@every_method
def test_files_and_counts(slug: str, tmp_path: Path) -> None:
    model = adapt_experts(moe(), slug, init_weights=False)
    config = model.peft_config["default"]
    assert trainable_parameters(model) == config.trainable_parameters(target_shapes(moe(), config))
    assert saved_bytes(model) == config.saved_bytes(target_shapes(moe(), config))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(moe(), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.peft_config["default"].target_parameters == sorted(BOTH)
    loaded.load_adapter(tmp_path, "other", low_cpu_mem_usage=True)
    loaded.set_adapter("other")
    assert torch.equal(logits(loaded), logits(model))


# --- experts of other models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("method", ["lora", "bone", "svfit"])
def test_the_sides_of_a_matrix_are_right(kind: str, method: str) -> None:
    """Bone repeats one block along the inputs, and so would give another ΔW on the sides taken for each other."""
    model = adapt_experts(moe(kind), method, r=2, init_weights=False)
    outputs = logits(model)
    torch.testing.assert_close(outputs, logits(changed_by_hand(kind, model)), rtol=1e-5, atol=1e-6)
    hidden, inner = 16, {"mixtral": 24, "gpt-oss": 24, "llama4": 24}.get(kind, 12)
    sizes = {weight.shape.weight for name, weight in weights(model).items() if "gate_up" in name}
    assert sizes == {(2 * inner, hidden)}
    assert {w.shape.weight for name, w in weights(model).items() if "down" in name} == {(hidden, inner)}
    torch.testing.assert_close(logits(model.merge_and_unload()), outputs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["mixtral", "gpt-oss"])
def test_one_matrix_in_a_parameter(kind: str, tmp_path: Path) -> None:
    """A router is a parameter of one matrix: it has no number, and its module stands for it alone."""
    name = {"mixtral": "gate.weight", "gpt-oss": "router.weight"}[kind]
    model = adapt_experts(moe(kind), "loldu", target_parameters=[name], init_weights=False)
    assert list(weights(model)) == [f"model.layers.{layer}.mlp.{name}" for layer in range(2)]
    outputs = logits(model)
    torch.testing.assert_close(outputs, logits(changed_by_hand(kind, model)))
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(moe(kind), tmp_path)), outputs)
    torch.testing.assert_close(logits(model.merge_and_unload()), outputs)


@pytest.mark.parametrize("kernel", ["eager", "batched_mm", "grouped_mm"])
def test_every_implementation_of_the_experts_sees_the_changed_weights(kernel: str) -> None:
    base = moe()
    base.set_experts_implementation(kernel)
    model = adapt_experts(base, "lora", r=2, init_weights=False)
    torch.testing.assert_close(logits(model), logits(changed_by_hand("mixtral", model)), rtol=1e-5, atol=1e-6)


# --- what each matrix has of its own ---------------------------------------------------------------------------------


def test_each_matrix_has_numbers_of_its_own_that_follow_from_the_seed() -> None:
    first, again = (adapt_experts(moe(), "lora", r=2) for _ in range(2))
    starts = {name: adapter.lora_A for name, _, _, adapter in walk(first)}
    for name, _, _, adapter in walk(again):
        assert torch.equal(adapter.lora_A, starts[name])
        same = [
            n for n, a in starts.items() if a.shape == adapter.lora_A.shape and torch.equal(a, adapter.lora_A)
        ]
        assert same == [name]


def test_a_rank_is_a_cap_for_each_matrix_and_may_differ() -> None:
    pattern = {"gate_up_proj": 20, r"1\.mlp\.experts\.down_proj": 3, "layers.1.mlp.experts.down_proj.2": 1}
    model = adapt_experts(moe(), "lora", r=2, rank_pattern=pattern, init_weights=False)
    ranks = {name: adapter.factor_rank for name, _, _, adapter in walk(model)}
    assert {rank for name, rank in ranks.items() if "gate_up" in name} == {16}
    assert [ranks[f"model.layers.0.mlp.experts.down_proj.{e}"] for e in range(4)] == [2, 2, 2, 2]
    assert [ranks[f"model.layers.1.mlp.experts.down_proj.{e}"] for e in range(4)] == [3, 3, 1, 3]
    torch.testing.assert_close(logits(model), logits(changed_by_hand("mixtral", model)))
    with pytest.raises(InputError, match="rank_pattern names 'gate_upproj', which fits none"):
        adapt_experts(moe(), "lora", rank_pattern={"gate_upproj": 2})


@pytest.mark.parametrize("method", ["lora", "svfit", "nola"])
def test_a_budget_counts_every_matrix(method: str) -> None:
    model = adapt_experts(moe(), method, budget="20%")
    total = sum(p.numel() for p in moe().parameters())
    held = trainable_parameters(model)
    room = {"lora": 40, "nola": 31, "svfit": 0.2 * total}[
        method
    ]  # one rank of a stack, a number a matrix, the cap
    assert 0.2 * total - room <= held <= 0.2 * total


def test_the_rest_of_a_budget_goes_to_whole_stacks() -> None:
    model = adapt_experts(moe(), "lora", budget="1600")
    assert model.peft_config["default"].rank_pattern == {
        r"model\.layers\.0\.mlp\.experts\.gate_up_proj": 2,
        r"model\.layers\.0\.mlp\.experts\.down_proj": 2,
        r"model\.layers\.1\.mlp\.experts\.gate_up_proj": 2,
    }
    assert trainable_parameters(model) == 4 * (2 * 64 + 2 * 40 + 2 * 64 + 40)


# --- beside layers, in training, several ------------------------------------------------------------------------------


def test_layers_and_parameters_together(tmp_path: Path) -> None:
    model = adapt_experts(moe(), "bone", r=2, target_modules="all-linear", init_weights=False)
    names = list(weights(model))
    assert len(names) == 8 + 16
    outputs = logits(model)
    torch.testing.assert_close(outputs, logits(changed_by_hand("mixtral", model)), rtol=1e-5, atol=1e-6)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(moe(), tmp_path)), outputs)


def test_a_bare_config_takes_the_layers_of_the_model_type_or_none() -> None:
    model = get_peft_model(moe(), make_config("lora", target_parameters=BOTH))
    layers = {name.rpartition(".")[2] for name in weights(model) if not name[-1].isdigit()}
    assert layers == {"q_proj", "v_proj"}
    assert len(weights(get_peft_model(Router(), make_config("lora", target_parameters=["w"])))) == 1


class Router(nn.Module):
    """A model that PEFT has no default for."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.w)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("method", ["lora", "nola", "intrinsic-dimension"])
def test_gradient_checkpointing(method: str, reentrant: bool) -> None:
    found = []
    for checkpointed in (False, True):
        model = adapt_experts(moe(), method, init_weights=False)
        if checkpointed:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.train()(IDS, labels=IDS).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0] and found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-5, atol=1e-8)


def test_half_precision() -> None:
    model = adapt_experts(moe(dtype=torch.bfloat16), "lora", r=2, init_weights=False)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    outputs = logits(model)
    assert outputs.dtype == torch.bfloat16
    model.merge_adapter()
    torch.testing.assert_close(logits(model), outputs)


def test_autocast_leaves_the_sum_of_the_weights_in_their_precision() -> None:
    model = adapt_experts(moe(), "lora", r=2, init_weights=False)
    experts = model.base_model.model.model.layers[0].mlp.experts
    seen: list[Tensor] = []
    experts.base_layer.register_forward_hook(lambda module, _x, _y: seen.append(module.down_proj))
    logits(model)
    with torch.autocast("cpu", torch.bfloat16):
        logits(model)
    assert seen[1].dtype == torch.float32
    assert torch.equal(*seen)


def test_several_adapters() -> None:
    model = adapt_experts(moe(), "lora", r=2, init_weights=False)
    plain, first = logits(moe()), logits(model)
    model.add_adapter(
        "other", make_config("lora", r=3, init_weights=False, target_modules=[], target_parameters=BOTH[1:])
    )
    assert torch.equal(logits(model), first)
    model.base_model.set_adapter(["default", "other"])
    both = logits(model)
    for some in (["default"], ["other"]):
        model.merge_adapter(some)
        torch.testing.assert_close(logits(model), both)
        model.unmerge_adapter()
    model.set_adapter("other")
    assert not torch.allclose(logits(model), first)
    model.delete_adapter("default")
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)


def test_sums_of_adapters() -> None:
    model = adapt_experts(moe(), "lora", r=2, target_modules=["q_proj"], init_weights=False)
    other = make_config("lora", r=3, init_weights=False, target_modules=["q_proj"], target_parameters=BOTH)
    model.add_adapter("other", other)
    model.add_weighted_adapter(["default", "other"], [0.5, -2.0], "sum")
    for weight in weights(model).values():
        wanted = 0.5 * weight.get_delta_weight("default") - 2.0 * weight.get_delta_weight("other")
        torch.testing.assert_close(weight.get_delta_weight("sum"), wanted, rtol=1e-4, atol=1e-6)


def test_copies_and_pickles_have_weights_of_their_own() -> None:
    model = adapt_experts(moe(), "lora", r=2, init_weights=False)
    outputs = logits(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(twin), outputs)
        with torch.no_grad():
            twin.get_parameter("base_model.model.model.layers.0.mlp.experts.base_layer.down_proj").zero_()
        assert not torch.allclose(logits(twin), outputs)
        torch.testing.assert_close(logits(twin.merge_and_unload()), logits(twin))
    assert torch.equal(logits(model), outputs)


def test_a_mixed_batch_is_refused() -> None:
    model = adapt_experts(moe(), "lora", r=2)
    with pytest.raises(InputError, match=r"adapter_names is given, but model.* is adapted as a parameter"):
        model(IDS, adapter_names=["default", "__base__"])


def test_a_merge_that_is_not_finite_changes_nothing() -> None:
    base = moe()
    model = adapt_experts(base, "lora", r=2, init_weights=False)
    before = snapshot(base)[1]
    with torch.no_grad():
        next(a for _, _, _, a in walk(model)).lora_B.fill_(torch.inf)
    with pytest.raises(ValueError, match="NaNs detected"):
        model.merge_adapter(safe_merge=True)
    after = snapshot(base)[1]
    assert all(torch.equal(before[k], after[k]) for k in before if "eckart" not in k)


def test_the_wrapped_module_still_tells_what_it_is() -> None:
    model = adapt_experts(moe(), "lora", r=2)
    experts = model.base_model.model.model.layers[0].mlp.experts
    assert isinstance(experts, EckartParameters)
    assert experts.num_experts == 4
    assert not hasattr(experts, "no_such_thing")


def test_the_factors_are_added_in_one_product_of_one_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """No ΔW of its own is formed for a low-rank method: neither for a matrix nor for the stack."""
    model = adapt_experts(moe(), "lora", r=2, init_weights=False)
    large: list[tuple[int, ...]] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and tuple(result.shape) in ((4, 48, 16), (4, 16, 24)):
                large.append((str(func), tuple(result.shape)))  # type: ignore[arg-type]
            return result

    with Watch(), torch.no_grad():
        logits(model)
    assert [name for name, _ in large if "baddbmm" in str(name)] == ["aten.baddbmm.default"] * 4
    assert {name for name, _ in large} <= {"aten.baddbmm.default", "aten.detach.default"}


@pytest.mark.compiled
def test_it_compiles() -> None:
    model = adapt_experts(moe(), "lora", r=2, init_weights=False)
    experts = model.base_model.model.model.layers[0].mlp.experts
    matrices = experts.matrices("down_proj")
    whole = torch.compile(
        lambda: experts._changed("down_proj", [m.acting() for m in matrices]), backend="eager"
    )
    torch.testing.assert_close(whole(), experts._changed("down_proj", [m.acting() for m in matrices]))


def test_eckart_adapt_is_the_same_by_name() -> None:
    model = eckart.adapt(moe(), "lora", r=2, target_parameters=BOTH)
    assert sum(bool(weight.shape.stack) for weight in weights(model).values()) == 16
    assert len(weights(model)) == 8 + 16
