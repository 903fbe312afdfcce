"""Optimisers by name: what each makes of the groups, what is left to AdamW, packages that are missing."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart.errors import InputError
from eckart.jobs.pretrain.memory import measured, predicted
from eckart.optim import Together
from eckart.tasks.optimizers import OPTIMIZERS, check_resumable, make_optimizer

PACKAGES = {"galore-torch": "galore_torch", "apollo": "apollo_torch"}
SMALL: dict[str, dict[str, Any]] = {"dct-adamw": {"rank": 2}, "galore": {"rank": 2}}
SMALL |= {"trion": {"rank": 2, "adamw_scale": 1.0}} | {name: {"rank": 2, "eps": 1e-8} for name in PACKAGES}


def net() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"body": nn.Linear(6, 9), "head": nn.Linear(9, 4)})


def groups(model: Any) -> list[dict[str, Any]]:
    return [
        {"params": list(model["body"].parameters()), "weight_decay": 0.1},
        {"params": list(model["head"].parameters()), "lr": 0.05, "low_rank": False},
    ]


def train(model: Any, optimizer: torch.optim.Optimizer, steps: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(16, 6, generator=generator)
        optimizer.zero_grad()
        model["head"](torch.tanh(model["body"](x))).square().mean().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def installed(name: str) -> None:
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_moves_everything_and_leaves_the_head_to_adamw(name: str) -> None:
    installed(name)
    model, other = net(), net()
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    moved = train(model, make_optimizer(name, groups(model), 0.01, SMALL.get(name, {})), 1)
    plain = train(other, torch.optim.AdamW(other.parameters(), lr=0.05, weight_decay=0.0), 1)
    assert bool((moved != start).all())
    torch.testing.assert_close(moved[-40:], plain[-40:], rtol=0, atol=1e-5)  # 9 · 4 + 4 numbers of the head


def test_adamw_is_torchs_with_the_groups_rates_and_decays() -> None:
    model, other = net(), net()
    got = train(model, make_optimizer("adamw", groups(model), 0.01, {"betas": (0.8, 0.9)}))
    given = [
        {**g, "lr": g.get("lr", 0.01), "weight_decay": g.get("weight_decay", 0.0)} for g in groups(other)
    ]
    assert torch.equal(got, train(other, torch.optim.AdamW(given, betas=(0.8, 0.9))))


def test_muon_is_torchs_on_the_matrix_and_adamw_elsewhere() -> None:
    model, other = net(), net()
    optimizer = make_optimizer("muon", groups(model), 0.01, {"momentum": 0.5})
    weight, bias = other["body"].weight, other["body"].bias
    muon = torch.optim.Muon([weight], lr=0.01, weight_decay=0.1, momentum=0.5, adjust_lr_fn="match_rms_adamw")
    rest = [{"params": [bias], "lr": 0.01, "weight_decay": 0.1}]
    rest += [{"params": list(other["head"].parameters()), "lr": 0.05, "weight_decay": 0.0}]
    wanted = train(other, Together([muon, torch.optim.AdamW(rest)]))
    assert torch.equal(train(model, optimizer), wanted)
    resumed = make_optimizer("muon", groups(model), 0.01, {"momentum": 0.5})
    resumed.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in resumed.param_groups] == [0.01, 0.01, 0.05]
    assert torch.equal(
        resumed.state_dict()["state"][0]["state"][0]["momentum_buffer"],
        optimizer.inner[0].state[model["body"].weight]["momentum_buffer"],  # type: ignore[attr-defined]
    )


def test_together_steps_each_and_calls_a_closure_once() -> None:
    one, two = (nn.Parameter(torch.ones(2)) for _ in range(2))
    both = Together([torch.optim.SGD([one], lr=1.0), torch.optim.SGD([two], lr=2.0)])
    schedule = torch.optim.lr_scheduler.LambdaLR(both, lambda t: 0.5)
    calls = []

    def closure() -> Tensor:
        calls.append(1)
        both.zero_grad()
        loss = (one + two).sum()
        loss.backward()
        return loss

    assert float(both.step(closure).detach()) == 4 and len(calls) == 1
    schedule.step()
    assert one.tolist() == [0.5, 0.5] and two.tolist() == [0.0, 0.0]
    with pytest.raises(InputError, match="holds a parameter twice"):
        Together([torch.optim.SGD([one], lr=1.0), torch.optim.SGD([one], lr=1.0)])


@pytest.mark.compiled
@pytest.mark.parametrize(("name", "bits", "block"), [("adamw-8bit", 8, 256), ("adamw-4bit", 4, 128)])
def test_moments_of_few_bits_take_the_bytes_that_are_predicted(name: str, bits: int, block: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=300,  # 300 · 64 numbers are divided by 128 and 256, 64 norms are too few
        hidden_size=64,
        intermediate_size=80,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    torch.manual_seed(0)
    model, other = (LlamaForCausalLM(config) for _ in range(2))
    other.load_state_dict(model.state_dict())
    ids = torch.randint(0, 300, (4, 16), generator=torch.Generator().manual_seed(0))
    losses = {}
    for trained, kind in ((model, name), (other, "adamw")):
        optimizer = make_optimizer(kind, [{"params": list(trained.parameters())}], 3e-3, {})
        for _ in range(6):
            optimizer.zero_grad()
            loss = trained(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
        losses[kind] = float(loss)
        sizes = predicted(trained, optimizer, batch=4, length=16), measured(trained, optimizer, ids)
        assert sizes[0].optimizer == sizes[1].optimizer, kind
        assert predicted(trained, kind, batch=4, length=16).optimizer == sizes[0].optimizer
        if kind == name:
            weight = model.model.layers[0].self_attn.q_proj.weight
            held = optimizer.state[weight]["exp_avg"]
            assert held.codes.numel() * held.codes.element_size() == weight.numel() * bits // 8
            assert held.scale.numel() == weight.numel() // block
    assert abs(losses[name] - losses["adamw"]) < 0.05 * losses["adamw"]


def test_galore_is_that_of_the_authors_package() -> None:
    pytest.importorskip("galore_torch")
    start = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    options = {"betas": (0.9, 0.999), "eps": 1e-8}
    a = make_optimizer("galore", [{"params": [ours]}], 0.01, {"rank": 3, "update_gap": 50, **options})
    b = make_optimizer("galore-torch", [{"params": [theirs]}], 0.01, {"rank": 3, **options})
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        gradient = torch.randn(9, 6, generator=generator)
        for p, optimizer in ((ours, a), (theirs, b)):
            p.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "module"), [*PACKAGES.items(), ("adamw-8bit", "torchao.optim"), ("adamw-4bit", "torchao.optim")]
)
def test_a_missing_package_is_told_in_one_line(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    extra = "quant" if module == "torchao.optim" else "baselines"
    with pytest.raises(InputError, match=rf"{module} is not installed: .*pip install 'eckart\[{extra}\]'"):
        make_optimizer(name, groups(net()), 0.01, {})


def test_bad_input_is_refused() -> None:
    model = net()
    for name, options, message in (
        ("sgd", {}, "--optimizer sgd: choose one of adamw, adamw-8bit"),
        ("adamw", {"rank": 2}, "--optimizer-option: adamw got an unexpected keyword argument 'rank'"),
        ("adamw", {"betas": (2.0, 0.9)}, "--optimizer-option: adamw: Invalid beta parameter"),
        ("galore", {"rank": 7}, r"rank=7: params\[0\] of shape"),
        ("muon", {"nesterow": True}, "--optimizer-option: muon got an unexpected"),
    ):
        with pytest.raises(InputError, match=message):
            make_optimizer(name, groups(model), 0.01, options)
    with pytest.raises(InputError, match="nothing that trains is a matrix"):
        make_optimizer("muon", [{"params": [model["body"].bias]}], 0.01, {})
    for name in PACKAGES:
        with pytest.raises(InputError, match=f"--resume with --optimizer {name}: its state holds objects"):
            check_resumable(name)
    check_resumable("galore")


@pytest.mark.parametrize("name", PACKAGES)
def test_a_rank_that_is_none_is_refused(name: str) -> None:
    pytest.importorskip(PACKAGES[name])
    with pytest.raises(InputError, match="--optimizer-option rank=0: give a whole number from 1 up"):
        make_optimizer(name, groups(net()), 0.01, {"rank": 0})
