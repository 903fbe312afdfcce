"""What a rule costs: the step (forward + backward + AdamW) with it over that of the same adapter without.

Run: python benchmarks/rule_overhead.py [--models d1024] [--tokens 1024 4096] [--seconds 30]

Bars: at most 1.05, GGPO 1.20. A rule that grows ranks is timed between two growths and, as "scoring", in the steps
before one; the last column shares these out as in a training of 32 scored steps in every 1000.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import torch
from _arms import ours
from _harness import MODELS, interleave, make_arm, save, table
from torch import nn

from eckart.training import DiffoRA, Rule, get_rule

ALL = 10**9
ARMS: dict[str, tuple[str, dict[str, Any], str | None, dict[str, Any]]] = {
    "lora": ("lora", {"r": 8}, None, {}),
    "lora+allora": ("lora", {"r": 8}, "allora", {}),
    "lora+allora update": ("lora", {"r": 8}, "allora", {"mode": "update"}),
    "lora+lora-ggpo": ("lora", {"r": 8}, "lora-ggpo", {}),
    "lora+lora-mgpo": ("lora", {"r": 8}, "lora-mgpo", {}),
    "lora-core": ("lora-core", {"r": 8}, None, {}),
    "lora-core+increlora": ("lora-core", {"r": 8}, "increlora", {"init_warmup": ALL, "incre_interval": ALL}),
    "lora-core+increlora scoring": (
        "lora-core",
        {"r": 8},
        "increlora",
        {"init_warmup": ALL, "incre_interval": ALL, "score_window": 2 * ALL},
    ),
    "lora-core full": ("lora-core", {"r": 8, "core": "full"}, None, {}),
    "lora-core full+triadaptlora": (
        "lora-core",
        {"r": 8, "core": "full"},
        "triadaptlora",
        {"total_steps": ALL, "reg_orth_coef": 0.0},
    ),
    "lora+diffora after the search": ("lora", {"r": 8}, "diffora", {"search_steps": 1, "sharing": "none"}),
    "lora+diffora searching": ("lora", {"r": 8}, "diffora", {"search_steps": ALL}),
}


def make_step(name: str, model: str, tokens: int) -> Callable[[], None]:
    """One training step of an arm."""
    slug, options, rule_name, rule_options = ARMS[name]
    arm, width = make_arm(model, ours(slug, **options)), MODELS[model][2]
    x = torch.randn(tokens // 128, 128, width, requires_grad=True)
    optimizer = torch.optim.AdamW([p for p in arm.parameters() if p.requires_grad], lr=1e-3)

    def loss(m: nn.Module) -> torch.Tensor:
        return m["head"](m["body"](x)).square().mean()

    if rule_name is not None:
        if get_rule(rule_name) is DiffoRA:
            rule_options = {**rule_options, "validation": lambda m, _: loss(m)}
        rule: Rule = get_rule(rule_name)(**rule_options)
        rule.attach(arm, optimizer)

    def step() -> None:
        optimizer.zero_grad()
        x.grad = None
        loss(arm).backward()
        optimizer.step()

    return step


def main() -> None:
    """Print and save one row for each model, token count and arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["d1024"], choices=list(MODELS))
    parser.add_argument("--tokens", nargs="+", type=int, default=[1024, 4096], help="tokens in a step")
    parser.add_argument("--seconds", type=float, default=30, help="time for each model and token count")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows: list[dict[str, Any]] = []
    for model in options.models:
        for tokens in options.tokens:
            times = interleave({name: make_step(name, model, tokens) for name in ARMS}, options.seconds)
            for name, seconds in times.items():
                base = next(plain for plain in (name.split("+")[0],) if plain in times)
                shared = times.get(f"{name} scoring")
                rows.append(
                    {
                        "model": model,
                        "tokens": tokens,
                        "arm": name,
                        "ms": 1e3 * seconds,
                        "x adapter": seconds / times[base],
                        "x adapter, shared out": ""
                        if shared is None
                        else (0.968 * seconds + 0.032 * shared) / times[base],
                    }
                )
            table([row for row in rows if row["model"] == model and row["tokens"] == tokens])
    save("rule_overhead", rows)


if __name__ == "__main__":
    main()
