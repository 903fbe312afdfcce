"""What adapters do when nothing is said, and the learning rates that a comparison tries."""

from __future__ import annotations

import dataclasses

import pytest

from eckart.adapters import ADAPTERS, AdapterConfig

LOW, MIDDLE, HIGH, HIGHEST = (3e-4, 1e-3, 3e-3), (1e-3, 3e-3, 1e-2), (3e-3, 1e-2, 3e-2), (1e-2, 3e-2, 1e-1)
OPTIONS: dict[str, tuple[dict[str, object], tuple[float, ...], int]] = {
    "bone": ({"r": None, "variant": "miss", "mini_r": None}, (1e-4, 3e-4, 1e-3), 64),
    "break-for-make": (
        {"r": None, "role": None, "frozen_fraction": 0.5, "network_alpha": None, "zero_start": False},
        LOW,
        8,
    ),
    "flora-tucker": (
        {"r": None, "scale": 1.0, "lora_alpha": None, "freeze_spatial": False, "factor_init": "kaiming"},
        MIDDLE,
        8,
    ),
    "intrinsic-dimension": (
        {"d": None, "projection": "fastfood", "structure": "global", "train_bias": False},
        HIGH,
        200,
    ),
    "loldu": ({"r": None, "lora_alpha": None, "init_method": "lu", "train_scaling": False}, LOW, 64),
    "lora": ({"r": None, "lora_alpha": 16.0, "use_rslora": False}, LOW, 8),
    "lora-core": (
        {"r": None, "lora_alpha": 16.0, "core": "diagonal", "init": "core", "scaling": "rank"},
        MIDDLE,
        8,
    ),
    "mos": (
        {
            "equivalent_rank": None,
            "private_rank": None,
            "r": None,
            "shards_per_vector": None,
            "lora_alpha": 16.0,
            "subset_selection": True,
            "pair_dissociation": True,
        },
        LOW,
        2,
    ),
    "nola": (
        {
            "num_basis": 256,
            "num_basis_B": None,
            "r": None,
            "lora_alpha": None,
            "mode": "language",
            "basis": None,
            "offset": True,
            "shared_basis": False,
            "factored": True,
            "basis_memory": 0.25,
            "chunk_size": None,
            "coefficient_bits": None,
        },
        HIGH,
        4,
    ),
    "randlora": (
        {
            "r": None,
            "randlora_alpha": None,
            "scale_mode": "peft",
            "basis": "uniform",
            "basis_order": "peft",
            "share_A": True,
            "num_bases": None,
        },
        LOW,
        32,
    ),
    "salt": ({"r": None, "ratio": None, "r_lora": None, "relu": True, "init": "zero"}, LOW, 8),
    "sara": ({"threshold": None, "chosen": None, "train_bias": False}, LOW, 8),
    "snell": (
        {
            "r": None,
            "sparsity": 0.9,
            "sparsify": "square",
            "detach": True,
            "kernel": "piecewise",
            "coeff": [0.1, -0.1],
            "norm_p": 2.0,
        },
        HIGHEST,
        8,
    ),
    "snella": (
        {"r": None, "sparsity": 0.01, "sparsify": "square", "detach": True, "coeff": [0.1, -0.1]},
        HIGHEST,
        8,
    ),
    "svfit": (
        {
            "r": None,
            "energy": None,
            "energy_norm": "squared",
            "param": "value",
            "nonneg": False,
            "select": "top",
        },
        HIGHEST,
        64,
    ),
}
SHARED = {"dropout": 0.0, "route": "auto", "save_basis": False, "rank_pattern": None, "seed": 0}


@pytest.mark.parametrize("slug", OPTIONS)
def test_options_left_out_are_those_of_the_page(slug: str) -> None:
    assert sorted(OPTIONS) == sorted(ADAPTERS)
    options, rates, r = OPTIONS[slug]
    config = ADAPTERS[slug]()
    shared = {field.name for field in dataclasses.fields(AdapterConfig)}
    own = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in shared}
    assert own == options and config.learning_rates == rates and config.default_r == r
    assert {name: getattr(config, name) for name in SHARED} == SHARED
