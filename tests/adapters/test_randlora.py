"""RandLoRA: PEFT's numbers, the equation of the paper, the rank of ΔW and what a checkpoint holds."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from adapter_cases import adapted, layers
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from eckart.adapters import LayerShape, RandLoRAConfig
from eckart.errors import InputError


class Three(nn.Module):
    """in > out, in < out and square."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(40, 24), nn.Linear(24, 56), nn.Linear(56, 56)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


NAMES = ["a", "b", "c"]


def three(dtype: torch.dtype = torch.float32, **options: Any) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(Three().to(dtype), RandLoRAConfig(**{"r": 10, "target_modules": NAMES, **options}))


def rank(delta: Tensor) -> int:
    return int(torch.linalg.matrix_rank(delta, rtol=1e-10))


def adapters(model: PeftModel) -> list[Any]:
    return [layer.eckart_adapters["default"] for layer in layers(model)]


def randomise(model: PeftModel, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for adapter in adapters(model):
            for parameter in adapter.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.mark.parametrize("basis", ["uniform", "sparse", "very-sparse"])
@pytest.mark.parametrize("key", [0, 7])
@pytest.mark.filterwarnings("ignore:.*coordinates have no entry")
def test_bases_and_outputs_are_pefts(basis: str, key: int) -> None:
    """PEFT's key as the seed gives its bases to the bit; its parameters then give its ΔW and output."""
    ours = three(seed=key, basis=basis, randlora_alpha=30)
    flags = {"sparse": {"sparse": True}, "very-sparse": {"very_sparse": True}}.get(basis, {})
    torch.manual_seed(0)
    theirs = get_peft_model(
        Three(),
        peft.RandLoraConfig(r=10, target_modules=NAMES, projection_prng_key=key, randlora_alpha=30, **flags),
    )
    bases = adapters(ours)[0].bases
    assert torch.equal(bases.randlora_A, theirs.base_model.randlora_A["default"].float())
    assert torch.equal(bases.randlora_B, theirs.base_model.randlora_B["default"].float())
    randomise(ours)
    with torch.no_grad():
        for adapter, name in zip(adapters(ours), NAMES, strict=True):
            layer = getattr(theirs.base_model.model, name)
            for parameter in ("randlora_lambda", "randlora_gamma"):
                getattr(layer, parameter)["default"].copy_(getattr(adapter, parameter))
            torch.testing.assert_close(adapter.delta_weight(), layer.get_delta_weight("default"))
    x = torch.randn(5, 40)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shared", [True, False])
def test_paper_order_is_the_sum_over_bases(shared: bool) -> None:
    model = three(basis_order="paper", share_A=shared, randlora_alpha=20)
    randomise(model)
    for adapter in adapters(model):
        lam, gamma = adapter.randlora_lambda, adapter.randlora_gamma
        (_, n), m = lam.shape, gamma.shape[1]
        a, b = adapter.shared["bases"].randlora_A, adapter.shared["bases"].randlora_B
        large = max(adapter.layer.shape.weight)
        total = sum(
            b[:large, j] @ lam[:, j].diag() @ a[:, j if not shared else 0, :m] @ gamma[j].diag()
            for j in range(n)
        )
        expected = 2 * (total if m == adapter.layer.shape.in_features else total.t())
        torch.testing.assert_close(adapter.delta_weight(), expected, rtol=1e-4, atol=1e-4)


def test_count_of_a_published_run_and_its_growth_as_r_falls() -> None:
    """Llama-3.2-3B, q and v, r = 32: PEFT reports 9,289,728."""
    shapes = [LayerShape(f"q{i}", "linear", (3072, 3072)) for i in range(28)]
    shapes += [LayerShape(f"v{i}", "linear", (1024, 3072)) for i in range(28)]
    assert RandLoRAConfig(r=32).trainable_parameters(shapes) == 9_289_728
    counts = [RandLoRAConfig(r=r).trainable_parameters(shapes) for r in (256, 64, 16, 4)]
    assert counts == sorted(counts)
    r, m = 48, 384
    [square] = [LayerShape("x", "linear", (m, m))]
    assert RandLoRAConfig(r=r).trainable_parameters([square]) == math.ceil(m / r) * (r + m)


def test_gamma_has_no_gradient_at_the_first_step_and_lambda_has() -> None:
    model = three()
    model(torch.randn(4, 40)).sum().backward()
    for adapter in adapters(model):
        assert not adapter.randlora_gamma.grad.count_nonzero()
        assert adapter.randlora_lambda.grad.count_nonzero()


def test_rank_is_r_while_gamma_is_constant_and_full_afterwards() -> None:
    model = three(torch.float64, r=7)
    with torch.no_grad():
        for adapter in adapters(model):
            adapter.randlora_lambda.normal_()
            assert rank(adapter.delta_weight()) == 7
            adapter.randlora_gamma.normal_()
            assert rank(adapter.delta_weight()) == adapter.layer.shape.max_rank


def test_capped_bases_cap_the_rank_and_the_count() -> None:
    model = three(torch.float64, r=7, num_bases=2)
    randomise(model)
    for adapter in adapters(model):
        assert adapter.randlora_lambda.shape == (7, 2)
        assert rank(adapter.delta_weight()) == 14


def test_sparse_basis_leaves_coordinates_dead_and_says_how_many() -> None:
    with pytest.warns(UserWarning, match=r"\d+ of 56 coordinates have no entry in the very-sparse basis A"):
        model = three(torch.float64, basis="very-sparse", r=8)
    randomise(model)
    adapter = adapters(model)[2]
    dead = (adapter.shared["bases"].randlora_A[:, 0] == 0).all(0)
    assert dead.any()
    delta = adapter.delta_weight()
    assert torch.equal(delta.abs().sum(0) == 0, dead)
    assert rank(delta) <= 56 - dead.sum()


def test_scale_modes() -> None:
    for mode, factor in (("peft", 20.0), ("paper", 20 / math.sqrt(3))):
        assert adapters(three(scale_mode=mode))[0].scale == pytest.approx(factor)


def test_layers_share_one_pair_of_bases() -> None:
    model = three()
    buffers = [name for name, _ in model.named_buffers() if "randlora_" in name]
    assert len(buffers) == 2
    pointers = {adapter.shared["bases"].randlora_B.data_ptr() for adapter in adapters(model)}
    assert len(pointers) == 1


def test_checkpoint_holds_diagonals_and_is_refused_with_other_bases(tmp_path: Path) -> None:
    model = three(seed=3)
    randomise(model)
    model.save_pretrained(tmp_path)
    state = copy.deepcopy(model.state_dict())
    saved = peft.utils.load_peft_weights(tmp_path)
    assert {key.rpartition(".")[2] for key in saved} == {"randlora_lambda", "randlora_gamma", "basis_check"}
    same = three(seed=3)
    same.load_state_dict(state)
    x = torch.randn(3, 40)
    assert torch.equal(same(x), model(x))
    for other in ({"seed": 4}, {"basis": "normal"}):
        with pytest.raises(
            InputError, match="the bases that the seed gives here are not those of the checkpoint"
        ):
            three(**{"seed": 3, **other}).load_state_dict(state)


def test_a_checkpoint_is_a_fiftieth_of_pefts(tmp_path: Path) -> None:
    """PEFT stores both bases again for every layer."""
    sizes = {}
    for name, config in (
        ("ours", RandLoRAConfig(r=64, target_modules="all-linear")),
        ("theirs", peft.RandLoraConfig(r=64, target_modules="all-linear")),
    ):
        model = get_peft_model(nn.Sequential(*(nn.Linear(384, 384) for _ in range(3))), config)
        model.save_pretrained(tmp_path / name)
        sizes[name] = (tmp_path / name / "adapter_model.safetensors").stat().st_size
    assert sizes["ours"] * 50 <= sizes["theirs"]


def test_saved_bases_are_loaded_over_those_of_the_seed() -> None:
    model = three(save_basis=True, seed=3)
    randomise(model)
    other = three(save_basis=True, seed=4)
    other.load_state_dict(model.state_dict())
    x = torch.randn(3, 40)
    assert torch.equal(other(x), model(x))


def test_bfloat16_layers_convert_the_bases_once() -> None:
    torch.manual_seed(0)
    model = get_peft_model(Three().bfloat16(), RandLoRAConfig(r=10, target_modules=NAMES, route="factored"))
    adapter = adapters(model)[0]
    assert adapter.randlora_lambda.dtype == torch.float32
    first, again = (adapter.shared["bases"].like(adapter.randlora_lambda) for _ in range(2))
    assert first[1].dtype == torch.float32
    assert first[1].data_ptr() == again[1].data_ptr()


def test_route_follows_the_multiply_adds() -> None:
    """On d = 1024 the factored route is for few tokens: 5 T d² against T d² + 2 d³."""
    d = 1024
    [adapter] = adapters(
        get_peft_model(nn.Sequential(nn.Linear(d, d)), RandLoRAConfig(r=32, target_modules=["0"]))
    )
    for tokens in (128, 1024, 4096):
        assert adapter.multiply_adds(tokens) == (5 * tokens * d**2, tokens * d**2 + 2 * d**3)
    cheaper = [
        min(range(2), key=lambda route, t=t: adapter.multiply_adds(t)[route]) for t in (128, 1024, 4096)
    ]
    assert cheaper == [0, 1, 1]


def test_a_rank_lowered_on_a_small_layer_takes_part_of_the_shared_bases() -> None:
    model = get_peft_model(Three(), RandLoRAConfig(target_modules=NAMES))
    ranks = [adapter.randlora_lambda.shape for adapter in adapters(model)]
    assert ranks == [(24, 1), (24, 1), (32, 2)]
    randomise(model)
    for adapter in adapters(model):
        shape = adapter.layer.shape
        assert adapter.delta_weight().shape == (shape.out_features, shape.in_features)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"basis": "dense"}, "basis is 'dense': give one of uniform, normal, sparse, very-sparse"),
        ({"basis_order": "x"}, "basis_order is 'x'"),
        ({"scale_mode": "x"}, "scale_mode is 'x'"),
        ({"num_bases": 0}, "num_bases is 0"),
    ],
)
def test_refuses_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RandLoRAConfig(**options)


def test_a_rank_above_the_small_side_is_one_wide_basis() -> None:
    """As in PEFT: n = ⌈24/30⌉ = 1, and λ has all 30 numbers."""
    adapter = adapters(three(r=30))[0]
    assert adapter.randlora_lambda.shape == (30, 1)
    assert adapter.randlora_gamma.shape == (1, 24)


def test_two_adapters_of_different_rank_live_together() -> None:
    """PEFT 0.21 fails here: it keeps one number of bases a layer."""
    model = adapted("randlora", Three(), target_modules=NAMES, r=8, init_weights=False)
    x = torch.randn(3, 40)
    first = model(x)
    model.add_adapter("other", RandLoRAConfig(r=4, target_modules=NAMES, init_weights=False))
    assert torch.equal(model(x), first)
    model.set_adapter("other")
    assert not torch.allclose(model(x), first)
