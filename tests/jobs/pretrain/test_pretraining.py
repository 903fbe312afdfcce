"""`pretrain`: what it writes, resuming to the bit, accumulation, bf16, per-layer steps, bad input."""

from __future__ import annotations

import csv
import errno
import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from eckart.errors import InputError
from eckart.layers import cut, structured_layers

METHODS = {
    "full": {},
    "sltrain": {"r": 4, "sparsity": 0.1},
    "lost": {"r": 4, "activation": "identity"},
    "low-rank": {"r": 4},
    "maestro": {"gp_lambda": 0.01, "threshold": 0.01, "shrink_every": 2},
    "relora": {"r": 4, "lora_alpha": 4, "restart_every": 2, "warm_start": 1},
}


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model" / "model.safetensors")


class Stop(Exception):
    """Ends a run from inside."""


def stop_at(step: int) -> Any:
    def on_step(done: int, total: int) -> None:
        if done == step:
            raise Stop

    return on_step


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_its_model_loads(method: str, run: Any, tmp_path: Path) -> None:
    report = run(method=method, options=METHODS[method])
    directory = tmp_path / "run"
    model = AutoModelForCausalLM.from_pretrained(directory / "model")
    tokenizer = AutoTokenizer.from_pretrained(directory / "model")
    ids = torch.tensor([tokenizer("def f1(x): return x")["input_ids"]])
    assert bool(model(ids).logits.isfinite().all())
    assert report.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert report.steps == 4 and report.tokens == 4 * 2 * 32 and report.tokens_per_second > 0
    assert math.isclose(report.perplexity, math.exp(report.loss)) and 0 < report.loss < math.log(300) + 1
    assert json.loads((directory / "metrics.json").read_text())["loss"] == report.loss
    for kind in ("weights", "gradients", "optimizer"):
        assert report.predicted[kind] == report.measured[kind], kind
    assert abs(report.predicted["activations"] / report.measured["activations"] - 1) < 0.1
    log = (directory / "log.csv").read_text().splitlines()
    assert log[0].startswith("step,loss,eval_loss") and len(log) >= 5


def test_relora_writes_merged_layers_and_logs_the_rates_of_its_steps(run: Any, tmp_path: Path) -> None:
    options = {"r": 2, "restart_every": 3, "warm_start": 2, "rewarm": 2}
    report = run(method="relora", options=options, steps=6)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert not structured_layers(model) and report.parameters == model.num_parameters() == report.trained
    with (tmp_path / "run" / "log.csv").open() as file:
        rates = {
            int(r["step"]): float(r["learning_rate"]) for r in csv.DictReader(file) if r["learning_rate"]
        }
    assert rates[3] == rates[6] == 0 and 0 < rates[4] < rates[5] < rates[2]
    assert set(load_file(tmp_path / "run/checkpoints/checkpoint-4/rule-relora.safetensors")) == {"lengths"}


@pytest.mark.parametrize("method", ["lost", "sltrain"])
def test_dense_export_gives_the_same_numbers_with_stock_layers(method: str, run: Any, tmp_path: Path) -> None:
    run(method=method, options=METHODS[method], output=tmp_path / "a")
    run(method=method, options=METHODS[method], output=tmp_path / "b", dense=True)
    a, b = (AutoModelForCausalLM.from_pretrained(tmp_path / name / "model") for name in "ab")
    assert type(b.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert "quantization_config" not in json.loads((tmp_path / "b/model/config.json").read_text())
    ids = torch.arange(10)[None]
    torch.testing.assert_close(a(ids).logits, b(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "optimizer", "options"),
    [
        ("sltrain", "adamw", {}),
        ("sltrain", "dct-adamw", {"rank": 3, "error_feedback": "int8"}),
        ("maestro", "adamw", {}),
        ("relora", "adamw", {}),
    ],
)
def test_a_run_that_was_stopped_ends_with_the_same_bits(
    method: str, optimizer: str, options: dict[str, Any], run: Any, tmp_path: Path
) -> None:
    shared = {"method": method, "options": METHODS[method], "steps": 6}
    shared |= {"optimizer": optimizer, "optimizer_options": options}
    whole = run(output=tmp_path / "whole", **shared)
    with pytest.raises(Stop):
        run(on_step=stop_at(3), **shared)
    resumed = run(resume=True, **shared)
    assert resumed.loss == whole.loss
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_checkpoint_that_was_cut_off_is_passed_over(run: Any, tmp_path: Path) -> None:
    whole = run(output=tmp_path / "whole", steps=6)
    with pytest.raises(Stop):
        run(steps=6, on_step=stop_at(5))
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "checkpoint-4" / "whole.json").unlink()  # killed before it was complete
    (checkpoints / "checkpoint-4" / "model.safetensors").write_bytes(b"half")
    assert run(steps=6, resume=True).loss == whole.loss


