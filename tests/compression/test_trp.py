import copy

import pytest
import torch
from small_models import Convolutions
from torch import nn

import eckart.compression as compression
from eckart.compression import TRP, TrainedRankPruning, compress
from eckart.compression.trp import eligible, factorized
from eckart.errors import InputError
from eckart.linalg.filters import filter_svd, multiply_adds, ranks_for_energy

SCHEMES = ("NC", "VH", "ND")
X = torch.randn(3, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def train(rule=True, steps=3, optimizer=torch.optim.SGD, lr=0.05, **options):
    model = Convolutions()
    optimizer = optimizer(model.parameters(), lr=lr)
    found = TrainedRankPruning(model, optimizer, **options) if rule else None
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    return model, found, optimizer


def test_only_wide_ungrouped_convolutions_but_the_first():
    assert eligible(Convolutions()) == ["wide", "strided"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["wide", "strided"])
def test_full_rank_is_the_convolution(scheme, name):
    layer = Convolutions().get_submodule(name)
    rank = min({"NC": (layer.weight.shape[0], layer.weight[0].numel())}.get(scheme, (99, 99)))
    svd = filter_svd(layer.weight.detach(), scheme)
    new = factorized(layer, scheme, min(rank, svd.S.shape[-1]))
    x = torch.randn(2, layer.in_channels, 9, 11, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(new(x), layer(x), rtol=1e-4, atol=1e-5)
    dense = new.dense()
    torch.testing.assert_close(dense.weight, layer.weight, rtol=1e-4, atol=1e-5)
    assert dense.stride == layer.stride and dense.padding == layer.padding
    assert (dense.bias is None) == (layer.bias is None)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_factors_of_a_projected_convolution_are_it(scheme):
    model = Convolutions()
    rule = TrainedRankPruning(model, torch.optim.SGD(model.parameters(), 0.1), scheme, energy=0.6)
    ranks = rule.project()
    for name, rank in ranks.items():
        layer = model.get_submodule(name)
        x = torch.randn(2, layer.in_channels, 7, 7, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(factorized(layer, scheme, rank)(x), layer(x), rtol=1e-4, atol=1e-5)
        s = filter_svd(layer.weight.detach(), scheme).S
        assert int(ranks_for_energy(s, 1 - 1e-6).max()) == rank


@pytest.mark.parametrize("scheme", SCHEMES)
def test_ratio_is_met_in_multiply_adds(scheme):
    dense = Convolutions()
    model = compress(Convolutions(), "trp", ratio=0.4, scheme=scheme)
    for row in compression.report(model).rows:
        if row.rank is None:
            continue
        shape = dense.get_submodule(row.layer).weight.shape
        assert (
            multiply_adds(scheme, shape, row.rank)
            <= 0.6 * shape.numel()
            < multiply_adds(scheme, shape, row.rank + 1)
        )
        counted = sum(p.numel() for p in model.get_submodule(row.layer).parameters() if p.dim() > 1)
        assert counted == multiply_adds(scheme, shape, row.rank)
    assert [row.layer for row in compression.report(model).rows] == ["wide", "strided"]
    assert model(X).shape == dense(X).shape


def test_energy_and_value():
    model = compress(Convolutions(), "trp", energy=0.5)
    s = filter_svd(Convolutions().wide.weight.detach(), "NC").S[0]
    assert compression.report(model).rows[0].rank == int(ranks_for_energy(s[None], 0.5))
    model = compress(Convolutions(), "trp", value=0.7)
    assert compression.report(model).rows[0].rank == int((s >= 0.7 * s[0]).sum())


def test_nothing_projected_is_plain_sgd_bit_for_bit():
    plain, _, _ = train(rule=False)
    ruled, _, _ = train(period=0, nuclear_weight=0.0)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), ruled.parameters(), strict=True))


