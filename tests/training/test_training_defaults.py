"""What rules do when nothing is said."""

from __future__ import annotations

import dataclasses

import pytest

from eckart.training import RULES, get_rule

GROWTH = {
    "target_rank": None,
    "init_r": 1,
    "incre_rank_num": 1,
    "init_warmup": None,
    "incre_interval": None,
    "reg_orth_coef": 0.0,
    "strict_budget": True,
    "rescale_on_growth": True,
    "warmup": 0,
}
OPTIONS: dict[str, dict[str, object]] = {
    "allora": {"eta": 2.0, "target": "output_delta", "mode": "grad"},
    "diffora": {
        "validation": None,
        "rho": 0.5,
        "search_steps": None,
        "warm_up": 0,
        "relaxation": "sigmoid",
        "scope": "layer",
        "select_by": "gate",
        "sharing": "shape",
        "init": "restart",
        "match_budget": False,
        "temperature": 1.0,
        "entropy": 0.0,
        "dam_lr": 3e-3,
        "dam_optimizer": "adam",
    },
    "increlora": GROWTH
    | {
        "top_h": 4,
        "beta1": 0.85,
        "beta2": 0.85,
        "score": "importance",
        "score_norm": "root",
        "score_window": 32,
        "advance_learn": None,
    },
    "lora-ggpo": {
        "sigma": 0.03,
        "beta": 0.01,
        "grad_norm": "factored",
        "ema": 0.0,
        "form": "paper",
        "warm_up": 0,
        "seed": 0,
    },
    "lora-mgpo": {"rho": 0.05, "beta": 0.9, "clamp": 10.0, "mu": None, "ascent": False},
    "sara-selection": {
        "threshold": None,
        "lambda_rank": 5e-4,
        "progressive_step": None,
        "reset_state": True,
        "seed": 0,
    },
    "snella-allocation": {
        "target_sparsity": 0.9,
        "every": 1,
        "initial_warmup": 0,
        "final_warmup": 0,
        "interval": 1,
        "beta1": 0.85,
        "beta2": 0.85,
    },
    "triadaptlora": GROWTH
    | {
        "reg_orth_coef": 0.5,
        "rank_growth_model": "linear",
        "top_k": 4,
        "norm_by": "blocks",
        "double_diagonal": True,
        "total_steps": None,
    },
}


@pytest.mark.parametrize("slug", OPTIONS)
def test_options_left_out_are_those_of_the_page(slug: str) -> None:
    assert sorted(OPTIONS) == sorted(RULES)
    rule = get_rule(slug)()
    assert {f.name: getattr(rule, f.name) for f in dataclasses.fields(rule)} == OPTIONS[slug]
