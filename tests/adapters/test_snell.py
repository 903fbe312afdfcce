"""SNELL: rank, sparsity and memory of its update, and the kernels beside the piecewise-linear one."""

from __future__ import annotations

import math

import pytest
import torch
from adapter_cases import MLP, Host, adapted, layers, rows, seeded
from torch import Tensor, nn

import eckart
from eckart.adapters import SNELLConfig
from eckart.errors import InputError

DOUBLE = torch.float64


def one_layer(out: int = 20, width: int = 30, dtype: torch.dtype = DOUBLE, **options):
    """The model and its adapter."""
    model = adapted("snell", seeded(lambda: Host(nn.Linear(width, out)), dtype), **options)
    return model, layers(model)[0].eckart_adapters["default"]


def scaled(adapter, by: float) -> Tensor:
    with torch.no_grad():
        for parameter in (adapter.in_qs, adapter.out_qs):
            parameter.mul_(by)
    return adapter.delta_weight().detach()


def test_the_kernel_of_thin_factors_has_full_rank() -> None:
    _, adapter = one_layer(128, 128, r=8, sparsity=0.0)
    assert torch.linalg.matrix_rank(adapter.delta_weight()) == 128
    _, product = one_layer(128, 128, r=8, sparsity=0.0, kernel="linear")
    assert torch.linalg.matrix_rank(product.delta_weight()) == 8


def test_start_follows_the_authors_code() -> None:
    _, adapter = one_layer(768, 400, torch.float32, r=8)
    for parameter, features in ((adapter.in_qs, 400), (adapter.out_qs, 768)):
        bound = 1 / math.sqrt(features * 4)
        assert parameter.shape == (2, features, 4)
        assert 0.99 * bound < parameter.abs().max() <= bound
        assert parameter.detach().mean().abs() < 0.05 * bound
    assert 0 < adapter.delta_weight().abs().max() < 1e-4
    _, klora = one_layer(768, 400, torch.float32, r=8, sparsity=0.0)
    assert klora.delta_weight().abs().max() > 1e-3


@pytest.mark.parametrize("how", ["square", "soft", "hard"])
def test_without_sparsity_the_kernel_is_added_as_it_is(how: str) -> None:
    deltas = [one_layer(sparsity=0.0, sparsify=h)[1].delta_weight() for h in ("square", how)]
    assert torch.equal(*deltas)


def test_scaling_the_factors() -> None:
    for sparsity, power in ((0.0, 1), (0.8, 2)):
        _, adapter = one_layer(sparsity=sparsity)
        before = adapter.delta_weight().detach()
        torch.testing.assert_close(scaled(adapter, 3.0), 3.0**power * before, rtol=1e-10, atol=1e-15)


