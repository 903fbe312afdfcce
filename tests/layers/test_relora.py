"""ReLoRA: what trains when, restarts that change no output, moments, rates, resuming, bad input."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.optim import SGD, AdamW, Optimizer

from eckart.errors import InputError
from eckart.layers import ReLoRA, ReLoRALinear, convert, to_dense
from eckart.layers.relora import keep_largest
from eckart.optim import DCTAdamW, Spectron, Together, Trion, hidden_groups

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(5))


def network(r: int = 2, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10, bias=False), nn.Tanh(), nn.Linear(10, 4)).to(dtype)
    return convert(model, "relora", target_modules=r"\d", r=r, **{"lora_alpha": 3.0, **options})


def step(model: Any, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    (model(X.to(model[0].weight.dtype)) - X[:, :4].sin()).square().mean().backward()
    optimizer.step()


def short(**given: Any) -> ReLoRA:
    return ReLoRA(**{"restart_every": 3, "warm_start": 2, "rewarm": 2, **given})


def test_it_starts_as_the_dense_layer_with_a_of_the_seed() -> None:
    linear = nn.Linear(6, 10)
    layer, same, other = (ReLoRALinear.from_linear(linear, key, r=3, lora_alpha=6) for key in (4, 4, 5))
    assert torch.equal(layer(X), linear(X)) and not layer.lora_B.any()
    assert torch.equal(layer.lora_A, same.lora_A) and not torch.equal(layer.lora_A, other.lora_A)
    wide = ReLoRALinear(400, 30, r=20).lora_A.detach()
    assert 0.98 / 20 < float(wide.max()) <= 1 / 20 and -1 / 20 <= float(wide.min()) < -0.98 / 20
    assert abs(float(wide.var()) / (1 / 400 / 3) - 1) < 0.05


def test_the_weight_is_w_plus_scaled_product_on_an_unsymmetric_layer() -> None:
    layer = ReLoRALinear(6, 10, r=3, lora_alpha=6, dtype=torch.float64)
    with torch.no_grad():
        for i, p in enumerate(layer.parameters()):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i), dtype=p.dtype))
    whole = layer.weight + 2.0 * layer.lora_B @ layer.lora_A
    torch.testing.assert_close(layer.dense_weight(), whole)
    x = X.double()
    torch.testing.assert_close(layer(x), x @ whole.mT + layer.bias)
    layer.warm = True
    torch.testing.assert_close(layer(x), x @ layer.weight.mT + layer.bias)


def test_a_restart_leaves_the_function_and_begins_new_factors() -> None:
    model = network(dtype=torch.float64)
    optimizer = SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        step(model, optimizer)
    layer, before = model[0], model(X.double())
    first, weight = layer.lora_A.clone(), layer.weight.clone()
    assert layer.lora_B.abs().min() > 0
    layer.restart(1)
    torch.testing.assert_close(model(X.double()), before, rtol=0, atol=1e-14)
    assert not layer.lora_B.any() and not torch.equal(layer.lora_A, first)
    assert not torch.equal(layer.weight, weight)
    drawn = layer.lora_A.clone()
    layer.restart(2)
    assert not torch.equal(layer.lora_A, drawn)


def test_what_trains_and_what_moments_are_held() -> None:
    model = network()
    optimizer = AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    rule = short(prune=0.75).attach(model, optimizer)
    layer, moment = model[0], lambda p: optimizer.state.get(p, {}).get("exp_avg")
    merged = []
    for t in range(1, 9):
        held = [layer.weight.clone(), layer.lora_A.clone()]
        step(model, optimizer)
        warm, restarted = t < 2, t in (5, 8)
        assert layer.weight.requires_grad is warm and layer.lora_A.requires_grad is not warm
        assert layer.warm is warm and (moment(layer.weight) is None) is not warm
        assert torch.equal(layer.weight, held[0]) is (not (t <= 2 or restarted))
        assert torch.equal(layer.lora_A, held[1]) is (t in (1, 2, 3, 4, 6))  # rates of zero, and B zero
        if t > 2:
            count = int((moment(layer.lora_B) != 0).sum())
            assert 5 <= count <= 10 if restarted else count == 20
        if restarted:
            merged.append(layer.lora_B.any().item())
            assert float(optimizer.state[layer.lora_B]["step"]) == t - 2
    assert merged == [False, False] and rule.step == 8
    assert moment(model[2].bias).count_nonzero() == 4  # of what is no factor nothing is pruned


@pytest.mark.parametrize(("share", "left"), [(0.01, 1), (0.5, 50), (0.0, 0), (1.0, 100)])
def test_the_largest_numbers_of_a_moment_stay(share: float, left: int) -> None:
    values = torch.randperm(100, generator=torch.Generator().manual_seed(0)).float().sub(49.25).view(4, 25)
    before = values.clone()
    keep_largest([values], share)
    assert int((values != 0).sum()) == left
    assert torch.equal(values[values != 0], before[values != 0])
    if 0 < left < 100:
        assert before[values != 0].abs().min() > before[values == 0].abs().max()


def test_the_moments_of_an_entry_stay_or_go_together() -> None:
    first, second = torch.tensor([[3.0, -4.0], [0.1, 2.0]]), torch.tensor([[1.0, 2.0], [9.0, 3.0]])
    keep_largest([first, second], 0.25)
    assert first.tolist() == [[0.0, -4.0], [pytest.approx(0.1), 0.0]] and second.tolist() == [
        [0.0, 2.0],
        [9.0, 0.0],
    ]


def test_a_restart_at_a_large_rate_ruins_nothing() -> None:
    """The gradient of A is zero until B has moved: a first moment without its second would be divided by ε."""
    model = network()
    optimizer = AdamW(model.parameters(), lr=0.02, betas=(0.9, 0.95))
    ReLoRA(restart_every=25, rewarm=5).attach(model, optimizer)
    losses = []
    for _ in range(100):
        step(model, optimizer)
        losses.append((model(X) - X[:, :4].sin()).square().mean().item())
    assert max(losses[60:]) < 2 * losses[49] < losses[0]


def test_without_moments_the_state_begins_anew() -> None:
    model = network()
    optimizer = AdamW(model.parameters(), lr=0.02)
    short(prune=1).attach(model, optimizer)
    for _ in range(6):
        step(model, optimizer)
    assert [float(optimizer.state[p]["step"]) for p in (*model[0].factors, model[2].bias)] == [1, 1, 6]


def test_the_rate_rises_again_after_the_warm_start_and_every_restart() -> None:
    model = network()
    optimizer = AdamW(model.parameters(), lr=0.5)
    rule, seen = short(), []
    rule.attach(model, optimizer)
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
    for _ in range(9):
        step(model, optimizer)
    assert seen == [0.5, 0.5, 0.0, 0.25, 0.5, 0.0, 0.25, 0.5, 0.0]
    assert optimizer.param_groups[0]["lr"] == 0.5
    rule.detach()
    rule.step = 2
    step(model, optimizer)
    assert seen[-1] == 0.5


def test_without_a_warm_start_the_weight_rests_from_the_first_step() -> None:
    model = network()
    held = [p for n, p in model.named_parameters() if n not in ("0.weight", "2.weight")]
    rule = short(warm_start=0)
    rule.attach(model, AdamW(held, lr=0.1))
    weight = model[0].weight.clone()
    assert [rule.share(t) for t in range(7)] == [1.0, 1.0, 1.0, 0.0, 0.5, 1.0, 0.0]
    step(model, rule.optimizer)
    assert torch.equal(model[0].weight, weight) and model[0].weight.grad is None
    assert model[0].lora_B.any()


@pytest.mark.parametrize(
    ("steps", "lengths"), [(20_000, (5000, 5000, 100)), (40, (10, 10, 1)), (8, (2, 2, 1)), (3, (1, 1, 0))]
)
def test_lengths_are_the_papers_shares_of_the_training(steps: int, lengths: tuple[int, int, int]) -> None:
    assert ReLoRA()._lengths(steps) == lengths


def test_a_run_that_is_resumed_across_a_restart_ends_with_the_same_bits(tmp_path: Path) -> None:
    def begun() -> tuple[Any, AdamW, ReLoRA]:
        model = network()
        optimizer = AdamW(model.parameters(), lr=0.02)
        return model, optimizer, short().attach(model, optimizer, steps=12)

    whole, optimizer, _ = begun()
    for _ in range(12):
        step(whole, optimizer)
    for stop in (1, 2, 4, 5):
        model, optimizer, rule = begun()
        for _ in range(stop):
            step(model, optimizer)
        rule.save(tmp_path / "rule.safetensors")
        state = model.state_dict(), optimizer.state_dict()
        model, optimizer, rule = begun()
        model.load_state_dict(state[0])
        optimizer.load_state_dict(state[1])
        rule.load(tmp_path / "rule.safetensors")
        for _ in range(12 - stop):
            step(model, optimizer)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True)), (
            stop
        )
    model = network()
    other = short(rewarm=1).attach(model, AdamW(model.parameters()))
    with pytest.raises(
        InputError, match=r"relora has restart_every, warm_start and rewarm \[3, 2, 2\], here they are"
    ):
        other.load(tmp_path / "rule.safetensors")


def joined(model: nn.Module) -> Optimizer:
    factors = [p for n, p in model.named_parameters() if "lora" in n]
    rest = [p for n, p in model.named_parameters() if "lora" not in n]
    return Together([AdamW(factors, lr=0.02), SGD(rest, lr=0.02)])


@pytest.mark.parametrize(
    ("make", "moment"),
    [
        (joined, "exp_avg"),
        (lambda m: Trion(hidden_groups(m), lr=0.01, rank=2), "momentum_buffer"),
        (lambda m: DCTAdamW(hidden_groups(m), lr=0.01, rank=1), None),
        (Spectron, None),
    ],
)
def test_moments_of_any_optimiser_are_pruned_or_begin_anew(make: Any, moment: str | None) -> None:
    model = network()
    optimizer = make(model)
    short().attach(model, optimizer)
    states = [one.state for one in getattr(optimizer, "inner", [optimizer])]
    for t in range(1, 8):
        step(model, optimizer)
        held = [state[p] for state in states for p in model[0].factors if state.get(p)]
        assert not any(state.get(model[0].weight) for state in states) or t < 2
        if t == 5:
            counts = [int((state[moment] != 0).sum()) for state in held] if moment else len(held)
            assert all(1 <= n <= 2 for n in counts) and len(counts) == 2 if moment else counts == 0
    assert len(held) == 2 and all(bool(p.isfinite().all()) for p in model.parameters())


def test_dense_again_is_merged_and_trains() -> None:
    model = network()
    optimizer = AdamW(model.parameters(), lr=0.02)
    short().attach(model, optimizer)
    for _ in range(7):
        step(model, optimizer)
    before = model(X)
    dense = to_dense(model)
    assert type(dense[0]) is nn.Linear and all(p.requires_grad for p in dense.parameters())
    torch.testing.assert_close(dense(X), before, rtol=0, atol=1e-6)


def test_half_precision_and_autocast() -> None:
    layer = ReLoRALinear(6, 10, r=2, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.lora_B.normal_(generator=torch.Generator().manual_seed(0))
    before = layer.dense_weight()
    assert before.dtype == torch.float32 and layer(X.bfloat16()).dtype == torch.bfloat16
    layer.restart(1)
    torch.testing.assert_close(layer.weight.float(), before, rtol=2**-8, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert network()(X).dtype == torch.bfloat16


@pytest.mark.compiled
def test_a_restart_is_no_other_program() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.02)
    short().attach(model, optimizer)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    for t in range(1, 9):
        optimizer.zero_grad()
        compiled(X).square().mean().backward()
        optimizer.step()
        if t == 3:
            programs = counter.frame_count
    assert counter.frame_count == programs  # of the warm start and after it, not one for each restart


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"restart_every": 0}, "restart_every is 0: give a whole number of at least 1"),
        ({"restart_every": 2.5}, r"restart_every is 2\.5: give a whole number"),
        ({"warm_start": -1}, "warm_start is -1: give a whole number of at least 0"),
        ({"rewarm": -1}, "rewarm is -1: give a whole number of at least 0"),
        ({"prune": 1.1}, r"prune is 1\.1: give a share in \[0, 1\]"),
        ({"prune": math.nan}, "prune is nan"),
    ],
)
def test_options_out_of_range_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ReLoRA(**given)


@pytest.mark.parametrize(
    ("given", "steps", "message"),
    [
        ({}, None, "restart_every is None: give it, or the steps of the training"),
        ({"restart_every": 3}, 6, "restart_every=3 after warm_start=3: the training ends after 6 steps"),
        ({"restart_every": 3, "rewarm": 3}, None, "rewarm=3: a restart comes every 3 steps; give less"),
    ],
)
def test_lengths_that_cannot_be_are_refused(given: dict[str, Any], steps: int | None, message: str) -> None:
    model = network()
    optimizer = AdamW(model.parameters())
    with pytest.raises(InputError, match=message):
        ReLoRA(**given).attach(model, optimizer, steps=steps)
    assert not model[0].warm and all(p.requires_grad for p in model.parameters())
    assert ReLoRA(restart_every=3).attach(model, optimizer, steps=7).layers.keys() == {"0", "2"}


def test_wrong_models_and_optimisers_are_refused() -> None:
    model = network()
    with pytest.raises(InputError, match="Linear has no ReLoRA layer"):
        short().attach(nn.Linear(2, 2), AdamW(model.parameters()))
    with pytest.raises(InputError, match="the optimiser does not hold all of 0"):
        short().attach(model, AdamW([p for n, p in model.named_parameters() if n != "0.weight"]))
    rule = short().attach(model, AdamW(model.parameters()))
    with pytest.raises(InputError, match="attached already"):
        rule.attach(model, AdamW(model.parameters()))
    with pytest.raises(InputError, match="x has 5 features"):
        model[0].warm = False
        model[0](torch.ones(2, 5))


def test_an_accelerate_wrapper_is_looked_through() -> None:
    class Wrapped(Optimizer):
        def __init__(self, optimizer: Optimizer) -> None:
            self.optimizer = optimizer

    model = network()
    optimizer: Any = Wrapped(AdamW(model.parameters()))
    assert short().attach(model, optimizer).optimizer is optimizer.optimizer


def test_rates_that_are_tensors_stay_the_same_tensors() -> None:
    model = network()
    rate = torch.tensor(0.5)
    optimizer = SGD(model.parameters(), lr=rate)
    short().attach(model, optimizer)
    seen: list[float] = []
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(float(o.param_groups[0]["lr"])))
    for _ in range(4):
        step(model, optimizer)
    assert seen == [0.5, 0.5, 0.0, 0.25] and optimizer.param_groups[0]["lr"] is rate and float(rate) == 0.5
