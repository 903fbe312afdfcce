"""The engine under the methods: layers, routes, the pool, check values, and life inside training machinery."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from adapter_cases import (
    LAYERS,
    MLP,
    Host,
    adapted,
    add,
    config,
    every_method,
    forget,
    gradients,
    host,
    inputs,
    layers,
    parameters,
    rows,
    seeded,
    train,
)
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from peft.helpers import disable_input_dtype_casting
from tiny_models import bert_config, gpt2_config
from torch import Tensor, nn
from transformers import BertModel, GPT2LMHeadModel

import eckart
from eckart.adapters import (
    Adapter,
    AdapterConfig,
    EckartLayer,
    LayerShape,
    LowRankAdapter,
    Pool,
    get_config,
    register_adapter,
    saved_bytes,
    trainable_parameters,
)
from eckart.adapters import _layers as layer_module
from eckart.errors import InputError


def tiny_bert() -> nn.Module:
    """Two layers of BERT, without dropout."""
    config = bert_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return BertModel(config, add_pooling_layer=False)


# --- two methods of the tests' own -----------------------------------------------------------------------------------


@dataclass
class ThinConfig(AdapterConfig):
    """Thin: ΔW = B A."""

    r: int | None = None
    default_r: ClassVar[int] = 4
    needs_base: ClassVar[bool] = False

    def trainable_parameters(self, shapes: Sequence[LayerShape]) -> int:
        return sum(self.rank(shape) * (shape.in_features + shape.out_features) for shape in shapes)

    def build(self, weight: Tensor, layer: layer_module.LayerContext) -> Adapter:
        return Thin(layer, self.rank(layer.shape), torch.promote_types(weight.dtype, torch.float32))


class Thin(LowRankAdapter):
    def __init__(self, layer: layer_module.LayerContext, r: int, dtype: torch.dtype) -> None:
        super().__init__(layer)
        generator = layer.generator("a")
        self.thin_a = nn.Parameter(torch.randn(r, layer.shape.in_features, generator=generator, dtype=dtype))
        self.thin_b = nn.Parameter(torch.zeros(layer.shape.out_features, r, dtype=dtype))

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.thin_a, self.thin_b

    @property
    def factor_rank(self) -> int:
        return self.thin_a.shape[0]


@dataclass
class ThickConfig(ThinConfig):
    """Thick: ΔW = W₀ ⊙ tanh(B A), built again in the backward pass."""

    needs_base: ClassVar[bool] = True

    def build(self, weight: Tensor, layer: layer_module.LayerContext) -> Adapter:
        return Thick(layer, self.rank(layer.shape), torch.promote_types(weight.dtype, torch.float32))


class Thick(Adapter):
    recompute: ClassVar[bool] = True

    def __init__(self, layer: layer_module.LayerContext, r: int, dtype: torch.dtype) -> None:
        super().__init__(layer)
        self.thin = nn.Parameter(torch.randn(r, layer.shape.in_features, dtype=dtype))
        self.wide = nn.Parameter(torch.zeros(layer.shape.out_features, r, dtype=dtype))

    def delta_weight(self) -> Tensor:
        return self.layer.base_weight().to(self.thin.dtype) * torch.tanh(self.wide @ self.thin)


@pytest.fixture(autouse=True)
def own_methods() -> Iterator[None]:
    """Registers the two methods for the tests of this file only."""
    about = {"paper": "Nobody, 2025", "arxiv": "0000.00000", "trains": "two factors", "saves": "two factors"}
    register_adapter("test-thin", title="Thin", aliases=("skinny",), **about)(ThinConfig)
    register_adapter("test-thick", title="Thick", **about)(ThickConfig)
    yield
    for slug in ("test-thin", "test-thick"):
        forget(slug)


def thin(base: nn.Module, slug: str = "test-thin", **options: object) -> PeftModel:
    return adapted(slug, base, init_weights=False, **options)


# --- the registry ----------------------------------------------------------------------------------------------------


def test_a_method_is_one_config_and_one_module() -> None:
    model = eckart.adapt(seeded(MLP), "skinny", budget=200, target_modules=["up", "down"])
    [row] = [row for row in eckart.methods() if row.slug == "test-thin"]
    assert (row.name, row.knob, row.family) == ("Thin", "r", "adapters")
    assert row.summary == "Thin: ΔW = B A."
    assert get_config("Test_Thin") is ThinConfig
    assert model.peft_config["default"].r == 3
    assert trainable_parameters(model) == 3 * (24 + 12 + 6 + 24)
    assert isinstance(model, PeftModel)


# --- layers as matrices ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LAYERS)
def test_every_layer_is_its_matrix(kind: str) -> None:
    """The layer's operation with its own weight, seen as a matrix, is the layer."""
    layer, x = host(kind).layer, inputs(kind)
    shape, op = layer_module.describe_layer(layer, "layer")
    matrix = op.to_matrix(layer.weight)
    assert matrix.shape == (shape.out_features, shape.in_features)
    assert torch.equal(op.to_stored(matrix, layer.weight.shape), layer.weight)
    y = op.apply(x, matrix.reshape(shape.weight), getattr(layer, "bias", None))
    torch.testing.assert_close(y, layer(x), rtol=1e-6, atol=1e-6)


