"""FLoRA: the Tucker product, its convolution in three stages, counts, ranks, starts and refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from adapter_cases import adapted, gradients, host, inputs, layers, seeded
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from eckart.adapters import FLoRATuckerConfig, trainable_parameters
from eckart.errors import InputError

CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    "stride": (lambda: nn.Conv2d(5, 7, (3, 2), stride=2, padding=1), (2, 5, 8, 9), (3, 4, 2, 1)),
    "dilation": (lambda: nn.Conv2d(5, 7, 3, dilation=2, padding="same"), (2, 5, 8, 9), (2, 5, 3, 2)),
    "groups": (lambda: nn.Conv2d(6, 9, 3, padding=1, groups=3), (2, 6, 5, 5), (2, 4, 2, 3)),
    "depthwise": (lambda: nn.Conv2d(8, 8, 7, padding=3, groups=8), (1, 8, 9, 9), (1, 4, 3, 2)),
    "replicate": (
        lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="replicate"),
        (2, 4, 5, 5),
        (3, 2, 2, 2),
    ),
    "one": (lambda: nn.Conv1d(4, 6, 5, padding=2, stride=3), (2, 4, 11), (3, 2, 4)),
    "three": (lambda: nn.Conv3d(4, 6, (1, 2, 3), padding=(0, 1, 1)), (2, 4, 3, 4, 5), (3, 2, 1, 2, 2)),
}
every_convolution = pytest.mark.parametrize(
    ("make", "shape", "ranks"), CONVOLUTIONS.values(), ids=CONVOLUTIONS
)


def flora(make: Callable[[], nn.Module], **options: Any) -> tuple[PeftModel, Any]:
    base = seeded(lambda: nn.Sequential(make()), torch.float64)
    model = get_peft_model(base, FLoRATuckerConfig(target_modules=["0"], **options))
    return model, layers(model)[0].eckart_adapters["default"]


def fill(adapter: nn.Module) -> None:
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_()


def tucker(adapter: Any) -> Tensor:
    """ΔW (out, in, *kernel) by the equation, index by index."""
    letters = "abcde"[: adapter.param_G.dim()]
    factors = [getattr(adapter, f"param_{axis}") for axis in range(len(letters))]
    sides = ["i" + letters[0], "o" + letters[1]] + [
        f"{k}{r}" for k, r in zip("uvw", letters[2:], strict=False)
    ]
    target = "oi" + "uvw"[: len(letters) - 2]
    return adapter.scale * torch.einsum(f"{letters},{','.join(sides)}->{target}", adapter.param_G, *factors)


@every_convolution
def test_three_stages_are_the_convolution_with_the_tucker_product(make, shape, ranks) -> None:
    model, adapter = flora(make, r=list(ranks), scale=0.7)
    fill(adapter)
    delta = tucker(adapter)
    torch.testing.assert_close(adapter.delta_weight(), delta.flatten(1))
    layer, x = layers(model)[0].base_layer, torch.randn(shape, dtype=torch.float64)
    branch = torch.func.functional_call(layer, {"weight": delta, "bias": torch.zeros_like(layer.bias)}, (x,))
    torch.testing.assert_close(adapter(x), branch, rtol=1e-10, atol=1e-10)


@every_convolution
def test_count_is_core_and_factors(make, shape, ranks) -> None:
    model, _ = flora(make, r=list(ranks))
    out, inner, *kernel = layers(model)[0].shape.weight
    sizes = (inner, out, *kernel)
    wanted = math.prod(ranks) + sum(size * r for size, r in zip(sizes, ranks, strict=True))
    assert trainable_parameters(model) == wanted


@every_convolution
def test_rank_of_every_unfolding(make, shape, ranks) -> None:
    _, adapter = flora(make, r=list(ranks))
    fill(adapter)
    delta = tucker(adapter).transpose(0, 1)
    for axis, r in enumerate(ranks):
        unfolded = delta.movedim(axis, 0).flatten(1)
        assert torch.linalg.matrix_rank(unfolded, rtol=1e-10) <= r


def test_linear_counts_of_the_published_table() -> None:
    """Over LoRA of equal rank: r² a module; the table's +164k at r = 32 is 160 modules, +2.6k at r = 4."""
    for r, more in ((32, 164e3), (4, 2.6e3)):
        assert round(160 * r**2 / more, 1) == 1.0
    model, _ = flora(lambda: nn.Linear(40, 24), r=6)
    assert trainable_parameters(model) == 6 * 64 + 36


def test_only_the_core_moves_first() -> None:
    model, adapter = flora(lambda: nn.Conv2d(4, 6, 3), r=[2, 3, 2, 2])
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    model(x).square().sum().backward()
    moved = {name.rpartition(".")[2] for name, g in gradients(model).items() if g.count_nonzero()}
    assert moved == {"param_G"}
    with torch.no_grad():
        adapter.param_G -= 0.1 * adapter.param_G.grad
    model.zero_grad()
    model(x).square().sum().backward()
    assert all(p.grad.count_nonzero() for p in adapter.parameters())


