"""The census: layers on which an adapter could not be right are refused or left out, and merges that do not hold are
undone. Each case is one that went wrong in silence."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_cases import Host, adapted, add, assert_untouched, layers, seeded, snapshot
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

import eckart
from eckart.adapters import _census, _targets, walk
from eckart.adapters._census import fault
from eckart.errors import InputError

IDS = torch.arange(12).view(2, 6)


def llama(tie: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=tie,
        )
    ).eval()


def named(model: nn.Module) -> set[str]:
    return {name for name, *_ in walk(model)}


# --- weights that are shared -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [["embed_tokens", "lm_head"], ["embed_tokens"], ["lm_head"]])
@pytest.mark.parametrize("method", ["lora", "bone"])
def test_tied_embeddings_merge_unmerge_and_save(targets: list[str], method: str, tmp_path: Path) -> None:
    base = llama()
    original = base.lm_head.weight
    before, plain = original.detach().clone(), base(IDS).logits
    model = eckart.adapt(base, method, target_modules=targets, r=2, init_weights=False)
    outputs = model(IDS).logits
    assert not torch.allclose(outputs, plain)
    model.merge_adapter()
    torch.testing.assert_close(model(IDS).logits, outputs)
    model.unmerge_adapter()
    tied = {id(layer.weight) for layer in (base.model.embed_tokens, base.lm_head)}
    assert tied == {id(original)}
    assert torch.equal(original, before)
    torch.testing.assert_close(model(IDS).logits, outputs)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(IDS).logits, outputs)
    merged.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(IDS).logits, outputs)


class Twice(nn.Module):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


@pytest.mark.parametrize("target", ["a", "b"])
def test_a_layer_under_two_names_is_adapted_merged_and_restored_under_both(target: str) -> None:
    base = seeded(Twice)
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    layer = base.a
    model = eckart.adapt(base, "lora", target_modules=["a", "b"], r=2, init_weights=False)
    assert base.a is base.b
    weight = layer.weight + layers(model)[0].get_delta_weight("default")
    expected = nn.functional.linear(
        torch.tanh(nn.functional.linear(x, weight, layer.bias)), weight, layer.bias
    )
    torch.testing.assert_close(model(x), expected)
    merged = model.merge_and_unload()
    assert merged.a is merged.b is layer
    torch.testing.assert_close(merged(x), expected)


# --- layers that are read, not called --------------------------------------------------------------------------------


def mamba() -> MambaForCausalLM:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=32, hidden_size=16, state_size=4, num_hidden_layers=1, use_mambapy=False)
    return MambaForCausalLM(config).eval()


def test_mamba() -> None:
    base = mamba()
    before = snapshot(base)
    with pytest.raises(
        InputError, match="dt_proj cannot be adapted: MambaMixer reads its weight without calling it"
    ):
        eckart.adapt(base, "lora", target_modules=["dt_proj"])
    assert_untouched(base, before)
    with pytest.warns(
        UserWarning,
        match=r"all-linear leaves out backbone\.layers\.0\.mixer\.x_proj .* backbone\.layers\.0\.mixer\.dt_proj",
    ):
        model = eckart.adapt(base, "bone", r=4, init_weights=False)
    # x_proj and out_proj are called here, and read by the fused kernel on a GPU
    assert {name.rpartition(".")[2] for name in named(model)} == {"in_proj"}
    outputs = model(IDS).logits
    torch.testing.assert_close(model.merge_and_unload()(IDS).logits, outputs, rtol=1e-4, atol=1e-4)


def test_t5_shares_a_table_that_nobody_calls() -> None:
    torch.manual_seed(0)
    config = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    base = T5ForConditionalGeneration(config)
    with pytest.raises(
        InputError, match="shared cannot be adapted: its weight is shared and it is never called"
    ):
        eckart.adapt(base, "lora", target_modules=["shared"])
    assert "wo" in {
        name.rpartition(".")[2] for name in named(eckart.adapt(base, "lora"))
    }  # asks for its dtype only


def test_attention_of_torch_is_left_out_of_all_linear() -> None:
    base = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
    with pytest.warns(UserWarning, match=r"leaves out layers\.0\.self_attn\.out_proj"):
        model = eckart.adapt(base, "lora")
    assert named(model) == {"layers.0.linear1", "layers.0.linear2"}


# --- weights that are computed, layers with more to them --------------------------------------------------------------


def old_norm(make: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make(nn.Linear(6, 6))

    return build


class Halved(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, 0.5 * self.weight, self.bias)


def patched() -> nn.Module:
    layer = nn.Linear(6, 6)
    layer.forward = lambda x: nn.functional.linear(x, layer.weight).tanh()  # type: ignore[method-assign]
    return layer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: parametrizations.weight_norm(nn.Linear(6, 6)), "computed from other tensors"),
        (lambda: parametrizations.spectral_norm(nn.Linear(6, 6)), "computed from other tensors"),
        (lambda: parametrizations.orthogonal(nn.Linear(6, 6)), "computed from other tensors"),
        (old_norm(weight_norm), "computed from other tensors"),
        (old_norm(spectral_norm), "computed from other tensors"),
        (lambda: Halved(6, 6), "Halved has a forward of its own"),
        (patched, "Linear has a forward of its own"),
        (lambda: nn.Embedding(9, 6, max_norm=1.0), "rescales its own weight"),
        (lambda: nn.Embedding(9, 6, scale_grad_by_freq=True), "scale_grad_by_freq=True"),
        (lambda: nn.Embedding(9, 6, sparse=True), "sparse=True"),
    ],
    ids=[
        "weight_norm",
        "spectral_norm",
        "orthogonal",
        "old weight_norm",
        "old spectral_norm",
        "halved",
        "patched",
        "max_norm",
        "by_freq",
        "sparse",
    ],
)
def test_layers_that_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    base = Host(make())
    tree = [name for name, _ in base.named_modules()]
    with pytest.raises(InputError, match=rf"layer layer cannot be adapted: .*{message}.*; exclude it"):
        eckart.adapt(base, "lora", target_modules=["layer"], r=2)
    assert [name for name, _ in base.named_modules()] == tree


def test_a_layer_with_a_forward_of_its_own_is_left_out_of_all_linear() -> None:
    """Llama 4's routers are linear layers that choose among their own outputs."""
    base = nn.Sequential(Halved(6, 6), nn.Linear(6, 6))
    with pytest.warns(UserWarning, match=r"all-linear leaves out 0 \(Halved has a forward of its own"):
        assert named(eckart.adapt(base, "lora", r=2)) == {"1"}


