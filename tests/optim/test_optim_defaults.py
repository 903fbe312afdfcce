"""What optimisers do when nothing is said."""

from __future__ import annotations

import inspect

import pytest

from eckart import optim

BASIS = {"basis": "dct3", "transform": "auto", "norm": 1, "weighted": False}
OPTIONS: dict[str, dict[str, object]] = {
    "DCTAdamW": BASIS
    | {
        "lr": 1e-3,
        "rank": None,
        "rank_ratio": None,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.01,
        "update_gap": 1,
        "error_feedback": None,
        "rotate": True,
        "max_shape": 32_000,
        "compile": None,
    },
    "GaLore": {
        "lr": 0.01,
        "rank": None,
        "rank_ratio": None,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "update_gap": 200,
        "galore_scale": 0.25,
        "max_shape": 32_000,
        "compile": None,
    },
    "Spectron": {
        "lr": 0.02,
        "momentum": 0.95,
        "weight_decay": 0.0,
        "ns_steps": 5,
        "adamw_scale": 0.15,
        "betas": (0.9, 0.95),
        "eps": 1e-10,
    },
    "Trion": BASIS
    | {
        "lr": 0.01,
        "rank": None,
        "rank_ratio": None,
        "momentum": 0.95,
        "weight_decay": 0.01,
        "scale": "kj",
        "ns_steps": 5,
        "max_shape": 32_000,
        "adamw_scale": 0.03,
        "betas": (0.9, 0.95),
        "eps": 1e-10,
        "compile": None,
    },
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_left_out_are_those_of_the_page(name: str) -> None:
    parameters = inspect.signature(getattr(optim, name)).parameters
    found = {key: p.default for key, p in parameters.items() if p.default is not p.empty}
    assert found == OPTIONS[name]
