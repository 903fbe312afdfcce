"""What the equations of the strategies say, beyond the numbers of the parity cases."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from federated_cases import EXACT, STRATEGY_SLUGS, clients, mean_product, same_a

from eckart.errors import InputError
from eckart.federated import (
    STRATEGIES,
    FlexLoRA,
    LayerSum,
    LoRAFAIR,
    aggregate,
    make_strategy,
)
from eckart.federated.lora_fair import Discrepancies, xavier

WEIGHTS = [3.0, 1.0, 5.0, 2.0]


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=atol)


def error(result, exact: torch.Tensor) -> float:
    return float((exact - result.update(*exact.shape).dense()).norm())


def test_the_registry_has_them_all() -> None:
    assert tuple(sorted(STRATEGIES)) == STRATEGY_SLUGS


@pytest.mark.parametrize("slug", EXACT)
@pytest.mark.parametrize("ranks", [(3, 3, 3, 3), (8, 8, 8, 8)], ids=["stacked", "dense"])
def test_exact_strategies_give_the_mean_product(slug: str, ranks: tuple[int, ...]) -> None:
    factors = clients(ranks=ranks)
    result = aggregate(slug, factors, WEIGHTS, 2.5)
    exact = mean_product(factors, WEIGHTS, 2.5)
    close(result.update(*exact.shape).dense(), exact)


@pytest.mark.parametrize("slug", ["fedavg", "flora-stacking", "flexlora"])
def test_ranks_and_scalings_may_differ_where_products_are_averaged(slug: str) -> None:
    factors, scalings = clients(ranks=(1, 4, 2, 3)), [4.0, 1.0, 2.0, 0.5]
    exact = mean_product(factors, WEIGHTS, scalings)
    strategy = FlexLoRA(threshold=1.0) if slug == "flexlora" else slug
    close(aggregate(strategy, factors, WEIGHTS, scalings).update(*exact.shape).dense(), exact)


@pytest.mark.parametrize("slug", ["fedit", "ffa-lora", "lora-fair", "hetlora"])
def test_factor_averages_are_exact_under_one_a(slug: str) -> None:
    factors = same_a(clients())
    strategy = LoRAFAIR(lam=0.0) if slug == "lora-fair" else slug
    exact = mean_product(factors, WEIGHTS, 2.0)
    close(aggregate(strategy, factors, WEIGHTS, 2.0).update(*exact.shape).dense(), exact)


@pytest.mark.parametrize("slug", STRATEGY_SLUGS)
@pytest.mark.parametrize("count", [1, 3])
def test_equal_clients_get_their_own_update(slug: str, count: int) -> None:
    [(a, b)] = clients(ranks=(3,))
    result = aggregate(slug, [(a, b)] * count, [2.0, 5.0, 1.0][:count], 3.0)
    close(result.update(9, 14).dense(), 3.0 * b @ a)


@pytest.mark.parametrize("slug", STRATEGY_SLUGS)
def test_untrained_clients_change_nothing(slug: str) -> None:
    factors = [(a, torch.zeros_like(b)) for a, b in same_a(clients())]
    result = aggregate(slug, factors, WEIGHTS)
    assert not result.update(9, 14).dense().any()


@pytest.mark.parametrize("options", [{"solver": "sgd"}, {"solver": "sgd", "start": "xavier"}, {"lam": 0.0}])
def test_lora_fair_of_untrained_clients_is_zero(options) -> None:
    factors = [(a, torch.zeros_like(b)) for a, b in clients()]
    assert not aggregate(LoRAFAIR(**options), factors, WEIGHTS).b.any()


@pytest.mark.parametrize("slug", STRATEGY_SLUGS)
def test_order_and_unit_of_weights_do_not_matter_and_zero_is_ignored(slug: str) -> None:
    factors = same_a(clients()) if slug == "ffa-lora" else clients()
    one = aggregate(slug, factors, WEIGHTS).update(9, 14).dense()
    turned = aggregate(slug, factors[::-1], WEIGHTS[::-1]).update(9, 14).dense()
    thrice = (
        aggregate(slug, [*factors, clients(seed=9)[0]], [3 * w for w in WEIGHTS] + [0.0])
        .update(9, 14)
        .dense()
    )
    close(turned, one)
    close(thrice, one)


def test_bias_of_the_averages_is_the_covariance_of_the_factors() -> None:
    factors = clients()
    fedit, p = aggregate("fedit", factors, WEIGHTS, 2.0), [w / sum(WEIGHTS) for w in WEIGHTS]
    bias = 2.0 * sum(q * (b - fedit.b) @ (a - fedit.a) for (a, b), q in zip(factors, p, strict=True))
    close(mean_product(factors, WEIGHTS, 2.0) - fedit.update(9, 14).dense(), bias)


def test_ridge_is_orthogonal_and_nearest() -> None:
    factors = clients()
    exact = mean_product(factors, WEIGHTS)
    best = aggregate(LoRAFAIR(lam=0.0), factors, WEIGHTS)
    close((exact - best.b @ best.a) @ best.a.mT, torch.zeros(9, 3, dtype=torch.float64), atol=1e-11)
    errors = [
        error(aggregate(strategy, factors, WEIGHTS), exact)
        for strategy in (LoRAFAIR(lam=0.0), LoRAFAIR(), LoRAFAIR(lam=10.0), "fedit")
    ]
    assert errors == sorted(errors)
    assert errors[-1] > 1.001 * errors[0]
    sgd = error(aggregate(LoRAFAIR(solver="sgd", lr=1.0), factors, WEIGHTS), exact)
    assert errors[0] <= sgd


def test_ridge_does_not_depend_on_the_size_of_the_factors() -> None:
    factors = clients()
    small = [(1e-3 * a, 1e2 * b) for a, b in factors]
    close(
        aggregate("lora-fair", small, WEIGHTS).update(9, 14).dense(),
        0.1 * aggregate("lora-fair", factors, WEIGHTS).update(9, 14).dense(),
    )


def test_large_lambda_is_fedit() -> None:
    factors = clients()
    fedit = aggregate("fedit", factors, WEIGHTS)
    close(aggregate(LoRAFAIR(lam=1e13), factors, WEIGHTS).b, fedit.b, atol=1e-11)
    sgd = LoRAFAIR(solver="sgd", lam=1e6, lr=1e-7, steps=50)
    close(aggregate(sgd, factors, WEIGHTS).b, fedit.b, atol=1e-5)


def test_a_dead_direction_of_a_is_left_alone() -> None:
    factors = [(torch.cat([a[:2], a[:1]]), b) for a, b in clients()]
    result = aggregate(LoRAFAIR(lam=0.0), factors, WEIGHTS)
    exact = mean_product(factors, WEIGHTS)
    close((exact - result.b @ result.a) @ result.a.mT, torch.zeros(9, 3, dtype=torch.float64), atol=1e-11)


@pytest.mark.parametrize("kind", ["matrix", "columns"])
@pytest.mark.parametrize("ranks", [(3,) * 4, (8,) * 4], ids=["stacked", "dense"])
def test_gradient_of_the_discrepancy(kind, ranks: tuple[int, ...]) -> None:
    factors = clients(ranks=ranks)
    for a, _ in factors:
        a[:, 5] = 0.0  # a column that has no direction
    mean, exact = aggregate("fedit", factors, WEIGHTS), mean_product(factors, WEIGHTS)
    slope = Discrepancies(
        aggregate("fedavg" if ranks[0] == 8 else "flora-stacking", factors, WEIGHTS).residual,
        mean.a,
        mean.b,
        kind,
        0.3,
    )
    delta = 0.1 * torch.randn(9, ranks[0], generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    live = torch.arange(14) != 5

    def dense(d: torch.Tensor) -> torch.Tensor:
        product = (mean.b + d) @ mean.a
        cosine = torch.cosine_similarity(
            *(m[:, live] if kind == "columns" else m.reshape(-1, 1) for m in (product, exact)),
            dim=0,
            eps=1e-300,
        )
        return 1 - cosine.mean() + 0.3 * d.square().sum()

    free = delta.clone().requires_grad_()
    loss = dense(free)
    loss.backward()
    assert slope(delta).loss == pytest.approx(float(loss.detach()), abs=1e-13)
    close(slope(delta).gradient, free.grad, atol=1e-13)


def test_the_noisy_start_needs_its_lambda() -> None:
    """The lineage's start leaves its noise in B when nothing pulls it back; from zero, λ = 0 is the better end."""
    factors = clients(96, 64, (8,) * 6, spread=0.3)
    weights = [1.0] * 6
    exact = mean_product(factors, weights)

    def relative(**options) -> float:
        return error(aggregate(LoRAFAIR(solver="sgd", **options), factors, weights), exact) / float(
            exact.norm()
        )

    fedit = error(aggregate("fedit", factors, weights), exact) / float(exact.norm())
    assert relative(lam=0.0) < fedit
    assert relative(lam=0.0, start="xavier") > relative(lam=1.0, start="xavier")