def test_a_layer_is_examined_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def spy(model: nn.Module, name: str, module: nn.Module) -> str:
        seen.append(name)
        return fault(model, name, module)

    for room in (_census, _targets):
        monkeypatch.setattr(room, "fault", spy)
    for targets, count in (("all-linear", 7), (["q_proj", "v_proj"], 2)):
        eckart.adapt(llama(), "lora", r=2, target_modules=targets)
        assert len(seen) == len(set(seen)) == count
        seen.clear()


class Renamed(nn.Linear):
    """A subclass that adds nothing to the forward."""


def test_a_subclass_with_the_forward_of_its_parent_is_plain() -> None:
    model = eckart.adapt(Host(Renamed(6, 6)), "bone", r=2, init_weights=False, target_modules=["layer"])
    x = torch.randn(4, 6)
    outputs = model(x)
    torch.testing.assert_close(model.merge_and_unload()(x), outputs)


@pytest.mark.parametrize("method", ["lora", "svfit"])
def test_a_hook_that_changes_the_output_is_found_out_at_the_merge(method: str) -> None:
    base = seeded(lambda: Host(nn.Linear(6, 5)))
    base.layer.register_forward_hook(lambda _layer, _x, y: 2 * y)
    model = eckart.adapt(base, method, target_modules=["layer"], r=2, init_weights=False)
    x = torch.randn(3, 6)
    outputs, weight = model(x), model.layer.base_layer.weight
    with pytest.raises(InputError, match="layer layer gives other outputs once 'default' is merged"):
        model.merge_adapter()
    assert model.layer.base_layer.weight is weight
    assert model.layer.merged_adapters == []
    assert torch.equal(model(x), outputs)
    base.layer.base_layer._forward_hooks.clear()
    base.layer.base_layer.register_forward_hook(lambda *_: None)  # one that only listens is no fault
    outputs = model(x)
    model.merge_adapter()
    torch.testing.assert_close(model(x), outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_the_probe_does_not_mistake_rounding_for_a_fault(dtype: torch.dtype, size: float) -> None:
    base = seeded(lambda: Host(nn.Linear(48, 32)), dtype)
    model = eckart.adapt(base, "lora", target_modules=["layer"], r=4, init_weights=False)
    with torch.no_grad():
        for parameter in layers(model)[0].eckart_adapters.parameters():
            parameter.mul_(size**0.5)
    model.merge_adapter()
    model.unmerge_adapter()


# --- padding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "bone", "randlora"])
@pytest.mark.parametrize("route", ["factored", "folded", "auto"])
def test_the_row_of_padding_stays(method: str, route: str) -> None:
    base = seeded(lambda: Host(nn.Embedding(9, 6, padding_idx=2)))
    row = base.layer.weight[2].clone()
    model = adapted(method, base, r=2, init_weights=False, route=route)
    ids = torch.tensor([[0, 2, 5]])
    outputs = model(ids)
    assert torch.equal(outputs[0, 1], row)
    assert not torch.equal(outputs[0, 0], base.layer.base_layer.weight[0])
    model.merge_adapter()
    torch.testing.assert_close(model(ids), outputs)
    assert torch.equal(base.layer.base_layer.weight[2], row)


# --- several adapters ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["factored", "folded"])
def test_merging_some_of_the_active_adapters_leaves_the_others_active(route: str) -> None:
    model = adapted("lora", seeded(lambda: Host(nn.Linear(6, 5))), init_weights=False, route=route)
    add("lora", model, "other", init_weights=False, route=route, r=3)
    model.base_model.set_adapter(["default", "other"])
    x = torch.randn(3, 6)
    outputs = model(x)
    for first, second in (("default", "other"), ("other", "default")):
        model.merge_adapter([first])
        torch.testing.assert_close(model(x), outputs)
        model.merge_adapter([second])
        torch.testing.assert_close(model(x), outputs)
        model.unmerge_adapter()
        torch.testing.assert_close(model(x), outputs)


def test_a_mixed_batch_gives_each_row_its_own_adapter() -> None:
    base = llama()
    model = eckart.adapt(base, "lora", r=2, init_weights=False, adapter_name="one")
    model.add_adapter(
        "two", eckart.adapters.make_config("lora", r=3, init_weights=False, target_modules="all-linear")
    )
    model.eval()
    ids = torch.randint(0, 32, (4, 5), generator=torch.Generator().manual_seed(0))
    names = ["two", "__base__", "one", "two"]
    mixed = model(ids, adapter_names=names).logits
    for row, name in enumerate(names):
        if name == "__base__":
            with model.disable_adapter():
                expected = model(ids[row : row + 1]).logits
        else:
            model.set_adapter(name)
            expected = model(ids[row : row + 1]).logits
        torch.testing.assert_close(mixed[row : row + 1], expected)
    text = model.generate(input_ids=ids, adapter_names=names, num_beams=2, max_new_tokens=2, do_sample=False)
    assert text.shape == (4, 7)
    with pytest.raises(
        InputError, match="adapter_names holds 'three', which is not in this model: it has one, two"
    ):
        model(ids, adapter_names=["three"] * 4)
    with pytest.raises(InputError, match="adapter_names has 3 names for a batch of 4 rows"):
        model(ids, adapter_names=["one"] * 3)
    with pytest.raises(InputError, match="adapter_names is for inference"):
        model.train()(ids, adapter_names=names)


def test_all_linear_finds_the_layers_of_a_model_that_is_adapted_already() -> None:
    model = eckart.adapt(llama(), "lora", r=2)
    wanted = named(model)
    model.add_adapter("other", eckart.adapters.make_config("lora", r=3, target_modules="all-linear"))
    assert {name for name, _, _, _ in walk(model, "other")} == wanted
    assert len(wanted) == 7
    again = get_peft_model(
        model.get_base_model(), eckart.adapters.make_config("lora", target_modules="all-linear")
    )
    assert named(again) == wanted


# --- what is named and not there -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"modules_to_save": ["clasifier"]},
            "modules_to_save names 'clasifier', which this model has not; it has model",
        ),
        (
            {"layers_to_transform": 99},
            "match no layer of this model in the blocks of layers_to_transform, 99",
        ),
        ({"layers_to_transform": [0, 7], "layers_pattern": "layers"}, "layers_to_transform names block 7"),
    ],
)
def test_names_that_fit_nothing(options: dict[str, object], message: str) -> None:
    base = llama()
    before = snapshot(base)
    with pytest.raises(InputError, match=message):
        eckart.adapt(base, "lora", target_modules=["q_proj"], **options)
    assert_untouched(base, before)


