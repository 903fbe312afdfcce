"""SNELLA's allocation: its schedule, how it shares weights out, and a resumed training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import eckart
from eckart.errors import InputError
from eckart.training import get_rule
from eckart.training.snella_allocation import share_out

DOUBLE = torch.float64


def adapted(sparsity: float = 0.05) -> nn.Module:
    """Three layers of 120, 240 and 160 weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 8))
    return eckart.adapt(base, "snella", r=4, sparsity=sparsity, target_modules=["0", "2", "4"]).train()


def optimiser(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)


def rule(model: nn.Module, steps: int = 8, **options):
    settings = {"target_sparsity": 0.7, "initial_warmup": 1, "final_warmup": 2, "interval": 2} | options
    return get_rule("snella-allocation")(**settings).attach(model, optimiser(model), steps=steps)


def test_the_schedule_of_the_authors_code() -> None:
    allocation = rule(adapted())
    assert [allocation.volume(t) for t in range(8)] == [494, 494, 329, 229, 177, 158, 156, 156]
    assert [t for t in range(8) if allocation.reallocates(t)] == [2, 4, 6, 7]
    volumes = [allocation.volume(t) for t in range(20)]
    assert volumes == sorted(volumes, reverse=True)


@pytest.mark.parametrize("scores", [[1, 1, 1], [1, 0, 0], [0, 0, 1], [1e-9, 1, 1e-9], [3, 1, 0]])
@pytest.mark.parametrize("volume", [0, 1, 100, 495, 519, 520])
def test_what_is_shared_out_fits(scores: list[float], volume: int) -> None:
    sizes, weights = torch.tensor([120, 240, 160], dtype=DOUBLE), torch.tensor(scores, dtype=DOUBLE)
    shares = share_out(volume, weights / weights.sum(), sizes)
    assert (shares >= 0).all() and (shares <= sizes).all() and torch.equal(shares, shares.round())
    reachable = min(volume, float(sizes[weights > 0].sum()))
    assert reachable - len(sizes) <= shares.sum() <= reachable


def test_equal_scores_give_equal_shares_and_more_importance_more() -> None:
    sizes = torch.tensor([200, 200, 200], dtype=DOUBLE)
    assert share_out(300, torch.full((3,), 1 / 3, dtype=DOUBLE), sizes).tolist() == [100, 100, 100]
    model = adapted()
    allocation = rule(model, initial_warmup=0, interval=1)
    for name, adapter in allocation.layers.items():
        for parameter in (adapter.in_qs, adapter.out_qs):
            scale = 10 if name.endswith("4") else 1
            parameter.grad = scale / parameter.detach().clamp(min=1e-3).abs()
    allocation.before_step()
    allocation.step = 1
    allocation.after_step()
    shares = {name: 1 - adapter.sparsity for name, adapter in allocation.layers.items()}
    assert max(shares, key=shares.__getitem__).endswith("4")


def test_live_weights_follow_the_volume() -> None:
    model = adapted()
    allocation, optimizer = rule(model, initial_warmup=0, interval=1), None
    optimizer = allocation.optimizer
    for step in range(1, 7):
        optimizer.zero_grad()
        model(torch.randn(4, 10, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()
        live = sum(int((a.delta_weight() != 0).sum()) for a in allocation.layers.values())
        assert abs(live - allocation.volume(step)) <= 2 * len(allocation.layers)


def test_importance_and_its_uncertainty_are_moving_averages() -> None:
    """Ī ← β₁ Ī + (1 − β₁) I and Ū ← β₂ Ū + (1 − β₂) |I − Ī|, I = |θ · ∂L/∂θ|."""
    allocation = rule(adapted(), beta1=0.8, beta2=0.3)
    layer, adapter = next(iter(allocation.layers.items()))
    mean = spread = torch.zeros_like(adapter.out_qs)
    for seed in (1, 2, 3):
        adapter.out_qs.grad = torch.randn(adapter.out_qs.shape, generator=torch.Generator().manual_seed(seed))
        allocation.before_step()
        now = (adapter.out_qs.detach() * adapter.out_qs.grad).abs()
        mean = 0.8 * mean + 0.2 * now
        spread = 0.3 * spread + 0.7 * (now - mean).abs()
        torch.testing.assert_close(allocation.statistics[f"{layer}.out_qs.importance"], mean)
        torch.testing.assert_close(allocation.statistics[f"{layer}.out_qs.uncertainty"], spread)


def test_without_any_gradient_all_layers_share_alike() -> None:
    allocation = rule(adapted(), initial_warmup=0)
    allocation.allocate(2)
    torch.testing.assert_close(allocation.scores, torch.full((3,), 1 / 3, dtype=DOUBLE))


def test_a_gradient_that_is_not_a_number_counts_as_nothing() -> None:
    allocation = rule(adapted())
    for adapter in allocation.layers.values():
        adapter.in_qs.grad = torch.full_like(adapter.in_qs, float("nan"))
    allocation.before_step()
    assert all(torch.equal(value, torch.zeros_like(value)) for value in allocation.statistics.values())


def run(model: nn.Module, allocation, steps: range) -> list[Tensor]:
    for step in steps:
        allocation.optimizer.zero_grad()
        model(torch.randn(4, 10, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        allocation.optimizer.step()
    return [p.detach().clone() for p in model.parameters() if p.requires_grad]


def test_a_resumed_training_gives_the_same_numbers(tmp_path: Path) -> None:
    whole = adapted()
    wanted = run(whole, rule(whole), range(8))
    first = adapted()
    allocation = rule(first)
    run(first, allocation, range(5))
    allocation.save(tmp_path / "rule.safetensors")
    second = adapted()
    second.load_state_dict(first.state_dict())
    again = rule(second)
    again.load(tmp_path / "rule.safetensors")
    assert again.step == 5
    found = run(second, again, range(5, 8))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_sparsity": 1.0}, "target_sparsity is 1.0"),
        ({"target_sparsity": 0.01}, "target_sparsity is 0.01, below the sparsity of the start, 0.05"),
        ({"every": 0}, "every is 0: give at least 1"),
        ({"beta1": 1.0}, "beta1 is 1.0"),
        ({"initial_warmup": 6}, "8 steps are 8 rounds of 1, no more than the warm-ups of 6 and 2"),
        ({"steps": None}, "steps is not given"),
    ],
)
def test_refusals(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        rule(adapted(), **options)


def test_other_adapters_do_not_suit() -> None:
    base = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(InputError, match="snella-allocation does not suit LoRA of layer 0"):
        rule(eckart.adapt(base, "lora", target_modules=["0"]))


def test_the_state_of_another_model() -> None:
    allocation = rule(adapted())
    with pytest.raises(InputError, match="does not fit"):
        allocation.load_state_dict({})
