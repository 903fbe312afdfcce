"""What compression does when nothing is said."""

from __future__ import annotations

import dataclasses

import pytest

from eckart.compression._asked import COMPRESSORS
from eckart.compression._compress import compressor

FACTORS = {"rank": None, "ranks": None, "multiple_of": None}
OPTIONS: dict[str, dict[str, object]] = {
    "afm": FACTORS | {"act": None, "sign_fix": True, "embedding_rank": None},
    "lord": FACTORS | {"center": True, "energy": None, "balance": False},
    "modegpt": {
        "epsilon": 0.1,
        "max_sparsity": 0.8,
        "mlp": True,
        "qk": True,
        "vo": True,
        "refit": "linear",
        "vo_mode": "joint",
        "pair_score": "energy",
        "ridge": 1e-4,
        "multiple_of": 1,
    },
    "pela": FACTORS
    | {
        "steps": 0,
        "lr": 1e-4,
        "weight_decay": 0.02,
        "alpha": 1.0,
        "beta": 0.0,
        "gamma": 1.0,
        "epsilon": 1e-3,
        "wp": "paper",
    },
    "svd": FACTORS,
    "trp": {"scheme": "NC", "energy": None, "value": None},
    "welore": FACTORS | {"threshold": None, "target_on": "params", "min_ratio": 0.4999, "lrc_rule": "half"},
    "whitened-svd": FACTORS,
}


@pytest.mark.parametrize("slug", OPTIONS)
def test_options_left_out_are_those_of_the_page(slug: str) -> None:
    assert sorted(OPTIONS) == sorted(COMPRESSORS)
    fields = dataclasses.fields(compressor(slug))
    found = {
        f.name: f.default if f.default is not dataclasses.MISSING else f.default_factory()
        for f in fields
        if f.init
    }
    assert found == OPTIONS[slug] | {"exclude": ()}