KILLED = """
import os, signal, sys, json
from transformers import Trainer
from eckart.jobs.pretrain.pretraining import pretrain

save = Trainer._save_optimizer_and_scheduler

def die(self, directory):
    if self.state.global_step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, directory)

Trainer._save_optimizer_and_scheduler = die
given = json.loads(sys.argv[1])
pretrain(given.pop("arch"), **given)
"""


def test_a_process_killed_within_a_checkpoint_goes_on_from_the_one_before(
    run: Any, arch: Path, corpus: Path, tmp_path: Path
) -> None:
    whole = run(output=tmp_path / "whole", steps=6)
    given = {"arch": str(arch), "data": str(corpus), "output": str(tmp_path / "run"), "vocabulary": 300}
    given |= {"length": 32, "steps": 6, "batch": 2, "eval_steps": 2, "save_steps": 2}
    done = subprocess.run([sys.executable, "-c", KILLED, json.dumps(given)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    left = tmp_path / "run" / "checkpoints" / "checkpoint-4"
    assert (left / "model.safetensors").is_file() and not (left / "whole.json").exists()
    assert run(steps=6, resume=True).loss == whole.loss


def test_a_full_disk_is_told_and_the_run_goes_on_later(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(output=tmp_path / "whole", steps=6)
    original = Trainer._save_checkpoint

    def full(self: Any, *arguments: Any, **named: Any) -> None:
        if self.state.global_step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, *arguments, **named)

    monkeypatch.setattr(Trainer, "_save_checkpoint", full)
    with pytest.raises(InputError, match=r"the disk is full; free some space and run again with --resume"):
        run(steps=6)
    monkeypatch.undo()
    assert run(steps=6, resume=True).loss == whole.loss


def test_a_full_disk_that_torch_calls_a_broken_stream_is_told_too(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 23552 vs 23444")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RuntimeError, match="unexpected pos"):
        run()
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=4096))
    with pytest.raises(InputError, match="the disk is full; free some space and run again with --resume"):
        run(overwrite=True)


def test_a_checkpoint_of_another_run_is_refused_in_one_line(run: Any, tmp_path: Path) -> None:
    run(output=tmp_path / "other", steps=2, method="low-rank", options={"r": 2})
    with pytest.raises(Stop):
        run(on_step=stop_at(3))
    there, other = (tmp_path / name / "checkpoints" / "checkpoint-2" for name in ("run", "other"))
    kept = {name: (there / name).read_bytes() for name in ("optimizer.pt", "model.safetensors")}
    state = torch.load(there / "optimizer.pt", weights_only=True)
    state["state"][0]["exp_avg"] = torch.zeros(3, 5)
    torch.save(state, tmp_path / "small.pt")
    for name, content in (
        ("optimizer.pt", (other / "optimizer.pt").read_bytes()),
        ("optimizer.pt", (tmp_path / "small.pt").read_bytes()),
        ("optimizer.pt", b"half"),
        ("model.safetensors", (other / "model.safetensors").read_bytes()),
    ):
        (there / name).write_bytes(content)
        with pytest.raises(
            InputError, match=r"^--resume: .*checkpoint-2 is damaged or of another model or optimiser"
        ):
            run(resume=True)
        (there / name).write_bytes(kept[name])
    assert run(resume=True).steps == 4


@pytest.mark.parametrize(
    "given",
    [
        {"method": "sltrain", "options": {"r": 99}},
        {"method": "relora", "options": {"r": 2, "restart_every": 9}},
        {"method": "maestro", "options": {"shrink_every": 9}},
        {"optimizer": "trion", "optimizer_options": {"rank": 99}},
        {"optimizer": "spectron"},
        {"length": 100_000},
        {"data": "/nowhere"},
    ],
)
def test_what_is_refused_leaves_an_older_run_that_can_go_on(given: dict[str, Any], run: Any) -> None:
    with pytest.raises(Stop):
        run(on_step=stop_at(3))
    with pytest.raises(InputError):
        run(**given, overwrite=True)
    assert run(resume=True).steps == 4


def test_another_run_leaves_nothing_of_an_older_one(run: Any, tmp_path: Path) -> None:
    run(save_steps=1)
    run(save_steps=4, length=16, overwrite=True)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-4"]
    assert json.loads((tmp_path / "run" / "pretrain.json").read_text())["length"] == 16


def test_ranks_that_maestro_drops_are_not_written(run: Any, tmp_path: Path) -> None:
    options = {"gp_lambda": 0.0, "threshold": 0.4, "shrink_every": 2}
    report = run(method="maestro", options=options, per_layer=True, clip=0, bf16=True, cuts=[0.5, 0.85])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    layers = structured_layers(model).values()
    assert all(len(layer.low_rank) == layer.rank <= 16 for layer in layers)
    assert 1 < min(layer.rank for layer in layers) < 12
    assert report.parameters == sum(p.numel() for p in model.parameters())
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-4"
    assert {"generator", "sweep", "position", "drawn", "ranks"} == set(
        load_file(checkpoint / "rule-maestro.safetensors")
    )
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model-0.85")
    AutoTokenizer.from_pretrained(tmp_path / "run" / "model-0.85")
    assert report.cuts.keys() == {"0.5", "0.85"}
    assert report.cuts["0.85"]["parameters"] == small.num_parameters() < report.parameters
    assert report.cuts["0.85"]["parameters"] < report.cuts["0.5"]["parameters"]
    ids = torch.arange(10)[None]
    torch.testing.assert_close(small(ids).logits, cut(model, 0.85)(ids).logits)
    assert report.cuts["0.85"]["loss"] != report.loss


def test_accumulated_passes_are_one_larger_batch(run: Any, tmp_path: Path) -> None:
    run(output=tmp_path / "a", batch=4, clip=0)
    run(output=tmp_path / "b", batch=2, accumulate=2, clip=0)
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=2e-4)


