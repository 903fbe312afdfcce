"""IncreLoRA: scores, growth that nobody sees, the reserve, the optimiser's view of new directions, and resuming."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from rule_cases import batch, loss_of, model, resumed_equals_whole, steps, trained
from torch.optim import SGD, Adam, AdamW

from eckart.adapters import walk
from eckart.errors import InputError
from eckart.training import IncreLoRA, TriAdaptLoRA

CASES = pytest.mark.parametrize("slug", ["lora", "lora-core", "svfit"])


@pytest.mark.parametrize("route", ["factored", "folded"])
@pytest.mark.parametrize(
    ("score", "norm"), [("importance", "root"), ("importance", "mean"), ("grad", "root")]
)
def test_the_score_is_that_of_the_dense_gradient(route: str, score: str, norm: str) -> None:
    m = model(init_weights=False, route=route)
    optimizer = SGD(trained(m), 0.0)
    rule = IncreLoRA(score=score, score_norm=norm, init_r=4, target_rank=12, score_window=3000).attach(
        m, optimizer
    )
    assert not rule.growing
    rule.target = 13  # nothing may grow, everything is scored
    rule.modules[0].rank = 3
    rule._listen()
    steps(m, optimizer, 1)
    plain = model(init_weights=False, route="folded")
    for _, layer, _, _ in walk(plain):
        layer.base_layer.weight.requires_grad_()
    loss_of(plain, 0).backward()
    for (_, layer, _, adapter), found in zip(walk(plain), rule.last, strict=True):
        gradient, n = (
            layer.base_layer.weight.grad,
            adapter.layer.shape.out_features * adapter.layer.shape.in_features,
        )
        if score == "grad":
            expected = gradient.square().mean()
        else:
            total = (adapter.delta_weight() * gradient).abs().sum()
            expected = total / (math.sqrt(n) if norm == "root" else n)
        torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=0)


def test_the_averages() -> None:
    m = model()
    rule = IncreLoRA(beta1=0.85, beta2=0.5).attach(m, SGD(trained(m), 0.1))
    rule.last = torch.ones(3, dtype=torch.float64)
    for n in range(1, 4):
        rule._smooth()
        torch.testing.assert_close(rule.exp_avg_ipt, torch.full((3,), 1 - 0.85**n, dtype=torch.float64))
        if n == 1:
            torch.testing.assert_close(rule.exp_avg_unc, torch.full((3,), 0.5 * 0.85, dtype=torch.float64))


@CASES
def test_growing_does_not_move_the_output_and_ends_on_the_target(slug: str) -> None:
    m = model(slug)
    optimizer = AdamW(trained(m), 0.05, weight_decay=0.1)
    rule = IncreLoRA(target_rank=8, init_warmup=2, incre_interval=2, top_h=2, reg_orth_coef=0.0)
    rule.attach(m, optimizer, steps=20)
    assert rule.ranks == dict.fromkeys(rule.ranks, 1)
    grow, jumps = rule.grow, []

    def watched(module: object) -> None:
        with torch.no_grad():
            before = m(batch(77)[0])
            grow(module)
            jumps.append((m(batch(77)[0]) - before).abs().max().item())

    rule.grow = watched
    for step in range(20):
        steps(m, optimizer, 1, start=step)
        assert 3 <= rule.total <= 8
    assert rule.total == 8
    assert len(jumps) >= 3
    reserve = 1e-5 if slug == "lora-core" else 1e-12  # a direction in reserve counts with E = 1e-5
    assert max(jumps) < reserve
    assert {a.active_rank for *_, a in walk(m)} == set(rule.ranks.values())
    rule.detach()
    before = loss_of(m, 9).item()
    m.merge_adapter()
    assert loss_of(m, 9).item() == pytest.approx(before, rel=1e-10)


def test_without_rescaling_the_update_shrinks_as_the_rank_grows() -> None:
    m = model("lora-core", init_weights=False)
    optimizer = SGD(trained(m), 0.1)
    rule = IncreLoRA(target_rank=5, rescale_on_growth=False, advance_learn=False).attach(m, optimizer)
    module = rule.modules[0]
    with torch.no_grad():
        module.adapter.lora_E[1:] = 0
    before = module.adapter.delta_weight()
    rule.grow(module)
    torch.testing.assert_close(module.adapter.delta_weight(), before * (1 + 1e-5) / (2 + 1e-5))


def test_the_reserve() -> None:
    m = model("lora-core", r=5)
    optimizer = Adam(trained(m), 0.05)
    rule = IncreLoRA(target_rank=6, init_warmup=1, incre_interval=3, top_h=1).attach(m, optimizer, steps=30)
    steps(m, optimizer, 2)
    for module in rule.modules:
        assert module.adapter.active.tolist() == [True, True, False, False, False]
        assert module.adapter.lora_E[1].item() == 1e-5  # trained ahead, not counted
        assert optimizer.state[module.adapter.lora_A]["exp_avg"][1].any()
        assert not optimizer.state[module.adapter.lora_E]["exp_avg"][1].any()
        assert not optimizer.state[module.adapter.lora_A]["exp_avg"][2].any()
        assert module.adapter.scale == 16 / (1 + 1e-5)
    steps(m, optimizer, 20, start=2)
    assert rule.total == 6
    for module in rule.modules:
        assert not module.adapter.lora_E[module.rank :].any()
        assert module.adapter.active_rank == module.rank
        assert module.adapter.lora_E[: module.rank].all()


def test_a_new_direction_steps_as_with_an_optimiser_of_its_own() -> None:
    """The first Adam step of a number is its learning rate, however long others have been trained."""
    m = model("lora")
    optimizer = AdamW(trained(m), 0.01, weight_decay=0.0)
    rule = IncreLoRA(target_rank=12, init_warmup=10, incre_interval=12, top_h=3).attach(
        m, optimizer, steps=200
    )
    steps(m, optimizer, 13)
    assert rule.total == 6
    adapter = rule.modules[0].adapter
    before = adapter.lora_B[:, 1].detach().clone()
    waiting = adapter.lora_A[2:].detach().clone()
    steps(m, optimizer, 1, start=13)
    moved = (adapter.lora_B[:, 1] - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01), rtol=1e-3, atol=0)
    assert torch.equal(adapter.lora_A[2:], waiting)


def test_the_warm_up_of_new_directions() -> None:
    m = model()
    rule = IncreLoRA(warmup=4).attach(m, SGD(trained(m), 0.1), steps=104)
    group = {"lr": 0.1, "initial_lr": 0.2}
    assert rule._warm(group, 0, 60) == 0.0
    assert rule._warm(group, 2, 60) == pytest.approx(0.5 * 2)
    assert rule._warm(group, 4, 60) == pytest.approx(1.0 * 2)
    assert rule._warm(group, 24, 60) == pytest.approx(20 / 40 * 2)
    assert rule._warm(group, 50, 60) == 0.0


def test_the_budget_is_met_where_steps_do_not_divide_it() -> None:
    for strict in (True, False):
        m = model(r=8)
        optimizer = SGD(trained(m), 0.1)
        rule = IncreLoRA(
            target_rank=10, incre_rank_num=3, init_warmup=0, incre_interval=1, top_h=3, strict_budget=strict
        ).attach(m, optimizer)
        steps(m, optimizer, 6)
        assert rule.total == (10 if strict else 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_rank": 2}, r"target_rank is 2: give a sum of ranks from 3 \(where 3 layers start\) to 12"),
        ({"target_rank": 13}, "target_rank is 13"),
        ({"init_r": 5}, "layer blocks.0.lin has 4 directions, and the rule starts with 5"),
        ({"init_warmup": 20}, r"growth takes 20 \+ 1 × \d+ steps, longer than the training of 20"),
        ({"advance_learn": True}, "the adapter has no diagonal core"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changes(options: dict[str, int], message: str) -> None:
    m = model()
    with pytest.raises(InputError, match=message):
        IncreLoRA(**options).attach(m, SGD(trained(m), 0.1), steps=20)
    assert all(adapter.active is None and layer.companions == {} for _, layer, _, adapter in walk(m))


def test_more_that_is_refused() -> None:
    for options, message in (
        ({"beta1": 1.0}, r"beta1 is 1\.0"),
        ({"top_h": 0}, "top_h is 0"),
        ({"incre_rank_num": 0}, "incre_rank_num is 0"),
        ({"score": "size"}, "score is 'size'"),
        ({"warmup": -1}, "warmup is -1"),
    ):
        with pytest.raises(InputError, match=message):
            IncreLoRA(**options)
    m = model("mos", r=None)
    with pytest.raises(InputError, match=r"does not suit MoS .* no directions that start at zero"):
        IncreLoRA().attach(m, SGD(trained(m), 0.1))
    m = model("lora-core", core="full")
    optimizer = SGD(trained(m), 0.1)
    rule = IncreLoRA().attach(m, optimizer)
    with pytest.raises(InputError, match="rule triadaptlora cannot act beside rule increlora"):
        TriAdaptLoRA().attach(m, optimizer, steps=9)
    state = rule.state_dict()
    with pytest.raises(
        InputError, match="target_rank is 6, and the run that is resumed had 7: give the same"
    ):
        rule.load_state_dict(state | {"target": torch.tensor(7)})
    with pytest.raises(InputError, match="is of another model"):
        rule.load_state_dict({k: v for k, v in state.items() if not k.startswith("blocks.1")})


@pytest.mark.parametrize("slug", ["lora", "lora-core"])
@pytest.mark.parametrize("cut", [2, 5])
def test_a_resumed_run_is_the_whole_run(tmp_path: Path, slug: str, cut: int) -> None:
    def make() -> IncreLoRA:
        return IncreLoRA(target_rank=7, init_warmup=1, incre_interval=2, top_h=2, warmup=2)

    whole = resumed_equals_whole(tmp_path, make, cut, slug=slug)
    assert whole.total == 7


@pytest.mark.parametrize(
    ("target", "rounds", "steps", "first", "interval"),
    [
        (3, 0, 100, 10, 50),  # nothing to grow
        (4, 1, 100, 10, 50),
        (7, 4, 100, 10, 12),
        (9, 6, 20, 2, 1),
        (9, 6, 10, 1, 1),
        (7, 4, None, 1000, 1000),
    ],
)
def test_growth_begins_after_a_tenth_and_ends_after_six_tenths(
    target, rounds, steps, first, interval
) -> None:
    m = model()
    rule = IncreLoRA(target_rank=target, top_h=1).attach(m, SGD(trained(m), 0.1), steps=steps)
    assert (rule.rounds(), rule.first, rule.interval) == (rounds, first, interval)


def test_growth_that_takes_longer_than_the_training_is_refused() -> None:
    """The last round is at step 1 + 2 · 3 + 1 = 8 of the steps 0 … 8."""

    def attached(length: int) -> IncreLoRA:
        m = model()
        rule = IncreLoRA(target_rank=7, top_h=1, init_warmup=1, incre_interval=2)
        return rule.attach(m, SGD(trained(m), 0.1), steps=length)

    assert attached(9).interval == 2
    with pytest.raises(InputError, match=r"growth takes 1 \+ 4 × 2 steps, longer than the training of 8"):
        attached(8)
