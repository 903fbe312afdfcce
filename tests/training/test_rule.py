"""The contract of rules: attaching, acting at each step, refusing, and resuming inside the Trainer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from transformers import Trainer, TrainingArguments

import eckart
from eckart.adapters import Adapter
from eckart.adapters.svfit import SVFit
from eckart.errors import InputError
from eckart.training import RULES, Rule, get_rule, register_rule


@dataclass
class Count(Rule):
    """Halves every gradient and counts the steps of each kind."""

    slug = "count"
    start: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seen, self.calls = self.start, []

    @classmethod
    def suits(cls, adapter: Adapter) -> str:
        return "it has no factors" if isinstance(adapter, SVFit) else ""

    def begin(self, steps: int | None) -> None:
        if steps is not None and steps < 2:
            raise InputError(f"a schedule of 2 steps is longer than the training of {steps}")
        self.calls.append("begin")

    def before_step(self) -> None:
        self.calls.append("before")
        for *_, adapter in self.adapters:
            for parameter in adapter.parameters():
                parameter.grad.mul_(0.5)

    def after_step(self) -> None:
        self.calls.append("after")
        self.seen += 1

    def end(self) -> None:
        self.calls.append("end")

    def state_dict(self) -> dict[str, Tensor]:
        return {"seen": torch.tensor(self.seen)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.seen = int(state["seen"])


def model(slug: str = "lora") -> nn.Module:
    torch.manual_seed(0)
    return eckart.adapt(nn.Sequential(nn.Linear(4, 3)), slug, target_modules=["0"], r=2, init_weights=False)


def trained(m: nn.Module) -> list[nn.Parameter]:
    return [p for p in m.parameters() if p.requires_grad]


def test_a_rule_acts_before_and_after_each_step_until_it_is_detached() -> None:
    plain, ruled = model(), model()
    rule = Count(start=5)
    optimisers = [SGD(trained(plain), 0.1), SGD(trained(ruled), 0.2)]
    assert rule.attach(ruled, optimisers[1]) is rule
    for _ in range(2):
        for m, optimiser in zip((plain, ruled), optimisers, strict=True):
            optimiser.zero_grad()
            m(torch.ones(2, 4)).square().sum().backward()
            optimiser.step()
    for one, two in zip(trained(plain), trained(ruled), strict=True):
        torch.testing.assert_close(one, two)  # half the gradient at twice the rate
    assert rule.calls == ["begin", *["before", "after"] * 2]
    assert (rule.seen, rule.step) == (7, 2)
    rule.detach()
    rule.detach()
    optimisers[1].step()
    assert rule.calls[-1] == "end"
    assert rule.calls.count("end") == 1


def test_what_is_refused() -> None:
    m = model()
    rule = Count()
    with pytest.raises(InputError, match="optimiser does not hold the parameters of layer 0"):
        rule.attach(m, SGD([nn.Parameter(torch.ones(1))], 0.1))
    with pytest.raises(InputError, match="has no active adapter"):
        rule.attach(nn.Linear(2, 2), SGD(trained(m), 0.1))
    with pytest.raises(InputError, match="rule count does not suit SVFit of layer 0: it has no factors"):
        rule.attach(other := model("svfit"), SGD(trained(other), 0.1))
    assert rule.calls == []
    with pytest.raises(InputError, match="longer than the training of 1"):
        rule.attach(m, SGD(trained(m), 0.1), steps=1)
    assert rule.calls == ["end"]
    rule.attach(m, SGD(trained(m), 0.1), steps=2)
    with pytest.raises(InputError, match="rule count is attached already"):
        rule.attach(m, SGD(trained(m), 0.1))


def test_state_in_a_file(tmp_path: Path) -> None:
    rule = Count(start=3).attach(m := model(), SGD(trained(m), 0.1))
    rule.step = 9
    rule.save(tmp_path / "state.safetensors")
    other = Count()
    other.load(tmp_path / "state.safetensors")
    assert (other.seen, other.step) == (3, 9)
    (tmp_path / "state.safetensors").write_bytes(b"nonsense")
    for path in ("state.safetensors", "nowhere"):
        with pytest.raises(InputError, match="of rule count cannot be read"):
            other.load(tmp_path / path)
    with pytest.raises(InputError, match="holds x, which it has no use for"):
        Rule().load_state_dict({"x": torch.ones(1)})


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"x": torch.full((4,), i / 8)}


class Loss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = model()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.inner(x).square().mean()}


def run(folder: Path, rule: Rule, steps: int, resume: bool = False) -> dict[str, Tensor]:
    m = Loss()
    arguments: dict[str, Any] = {
        "max_steps": 4,
        "save_steps": 1,
        "per_device_train_batch_size": 2,
        "report_to": "none",
    }
    args = TrainingArguments(str(folder), disable_tqdm=True, seed=0, use_cpu=True, **arguments)
    trainer = Trainer(m, args, train_dataset=Rows(), callbacks=[rule.callback()])
    if steps < 4:

        class Stop(type(trainer.callback_handler.callbacks[0])):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                control.should_training_stop = state.global_step == steps

        trainer.add_callback(Stop)
    trainer.train(resume_from_checkpoint=resume)
    return {name: value.detach().clone() for name, value in m.named_parameters()}


def test_the_trainer_attaches_saves_and_resumes_a_rule(tmp_path: Path) -> None:
    whole = Count()
    expected = run(tmp_path / "whole", whole, 4)
    first = Count()
    run(tmp_path / "parts", first, 2)
    assert (tmp_path / "parts" / "checkpoint-2" / "rule-count.safetensors").is_file()
    second = Count()
    found = run(tmp_path / "parts", second, 4, resume=True)
    assert (second.seen, second.step) == (whole.seen, whole.step) == (4, 4)
    assert whole.calls[-1] == "end"
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    (tmp_path / "parts" / "checkpoint-4" / "rule-count.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no rule-count\.safetensors"):
        Count().callback().on_train_begin(
            TrainingArguments(str(tmp_path / "parts"), report_to="none"),
            type("State", (), {"global_step": 4, "max_steps": 4})(),
            None,
            model=(m := model()),
            optimizer=SGD(trained(m), 0.1),
        )


def test_the_registry() -> None:
    with pytest.raises(InputError, match="unknown rule 'nothing-like-it'"):
        get_rule("nothing-like-it")
    register_rule("test-rule", title="T", paper="p", arxiv="0", trains="t", saves="s", knob="start")(Count)
    try:
        assert get_rule("Test_Rule") is Count
        assert (Count.slug, Count.knob, Count.family) == ("test-rule", "start", "training")
        with pytest.raises(InputError, match="did you mean 'test-rule'"):
            get_rule("test-rul")
        with pytest.raises(InputError, match="rule 'test-rule' is registered already"):
            register_rule("test-rule", title="T", paper="p", arxiv="0", trains="t", saves="s")(Count)
    finally:
        RULES.pop("test-rule")
        Count.slug = "count"


WHOLE, NOT_NEGATIVE, SHARE = ([1], [0]), ([0.0], [-0.1, math.inf]), ([0.0, 0.99], [1.0, -0.1])
POSITIVE, COUNT = ([1e-9], [0.0, math.inf]), ([0], [-1])
GROWTH = dict.fromkeys(("target_rank", "init_r", "incre_rank_num", "incre_interval"), WHOLE)
GROWTH |= {"init_warmup": COUNT, "warmup": COUNT, "reg_orth_coef": NOT_NEGATIVE}
EDGES: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]] = {
    "allora": {"eta": POSITIVE},
    "diffora": {
        "rho": ([1e-9, 1.0], [0.0, 1.01]),
        "temperature": POSITIVE,
        "dam_lr": POSITIVE,
        "search_steps": WHOLE,
        "warm_up": COUNT,
        "entropy": NOT_NEGATIVE,
    },
    "increlora": GROWTH | {"top_h": WHOLE, "score_window": WHOLE, "beta1": SHARE, "beta2": SHARE},
    "lora-ggpo": {"sigma": NOT_NEGATIVE, "beta": NOT_NEGATIVE, "warm_up": COUNT, "ema": SHARE},
    "lora-mgpo": {"rho": NOT_NEGATIVE, "clamp": NOT_NEGATIVE, "beta": SHARE, "mu": SHARE},
    "sara-selection": {"lambda_rank": NOT_NEGATIVE},
    "snella-allocation": {
        "target_sparsity": SHARE,
        "every": WHOLE,
        "interval": WHOLE,
        "initial_warmup": COUNT,
        "final_warmup": COUNT,
        "beta1": SHARE,
        "beta2": SHARE,
    },
    "triadaptlora": GROWTH | {"top_k": WHOLE, "total_steps": WHOLE},
}


@pytest.mark.parametrize("slug", EDGES)
def test_options_are_accepted_up_to_their_edge_and_refused_beyond_it(slug: str) -> None:
    assert sorted(RULES) == sorted(EDGES)
    needed = {"snella-allocation": {"target_sparsity": 0.5}}.get(slug, {})
    for option, (accepted, refused) in EDGES[slug].items():
        for value in accepted:
            assert getattr(get_rule(slug)(**needed | {option: value}), option) == value
        for value in refused:
            with pytest.raises(InputError, match=f"{option} is {value}: give"):
                get_rule(slug)(**needed | {option: value})