def test_mixed_precision_keeps_weights_in_float32(run: Any, tmp_path: Path) -> None:
    report = run(bf16=True, method="sltrain", options=METHODS["sltrain"])
    assert {t.dtype for n, t in weights(tmp_path / "run").items() if "seed" not in n} == {torch.float32}
    plain = run(output=tmp_path / "plain", method="sltrain", options=METHODS["sltrain"])
    assert report.measured["activations"] < plain.measured["activations"]
    assert abs(report.loss - plain.loss) < 0.05


def test_per_layer_steps_are_the_same_steps_with_one_gradient_at_a_time(run: Any, tmp_path: Path) -> None:
    a = run(output=tmp_path / "a", clip=0)
    b = run(output=tmp_path / "b", clip=0, per_layer=True)
    assert abs(a.loss - b.loss) < 1e-5
    assert b.measured["gradients"] == 300 * 16 * 4 < a.measured["gradients"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "--steps 0: give a whole number from 1 up"),
        ({"length": 1}, "--length 1: give a whole number from 2 up"),
        ({"lr": 0.0}, r"--lr 0\.0: give a positive number"),
        ({"lr": math.nan}, "--lr nan: give a positive number"),
        ({"clip": -1.0}, r"--clip -1\.0: give a positive number"),
        ({"per_layer": True, "accumulate": 2}, "--per-layer with --accumulate 2"),
        (
            {"method": "maestro", "options": {"gp": 1}},
            "--option gp: maestro has the options gp_lambda, hierarchical, r, sampling, shrink_every, threshold",
        ),
        ({"method": "maestro", "options": {"threshold": -1}}, "threshold=-1: give a number from 0 up"),
        ({"method": "maestro", "options": {"shrink_every": 9}}, "shrink_every=9: the training ends after 4"),
        ({"method": "relora", "options": {"r": 17}}, r"q_proj: r=17: a layer of shape \(16, 16\)"),
        (
            {"method": "relora", "options": {"gap": 2, "r": 2}},
            "--option gap: relora has the options lora_alpha, prune",
        ),
        (
            {"method": "relora", "options": {"r": 2, "restart_every": 2}},
            "restart_every=2 after warm_start=2: the training ends after 4 steps",
        ),
        ({"method": "relora", "options": {"r": 2, "prune": 2}}, "prune is 2: give a share"),
        ({"method": "relora", "per_layer": True, "clip": 0}, "--per-layer with --method relora"),
        ({"cuts": [0.5], "method": "relora", "options": {"r": 2}}, r"--cut 0\.5 with --method relora"),
        ({"cuts": [0.5]}, r"--cut 0\.5 with --method full: only maestro's networks can be cut"),
        ({"method": "maestro", "cuts": [1.0]}, r"--cut 1\.0: give the share to remove"),
        ({"method": "maestro", "cuts": [0.5, 0.5]}, r"--cut 0\.5 is given twice"),
        ({"method": "maestro", "options": {"r": 17}}, "r=17: a layer of shape"),
        ({"per_layer": True}, "--per-layer with --clip 1: the norm"),
        ({"method": "lora"}, "--method lora: choose one of full, lost, low-rank, maestro, relora, sltrain"),
        ({"optimizer": "sgdm"}, "--optimizer sgdm: choose one of adamw, adamw-8bit"),
        ({"options": {"r": 4}}, "--option r: the full model has no options"),
        (
            {"method": "sltrain", "options": {"r": 17}},
            r"self_attn\.q_proj: r=17: a layer of shape \(16, 16\)",
        ),
        ({"method": "sltrain", "options": {"r": 4, "sparsity": 1}}, "sparsity=1: give a share above 0"),
        ({"method": "sltrain", "options": {"r": 4, "sparsity": 0}}, "sparsity=0: give a share above 0"),
        ({"method": "sltrain", "options": {"rank": 4}}, "rank=4: sltrain has the options"),
        ({"method": "lost"}, "r is missing: give the rank of the lost layers"),
        ({"optimizer": "dct-adamw", "optimizer_options": {"rank": 99}}, r"rank=99: params\[0\] of shape"),
        ({"optimizer": "dct-adamw", "optimizer_options": {"rnk": 9}}, "--optimizer-option: dct-adamw got an"),
        ({"optimizer_options": {"rank": 9}}, "--optimizer-option: adamw got an unexpected"),
        ({"data": "/nowhere"}, "--data /nowhere: no such file or directory"),
        ({"length": 100_000}, "shorter than one sequence of 100,000: give more text or a smaller --length"),
        ({"vocabulary": 256}, "--vocabulary 256: give at least 258"),
        ({"tokenizer": "/nowhere"}, "--tokenizer /nowhere: no such directory"),
        ({"steps": True}, "--steps True: give a whole number from 1 up"),
        ({"lr": "1e-3"}, "--lr 1e-3: give a positive number"),
        ({"weight_decay": None}, "--weight-decay None: give a positive number"),
        ({"seed": -1}, "seed is -1: give a whole number from 0"),
    ],
)
def test_bad_input_is_refused(given: dict[str, Any], message: str, run: Any) -> None:
    with pytest.raises(InputError, match=message):
        run(**given)


