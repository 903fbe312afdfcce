"""Two processes under torchrun (gloo) give what one process gives with batches of twice the size, and resume."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from two_processes import launch

SMALL = {"vocabulary": 300, "length": 32, "steps": 4, "eval_steps": 2, "save_steps": 2, "clip": 0.5}
METHODS = {
    "sltrain": {"options": {"r": 4, "sparsity": 0.1}, "optimizer": "dct-adamw"},
    "relora": {"options": {"r": 4, "lora_alpha": 4, "restart_every": 2, "warm_start": 1}},
    "maestro": {"options": {"gp_lambda": 0.01, "threshold": 0.5, "shrink_every": 2}},
}


def work(arguments: dict[str, Any]) -> None:
    """One process of the two."""
    from eckart.jobs.pretrain.pretraining import pretrain

    pretrain(**arguments)


def launched(**arguments: Any) -> None:
    launch(__file__, json.dumps(arguments))


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_train_as_one_does_and_resume(
    method: str, corpus: Path, arch: Path, tmp_path: Path
) -> None:
    from eckart.jobs.pretrain.pretraining import pretrain

    given = {"arch": str(arch), "data": str(corpus), **SMALL, "method": method, **METHODS[method]}
    one = pretrain(output=tmp_path / "one", batch=4, **given)
    launched(output=str(tmp_path / "two"), batch=2, **given)
    a, b = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-4)
    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert abs(metrics["loss"] - one.loss) < 1e-4 and metrics["tokens"] == one.tokens
    launched(output=str(tmp_path / "two"), batch=2, resume=True, **given)
    again = load_file(tmp_path / "two" / "model" / "model.safetensors")
    assert all(torch.equal(again[name], b[name]) for name in b)


@pytest.mark.parametrize(("optimizer", "options"), [("adamw", {}), ("dct-adamw", {"rank": 2})])
def test_sharded_processes_train_as_one_does(
    optimizer: str, options: dict[str, Any], corpus: Path, arch: Path, tmp_path: Path
) -> None:
    """FSDP2: what is gathered at the end is the model that one process trains."""
    from transformers import AutoModelForCausalLM

    from eckart.jobs.pretrain.pretraining import pretrain

    given = {"arch": str(arch), "data": str(corpus), **SMALL, "method": "sltrain", **METHODS["sltrain"]}
    given |= {"optimizer": optimizer, "optimizer_options": options, "accumulate": 2}
    one = pretrain(output=tmp_path / "one", batch=4, **given)
    launched(output=str(tmp_path / "two"), batch=2, fsdp=True, **given)
    a, b = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-4)
    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert abs(metrics["loss"] - one.loss) < 1e-4 and metrics["parameters"] == one.parameters
    assert metrics["predicted"] == metrics["measured"] == {}
    assert not list((tmp_path / "two" / "checkpoints").glob("*"))
    first, second = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name / "model") for name in ("one", "two")
    )
    ids = torch.arange(10)[None]
    torch.testing.assert_close(first(ids).logits, second(ids).logits, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "--fsdp in one process: start several by torchrun"),
        ({"optimizer": "muon"}, "--fsdp with --optimizer muon: it needs whole matrices"),
        ({"resume": True}, "--fsdp with --resume: a sharded run keeps no checkpoints"),
        (
            {"method": "low-rank", "options": {"r": 2}, "optimizer": "spectron"},
            "--fsdp with --optimizer spectron",
        ),
    ],
)
def test_what_shards_cannot_do_is_refused(
    given: dict[str, Any], message: str, corpus: Path, arch: Path, tmp_path: Path
) -> None:
    from eckart.errors import InputError
    from eckart.jobs.pretrain.pretraining import pretrain

    with pytest.raises(InputError, match=message):
        pretrain(str(arch), output=tmp_path / "run", data=str(corpus), **SMALL, fsdp=True, **given)


def test_per_layer_steps_are_refused_in_several_processes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eckart.errors import InputError
    from eckart.jobs.pretrain.pretraining import pretrain

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="--per-layer in several processes"):
        pretrain(output=tmp_path / "run", data=str(corpus), per_layer=True, clip=0)


if __name__ == "__main__":
    work(json.loads(sys.argv[1]))