def test_it_projects_every_period_th_iteration_and_keeps_its_parameters():
    model = Convolutions()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    rule = TrainedRankPruning(model, optimizer, energy=0.5, period=2)
    weight, projections = model.wide.weight, []
    original = rule.project
    rule.project = lambda: projections.append(rule.iteration) or original()
    for _ in range(5):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        model(X)  # a second forward pass of the same iteration does not project again
        optimizer.step()
    model.eval()
    model(X)
    assert projections == [0, 2, 4] and rule.state_dict() == {"iteration": 5}
    assert model.wide.weight is weight and "momentum_buffer" in optimizer.state[weight]
    other = TrainedRankPruning(Convolutions(), optimizer)
    other.load_state_dict(rule.state_dict())
    assert other.iteration == 5
    rule.detach()
    assert not model._forward_pre_hooks


def test_one_step_is_the_equation():
    model = Convolutions()
    reference = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    rule = TrainedRankPruning(model, optimizer, energy=0.5, period=1, nuclear_weight=0.3)
    model(X).square().mean().backward()
    optimizer.step()
    probe = TrainedRankPruning(
        reference, torch.optim.SGD(reference.parameters(), 0.1), energy=0.5, nuclear_weight=0.3
    )
    probe.project()
    direction = probe._subgradients["wide"]
    probe.detach()
    projected = reference.wide.weight.detach().clone()
    reference(X).square().mean().backward()
    expected = projected - 0.05 * (reference.wide.weight.grad + 0.3 * direction)
    torch.testing.assert_close(model.wide.weight.detach(), expected)
    assert rule.iteration == 1


def test_adam_gets_the_subgradient_beside_its_step():
    with_it, _, _ = train(
        steps=1, optimizer=torch.optim.Adam, lr=0.01, period=1, energy=1.0, nuclear_weight=0.5
    )
    without, _, _ = train(
        steps=1, optimizer=torch.optim.Adam, lr=0.01, period=1, energy=1.0, nuclear_weight=0.0
    )
    s = filter_svd(Convolutions().wide.weight.detach(), "NC")
    direction = (s.U[0] @ s.Vh[0]).reshape(Convolutions().wide.weight.shape)
    change = without.wide.weight - with_it.wide.weight
    torch.testing.assert_close(change.detach(), 0.01 * 0.5 * direction, rtol=1e-3, atol=1e-6)


def test_the_nuclear_norm_shrinks():
    norms = []
    for weight in (0.0, 0.05):
        model, _, _ = train(steps=20, period=1, energy=0.95, nuclear_weight=weight)
        norms.append(float(filter_svd(model.wide.weight.detach(), "NC").S.sum()))
    assert norms[1] < norms[0]


def test_trained_then_factorised_loses_less():
    drops = []
    for rule in (False, True):
        model, found, _ = train(rule=rule, steps=25, energy=0.6, period=1, nuclear_weight=0.01)
        if found is not None:
            found.project()
            found.detach()
        model.eval()
        before = model(X)
        after = compress(model, "trp", energy=0.6 if found is None else 1 - 1e-5)(X)
        drops.append(float((after - before).norm() / before.norm()))
    assert drops[1] < 0.1 * drops[0]


@pytest.mark.parametrize(
    "options", [{"scheme": "HV"}, {"energy": 0.0}, {"energy": 1.5}, {"value": 1.0}, {"value": 0.0}]
)
def test_bad_options(options):
    with pytest.raises(InputError):
        TRP(**options)


def test_bad_models_and_arguments():
    optimizer = torch.optim.SGD(Convolutions().parameters(), 0.1)
    with pytest.raises(InputError, match=r"ratio \(0.3\) and energy \(0.9\) are both given"):
        compress(Convolutions(), "trp", ratio=0.3, energy=0.9)
    with pytest.raises(InputError, match="or give one of budget, energy, value"):
        compress(Convolutions(), "trp")
    with pytest.raises(InputError, match="no rank meets it"):
        compress(Convolutions(), "trp", ratio=0.999)
    with pytest.raises(InputError, match="no convolution can be factorised"):
        compress(nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1)), "trp", ratio=0.3)
    with pytest.raises(InputError, match="no convolution can be projected"):
        TrainedRankPruning(nn.Sequential(nn.Conv2d(3, 16, 3)), optimizer)
    with pytest.raises(InputError, match="none below 0"):
        TrainedRankPruning(Convolutions(), optimizer, period=-1)
    with pytest.raises(InputError, match="compressed already"):
        TrainedRankPruning(compress(Convolutions(), "trp", ratio=0.3), optimizer)
