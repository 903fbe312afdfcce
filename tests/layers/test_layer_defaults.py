"""What layers do when nothing is said: options left out are those of their pages."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from eckart import layers

OPTIONS: dict[str, dict[str, Any]] = {
    "LOSTLinear": {
        "bias": True,
        "sparsity": 0.05,
        "gamma": 0.5,
        "activation": "silu",
        "columns": "residual",
        "norm": 2,
        "sparse_svd_rank": None,
        "svd_inverse": False,
        "init": "svd",
        "residual_values": False,
        "finetune": False,
        "lora_alpha": 1.0,
        "zero_start": False,
        "seed": 0,
    },
    "SLTrainLinear": {
        "bias": True,
        "sparsity": 0.03,
        "lora_alpha": 32.0,
        "train_scaling": False,
        "support": "random",
        "route": "auto",
        "finetune": False,
        "seed": 0,
        "mask": None,
    },
    "ReLoRALinear": {"bias": True, "lora_alpha": 32.0, "seed": 0},
    "ReLoRA": {"restart_every": None, "warm_start": None, "rewarm": None, "prune": 0.99},
    "S4DKernel": {
        "d_state": 64,
        "init": "legs",
        "discretization": "zoh",
        "real_transform": "exp",
        "dt_transform": "exp",
        "dt_min": 0.001,
        "dt_max": 0.1,
        "dt_tie": True,
        "n_ssm": None,
        "channels": 1,
        "is_real": None,
        "bandlimit": None,
        "real_random": False,
        "real_scale": 1.0,
        "imag_scale": 1.0,
    },
    "S4D": {"d_state": 64, "dropout": 0.0, "bidirectional": False, "max_length": None},
    "S4DBlock": {"d_state": 64, "norm": "layer", "prenorm": True, "dropout": 0.0},
    "S4DConfig": {
        "vocab_size": None,
        "num_channels": 1,
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "d_state": 64,
        "init": "legs",
        "discretization": "zoh",
        "real_transform": "exp",
        "dt_transform": "exp",
        "dt_min": 0.001,
        "dt_max": 0.1,
        "dt_tie": True,
        "n_ssm": None,
        "is_real": None,
        "bandlimit": None,
        "real_random": False,
        "real_scale": 1.0,
        "imag_scale": 1.0,
        "bidirectional": False,
        "dropout": 0.1,
        "norm": "layer",
        "prenorm": True,
        "max_position": None,
        "pooling": "mean",
    },
    "convert": {"target_modules": None, "seed": 0},
    "param_groups": {"weight_decay": 0.01, "ssm_lr": 0.001},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_left_out(name: str) -> None:
    parameters = inspect.signature(getattr(layers, name)).parameters
    found = {n: p.default for n, p in parameters.items() if p.default is not inspect.Parameter.empty}
    assert {n: v for n, v in found.items() if n not in ("device", "dtype")} == OPTIONS[name]


@pytest.mark.parametrize("name", ["LOSTLinear", "ReLoRALinear", "SLTrainLinear"])
def test_the_count_without_options_is_that_of_the_layer(name: str) -> None:
    kind = getattr(layers, name)
    assert kind.count(200, 90, r=3) == sum(p.numel() for p in kind(200, 90, bias=False, r=3).parameters())


@pytest.mark.parametrize("name", ["S4D", "S4DBlock", "S4DForSequenceClassification", "S4DKernel", "S4DModel"])
def test_time_goes_at_the_rate_of_one_where_nothing_is_said(name: str) -> None:
    methods = inspect.getmembers(getattr(layers, name), inspect.isfunction)
    found = {key: inspect.signature(method).parameters.get("rate") for key, method in methods}
    asked = {key: p.default for key, p in found.items() if p is not None and p.default is not p.empty}
    assert asked and set(asked.values()) == {1.0} and "forward" in asked