def test_experts_in_one_parameter_are_named() -> None:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    base = MixtralForCausalLM(config)
    with pytest.warns(
        UserWarning, match=r"all-linear leaves out .*experts\.down_proj \(a stack of matrices in one p"
    ):
        eckart.adapt(base, "lora")


def test_a_wrapped_layer_still_tells_what_it_is() -> None:
    """Whisper's code reads the stride of its convolutions."""
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=40,
        num_mel_bins=4,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        max_source_positions=8,
        max_target_positions=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    model = eckart.adapt(
        WhisperForConditionalGeneration(config), "lora", target_modules=["conv1", "conv2"], r=2
    )
    mel = torch.randn(1, 4, 16)
    assert torch.isfinite(
        model(input_features=mel, decoder_input_ids=torch.ones(1, 2, dtype=torch.long)).logits
    ).all()
    with pytest.raises(AttributeError, match="no attribute 'strides'"):
        layers(model)[0].strides  # noqa: B018


@pytest.mark.parametrize("method", ["lora", "svfit", "bone"])
def test_a_base_whose_weights_lie_on_the_disk(method: str, tmp_path: Path) -> None:
    from accelerate import disk_offload

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=32, n_layer=1, n_head=2, n_embd=16, n_positions=16, tie_word_embeddings=False
    )
    plain = GPT2LMHeadModel(config).eval()
    away = copy.deepcopy(plain)
    disk_offload(away, tmp_path, execution_device=torch.device("cpu"))
    models = [
        eckart.adapt(base, method, target_modules=["c_attn"], r=2, init_weights=True)
        for base in (plain, away)
    ]
    for model in models:
        with torch.no_grad():
            for parameter in layers(model)[0].eckart_adapters.parameters():
                parameter.add_(0.1)
    torch.testing.assert_close(models[1](IDS).logits, models[0](IDS).logits)
    assert isinstance(models[1], PeftModel)
