"""SaRA's schedule: its penalty, its second choice, and a resumed training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import eckart
from eckart.errors import InputError
from eckart.training import get_rule

DOUBLE = torch.float64


def adapted(sides: tuple[int, int] = (66, 70)) -> nn.Module:
    """One layer; a tenth of its weights is chosen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(*sides, dtype=DOUBLE))
    return eckart.adapt(base, "sara", target_modules=["0"], train_bias=True).train()


def rule(model: nn.Module, steps: int | None = 6, lr: float = 0.01, **options):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    return get_rule("sara-selection")(**options).attach(model, optimizer, steps=steps)


def run(model: nn.Module, selection, steps: range, width: int = 66) -> list[Tensor]:
    for step in steps:
        selection.optimizer.zero_grad()
        x = torch.randn(4, width, dtype=DOUBLE, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        selection.optimizer.step()
    return [p.detach().clone() for p in model.parameters() if p.requires_grad]


def adapter_of(selection):
    [adapter] = selection.layers.values()
    return adapter


def test_the_penalty_is_the_gradient_of_the_nuclear_norm() -> None:
    selection = rule(adapted(), lambda_rank=0.5)
    adapter = adapter_of(selection)
    adapter.sara_learn.grad = torch.zeros_like(adapter.sara_learn)
    adapter.sara_learn_bias.grad = torch.zeros_like(adapter.sara_learn_bias)
    selection.before_step()
    assert not adapter.sara_learn_bias.grad.any()
    for place in (0, 100, len(adapter.sara_learn) - 1):
        norms = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                adapter.sara_learn[place] += step
            norms.append(torch.linalg.matrix_norm(selection.chosen_matrix("0"), "nuc").item())
            with torch.no_grad():
                adapter.sara_learn[place] -= step
        wanted = 0.5 * (norms[0] - norms[1]) / 2e-6
        torch.testing.assert_close(adapter.sara_learn.grad[place].item(), wanted, rtol=1e-6, atol=1e-8)


def test_the_penalty_changes_the_training_and_can_be_left_out() -> None:
    with_it, without = (run(m := adapted(), rule(m, lambda_rank=value), range(3)) for value in (0.1, 0.0))
    assert not torch.equal(with_it[0], without[0])


@pytest.mark.parametrize("sides", [(64, 70), (70, 64)])
def test_small_weights_are_left_alone(sides: tuple[int, int]) -> None:
    found = [run(m := adapted(sides), rule(m, lambda_rank=v), range(3), sides[0]) for v in (0.1, 0.0)]
    assert torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize("reset", [True, False])
def test_what_has_grown_stops_at_the_second_choice(reset: bool) -> None:
    model = adapted()
    selection = rule(model, progressive_step=3, reset_state=reset)
    adapter = adapter_of(selection)
    run(model, selection, range(3))
    first = adapter.sara_learn.detach().clone()
    lasting = selection.active["0.sara_learn"]
    assert torch.equal(lasting, first.abs() < selection.bound)
    assert 0 < lasting.sum() < len(lasting)
    assert (adapter.sara_learn in selection.optimizer.state) is not reset
    run(model, selection, range(3, 6))
    assert torch.equal(adapter.sara_learn[~lasting], first[~lasting])
    assert (adapter.sara_learn[lasting] != first[lasting]).all()
    torch.testing.assert_close(
        selection.chosen_matrix("0").flatten()[adapter.sara_learn_index.long()], adapter.sara_learn * lasting
    )


def test_when_the_second_choice_comes() -> None:
    for options, turn in (({}, 3), ({"progressive_step": 5}, 5), ({"progressive_step": 0}, 0)):
        assert rule(adapted(), **options).turn == turn
    model = adapted()
    selection = rule(model, progressive_step=0)
    run(model, selection, range(6))
    assert all(mask.all() for mask in selection.active.values())


@pytest.mark.parametrize("cut", [2, 3, 5])
def test_a_resumed_training_gives_the_same_numbers(cut: int, tmp_path: Path) -> None:
    whole = adapted()
    wanted = run(whole, rule(whole), range(6))
    first = adapted()
    selection = rule(first)
    run(first, selection, range(cut))
    selection.save(tmp_path / "rule.safetensors")
    second = adapted()
    second.load_state_dict(first.state_dict())
    again = rule(second)
    again.optimizer.load_state_dict(selection.optimizer.state_dict())
    again.load(tmp_path / "rule.safetensors")
    found = run(second, again, range(cut, 6))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "threshold is 0.0: give a number above 0"),
        ({"lambda_rank": -1.0}, "lambda_rank is -1.0"),
        ({"lambda_rank": float("nan")}, "lambda_rank is nan"),
        ({"progressive_step": -1}, "progressive_step is -1: give 0 for never"),
        ({"progressive_step": 7}, "progressive_step is 7, beyond the 6 steps"),
        ({"steps": None}, "steps is not given"),
    ],
)
def test_refusals(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        rule(adapted(), **options)


def test_other_adapters_do_not_suit() -> None:
    with pytest.raises(InputError, match="sara-selection does not suit LoRA of layer 0"):
        rule(eckart.adapt(nn.Sequential(nn.Linear(4, 3)), "lora", target_modules=["0"]))
    with pytest.raises(InputError, match="does not fit"):
        rule(adapted()).load_state_dict({})