def test_other_layers_are_not_described() -> None:
    for layer in (
        nn.LayerNorm(3),
        nn.Bilinear(2, 2, 2),
        nn.ConvTranspose2d(2, 2, 2),
        nn.MultiheadAttention(4, 2),
    ):
        assert layer_module.describe_layer(layer, "layer") is None


def test_a_forward_of_its_own_is_refused_but_for_a_scaled_embedding() -> None:
    class Doubling(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Scaled(nn.Embedding):
        embed_scale = 3.0

        def forward(self, x: Tensor) -> Tensor:
            return self.embed_scale * super().forward(x)

    with pytest.raises(InputError, match="Doubling has a forward of its own"):
        thin(seeded(lambda: Host(Doubling(12, 8))))
    ids = torch.arange(5)
    model = thin(seeded(lambda: Host(Scaled(5, 4))))
    outputs = model(ids)
    assert not torch.allclose(outputs, layers(model)[0].base_layer(ids))
    model.merge_adapter()
    torch.testing.assert_close(model(ids), outputs)


@pytest.mark.parametrize("grad", [True, False])
def test_encoder_layers_of_torch_do_not_bypass_the_adapter(grad: bool) -> None:
    """Their fast path reads the weights of inner layers without calling them."""
    encoder = lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)  # noqa: E731
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    with torch.set_grad_enabled(grad):
        plain = seeded(encoder)(x)
        model = adapted(
            "test-thin", seeded(encoder), target_modules=["linear1", "linear2"], init_weights=False
        )
        outputs = model(x)
        assert not torch.allclose(outputs, plain, atol=1e-3)
        torch.testing.assert_close(model.merge_and_unload()(x), outputs, rtol=1e-4, atol=1e-5)


# --- routes ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The layers that took the folded route, as they take it."""
    seen: list[str] = []
    original = EckartLayer._folded

    def record(self: EckartLayer, x: Tensor, names: list[str]) -> Tensor:
        seen.append(self.shape.name)
        return original(self, x, names)

    monkeypatch.setattr(EckartLayer, "_folded", record)
    return seen


def test_auto_takes_the_cheaper_route(folded: list[str]) -> None:
    model = thin(seeded(lambda: Host(nn.Linear(12, 8))), r=4)
    [layer] = layers(model)
    adapter = layer.eckart_adapters["default"]
    for tokens in (1, 10, 40, 1000):
        factored, whole = adapter.multiply_adds(tokens)
        folded.clear()
        model(rows(tokens))
        assert bool(folded) == (whole < factored), tokens
    assert adapter.multiply_adds(1000)[1] < adapter.multiply_adds(1000)[0]
    assert adapter.multiply_adds(1)[1] > adapter.multiply_adds(1)[0]


@pytest.mark.parametrize("tokens", [1, 1000])
def test_a_route_that_is_asked_for_is_taken(tokens: int, folded: list[str]) -> None:
    thin(seeded(MLP), route="factored")(rows(tokens))
    assert not folded
    thin(seeded(MLP), route="folded")(rows(tokens))
    assert folded == ["up", "down"]


