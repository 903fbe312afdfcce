"""What the engine offers to methods and rules: caps and patterns of ranks, active directions, shared state, biases,
companions, seams, hooks, learning rates, and methods of other packages."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from adapter_cases import (
    MLP,
    adapted,
    config,
    every_method,
    every_ranked_method,
    forget,
    gradients,
    layers,
    rows,
    seeded,
)
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import eckart
from eckart.adapters import (
    ADAPTERS,
    Adapter,
    AdapterConfig,
    LayerContext,
    LayerShape,
    LowRankAdapter,
    lr_scales,
    register_adapter,
    target_shapes,
    trainable_parameters,
    walk,
)
from eckart.errors import InputError

ROUTES = pytest.mark.parametrize("route", ["factored", "folded"])


# --- ranks -----------------------------------------------------------------------------------------------------------


@every_ranked_method
def test_a_rank_is_a_cap_for_each_layer(slug: str, tmp_path: Path) -> None:
    """r = 60 is above every side of the model: each layer takes what it can hold, and a checkpoint says the same."""
    chosen = config(slug, r=60)
    shapes = target_shapes(seeded(MLP), chosen)
    model = adapted(slug, seeded(MLP), r=60, init_weights=False)
    assert trainable_parameters(model) == chosen.trainable_parameters(shapes)
    assert torch.isfinite(model(rows())).all()
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(seeded(MLP), tmp_path)
    torch.testing.assert_close(again(rows()), model(rows()))


def test_ranks_of_single_layers() -> None:
    base = lambda: seeded(lambda: nn.ModuleDict({"up": nn.Linear(12, 24), "group": MLP()}))  # noqa: E731
    wanted = {"group.up": 3, r"d.wn": 2, "up": 5}
    model = eckart.adapt(base(), "lora", r=4, target_modules=["up", "down"], rank_pattern=wanted)
    ranks = {name: adapter.factor_rank for name, _, _, adapter in walk(model)}
    assert ranks == {"up": 5, "group.up": 3, "group.down": 2}
    capped = eckart.adapt(base(), "lora", r=4, target_modules=["up", "down"], rank_pattern={"down": 99})
    assert {n: a.factor_rank for n, _, _, a in walk(capped)} == {"up": 4, "group.up": 4, "group.down": 6}


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ({"up": 0}, "rank_pattern of 'up' is 0: give a whole number"),
        ({"up": 2.5}, r"rank_pattern of 'up' is 2\.5: give a whole number"),
        ({"up": "4"}, "rank_pattern of 'up' is '4': give a whole number"),
        ({"(": 2}, r"rank_pattern '\(' is no regular expression"),
        ({"sideways": 2}, "rank_pattern names 'sideways', which fits none of the layers"),
    ],
)
def test_patterns_that_are_refused(pattern: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        eckart.adapt(seeded(MLP), "lora", target_modules=["up"], rank_pattern=pattern)


def test_what_a_budget_leaves_goes_into_single_layers() -> None:
    """Rank 2 costs 132 of 165: up (36) does not fit any more, down (30) does."""
    model = eckart.adapt(seeded(MLP), "lora", budget=165, target_modules=["up", "down"])
    assert {name: adapter.factor_rank for name, _, _, adapter in walk(model)} == {"up": 2, "down": 3}
    assert model.peft_config["default"].rank_pattern == {"down": 3}


@pytest.mark.parametrize("slug", ["lora", "svfit", "bone", "snell", "randlora"])
def test_one_thin_layer_does_not_hold_the_others_back(slug: str) -> None:
    base = seeded(lambda: nn.ModuleDict({"wide": nn.Linear(64, 64), "thin": nn.Linear(64, 2)}))
    limit = 60 if slug == "svfit" else 1000
    model = eckart.adapt(base, slug, budget=limit, target_modules=["wide", "thin"])
    assert 0.9 * limit <= trainable_parameters(model) <= limit


def test_a_count_may_depend_on_the_weight() -> None:
    """The singular values of up are 3, 2, 1: 90 % of the energy (14) is in two of them."""
    base = nn.Linear(3, 4)
    with torch.no_grad():
        base.weight.copy_(torch.cat([torch.diag(torch.tensor([1.0, 3.0, 2.0])), torch.zeros(1, 3)]))
    chosen = config("svfit", energy=0.9, target_modules=["up"])
    assert chosen.trainable_parameters(target_shapes(nn.ModuleDict({"up": base}), chosen)) == 2
    with pytest.raises(InputError, match="the weight of layer x is not known"):
        chosen.trainable_parameters([LayerShape("x", "linear", (4, 3))])


# --- active directions -----------------------------------------------------------------------------------------------


@ROUTES
@pytest.mark.parametrize("slug", ["lora", "randlora", "mos", "bone", "flora-tucker", "svfit", "nola"])
def test_directions_that_do_not_count(slug: str, route: str, tmp_path: Path) -> None:
    model = adapted(slug, seeded(MLP), init_weights=False, route=route, target_modules=["up"])
    [(_, layer, _, adapter)] = walk(model)
    a, b = (factor.detach() for factor in adapter.factors())
    mask = torch.arange(adapter.factor_rank) % 2 == 0
    adapter.set_active(mask)
    expected = adapter.scale * b[:, mask] @ a[mask]
    torch.testing.assert_close(layer.get_delta_weight("default"), expected)
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ expected.t())
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(seeded(MLP), tmp_path)
    [(_, loaded, _, its_adapter)] = walk(again)
    torch.testing.assert_close(loaded.get_delta_weight("default"), expected)
    assert its_adapter.active_rank == adapter.active_rank == int(mask.sum())


def test_routing_follows_the_active_directions() -> None:
    """16 directions of (24, 12) are dearer than one dense product for many tokens; 1 is not."""
    model = adapted("lora", seeded(MLP), r=12, target_modules=["up"])
    [(_, layer, _, adapter)] = walk(model)
    x = torch.randn(4096, 12)
    assert layer._folds(x, ["default"])
    adapter.set_active(torch.arange(12) < 1)
    assert not layer._folds(x, ["default"])
    assert adapter.multiply_adds(10) == (3 * 10 * 36, 10 * 288 + 3 * 288)


def test_active_is_one_boolean_for_each_direction() -> None:
    [(_, _, _, adapter)] = walk(adapted("lora", seeded(MLP), r=4, target_modules=["up"]))
    for wrong in (torch.ones(3, dtype=torch.bool), torch.ones(4)):
        with pytest.raises(InputError, match="give 4 booleans"):
            adapter.set_active(wrong)
    assert adapter.active is None


# --- a method of another package -------------------------------------------------------------------------------------


class Vector(nn.Module):
    """A global vector and how often it was transformed."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.theta, self.calls = nn.Parameter(torch.full((size,), 0.5)), 0

    def forward(self) -> Tensor:
        self.calls += 1
        return self.theta.sin()