def test_symmetries_of_the_kernel() -> None:
    _, adapter = one_layer(sparsity=0.5, init_weights=False)
    delta = adapter.delta_weight().detach()
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))).Q
    with torch.no_grad():
        for factor in (adapter.in_qs, adapter.out_qs):
            factor[0] += 0.7
            factor[1] = factor[1] @ turn
    torch.testing.assert_close(adapter.delta_weight(), delta, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        for factor in (adapter.in_qs, adapter.out_qs):
            factor.copy_(factor.flip(0))
    torch.testing.assert_close(adapter.delta_weight(), -delta, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_share_of_zeros_is_exact_in_any_precision(dtype: torch.dtype) -> None:
    model, adapter = one_layer(60, 50, dtype, sparsity=0.9, sparsify="hard", init_weights=False)
    n = 60 * 50
    assert adapter.dtype == torch.float32
    assert adapter.delta_weight().count_nonzero() == n - 1 - math.floor(0.9 * (n - 1))
    with torch.autocast("cpu", torch.bfloat16):
        assert adapter.delta_weight().count_nonzero() == n - 1 - math.floor(0.9 * (n - 1))
        assert model(rows(width=50, dtype=dtype)).isfinite().all()


@pytest.mark.parametrize("kernel", ["piecewise", "linear", "sigmoid", "rbf"])
@pytest.mark.parametrize("route", ["factored", "folded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_matrix_is_kept_for_backward(kernel: str, route: str, dtype: torch.dtype) -> None:
    tokens, out, width, r = 9, 60, 80, 4
    model, _ = one_layer(out, width, dtype, kernel=kernel, route=route, r=r)
    frozen = layers(model)[0].base_layer.weight.untyped_storage().data_ptr()
    kept: list[Tensor] = []
    x = rows(tokens, width, dtype).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = model(x)
    sizes = [t.numel() for t in kept if t.untyped_storage().data_ptr() != frozen]
    assert sum(sizes) <= 2 * tokens * width + r * (out + width) + 8
    y.sum().backward()
    assert x.grad.isfinite().all()


def test_coinciding_rows_train() -> None:
    model, adapter = one_layer(sparsity=0.5)
    with torch.no_grad():
        adapter.in_qs.zero_()
        adapter.out_qs[:, :5] = 0
    model(rows(width=30, dtype=DOUBLE)).sum().backward()
    assert adapter.in_qs.grad.isfinite().all()
    assert adapter.out_qs.grad.isfinite().all()


@pytest.mark.parametrize("kernel", ["linear", "sigmoid", "rbf"])
@pytest.mark.parametrize("sparsity", [0.0, 0.7])
def test_other_kernels(kernel: str, sparsity: float) -> None:
    model, adapter = one_layer(kernel=kernel, sparsity=sparsity, sparsify="hard", r=3, init_weights=False)
    o, e = adapter.out_qs[0].detach(), adapter.in_qs[0].detach()
    shaping = [p.detach() for n, p in adapter.named_parameters() if n in ("alpha", "beta", "gamma")]
    if kernel == "linear":
        expected = o @ e.T
    else:
        alpha, beta, gamma = shaping
        inner = beta * (o @ e.T) if kernel == "sigmoid" else -beta * torch.cdist(o, e).square()
        expected = alpha * (1 / (1 + torch.exp(-inner)) if kernel == "sigmoid" else torch.exp(inner)) + gamma
    delta = adapter.delta_weight().detach()
    kept = delta != 0
    torch.testing.assert_close(delta[kept], expected[kept], rtol=1e-10, atol=1e-12)
    assert bool(kept.all()) == (sparsity == 0)
    shapes = [layers(model)[0].shape]
    settings = model.peft_config["default"]
    assert (
        settings.trainable_parameters(shapes)
        == eckart.adapters.trainable_parameters(model)
        == 3 * 50 + len(shaping)
    )
    model(rows(width=30, dtype=DOUBLE)).sum().backward()
    assert all(p.grad.any() for p in adapter.parameters())


def test_other_numbers_of_distances_and_norms() -> None:
    _, adapter = one_layer(r=9, coeff=[0.1, -0.1, 0.2], norm_p=1.0, sparsity=0.0)
    assert adapter.in_qs.shape == (3, 30, 3)
    o, e = adapter.out_qs.detach(), adapter.in_qs.detach()
    expected = sum(c * torch.cdist(a, b, p=1) for c, a, b in zip([0.1, -0.1, 0.2], o, e, strict=True))
    torch.testing.assert_close(adapter.delta_weight(), expected, rtol=1e-11, atol=1e-14)


def test_fits_a_random_matrix_better_than_any_product_of_its_size() -> None:
    """The paper's claim in small: the kernel of rank-r factors beats the best matrix of rank r."""
    target = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    bound = torch.linalg.svdvals(target)[4:].square().sum() / target.square().sum()
    options = {"r": 4, "sparsity": 0.0, "coeff": [1.0, -1.0]}
    _, adapter = one_layer(32, 32, torch.float32, **options)
    optimiser = torch.optim.Adam(adapter.parameters(), lr=3e-2)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    for _ in range(1500):
        error = (adapter.delta_weight() - target).square().sum() / target.square().sum()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
    assert error < bound


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, "sparsity is 1.0"),
        ({"sparsity": -0.1}, "sparsity is -0.1"),
        ({"sparsify": "mask"}, "sparsify is 'mask'"),
        ({"kernel": "poly"}, "kernel is 'poly'"),
        ({"r": 5}, "r is 5: give a multiple of 2"),
        ({"coeff": []}, "coeff is empty"),
        ({"norm_p": 0.5}, "norm_p is 0.5"),
    ],
)
def test_refused_options(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SNELLConfig(**options)


def test_budgets_take_multiples_of_the_number_of_distances() -> None:
    model = eckart.adapt(seeded(MLP), "snell", target_modules=["up", "down"], budget=330)
    assert model.peft_config["default"].r == 4  # 66 numbers for each unit of r


@pytest.mark.parametrize("kernel", ["linear", "sigmoid"])
@pytest.mark.parametrize("sparsify", ["square", "soft", "hard"])
def test_a_smooth_kernel_differentiates_its_multiplier_only_where_told(kernel: str, sparsify: str) -> None:
    """With ``detach`` dΔW = m dK; without it m = |K| or |K| − b of the kept entries moves too."""
    grads = {}
    for detach in (True, False):
        _, adapter = one_layer(r=4, kernel=kernel, sparsify=sparsify, sparsity=0.6, detach=detach)
        scaled(adapter, 30.0)
        adapter.delta_weight().sum().backward()
        grads[detach] = adapter.out_qs.grad[0].clone()
        outer, inner = (p.detach()[0].clone().requires_grad_() for p in (adapter.out_qs, adapter.in_qs))
        K = adapter._smooth_kernel(outer, inner)
        size = K.abs()
        update = adapter.delta_weight().detach()
        m = torch.where(update != 0, update / K.detach(), 0.0)
        kept = update != 0
        bound = (size.detach() - m)[kept].max()
        moving = {"square": size, "soft": size - bound, "hard": torch.ones_like(size)}[sparsify]
        (wanted,) = torch.autograd.grad((K * (m if detach else torch.where(kept, moving, 0.0))).sum(), outer)
        torch.testing.assert_close(grads[detach], wanted, rtol=1e-6, atol=1e-9)
    assert torch.allclose(grads[True], grads[False]) == (sparsify == "hard")


@pytest.mark.parametrize(("kernel", "gamma"), [("sigmoid", -0.5), ("rbf", -1.0)])
def test_a_shaped_kernel_starts_at_zero_where_rows_are_orthogonal_or_coincide(
    kernel: str, gamma: float
) -> None:
    _, adapter = one_layer(kernel=kernel, r=4, sparsity=0.0)
    assert [float(getattr(adapter, name).detach()) for name in ("alpha", "beta", "gamma")] == [1, 1, gamma]
    with torch.no_grad():
        adapter.out_qs.zero_()
        adapter.in_qs.zero_()
    assert not adapter.delta_weight().any()