def test_auto_does_not_fold_where_digits_or_dropout_would_be_lost(folded: list[str]) -> None:
    many = 5000
    thin(seeded(MLP, torch.bfloat16))(rows(many, dtype=torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        thin(seeded(MLP))(rows(many))
    dropping = thin(seeded(MLP), dropout=0.5)
    dropping.train()(rows(many))
    assert not folded
    dropping.eval()(rows(many))
    assert folded


@pytest.mark.parametrize("route", ["factored", "folded"])
def test_recomputing_methods_keep_no_matrix(route: str) -> None:
    model = thin(seeded(lambda: Host(nn.Linear(40, 30))), "test-thick", route=route)
    [layer] = layers(model)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = model(rows(5, 40))
    y.sum().backward()
    weight = layer.base_layer.weight.untyped_storage().data_ptr()
    assert not [t.shape for t in kept if t.numel() >= 1200 and t.untyped_storage().data_ptr() != weight]
    assert all(p.grad is not None for p in parameters(model).values())


# --- shared state and randomness -------------------------------------------------------------------------------------


def test_a_pooled_module_is_made_once_and_owned_by_who_asked_first() -> None:
    pool = Pool([LayerShape("a", "linear", (2, 3)), LayerShape("b", "linear", (4, 3))])
    first, owner = pool.module("key", lambda: nn.Linear(2, 2))
    second, second_owner = pool.module("key", lambda: nn.Linear(2, 2))
    assert first is second
    assert (owner, second_owner) == (True, False)


def test_pool_sees_all_layers_in_model_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    build = ThinConfig.build
    monkeypatch.setattr(
        ThinConfig, "build", lambda self, w, layer: seen.append(layer) or build(self, w, layer)
    )
    adapted("test-thin", seeded(MLP), target_modules="all-linear")
    assert [layer.shape.name for layer in seen] == ["up", "down", "head"]
    assert {id(layer.pool) for layer in seen} == {id(seen[0].pool)}
    assert [shape.name for shape in seen[0].pool.shapes] == ["up", "down", "head"]
    draws = [layer.generator("x").initial_seed() for layer in seen]
    assert len(set(draws)) == 3
    assert seen[0].generator("x").initial_seed() == draws[0] != seen[0].generator("y").initial_seed()


def test_init_weights_false_differs_between_adapters() -> None:
    model = adapted("test-thin", seeded(MLP), init_weights=False)
    model.add_adapter("other", config("test-thin", init_weights=False))
    first, second = parameters(model), parameters(model, "other")
    assert not any(torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))


# --- counts on a model -----------------------------------------------------------------------------------------------


def test_counts_leave_heads_out_and_name_adapters() -> None:
    model = adapted("test-thin", seeded(MLP), r=2, modules_to_save=["head"])
    add("test-thin", model, r=4)
    one = 2 * (24 + 12 + 6 + 24)
    assert trainable_parameters(model) == trainable_parameters(model, "default") == one
    assert trainable_parameters(model, "other") == 2 * one
    assert saved_bytes(model) == 4 * one
    assert saved_bytes(model, "other") == 8 * one
    with pytest.raises(InputError, match="no active adapter"):
        trainable_parameters(seeded(MLP))


# --- merging ---------------------------------------------------------------------------------------------------------


def test_merging_keeps_one_copy_and_frees_it() -> None:
    model = thin(seeded(MLP))
    add("test-thin", model, init_weights=False)
    [layer, _] = layers(model)
    weight = layer.base_layer.weight.clone()
    assert layer.frozen.original is None
    layer.merge(adapter_names=["default"])
    kept = layer.frozen.original
    with pytest.warns(UserWarning, match="Already following"):
        layer.merge(adapter_names=["other"])
    assert layer.frozen.original is kept
    assert torch.equal(layer.frozen(), weight)
    layer.unmerge()
    assert layer.frozen.original is None
    assert torch.equal(layer.base_layer.weight, weight)


def test_saving_while_merged_saves_the_adapter(tmp_path: Path) -> None:
    model, x = thin(seeded(MLP), "test-thick"), rows()
    outputs = model(x)
    model.merge_adapter()
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(PeftModel.from_pretrained(seeded(MLP), tmp_path)(x), outputs)


def test_an_adapter_that_needs_the_weight_is_added_to_a_merged_model() -> None:
    model = thin(seeded(MLP), "test-thick")
    model.merge_adapter()
    add("test-thick", model, init_weights=False)
    merged_knows = [layer.get_delta_weight("other") for layer in layers(model)]
    model.unmerge_adapter()
    for layer, delta in zip(layers(model), merged_knows, strict=True):
        assert torch.equal(layer.get_delta_weight("other"), delta)


# --- the base a checkpoint belongs to --------------------------------------------------------------------------------


def test_another_base_is_refused_or_warned_about(tmp_path: Path) -> None:
    for slug in ("test-thick", "test-thin"):
        adapted(slug, seeded(MLP)).save_pretrained(tmp_path / slug)
    with pytest.raises(InputError, match="weight of layer up is not the one this test-thick checkpoint"):
        PeftModel.from_pretrained(seeded(MLP, seed=1), tmp_path / "test-thick")
    with pytest.raises(InputError, match="weight of layer up is not the one this test-thin checkpoint"):
        PeftModel.from_pretrained(seeded(MLP, seed=1), tmp_path / "test-thin")
    tuned = seeded(MLP)
    with torch.no_grad():
        tuned.up.weight.mul_(1.01)
    with pytest.warns(UserWarning, match="weight of layer up is not the one this test-thin checkpoint"):
        PeftModel.from_pretrained(tuned, tmp_path / "test-thin")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_same_base_in_another_precision_is_accepted(dtype: torch.dtype, tmp_path: Path) -> None:
    for saved, loaded in ((torch.float32, dtype), (dtype, torch.float32)):
        adapted("test-thick", seeded(MLP, saved)).save_pretrained(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            PeftModel.from_pretrained(seeded(MLP, loaded), tmp_path)


def test_a_base_that_differs_in_few_entries_is_refused(tmp_path: Path) -> None:
    adapted("test-thick", seeded(MLP)).save_pretrained(tmp_path)
    base = seeded(MLP)
    with torch.no_grad():
        base.up.weight[0, 0] += 0.01
    with pytest.raises(InputError, match="layer up"):
        PeftModel.from_pretrained(base, tmp_path)
    base = seeded(MLP)
    with torch.no_grad():
        base.down.weight[[0, 1]] = base.down.weight[[1, 0]]
    with pytest.raises(InputError, match="layer down"):
        PeftModel.from_pretrained(base, tmp_path)
    base = seeded(MLP)
    with torch.no_grad():
        base.up.weight *= 1.001
    with pytest.raises(InputError, match="layer up"):
        PeftModel.from_pretrained(base, tmp_path)


# --- targets ---------------------------------------------------------------------------------------------------------


def test_targets_by_pattern_and_by_model_type() -> None:
    bert = tiny_bert()
    model = get_peft_model(copy.deepcopy(bert), ThinConfig())
    assert {layer.shape.name.rpartition(".")[2] for layer in layers(model)} == {"query", "value"}
    model = get_peft_model(copy.deepcopy(bert), ThinConfig(target_modules=r".*layer\.1\..*(key|value)"))
    names = {layer.shape.name for layer in layers(model)}
    assert names == {f"encoder.layer.1.attention.self.{name}" for name in ("key", "value")}


def test_injection_by_the_keys_of_a_state_dict() -> None:
    state = {"down.eckart_adapters.thin_a": torch.zeros(1)}
    with pytest.warns(RuntimeWarning, match="inconsistency"):
        model = inject_adapter_in_model(ThinConfig(target_modules=["up"]), seeded(MLP), state_dict=state)
    assert [layer.shape.name for layer in layers(model)] == ["down"]


def test_gpt2_blocks_are_adapted() -> None:
    model = eckart.adapt(
        GPT2LMHeadModel(gpt2_config()), "test-thin", init_weights=False, task_type="CAUSAL_LM"
    ).eval()
    ids = torch.arange(6).view(2, 3)
    logits = model(ids).logits
    assert len(layers(model)) == 4
    assert model.generate(input_ids=ids, max_new_tokens=2, do_sample=False, pad_token_id=0).shape == (2, 5)
    torch.testing.assert_close(model.merge_and_unload()(ids).logits, logits, rtol=1e-4, atol=1e-5)


# --- training machinery, for every method ----------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(slug: str, use_reentrant: bool) -> None:
    targets = ["query", "dense", "word_embeddings"]
    model = adapted(slug, seeded(tiny_bert), target_modules=targets, init_weights=False).train()
    ids = torch.arange(12).view(2, 6)

    def run() -> dict[str, Tensor]:
        model.zero_grad()
        model(ids).last_hidden_state.square().sum().backward()
        return gradients(model)

    plain = run()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    if use_reentrant:
        model.enable_input_require_grads()
    checkpointed = run()
    assert plain.keys() == checkpointed.keys() == parameters(model).keys()
    torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-5)


@every_method
def test_inputs_that_are_not_cast_to_the_adapters_dtype(slug: str) -> None:
    model = adapted(slug, seeded(MLP, torch.bfloat16), init_weights=False)
    x = rows(dtype=torch.bfloat16)
    cast = model(x)
    with disable_input_dtype_casting(model):
        outputs = model(x)
    assert outputs.dtype == torch.bfloat16
    torch.testing.assert_close(outputs, cast, rtol=0.05, atol=0.05)


class Mixed(nn.Module):
    """An embedding, a convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv, self.up = nn.Embedding(20, 8), nn.Conv1d(8, 6, 3, padding=1), nn.Linear(6, 10)

    def forward(self, ids: Tensor) -> Tensor:
        return self.up(torch.tanh(self.conv(self.table(ids).mT)).mT)


@pytest.mark.compiled
@every_method
@pytest.mark.parametrize("route", ["factored", "folded"])
def test_compiles_into_one_graph(slug: str, route: str) -> None:
    """`fullgraph=True` refuses any graph break; outputs and gradients are those of the uncompiled model."""
    model = adapted(
        slug, seeded(Mixed), target_modules=["table", "conv", "up"], init_weights=False, route=route
    )
    ids = torch.arange(20).view(4, 5)

    def run(call: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        y = call(ids)
        y.square().sum().backward()
        return y.detach(), gradients(model)

    eager = run(model)
    torch.compiler.reset()
    compiled = run(torch.compile(model, fullgraph=True, backend="aot_eager"))
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.compiled
@pytest.mark.parametrize("slug", ["test-thin", "test-thick"])
def test_compiles_with_inductor(slug: str) -> None:
    model, x = thin(seeded(MLP), slug), rows()
    eager = model(x)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(x), eager, rtol=1e-4, atol=1e-5)
    compiled(x).sum().backward()
    assert all(p.grad is not None for p in parameters(model).values())


def quantised_mlp() -> nn.Module:
    torchao = pytest.importorskip("torchao.quantization")
    base = seeded(_Wide)
    torchao.quantize_(base, torchao.Int8WeightOnlyConfig())
    return base


class _Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


@every_method
def test_int8_base_trains_merges_and_unmerges(slug: str) -> None:
    x = rows(9, 32)
    base = quantised_mlp()
    plain = base(x)
    model = adapted(slug, base, init_weights=False)
    weights = [layer.base_layer.weight for layer in layers(model)]
    exact = [weight.dequantize().clone() for weight in weights]
    delta = {layer.shape.name: layer.get_delta_weight("default").detach() for layer in layers(model)}
    hidden = torch.relu(x @ (exact[0] + delta["up"]).t() + layers(model)[0].bias)
    wanted = hidden @ (exact[1] + delta["down"]).t() + layers(model)[1].bias
    torch.testing.assert_close(model(x), wanted, rtol=1e-3, atol=1e-3)
    train(model, x, lr=1e-4)
    outputs = model(x)
    assert not torch.allclose(outputs, plain)
    model.merge_adapter()
    span = (outputs.max() - outputs.min()).item()
    torch.testing.assert_close(model(x), outputs, rtol=0, atol=0.05 * span)
    model.unmerge_adapter()
    for layer, weight, numbers in zip(layers(model), weights, exact, strict=True):
        assert layer.base_layer.weight is weight
        assert torch.equal(weight.dequantize(), numbers)
    assert torch.equal(model(x), outputs)
    with model.disable_adapter():
        assert torch.equal(model(x), plain)


@every_method
def test_adapter_of_an_int8_base_goes_through_a_file(slug: str, tmp_path: Path) -> None:
    model, x = adapted(slug, quantised_mlp(), init_weights=False), rows(9, 32)
    outputs = model(x)
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(quantised_mlp(), tmp_path)(x), outputs)
    merged = model.merge_and_unload()
    assert type(merged.up.weight) is type(quantised_mlp().up.weight)


def test_a_weight_that_cannot_be_quantised_again_is_left_as_it_is() -> None:
    torchao = pytest.importorskip("torchao.quantization")
    base, x = seeded(_Wide), rows(3, 32)
    torchao.quantize_(base, torchao.Float8WeightOnlyConfig())
    model = thin(base)
    outputs, weights = model(x), [layer.base_layer.weight for layer in layers(model)]
    with pytest.raises(InputError, match="Float8Tensor cannot be quantised again after a merge"):
        model.merge_adapter()
    assert all(
        layer.base_layer.weight is weight for layer, weight in zip(layers(model), weights, strict=True)
    )
    assert not any(layer.merged for layer in layers(model))
    assert torch.equal(model(x), outputs)