@pytest.fixture
def global_vector() -> Iterator[type[AdapterConfig]]:
    """A method with one vector for all layers, a trained bias, and a learning rate of its own."""

    @register_adapter("test-vector", title="T", paper="nobody", arxiv="0", trains="a vector", saves="it")
    @dataclass
    class VectorConfig(AdapterConfig):
        """One vector."""

        size: int = 3
        knob: ClassVar[str] = "size"

        def trainable_parameters(self, shapes: Sequence[LayerShape]) -> int:
            return self.size + sum(shape.out_features for shape in shapes)

        def build(self, weight: Tensor, layer: LayerContext) -> Adapter:
            return VectorAdapter(self, layer)

    class VectorAdapter(Adapter):
        lr_scale: ClassVar[dict[str, float]] = {"bias": 4.0}

        def __init__(self, config: VectorConfig, layer: LayerContext) -> None:
            super().__init__(layer)
            self.share("vector", lambda: Vector(config.size))
            self.bias = nn.Parameter(torch.full((layer.shape.out_features,), 0.25))

        def delta_weight(self) -> Tensor:
            value = self.once("vector")
            return value.sum() * torch.ones(self.layer.shape.out_features, self.layer.shape.in_features)

        def delta_bias(self) -> Tensor:
            return self.bias

    yield VectorConfig
    forget("test-vector")


@ROUTES
def test_a_shared_module_is_called_once_a_forward(global_vector: type[AdapterConfig], route: str) -> None:
    model = get_peft_model(seeded(MLP), global_vector(target_modules=["up", "down"], route=route))
    vectors = [module for module in model.modules() if isinstance(module, Vector)]
    assert len(vectors) == 1
    assert trainable_parameters(model) == 3 + 24 + 6
    assert [name for name in model.state_dict() if "theta" in name] == [
        "base_model.model.up.eckart_adapters.default.vector.theta"
    ]
    for count in (1, 2):
        model(rows())
        assert vectors[0].calls == count
    model.get_base_model()(rows())  # as `generate` does
    assert vectors[0].calls == 3
    for _ in range(2):  # outside of a forward pass it is computed at each call, with a graph of its own
        layers(model)[0].get_delta_weight("default").sum().backward()
    assert vectors[0].calls == 5
    twin = copy.deepcopy(model)
    with torch.no_grad():
        next(m for m in twin.modules() if isinstance(m, Vector)).theta.zero_()
    assert not torch.equal(twin(rows()), model(rows()))


