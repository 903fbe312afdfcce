"""One training step of every method on the make-believe card; prints what a GPU would stop at, as JSON.

Run: python tests/shared/steps_on_a_card.py OUTPUT [NAME ...]
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from card import Card, install
from torch import Tensor, nn

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / room) for room in ("adapters", "training")]

import adapter_cases  # noqa: E402
import rule_cases  # noqa: E402

import eckart  # noqa: E402
from eckart import layers, metrics, optim, training  # noqa: E402

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bone, bat": ("bone", {"variant": "bat", "r": 2}),
    "bone, mini": ("bone", {"variant": "mini", "r": 2, "mini_r": 2}),
    "nola, shared": ("nola", {"shared_basis": True}),
    "salt, no relu": ("salt", {"relu": False}),
    "snell, soft": ("snell", {"sparsify": "soft"}),
    "intrinsic-dimension, dense": ("intrinsic-dimension", {"projection": "dense", "d": 5}),
    "intrinsic-dimension, sparse": ("intrinsic-dimension", {"projection": "sparse", "d": 5}),
}
Step = Callable[[Card], None]


def step_of(
    model: nn.Module,
    x: Tensor,
    card: Card,
    make: Callable[..., Any] | None = None,
    rule: training.Rule | None = None,
) -> None:
    """Two steps (forward, backward, optimiser) of a model that was built on the host; what the first one finds does
    not count: what is made once may be copied once."""
    card.move(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = (make or partial(torch.optim.SGD, lr=0.1))(parameters)
    x = card.tensor(x)
    if rule is not None:
        with card.running():
            rule.attach(model, optimizer, steps=100)
    with card.running():
        for card.read in (1, 2):
            card.found.clear()
            optimizer.zero_grad()
            model(x).float().square().mean().backward()
            optimizer.step()


def adapter_step(slug: str, kind: str, route: str, options: dict[str, Any], card: Card) -> None:
    model = adapter_cases.adapted(
        slug, adapter_cases.host(kind), init_weights=False, route=route, **options
    ).train()
    step_of(model, adapter_cases.inputs(kind), card)


def prompt_step(card: Card) -> None:
    from tiny_models import bert_config
    from transformers import BertModel

    model = eckart.adapt(BertModel(bert_config()), "dept", num_virtual_tokens=3, max_length=8, r=2).train()
    card.move(model)
    ids, mask = (card.tensor(torch.ones(2, 6, dtype=torch.int64)) for _ in range(2))
    with card.running():
        model(input_ids=ids, attention_mask=mask).last_hidden_state.square().mean().backward()


def adapters() -> dict[str, Step]:
    cases: dict[str, Step] = {"dept": prompt_step}
    methods = {slug: (slug, {}) for slug in adapter_cases.SLUGS} | VARIANTS
    for name, (slug, options) in methods.items():
        for kind in ("linear", "transformers-conv1d", "conv2d", "embedding") if not options else ("linear",):
            for route in ("factored", "folded"):
                cases[f"{name}, {kind}, {route}"] = partial(adapter_step, slug, kind, route, options)
    return cases


def structured() -> dict[str, Step]:
    linear, x = nn.Linear(12, 8), torch.randn(5, 12)
    made: dict[str, Callable[[], nn.Module]] = {
        "low-rank": lambda: layers.LowRankLinear.from_linear(linear, 0, r=3),
        "lost": lambda: layers.LOSTLinear.from_linear(linear, 0, r=3),
        "sltrain, dense": lambda: layers.SLTrainLinear.from_linear(
            linear, 0, r=3, sparsity=0.1, route="dense"
        ),
        "sltrain, factored": lambda: layers.SLTrainLinear.from_linear(
            linear, 0, r=3, sparsity=0.1, route="factored"
        ),
        "relora": lambda: layers.ReLoRALinear.from_linear(linear, 0, r=3),
        "maestro": lambda: layers.MaestroLinear.from_linear(linear, 0),
    }
    cases: dict[str, Step] = {
        name: partial(lambda make, card: step_of(make(), x, card), make) for name, make in made.items()
    }
    cases["s4d"] = lambda card: step_of(layers.S4D(6, 4), torch.randn(2, 9, 6), card)
    return cases


def optimizers() -> dict[str, Step]:
    made: dict[str, Callable[..., Any]] = {
        "dct-lowrank": lambda p: optim.DCTAdamW(p, lr=0.01, rank=2),
        "dct-lowrank, random": lambda p: optim.DCTAdamW(p, lr=0.01, rank=2, basis="random_qr"),
        "trion": lambda p: optim.Trion(p, lr=0.01, rank=2),
        "galore": lambda p: optim.GaLore(p, lr=0.01, rank=2),
    }
    net, x = lambda: nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 4)), torch.randn(3, 6)
    cases: dict[str, Step] = {
        name: partial(lambda make, card: step_of(net(), x, card, make), make) for name, make in made.items()
    }
    factors = lambda: layers.LowRankLinear.from_linear(nn.Linear(12, 8), 0, r=3)  # noqa: E731

    def spectron(card: Card) -> None:
        model = factors()
        step_of(model, torch.randn(5, 12), card, lambda _: optim.Spectron(model, lr=0.01))

    cases["spectron"] = spectron
    return cases


def measures() -> dict[str, Step]:
    def measure(name: str, card: Card) -> None:
        states = card.tensor(torch.randn(2, 7, 5))
        with card.running():
            metrics.measure_states(states, metrics=[name])

    return {name: partial(measure, name) for name in (*metrics.METRICS, *metrics.RAW_METRICS)}


def validate(model: nn.Module, step: int) -> Tensor:
    """A loss on rows of the model's first weight, which are where the model is."""
    return model(next(model.parameters()).detach()[:3]).square().mean()


