"""SVFit: what its equation says of the spectrum, beyond what every method is held to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapter_cases import MLP, Host, adapted, layers, rows, seeded
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

import eckart
from eckart.adapters import SVFitConfig
from eckart.errors import InputError

DOUBLE = torch.float64


def one_layer(out: int = 9, width: int = 14, bias: bool = True, **options):
    """The adapted layer, its adapter, its weight and the SVD of that."""
    model = adapted("svfit", seeded(lambda: Host(nn.Linear(width, out, bias=bias)), DOUBLE), **options)
    [layer] = layers(model)
    weight = layer.base_layer.weight.detach()
    return model, layer.eckart_adapters["default"], weight, torch.linalg.svd(weight, full_matrices=False)


def move(adapter, seed: int = 0) -> Tensor:
    with torch.no_grad():
        adapter.svfit_s.normal_(generator=torch.Generator().manual_seed(seed))
    return adapter.svfit_s.detach()


def test_without_its_leading_values_the_best_approximation_is_gone() -> None:
    _, adapter, weight, (_, s, _) = one_layer(r=4)
    with torch.no_grad():
        adapter.svfit_s.copy_(-s[:4])
    rest = torch.linalg.svdvals(weight + adapter.delta_weight().detach())
    torch.testing.assert_close(rest[:5], s[4:], rtol=1e-12, atol=1e-13)
    assert rest[5:].max() < 1e-13
    torch.testing.assert_close(adapter.singular_values(), torch.zeros(4, dtype=DOUBLE), rtol=0, atol=1e-13)


def test_update_is_diagonal_in_the_singular_basis() -> None:
    _, adapter, _, (u, s, vh) = one_layer(r=5)
    change = move(adapter)
    core = u.T @ adapter.delta_weight() @ vh.T
    expected = torch.diag(torch.cat([change, torch.zeros(4, dtype=DOUBLE)]))
    torch.testing.assert_close(core, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(adapter.singular_values(), s[:5] + change)


def test_gradient_is_the_diagonal_of_the_projected_weight_gradient() -> None:
    model, adapter, _, (u, _, vh) = one_layer(r=5)
    move(adapter)
    x, g = rows(width=14, dtype=DOUBLE), rows(width=9, dtype=DOUBLE, seed=2)
    model(x).backward(g)
    torch.testing.assert_close(
        adapter.svfit_s.grad, (u.T @ g.T @ x @ vh.T).diagonal()[:5], rtol=1e-10, atol=1e-12
    )


def test_scaling_every_value_scales_the_layer() -> None:
    model, adapter, weight, (_, s, _) = one_layer(out=14, r=14, bias=False)
    with torch.no_grad():
        adapter.svfit_s.copy_(1.5 * s)
    x = rows(width=14, dtype=DOUBLE)
    torch.testing.assert_close(model(x), 2.5 * x @ weight.T, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("norm", ["squared", "nuclear"])
def test_energy_takes_the_fewest_values_that_hold_the_share(share: float, norm: str, tmp_path: Path) -> None:
    model = adapted("svfit", seeded(MLP), energy=share, energy_norm=norm)
    for layer in layers(model):
        s = torch.linalg.svdvals(layer.base_layer.weight.double())
        held = (s.square() if norm == "squared" else s).cumsum(0)
        r = len(layer.eckart_adapters["default"].svfit_s)
        assert held[r - 1] >= share * held[-1] * (1 - 1e-12)
        assert r == 1 or held[r - 2] < share * held[-1]
    model.save_pretrained(tmp_path)
    again = SVFitConfig.from_pretrained(tmp_path)
    assert again.rank_pattern == {
        n.shape.name: len(n.eckart_adapters["default"].svfit_s) for n in layers(model)
    }
    shapes = [layer.shape for layer in layers(model)]
    assert again.trainable_parameters(shapes) == eckart.adapters.trainable_parameters(model)
    assert torch.equal(PeftModel.from_pretrained(seeded(MLP), tmp_path)(rows()), model(rows()))


def test_energy_is_measured_anew_on_another_model() -> None:
    config = SVFitConfig(energy=0.5, target_modules=["up", "down"])
    ranks = []
    for flat in (False, True):
        base = seeded(MLP)
        if flat:
            nn.init.orthogonal_(base.up.weight)
        ranks.append(len(layers(get_peft_model(base, config))[0].eckart_adapters["default"].svfit_s))
    assert ranks[1] == 6 != ranks[0]


def test_param_forms_agree_where_they_say_the_same() -> None:
    value, relative, log = (one_layer(r=4, param=param)[1] for param in ("value", "relative", "log"))
    s0 = value.svfit_s0
    a = torch.tensor([0.2, -0.1, 0.3, -0.4], dtype=DOUBLE)
    with torch.no_grad():
        value.svfit_s.copy_(s0 * a)
        relative.svfit_s.copy_(a)
        log.svfit_s.copy_((1 + a).log())
    for other in (relative, log):
        torch.testing.assert_close(other.delta_weight(), value.delta_weight(), rtol=1e-12, atol=1e-14)


def test_nonneg_stops_at_zero() -> None:
    free, kept = (one_layer(r=4, nonneg=nonneg)[1] for nonneg in (False, True))
    for adapter in (free, kept):
        with torch.no_grad():
            adapter.svfit_s.copy_(torch.tensor([-100.0, 0.5, -0.01, 2.0]))
    assert free.singular_values()[0] < 0
    torch.testing.assert_close(kept.singular_values(), free.singular_values().clamp_min(0))


@pytest.mark.parametrize("select", ["top", "bottom", "random"])
def test_select(select: str) -> None:
    chosen = one_layer(r=4, select=select)[1].svfit_s0
    _, _, _, (_, s, _) = one_layer()
    torch.testing.assert_close(chosen, chosen.sort(descending=True).values)
    assert all(bool(((s - value).abs() < 1e-12).any()) for value in chosen)
    if select != "random":
        torch.testing.assert_close(chosen, s[:4] if select == "top" else s[5:])
    else:
        seeds = {tuple(one_layer(r=4, select=select, seed=seed)[1].svfit_s0.tolist()) for seed in range(4)}
        assert len(seeds) > 1


def test_only_the_projected_input_is_kept_for_backward() -> None:
    tokens, out, width, r = 50, 60, 80, 4
    model = adapted(
        "svfit", seeded(lambda: Host(nn.Linear(width, out))), r=r, route="factored", init_weights=False
    )
    frozen = {t.untyped_storage().data_ptr() for t in [*model.buffers(), layers(model)[0].base_layer.weight]}
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model(rows(tokens, width))
    sizes = [t.numel() for t in kept if t.untyped_storage().data_ptr() not in frozen]
    assert sum(sizes) <= tokens * r + 2 * r


def test_equal_singular_values_rebuild_on_another_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def base() -> nn.Module:
        host = seeded(lambda: Host(nn.Linear(8, 8)), DOUBLE)
        nn.init.eye_(host.layer.weight)
        return host

    model, x = adapted("svfit", base(), init_weights=False, r=8), rows(width=8, dtype=DOUBLE)
    outputs = model(x)
    model.save_pretrained(tmp_path)
    svd, turn = torch.linalg.svd, torch.linalg.qr(torch.randn(8, 8, dtype=DOUBLE)).Q
    monkeypatch.setattr(
        torch.linalg, "svd", lambda *a, **k: (lambda u, s, vh: (u @ turn, s, turn.T @ vh))(*svd(*a, **k))
    )
    torch.testing.assert_close(
        PeftModel.from_pretrained(base(), tmp_path)(x), outputs, rtol=1e-10, atol=1e-12
    )


def test_trained_on_float32_loads_on_a_bfloat16_copy(tmp_path: Path) -> None:
    """What is stored is the change, so that the rounding of the base does not drown it."""
    base = seeded(MLP)
    with torch.no_grad():
        for linear in (base.up, base.down):  # well separated values, whose vectors survive the rounding
            u, s, vh = torch.linalg.svd(linear.weight, full_matrices=False)
            linear.weight.copy_(u * torch.logspace(2, 0, len(s)) @ vh)
    model = adapted("svfit", base, r=2)
    with torch.no_grad():
        for layer in layers(model):
            layer.eckart_adapters["default"].svfit_s.fill_(0.05)
    model.save_pretrained(tmp_path)
    deltas = [layer.get_delta_weight("default").detach() for layer in layers(model)]
    plain = model.unload()
    loaded = PeftModel.from_pretrained(plain.to(torch.bfloat16), tmp_path)
    for layer, delta in zip(layers(loaded), deltas, strict=True):
        error = (layer.get_delta_weight("default").float() - delta).norm() / delta.norm()
        assert error < 0.03


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energy": 0.0}, "energy is 0.0"),
        ({"energy": 1.2}, "energy is 1.2"),
        ({"energy": 0.9, "r": 3}, "leave one out"),
        ({"energy": 0.9, "select": "bottom"}, "give r instead"),
        ({"energy": 0.9, "energy_norm": "max"}, "squared, nuclear"),
        ({"param": "shift"}, "value, relative, log"),
        ({"select": "middle"}, "top, bottom, random"),
    ],
)
def test_refused_options(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SVFitConfig(**options)


def test_a_budget_sets_r_not_energy() -> None:
    with pytest.raises(InputError, match="energy"):
        eckart.adapt(seeded(MLP), "svfit", budget=10, energy=0.5)
