"""TriAdaptLoRA: norms, how many modules grow, the doubled diagonal, and resuming."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rule_cases import batch, loss_of, model, resumed_equals_whole, steps, trained
from torch import nn
from torch.optim import SGD, AdamW

from eckart.adapters import walk
from eckart.errors import InputError
from eckart.training import TriAdaptLoRA


def full(**options: object) -> nn.Module:
    return model("lora-core", core="full", **options)


def test_which_gradients_are_zero_at_the_start() -> None:
    for init, zero, nonzero in (("core", "lora_B", "lora_C"), ("factor", "lora_C", "lora_B")):
        m = full(init=init)
        plain = model()
        assert torch.equal(m(batch(0)[0]), plain(batch(0)[0]))
        loss_of(m, 0).backward()
        for *_, adapter in walk(m):
            assert not getattr(adapter, zero).grad.any()
            assert getattr(adapter, nonzero).grad.any()


@pytest.mark.parametrize(("kind", "expected"), [("linear", 5), ("nonlinear", 3), ("fixed", 4)])
def test_how_many_grow(kind: str, expected: int) -> None:
    m = full(r=6)
    rule = TriAdaptLoRA(target_rank=13, rank_growth_model=kind, init_warmup=10).attach(
        m, SGD(trained(m), 0.1), steps=30
    )
    rule.step = 20
    assert rule.target - rule.total == 10
    assert rule.count() == expected


def test_the_norm() -> None:
    m = full()
    optimizer = SGD(trained(m), 0.1)
    rule = TriAdaptLoRA(target_rank=9, norm_by="blocks").attach(m, optimizer, steps=9)
    module = rule.modules[1]
    with torch.no_grad():
        module.adapter.lora_C.fill_(2.0)
    rule.incre_rank_num = 2
    rule.rescale_on_growth = False
    rule.grow(module)
    norms = {}
    for rule.norm_by in ("blocks", "rank"):
        norms[rule.norm_by] = rule.measure()[1].item()
    assert norms == {"blocks": pytest.approx(6.0 / 2), "rank": pytest.approx(6.0 / 3)}


@pytest.mark.parametrize("scaling", ["rank", "constant"])
def test_growing_does_not_move_the_output_and_ends_on_the_target(scaling: str) -> None:
    m = full(scaling=scaling, r=5)
    optimizer = AdamW(trained(m), 0.02, weight_decay=0.1)
    rule = TriAdaptLoRA(target_rank=9, init_warmup=1, incre_interval=2, incre_rank_num=2).attach(
        m, optimizer, steps=20
    )
    grow, jumps = rule.grow, []

    def watched(module: object) -> None:
        with torch.no_grad():
            before = m(batch(77)[0])
            grow(module)
            jumps.append((m(batch(77)[0]) - before).abs().max().item())

    rule.grow = watched
    steps(m, optimizer, 20)
    assert rule.total == 9
    assert jumps
    assert max(jumps) < 1e-12
    rule.detach()
    before = loss_of(m, 9).item()
    m.merge_adapter()
    assert loss_of(m, 9).item() == pytest.approx(before, rel=1e-10)


def test_the_diagonal_steps_twice() -> None:
    cores = {}
    for double in (True, False):
        m = full(r=3)
        optimizer = SGD(trained(m), 0.1)
        rule = TriAdaptLoRA(target_rank=9, init_r=3, double_diagonal=double, reg_orth_coef=0.0)
        rule.attach(m, optimizer, steps=9)
        rule.modules[0].born = torch.tensor([0, 1, 1])
        steps(m, optimizer, 1)
        cores[double] = rule.modules[0].adapter.lora_C.detach().clone()
    same = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 1, 1]]).bool()
    torch.testing.assert_close(cores[True], torch.where(same, 2.0, 1.0) * cores[False])


def test_the_orthogonality_term() -> None:
    m = full(init_weights=False)
    rule = TriAdaptLoRA(target_rank=12, init_r=2, reg_orth_coef=0.3).attach(m, SGD(trained(m), 0.1), steps=9)
    terms = []
    for *_, adapter in walk(m):
        for rows in (adapter.lora_A[:2], adapter.lora_B.t()[:2]):
            terms.append((rows @ rows.t() - torch.eye(2)).norm())
    torch.testing.assert_close(rule.orthogonality(), torch.stack(terms).mean())
    loss_of(m, 0).backward()
    before = rule.modules[0].adapter.lora_A.grad.clone()
    expected = torch.autograd.grad(0.3 * rule.orthogonality(), rule.modules[0].adapter.lora_A)[0]
    rule.add_orthogonality()
    torch.testing.assert_close(rule.modules[0].adapter.lora_A.grad, before + expected)
    assert not expected[2:].any()


def test_what_is_refused() -> None:
    for options, message in (
        ({"top_k": 0}, "top_k is 0"),
        ({"rank_growth_model": "fast"}, "rank_growth_model is 'fast'"),
        ({"norm_by": "size"}, "norm_by is 'size'"),
    ):
        with pytest.raises(InputError, match=message):
            TriAdaptLoRA(**options)
    for make, slug in ((model, "LoRA"), (lambda: model("lora-core"), "CoreLoRA")):
        m = make()
        with pytest.raises(InputError, match=f"does not suit {slug} .* no full core"):
            TriAdaptLoRA().attach(m, SGD(trained(m), 0.1), steps=9)
    m = full()
    with pytest.raises(InputError, match="total_steps is None, and the training's length is not known"):
        TriAdaptLoRA().attach(m, SGD(trained(m), 0.1))
    with pytest.raises(InputError, match="init_warmup is 9, and the training has 9 steps"):
        TriAdaptLoRA(init_warmup=9).attach(m, SGD(trained(m), 0.1), steps=9)
    with pytest.raises(InputError, match="total_steps is 10, longer than the training of 9"):
        TriAdaptLoRA(total_steps=10).attach(m, SGD(trained(m), 0.1), steps=9)
    assert all(adapter.active is None for *_, adapter in walk(m))


@pytest.mark.parametrize("cut", [2, 5])
def test_a_resumed_run_is_the_whole_run(tmp_path: Path, cut: int) -> None:
    def make() -> TriAdaptLoRA:
        return TriAdaptLoRA(target_rank=8, incre_interval=2)

    whole = resumed_equals_whole(tmp_path, make, cut, slug="lora-core", core="full")
    assert whole.total == 7  # the linear rule spends the last of the budget when the training is over