@ROUTES
def test_a_shared_module_under_activation_checkpointing(
    global_vector: type[AdapterConfig], route: str
) -> None:
    class Checkpointed(MLP):
        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(checkpoint(self.up, x, use_reentrant=False))
            return self.head(torch.tanh(checkpoint(self.down, h, use_reentrant=False)))

    found = []
    for kind in (MLP, Checkpointed):
        model = get_peft_model(seeded(kind), global_vector(target_modules=["up", "down"], route=route))
        for _ in range(2):
            model(rows().requires_grad_()).square().sum().backward()
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


@ROUTES
@pytest.mark.parametrize("bias", [True, False])
def test_a_bias_is_added_merged_and_taken_out(
    global_vector: type[AdapterConfig], route: str, bias: bool
) -> None:
    base = seeded(lambda: nn.Sequential(nn.Linear(5, 4, bias=bias)))
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    before, start = copy.deepcopy(base.state_dict()), base(x)
    model = get_peft_model(base, global_vector(target_modules=["0"], route=route))
    change = 3 * torch.tensor(0.5).sin() * x.sum(1, keepdim=True) + 0.25
    torch.testing.assert_close(model(x), start + change)
    model.merge_adapter()
    torch.testing.assert_close(model(x), start + change)
    model.unmerge_adapter()
    torch.testing.assert_close(model(x), start + change)
    restored = model.unload().state_dict()
    assert restored.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in restored.items())


def test_a_bias_of_a_convolution(global_vector: type[AdapterConfig]) -> None:
    base = seeded(lambda: nn.Sequential(nn.Conv2d(2, 3, 2)))
    model = get_peft_model(base, global_vector(target_modules=["0"], route="factored", size=1))
    x = torch.randn(1, 2, 4, 4)
    with torch.no_grad():
        layers(model)[0].eckart_adapters["default"].shared["vector"].theta.zero_()
    torch.testing.assert_close(model(x), layers(model)[0].base_layer(x) + 0.25)


def test_learning_rates_of_single_parameters(global_vector: type[AdapterConfig]) -> None:
    model = get_peft_model(seeded(MLP), global_vector(target_modules=["up"]))
    assert lr_scales(model) == {"base_model.model.up.eckart_adapters.default.bias": 4.0}
    assert lr_scales(adapted("lora", seeded(MLP))) == {}


def test_a_slug_is_registered_once() -> None:
    for slug, aliases in (("lora", ()), ("new-one", ("rslora",)), ("miss", ())):
        with pytest.raises(InputError, match="registered already"):
            register_adapter(slug, title="", paper="", arxiv="", trains="", saves="", aliases=aliases)(
                type("Again", (AdapterConfig,), {})
            )
    assert "new-one" not in ADAPTERS


def test_methods_of_other_packages_are_found(tmp_path: Path) -> None:
    """By the entry-point group `eckart.adapters`; one that is broken is left out with a warning."""
    (tmp_path / "other.py").write_text(
        "from dataclasses import dataclass\n"
        "from eckart.adapters import AdapterConfig, register_adapter\n"
        "@register_adapter('other', title='O', paper='p', arxiv='0', trains='t', saves='s')\n"
        "@dataclass\nclass OtherConfig(AdapterConfig):\n    '''Another.'''\n    r: int | None = None\n"
    )
    (tmp_path / "broken.py").write_text("raise RuntimeError('out of order')\n")
    info = tmp_path / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[eckart.adapters]\nother = other\nbroken = broken\n")
    code = (
        "import json, warnings\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    from eckart.adapters import ADAPTERS\n"
        "print(json.dumps(['other' in ADAPTERS, [str(w.message) for w in caught if 'left out' in str(w.message)]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [True, ["the methods of broken are left out: out of order"]]


# --- companions, seams, hooks ----------------------------------------------------------------------------------------


class Constant:
    """A companion that adds the same number everywhere."""

    def __init__(self, layer: nn.Module) -> None:
        self.delta = torch.full((layer.shape.out_features, layer.shape.in_features), 0.5)

    def delta_weight(self) -> Tensor:
        return self.delta


@ROUTES
def test_a_companion_acts_in_training_alone(route: str, tmp_path: Path) -> None:
    model = adapted("lora", seeded(MLP), init_weights=False, route=route, target_modules=["up"])
    [(_, layer, _, _)] = walk(model)
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    plain, count, keys = layer(x), trainable_parameters(model), list(model.state_dict())
    layer.companions["default"] = Constant(layer)
    torch.testing.assert_close(layer(x), plain)
    model.train()
    torch.testing.assert_close(layer(x), plain + 0.5 * x.sum(1, keepdim=True))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), plain)
    assert trainable_parameters(model) == count
    assert list(model.state_dict()) == keys
    model.merge_adapter()
    torch.testing.assert_close(layer(x), plain)
    model.unmerge_adapter()
    model.add_adapter("other", config("lora", target_modules=["up"]))
    model.delete_adapter("default")
    assert layer.companions == {}