def test_xavier_bound() -> None:
    noise = xavier(200, 3, 0)
    bound = math.sqrt(6 / 203)
    assert bound * 0.99 < noise.abs().max() <= bound
    assert not torch.equal(noise, xavier(200, 3, 1))


@pytest.mark.parametrize("ranks", [(2, 4, 3, 1), (8, 9, 8, 8)], ids=["stacked", "dense"])
def test_flexlora_gives_each_client_the_best_of_its_rank(ranks: tuple[int, ...]) -> None:
    factors = clients(ranks=ranks)
    exact = mean_product(factors, WEIGHTS, 2.0)
    u, s, vh = torch.linalg.svd(exact, full_matrices=False)
    result = aggregate("flexlora", factors, WEIGHTS, 2.0)
    assert len(result.a) == max(ranks)
    for r in range(1, max(ranks) + 1):
        a, b = result.factors_for(torch.zeros(r, 14), 9, scaling=4.0)
        assert (a.shape, b.shape) == ((r, 14), (9, r))
        close(4.0 * b @ a, (u[:, :r] * s[:r]) @ vh[:r])
        close((b.mT @ b).diagonal(), (a @ a.mT).diagonal())


def test_flexlora_threshold_keeps_the_share() -> None:
    factors = clients()
    s = torch.linalg.svdvals(mean_product(factors, WEIGHTS))
    held = s.square().cumsum(0) / s.square().sum()
    for share in (0.5, 0.9, 0.999):
        r = len(aggregate(FlexLoRA(threshold=share), factors, WEIGHTS).a)
        assert held[r - 1] >= share
        assert r == 1 or held[r - 2] < share