def test_two_dimensions_with_an_identity_core_are_lora() -> None:
    _, adapter = flora(lambda: nn.Linear(10, 8), r=4, scale=0.5)
    fill(adapter)
    with torch.no_grad():
        adapter.param_G.copy_(torch.eye(4))
    x = torch.randn(3, 10, dtype=torch.float64)
    lora = 0.5 * x @ adapter.param_0 @ adapter.param_1.t()
    torch.testing.assert_close(adapter(x), lora)


def test_language_model_form() -> None:
    """ΔW = (alpha/r) B E A is the same adapter with P₀ = Aᵀ, P₁ = B, G = Eᵀ."""
    a, e, b = (torch.randn(shape, dtype=torch.float64) for shape in ((4, 10), (4, 4), (8, 4)))
    _, adapter = flora(lambda: nn.Linear(10, 8), r=4, lora_alpha=6.0)
    with torch.no_grad():
        adapter.param_0.copy_(a.t())
        adapter.param_1.copy_(b)
        adapter.param_G.copy_(e.t())
    torch.testing.assert_close(adapter.delta_weight(), 1.5 * b @ e @ a)


def test_full_ranks_fit_any_update() -> None:
    _, adapter = flora(lambda: nn.Conv2d(3, 4, 2), r=[3, 4, 2, 2], factor_init="orthonormal")
    target = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    core = target.transpose(0, 1)
    for axis in range(4):
        core = torch.tensordot(core, torch.linalg.inv(getattr(adapter, f"param_{axis}")), dims=([0], [1]))
    with torch.no_grad():
        adapter.param_G.copy_(core)
    torch.testing.assert_close(adapter.delta_weight(), target.flatten(1), rtol=1e-9, atol=1e-9)


def test_frozen_spatial_axes_have_no_factor() -> None:
    make = lambda: nn.Conv2d(5, 7, (3, 2), padding=1)  # noqa: E731
    _, adapter = flora(make, r=[3, 4], freeze_spatial=True)
    assert {name: tuple(p.shape) for name, p in adapter.named_parameters()} == {
        "param_G": (3, 4, 3, 2),
        "param_0": (5, 3),
        "param_1": (7, 4),
    }
    fill(adapter)
    delta = torch.einsum("abuv,ia,ob->oiuv", adapter.param_G, adapter.param_0, adapter.param_1)
    torch.testing.assert_close(adapter.delta_weight(), delta.flatten(1))
    x = torch.randn(2, 5, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(adapter(x), nn.functional.conv2d(x, delta, padding=1))


def test_one_rank_is_capped_in_every_dimension() -> None:
    _, adapter = flora(lambda: nn.Conv2d(8, 8, 7, groups=8), r=6)
    assert adapter.param_G.shape == (1, 6, 6, 6)
    _, adapter = flora(lambda: nn.Conv2d(5, 7, 3))
    assert adapter.param_G.shape == (5, 7, 3, 3)


def test_starts() -> None:
    _, kaiming = flora(lambda: nn.Linear(400, 300), r=8)
    assert abs(kaiming.param_0.std() * 8**0.5 / 0.5**0.5 - 1) < 0.05
    _, orthonormal = flora(lambda: nn.Linear(40, 30), r=8, factor_init="orthonormal")
    torch.testing.assert_close(
        orthonormal.param_1.t() @ orthonormal.param_1, torch.eye(8, dtype=torch.float64)
    )
    model, leading = flora(lambda: nn.Conv2d(6, 5, 3), r=[2, 3, 2, 1], factor_init="hosvd")
    weight = layers(model)[0].base_layer.weight.transpose(0, 1)
    for axis, r in enumerate((2, 3, 2, 1)):
        u = torch.linalg.svd(weight.movedim(axis, 0).flatten(1)).U[:, :r]
        factor = getattr(leading, f"param_{axis}")
        torch.testing.assert_close(factor @ factor.t(), u @ u.t())
    assert not any(a.param_G.count_nonzero() for a in (kaiming, orthonormal, leading))


def test_embedding_is_the_matrix() -> None:
    model = adapted("flora-tucker", host("embedding", torch.float64), init_weights=False, r=[6, 3])
    adapter, x = layers(model)[0].eckart_adapters["default"], inputs("embedding")
    assert adapter.param_0.shape == (20, 6)
    assert adapter.param_1.shape == (8, 3)
    torch.testing.assert_close(adapter(x), adapter.delta_weight().t()[x])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": [3, 4]}, r"r is \[3, 4\], but layer 0 has the dimensions \(5, 7, 3, 3\)"),
        ({"r": [3, 0, 2, 2]}, r"r is \[3, 0, 2, 2\]: give whole numbers of at least 1"),
        ({"r": [3]}, r"r is \[3\]: give whole numbers"),
        ({"factor_init": "zeros"}, "factor_init is 'zeros'"),
    ],
)
def test_refuses_ranks_no_dimension_has(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        flora(lambda: nn.Conv2d(5, 7, 3), **options)