class Scale(torch.autograd.Function):
    """Identity whose gradient is multiplied by the rows' factors."""

    @staticmethod
    def forward(ctx: object, value: Tensor, factors: Tensor) -> Tensor:
        ctx.save_for_backward(factors)
        return value.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.saved_tensors[0], None


class RowScaling:
    """A seam that scales what comes back to each output, and says so or not."""

    def __init__(self, factors: Tensor, told: bool) -> None:
        self.factors, self.told = factors, told

    def rows(self, adapter: Adapter) -> Tensor | None:
        return self.factors if self.told else None

    def branch(self, adapter: Adapter, output: Tensor) -> Tensor:
        return Scale.apply(output, self.factors)

    def delta(self, adapter: Adapter, delta: Tensor) -> Tensor:
        return Scale.apply(delta, self.factors[:, None])


@ROUTES
@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("slug", ["lora", "mos", "bone", "salt", "randlora"])
def test_a_seam_changes_the_gradient_of_the_parameters_alone(slug: str, route: str, told: bool) -> None:
    """Scaling the rows of the cotangent of x ΔWᵀ is scaling the rows of the cotangent of ΔW."""
    model = adapted(slug, seeded(MLP), init_weights=False, route=route, target_modules=["up"])
    [(_, layer, _, adapter)] = walk(model)
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0), requires_grad=True)
    cotangent = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))
    plain = layer(x)
    plain.backward(cotangent)
    of_input, x.grad = x.grad, None
    model.zero_grad()
    factors = torch.linspace(0, 3, 24)
    rows_scaled = factors[:, None] * cotangent.t() @ x.detach()
    (adapter.delta_weight() * rows_scaled).sum().backward()
    expected = gradients(model)
    model.zero_grad()
    layer.seams["default"] = RowScaling(factors, told)
    y = layer(x)
    y.backward(cotangent)
    torch.testing.assert_close(y, plain)
    torch.testing.assert_close(x.grad, of_input)
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


@every_method
@ROUTES
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_hooks_on_an_adapter_fire(slug: str, route: str, mode: str) -> None:
    model = adapted(slug, seeded(MLP), init_weights=False, route=route, target_modules=["up"])
    model.train(mode == "train")
    [(_, layer, _, adapter)] = walk(model)
    plain, seen = model(rows()), []
    handles = [
        adapter.register_forward_hook(lambda *_: seen.append("forward")),
        adapter.register_full_backward_hook(lambda *_: seen.append("backward")),
    ]
    y = model(rows().requires_grad_())
    torch.testing.assert_close(y, plain)
    y.sum().backward()
    assert seen == ["forward", "backward"]
    for handle in handles:
        handle.remove()
    layer.base_layer.register_full_backward_hook(lambda *_: seen.append("base"))
    model(rows().requires_grad_()).sum().backward()
    assert seen[-1] == "base"


def test_an_expansion_of_its_own_is_not_passed_by() -> None:
    """A method that only overrides `expand` is asked, on every route through the factors."""

    class Doubled(LowRankAdapter):
        def __init__(self, layer: LayerContext) -> None:
            super().__init__(layer)
            self.a, self.b = nn.Parameter(torch.ones(1, 12)), nn.Parameter(torch.ones(24, 1))

        def factors(self) -> tuple[Tensor, Tensor]:
            return self.a, 2 * self.b

        def expand(self, h: Tensor, b_t: Tensor) -> Tensor:
            return 2 * (h @ self.b.t())

    model = adapted("lora", seeded(MLP), target_modules=["up"], route="factored")
    [(_, layer, _, adapter)] = walk(model)
    layer.eckart_adapters["default"] = own = Doubled(adapter.layer)
    assert own.expand(torch.ones(1, 1), torch.ones(1, 24)).eq(2).all()
    x = torch.ones(2, 12)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 24)