def test_hetlora_pads_with_zeros_and_cuts() -> None:
    factors = clients(ranks=(1, 3))
    result = aggregate("hetlora", factors, [1.0, 3.0], 2.0)
    close(result.a[0], 0.25 * factors[0][0][0] + 0.75 * factors[1][0][0])
    close(result.a[1:], 0.75 * factors[1][0][1:])
    close(result.b[:, 1:], 0.75 * factors[1][1][:, 1:])
    a, b = result.factors_for(torch.ones(2, 14), 9, scaling=2.0)
    close(a, result.a[:2])
    close(b, result.b[:, :2])


def test_a_higher_rank_than_the_servers_gets_fresh_rows_that_do_nothing_yet() -> None:
    factors = clients()
    result = aggregate("fedit", factors, WEIGHTS, 2.0)
    fresh = torch.rand(5, 14, dtype=torch.float64)
    a, b = result.factors_for(fresh, 9, scaling=2.0)
    close(a[:3], result.a)
    close(a[3:], fresh[3:])
    assert not b[:, 3:].any()
    close(b @ a, result.b @ result.a)


def test_flora_weights_a_alone_and_keeps_the_stacks() -> None:
    factors = clients(ranks=(8, 9, 8, 8))
    b, a = aggregate("flora-stacking", factors, WEIGHTS).residual.stacks()
    close(b, torch.cat([b for _, b in factors], 1))
    close(a, torch.cat([w / 11 * a for (a, _), w in zip(factors, WEIGHTS, strict=True)]))