RULES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "allora": ("lora", {"r": 4}, {}),
    "diffora": (
        "lora",
        {"r": 4},
        {"validation": validate},
    ),
    "increlora": ("lora-core", {"r": 4}, {}),
    "lora-ggpo": ("lora", {"r": 4}, {}),
    "lora-ggpo, exact": ("lora", {"r": 4}, {"grad_norm": "exact"}),
    "lora-mgpo": ("lora", {"r": 4}, {"mu": 0.9}),
    "sara-selection": ("sara", {}, {"lambda_rank": 0.0}),
    "snella-allocation": ("snella", {"r": 4}, {"every": 10}),
    "triadaptlora": ("lora-core", {"r": 4, "core": "full"}, {"incre_interval": 10}),
}
"""Of each rule the adapter it acts on, and the options of both. In the step that is looked at none of them shares out
ranks or weights anew, which reads them, nor takes SaRA's nuclear norm: a decomposition waits to learn how it ended."""


def rules() -> dict[str, Step]:
    def act(name: str, card: Card) -> None:
        slug, options, own = RULES[name]
        model = eckart.adapt(rule_cases.Net(), slug, target_modules=["lin"], **options).train()
        rule = training.get_rule(name.partition(",")[0])(**own)
        if name.startswith("lora-ggpo"):  # this card has no generator
            rule.normal = lambda layer, like: torch.zeros_like(like)
        step_of(model, torch.randn(5, 8), card, rule=rule)

    return {name: partial(act, name) for name in RULES}


class Faulty(nn.Module):
    """A layer that does what it must not."""

    def __init__(self, fault: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.weight, self.fault = nn.Parameter(torch.ones(4)), fault

    def forward(self, x: Tensor) -> Tensor:
        self.fault(x)
        return x * self.weight


def faults() -> dict[str, Step]:
    made: dict[str, Callable[[Tensor], Any]] = {
        "reads": lambda x: x.sum().item(),
        "decides": lambda x: bool((x > 0).any()),
        "copies away": lambda x: x.cpu(),
        "copies there": lambda x: torch.eye(4).to(x),
        "meets": lambda x: x + torch.ones(3, 4),
        "decomposes": lambda x: torch.linalg.svd(x),
        "counts": lambda x: x[x > 0],
    }
    return {
        name: partial(lambda fault, card: step_of(Faulty(fault), torch.ones(3, 4), card), fault)
        for name, fault in made.items()
    }


KINDS = {
    "adapters": adapters,
    "layers": structured,
    "optim": optimizers,
    "metrics": measures,
    "training": rules,
    "faults": faults,
}


def main() -> None:
    """Write the findings of each case, a line each: an error inside a backward pass ends the process."""
    warnings.filterwarnings("ignore")
    install()
    torch.compiler.set_stance("force_eager")
    output, *chosen = sys.argv[1:]
    for kind, make in KINDS.items():
        for name, step in make().items():
            if chosen and not any(part in f"{kind}: {name}" for part in chosen):
                continue
            card = Card()
            try:
                step(card)
            except Exception as error:
                card.found.append(f"{type(error).__name__}: {error}"[:300])
            with open(output, "a") as file:
                print(json.dumps({"kind": kind, "name": name, "found": card.found}), file=file)


if __name__ == "__main__":
    main()