def test_another_architecture_is_refused(corpus: Path, tmp_path: Path) -> None:
    from eckart.jobs.pretrain.pretraining import pretrain

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 300}
    with pytest.raises(InputError, match="--arch gpt-9: choose one of llama-2m"):
        pretrain("gpt-9", output=tmp_path / "run", data=str(corpus))
    (tmp_path / "config.json").write_text("{}")
    for config, message in (
        ({}, "no config of a transformers model"),
        ([1], "no config of a transformers model"),
        ({"model_type": "t5"}, "t5 is no causal language model"),
        (
            {"model_type": "llama", "hidden_size": 15, "num_attention_heads": 2},
            "not a multiple of the number",
        ),
        ({"model_type": "llama", "hidden_size": "a"}, "Field 'hidden_size' expected int"),
        ({"model_type": "gpt2", "n_embd": -8, "n_head": 2}, "no model can be made of its config"),
        ({"model_type": "bert", **small}, "BertLMHeadModel sees the tokens that it is to predict"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=message) as caught:
            pretrain(
                str(tmp_path / "config.json"),
                output=tmp_path / f"run-{len(message)}",
                data=str(corpus),
                vocabulary=300,
                length=32,
            )
        assert "\n" not in str(caught.value)
        assert not (tmp_path / f"run-{len(message)}").exists()


def test_only_the_same_run_is_resumed(run: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run to go on with"):
        run(resume=True)
    run(output=tmp_path / "first")
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(tmp_path / "first" / "tokens", tokenizer)
    run(tokenizer=tokenizer)
    for given, message in (
        ({"method": "low-rank", "options": {"r": 2}}, "--resume: method is full in .* and low-rank here"),
        ({"lr": 0.1}, r"--resume: lr is 0\.003 in .* and 0\.1 here"),
        ({"tokenizer": None}, "--resume: tokenizer is .* and None here"),
    ):
        with pytest.raises(InputError, match=message):
            run(**{"tokenizer": tokenizer, **given}, resume=True)
    (tokenizer / "tokenizer_config.json").write_text("{}")
    with pytest.raises(InputError, match="--resume: tokenizer is"):
        run(tokenizer=tokenizer, resume=True)
    with pytest.raises(InputError, match="is not empty"):
        run()
    run(overwrite=True)


def test_a_loss_that_is_no_number_ends_the_run(run: Any) -> None:
    with pytest.raises(
        InputError, match=r"--lr 1e\+30: the loss is nan at step|--lr 1e\+30: the loss is inf at step"
    ):
        run(lr=1e30, clip=0, steps=8)