def test_fedex_residual_has_the_rank_it_says() -> None:
    result = aggregate("fedex-lora", clients(40, 60), WEIGHTS)
    assert result.residual.stacked_rank == (4 + 1) * 3


@pytest.mark.parametrize(
    ("strategy", "ranks", "scalings", "match"),
    [
        ("fedit", (2, 3), 1.0, r"ranks are \[2, 3\]: fedit"),
        ("lora-fair", (2, 3), 1.0, r"ranks are \[2, 3\]: lora-fair"),
        ("fedex-lora", (3, 3), [1.0, 2.0], r"scalings are \[1\.0, 2\.0\]: fedex-lora"),
        ("hetlora", (2, 3), [1.0, 2.0], r"scalings are \[1\.0, 2\.0\]: hetlora"),
        ("ffa-lora", (3, 3), 1.0, "A differ"),
        ("fedit", (3, 3), -1.0, "scaling is -1.0"),
    ],
)
def test_clients_that_cannot_be_combined(strategy, ranks, scalings, match) -> None:
    with pytest.raises(InputError, match=match):
        aggregate(strategy, clients(ranks=ranks), [1.0, 1.0], scalings)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda f: aggregate("lora-fare", f, WEIGHTS), "did you mean 'lora-fair'"),
        (lambda f: make_strategy("fedit", lam=1), "fedit has no option 'lam'"),
        (lambda f: aggregate("fedit", f, WEIGHTS[:3]), "4 factors, 3 weights"),
        (lambda f: aggregate("fedit", f, [1, 1, 1, -1]), "weight is -1"),
        (lambda f: aggregate("fedit", f, [0, 0, 0, 0]), "no client with a weight above 0"),
        (lambda f: aggregate("fedit", [(f[0][0][:0], f[0][1][:, :0])], [1]), r"r ≥ 1"),
        (lambda f: aggregate("fedit", [(f[0][0], f[0][1][:, :2])], [1]), r"\(3, 14\) and B \(9, 2\)"),
        (lambda f: aggregate("fedit", [f[0], (f[1][0][:, :5], f[1][1])], [1, 1]), r"layer \(9, 5\)"),
        (lambda f: aggregate("fedit", [(f[0][0] * math.nan, f[0][1])], [1]), "NaN"),
        (lambda f: LoRAFAIR(solver="adam"), "solver is 'adam'"),
        (lambda f: LoRAFAIR(lam=-1.0), "lam is -1"),
        (lambda f: LoRAFAIR(lam=math.nan), "lam is nan"),
        (lambda f: LoRAFAIR(lr=0.5), "lr is 0.5: it belongs to solver='sgd'"),
        (lambda f: LoRAFAIR(solver="sgd", steps=0), "steps is 0"),
        (lambda f: LoRAFAIR(solver="sgd", lr=0.0), "lr is 0"),
        (lambda f: FlexLoRA(threshold=1.5), "threshold is 1.5"),
        (lambda f: FlexLoRA(threshold=0.0), "threshold is 0"),
        (lambda f: aggregate(LoRAFAIR(solver="sgd", lr=1e200, lam=1.0, steps=9), f, WEIGHTS), "diverged"),
    ],
)
def test_bad_input(call, match: str) -> None:
    with pytest.raises(InputError, match=match):
        call(clients())


def test_refused_factors_leave_the_sums_as_they_were() -> None:
    sums, factors = LayerSum(), clients()
    sums.add(*factors[0], 2.0)
    before = sums.mean_a().clone(), sums.update().dense().clone()
    with pytest.raises(InputError):
        sums.add(factors[1][0], factors[1][1] * math.inf, 1.0)
    assert sums.clients == 1
    assert torch.equal(sums.mean_a(), before[0])
    assert torch.equal(sums.update().dense(), before[1])


def test_options_of_lora_fair_left_out_are_those_of_the_page() -> None:
    assert dataclasses.asdict(make_strategy("lora-fair")) == {
        "solver": "ridge",
        "lam": 0.01,
        "discrepancy": "matrix",
        "start": "zero",
        "lr": 0.01,
        "steps": 1000,
        "seed": 0,
    }
