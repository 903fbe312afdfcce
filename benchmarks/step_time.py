"""Step time (forward, backward, AdamW) of every adapter at one budget, beside the frozen floor and PEFT's own layers.

Run: OMP_NUM_THREADS=1 python benchmarks/step_time.py [--models minilm d1024] [--tokens 256 1024] [--seconds 60]

One thread, and its own clock: what other work does on the machine has little part in the ratios.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import peft
from _arms import Wrap, theirs
from _harness import interleave, make_arm, make_step, save, table
from torch import nn

import eckart
from eckart.adapters import AdaptedWeight, make_config, solve_budget
from eckart.jobs.compare.peft_methods import peft_config

BUDGETS = {"minilm": 113_565, "d1024": 20_992}
"""Numbers: 0.5 % of MiniLM-L6 with its embeddings, and of the stack."""
ALL_LINEAR = {"minilm": r".*\.(query|key|value|dense)", "d1024": r"layers\.\d+"}
RIVALS = {"lora": peft.LoraConfig, "bone": peft.MissConfig, "randlora": peft.RandLoraConfig}
PEFT_ONLY = ("dora", "oft", "vera")
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bone, bat": ("bone", {"variant": "bat"}),
    "salt, no relu": ("salt", {"relu": False}),
    "nola, shared": ("nola", {"shared_basis": True}),
    "nola, kept": ("nola", {"basis_memory": 1000.0}),
}


def within(slug: str, budget: int, **options: Any) -> Wrap:
    """An adapter of this library at the budget."""

    def wrap(model: nn.Module, targets: str) -> nn.Module:
        if slug == "dept":  # stands before the reader of a text, which the stack has not
            model.bert = eckart.adapt(model.bert, slug, budget=budget)
            return model
        return eckart.adapt(model, slug, budget=budget, target_modules=targets, **options)

    return wrap


def rival(slug: str, budget: int) -> Wrap:
    """PEFT's layer of the same kind, at the rank that ours has."""

    def wrap(model: nn.Module, targets: str) -> nn.Module:
        r = solve_budget(model, make_config(slug, target_modules=targets), budget).r
        return theirs(RIVALS[slug], r=r)(model, targets)

    return wrap


def peft_only(name: str, budget: int) -> Wrap:
    """A method that only PEFT has, at the budget."""

    def wrap(model: nn.Module, targets: str) -> nn.Module:
        return peft.get_peft_model(model, peft_config(f"peft:{name}", model, budget, targets, [])[0])

    return wrap


def make_arms(budget: int) -> dict[str, Wrap | None]:
    """Every registered adapter, and what it is compared with."""
    arms: dict[str, Wrap | None] = {
        "frozen floor": None,
        "all weights": lambda model, _: model.requires_grad_(True),
    }
    arms |= {method.slug: within(method.slug, budget) for method in eckart.methods("adapters")}
    arms |= {name: within(slug, budget, **options) for name, (slug, options) in VARIANTS.items()}
    arms |= {f"peft {slug}": rival(slug, budget) for slug in RIVALS}
    return arms | {f"peft {name}": peft_only(name, budget) for name in PEFT_ONLY}


def products(arm: nn.Module, tokens: int) -> float | str:
    """Multiply–adds of the adapted layers in a step, as a multiple of the frozen ones': what their adapters tell of
    their cheaper route, in which random numbers, exponentials and the like are none. Empty for what is not ours."""
    layers = [layer for layer in arm.modules() if isinstance(layer, AdaptedWeight)]
    frozen = sum(2 * tokens * layer.shape.out_features * layer.shape.in_features for layer in layers)
    own = sum(min(layer.adapter("default").multiply_adds(tokens)) for layer in layers)
    return 1 + own / frozen if layers else ""


def main() -> None:
    """Print and save one row for each model, token count and arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(BUDGETS), choices=list(BUDGETS))
    parser.add_argument("--tokens", nargs="+", type=int, default=[256, 1024], help="tokens in a step")
    parser.add_argument("--arms", nargs="+", help="these alone, beside the floor")
    parser.add_argument("--seconds", type=float, default=60, help="time for each model and token count")
    parser.add_argument("--save", default="step_time", help="name of the file in results/")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows = []
    for model in options.models:
        wraps = make_arms(BUDGETS[model])
        if model == "d1024":
            wraps.pop("dept")
        chosen = list(wraps) if options.arms is None else ["frozen floor", *options.arms]
        arms = {name: make_arm(model, wraps[name], ALL_LINEAR[model]) for name in chosen}
        for tokens in options.tokens:
            steps = {name: make_step(arm, model, tokens) for name, arm in arms.items()}
            times = interleave(steps, options.seconds, clock=time.thread_time)
            for name, seconds in times.items():
                other = times.get(f"peft {name}")
                rows.append(
                    {
                        "model": model,
                        "tokens": tokens,
                        "arm": name,
                        "numbers": sum(p.numel() for p in arms[name]["body"].parameters() if p.requires_grad),
                        "ms": 1e3 * seconds,
                        "x frozen floor": seconds / times["frozen floor"],
                        "x PEFT": seconds / other if other else "",
                        "products": products(arms[name], tokens),
                    }
                )
            table([row for row in rows if row["model"] == model and row["tokens"] == tokens])
            save(options.save, rows)


if __name__ == "__main__":
    main()
