"""`eckart federate` from arguments to adapter, clients in this process; real ones are in test_processes."""

from __future__ import annotations

import csv
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federate_cases import small
from flwr.app import Message, RecordDict
from local_grid import LocalGrid
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from tiny_models import WORDS, save_gpt2, save_vit

from eckart.errors import InputError
from eckart.jobs.federate import client, results, simulation
from eckart.jobs.federate.encoded import hold_out
from eckart.jobs.federate.federating import federate
from eckart.jobs.federate.server import serve
from eckart.tasks.task import load_task


class Stop(Exception):
    """A kill at a moment of the test's choice."""


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Clients are functions of this process instead of Ray's; ``after`` stops the run after so many rounds."""
    control: dict[str, Any] = {"after": None, "messages": [], "contexts": {}}

    def simulate(plan, task, directory: Path, *, deadline: float, workers, on_round) -> dict[str, Any]:
        def answer(number: int, message: Message):
            control["messages"].append((number, message))
            state = control["contexts"].setdefault(number, RecordDict())
            context = type("Context", (), {"node_config": {"partition-id": number}, "state": state})()
            message.metadata.__dict__.setdefault("_src_node_id", 1)
            return client.train(message, context).content

        def told(row, rounds) -> None:
            if on_round is not None:
                on_round(row, rounds)
            if row["round"] == control["after"]:
                raise Stop

        return serve(LocalGrid(plan.clients, answer), directory, deadline=deadline, task=task, on_round=told)

    monkeypatch.setattr(simulation, "simulate", simulate)
    return control


def adapter(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "adapter_model.safetensors")


@pytest.mark.parametrize("strategy", ["lora-fair", "ffa-lora", "flexlora", "fedex-lora", "flora-stacking"])
def test_the_final_adapter_is_the_servers_model(strategy: str, files, tmp_path: Path, in_process) -> None:
    metrics = federate(**small(files, tmp_path / "run", strategy=strategy, rounds=2))
    assert metrics["rounds"] == 2
    with open(tmp_path / "run" / "rounds.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["round"] for row in rows] == ["1", "2"]
    assert metrics["validation"]["score"] == pytest.approx(float(rows[-1]["score"]))
    assert metrics["validation"]["loss"] == pytest.approx(float(rows[-1]["loss"]), rel=1e-4)
    assert float(rows[0]["bytes_up"]) > 0
    assert "Trained with `eckart federate`" in (tmp_path / "run" / results.CARD).read_text()
    assert "<svg" in (tmp_path / "run" / "report.html").read_text()
    model = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert model.peft_config["default"].peft_type == "LORA"
    out = model(input_ids=torch.tensor([[5, 6, 7]]))
    assert torch.isfinite(out.logits).all()


@pytest.mark.parametrize("strategy", ["lora-fair", "fedex-lora"])
def test_a_language_model_whose_weights_lie_transposed(strategy: str, tmp_path: Path, in_process) -> None:
    draw = random.Random(0)
    (tmp_path / "text.txt").write_text("\n".join(" ".join(draw.choices(WORDS, k=8)) for _ in range(120)))
    files = {"model": str(save_gpt2(tmp_path / "gpt2")), "data": str(tmp_path / "text.txt")}
    given = {"strategy": strategy, "partition": "contiguous", "clients": 3, "fraction": 1.0}
    metrics = federate(**small(files, tmp_path / "run", **given))
    assert metrics["metric"] == "bits_per_token"
    with open(tmp_path / "run" / "rounds.csv") as file:
        rows = list(csv.DictReader(file))
    assert metrics["validation"]["score"] == pytest.approx(float(rows[-1]["score"]), rel=1e-5)
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run")
    assert torch.isfinite(model(input_ids=torch.tensor([[5, 6, 7]])).logits).all()


def test_training_over_clients_learns(files, tmp_path: Path, in_process) -> None:
    metrics = federate(
        **small(
            files,
            tmp_path / "run",
            rounds=8,
            fraction=1.0,
            partition="iid",
            local_epochs=6,
            lr=5e-3,
            head_lr=5e-3,
        )
    )
    with open(tmp_path / "run" / "rounds.csv") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < 0.9 * losses[0]  # ln 2 at first: twelve examples of two labels
    assert metrics["validation"]["score"] > 0.7


@pytest.mark.parametrize("strategy", ["lora-fair", "fedex-lora"])
def test_a_killed_run_goes_on_to_the_same_numbers(strategy: str, files, tmp_path: Path, in_process) -> None:
    given = {"strategy": strategy, "rounds": 3}
    whole = federate(**small(files, tmp_path / "whole", **given))
    in_process["after"] = 2
    with pytest.raises(Stop):
        federate(**small(files, tmp_path / "part", **given))
    assert not (tmp_path / "part" / results.METRICS).exists()
    asked = len(in_process["messages"])
    in_process["after"] = None
    part = federate(**small(files, tmp_path / "part", **given))
    assert len(in_process["messages"]) - asked == 2  # the clients of the third round alone
    for name in ("validation", "test", "bytes_up", "bytes_down"):
        assert part[name] == whole[name]
    one, two = adapter(tmp_path / "whole"), adapter(tmp_path / "part")
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[key]) for key, value in one.items())


def test_a_finished_run_can_be_made_longer(files, tmp_path: Path, in_process) -> None:
    federate(**small(files, tmp_path / "run", rounds=1))
    assert federate(**small(files, tmp_path / "run", rounds=2))["rounds"] == 2
    whole = federate(**small(files, tmp_path / "whole", rounds=2))
    assert whole["test"] == json.loads((tmp_path / "run" / results.METRICS).read_text())["test"]


def test_a_finished_run_is_given_again_and_cannot_be_made_shorter(files, tmp_path: Path, in_process) -> None:
    first = federate(**small(files, tmp_path / "run"))
    asked = len(in_process["messages"])
    assert federate(**small(files, tmp_path / "run")) == first
    assert len(in_process["messages"]) == asked
    with pytest.raises(InputError, match=r"rounds is 1: .* has 2 already"):
        federate(**small(files, tmp_path / "run", rounds=1))


def test_a_half_written_checkpoint_is_passed_over(files, tmp_path: Path, in_process) -> None:
    in_process["after"] = 2
    with pytest.raises(Stop):
        federate(**small(files, tmp_path / "run", rounds=3))
    last = sorted((tmp_path / "run" / results.CHECKPOINTS).iterdir())[-1]
    last.write_bytes(last.read_bytes()[:100])
    in_process["after"] = None
    federate(**small(files, tmp_path / "run", rounds=3))
    with open(tmp_path / "run" / "rounds.csv") as file:
        assert [row["round"] for row in csv.DictReader(file)] == ["1", "2", "3"]


def test_different_ranks(files, tmp_path: Path, in_process) -> None:
    given = {"strategy": "flexlora", "ranks": [1, 3], "fraction": 1.0, "rounds": 2}
    metrics = federate(**small(files, tmp_path / "run", **given))
    assert metrics["ranks"] == [3]
    sent = {number: message.content["config"]["rank"] for number, message in in_process["messages"]}
    assert sent == {0: 1, 1: 3, 2: 1, 3: 3}


def test_robust_and_private_runs(files, tmp_path: Path, in_process) -> None:
    krum = federate(
        **small(files, tmp_path / "krum", robust="multi-krum", malicious=0, clients=5, fraction=1.0, rounds=1)
    )
    assert krum["rounds"] == 1
    private = {"strategy": "ffa-lora", "clip": 0.1, "noise": 0.1, "rounds": 1}
    assert federate(**small(files, tmp_path / "private", **private))["rounds"] == 1


def test_a_client_may_have_data_and_a_model_of_its_own(files, tmp_path: Path, in_process) -> None:
    from eckart.federated.state import ServerState
    from eckart.jobs.federate.plan import Plan

    federate(**small(files, tmp_path / "run", rounds=1))
    plan = Plan.from_json((tmp_path / "run" / results.RUN).read_text())
    state, _ = ServerState.load(tmp_path / "run" / results.CHECKPOINTS / "round-0001.safetensors")
    message = state.message(plan.rule(), 2)
    own = tmp_path / "own.csv"
    own.write_text(
        "text,label\n"
        + "\n".join(f"film {word},{label}" for word, label in [("good", "good"), ("bad", "bad")] * 15)
    )
    options = {"number": 2, "fresh_seed": state.fresh_seed, "model": files["model"]}
    tensors, metrics = client.local_round(plan, 0, message, data=str(own), **options)
    assert metrics["num-examples"] == 22  # 30 rows, 80 % of them to train on, a tenth of those held out
    assert all(torch.isfinite(value).all() for value in tensors.values())


def test_hold_out_is_a_tenth_and_apart() -> None:
    kept, held = hold_out(list(range(100, 125)), 0, 3)
    assert (len(kept), len(held)) == (23, 2)
    assert sorted(kept + held) == list(range(100, 125))
    assert hold_out([1, 2, 3], 0, 0) == ([1, 2, 3], [])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"strategy": "lora-fare"}, "unknown strategy 'lora-fare': did you mean 'lora-fair'"),
        ({"options": {"lamda": 1}}, "lora-fair has no option 'lamda'"),
        ({"ranks": [0]}, "ranks are"),
        ({"ranks": [2, 3]}, "lora-fair needs equal ranks"),
        ({"ranks": [99]}, "r is 99: the layers can hold ranks from 1 to 16"),
        ({"clients": 500, "min_clients": 2}, "clients is 500: give 1 to 96"),
        ({"clients": 40, "partition": "dirichlet:0.01"}, "clients without examples"),
        ({"partition": "groups"}, "no groups"),
        ({"partition": "even"}, "partition is 'even'"),
        ({"fraction": 0.0}, "fraction is 0"),
        ({"min_clients": 9}, "min_clients is 9"),
        ({"rounds": 0}, "rounds is 0"),
        ({"lr": 0.0}, "lr is 0"),
        ({"lora_alpha": -1.0}, "lora_alpha is -1"),
        ({"backend": "threads"}, "backend is 'threads'"),
        ({"deadline": 0.0}, "deadline is 0"),
        ({"robust": "krum", "malicious": 3}, "krum needs 9 clients"),
        ({"robust": "median"}, "median"),
        (
            {"strategy": "flexlora", "ranks": [1, 2], "robust": "krum", "fraction": 1.0},
            "which ranks .* make unequal",
        ),
        ({"malicious": 1}, "malicious is 1: it needs robust"),
        ({"noise": 1.0}, "they need clip"),
        ({"clip": 1.0}, "lora-fair is no plain mean"),
        ({"clip": 1.0, "robust": "krum"}, "choose one of the two"),
        ({"norm_ratio": 1.0}, "norm_ratio is 1"),
        ({"target_modules": ["nothing"]}, "target_modules is"),
        ({"target_modules": ["word_embeddings"]}, "name linear layers"),
    ],
)
def test_bad_input_leaves_nothing(options, match: str, files, tmp_path: Path, in_process) -> None:
    with pytest.raises(InputError, match=match):
        federate(**small(files, tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_another_run_in_the_directory_is_refused(files, tmp_path: Path, in_process) -> None:
    federate(**small(files, tmp_path / "run", rounds=1))
    before = (tmp_path / "run" / "rounds.csv").read_bytes()
    for options, match in (
        ({"strategy": "fedit"}, "strategy was 'lora-fair' when this run began and is 'fedit' now"),
        ({"lr": 0.5}, "lr was"),
        ({"seed": 3}, "was"),
    ):
        with pytest.raises(InputError, match=match):
            federate(**small(files, tmp_path / "run", rounds=1, **options))
    assert (tmp_path / "run" / "rounds.csv").read_bytes() == before
    assert (
        federate(**small(files, tmp_path / "run", rounds=1, strategy="fedit", overwrite=True))["strategy"]
        == "fedit"
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(InputError, match="is not empty"):
        federate(**small(files, tmp_path / "other"))


def test_a_checkpoint_of_another_strategy_is_refused(files, tmp_path: Path, in_process) -> None:
    from eckart.jobs.federate.plan import Plan

    federate(**small(files, tmp_path / "run", rounds=1))
    plan = Plan.from_json((tmp_path / "run" / results.RUN).read_text())
    with pytest.raises(InputError, match="is of strategy 'lora-fair', this run of 'fedit'"):
        results.last_kept(tmp_path / "run", replace(plan, strategy="fedit"))


def test_without_flower_it_says_what_to_install(
    files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eckart.jobs.federate import federating

    def missing(module: str, extra: str):
        raise InputError(f"{module} is not installed: pip install 'eckart[{extra}]'")

    monkeypatch.setattr(federating, "require", missing)
    with pytest.raises(InputError, match=r"flwr is not installed: pip install 'eckart\[federated\]'"):
        federate(**small(files, tmp_path / "run"))


def test_clients_refuse_other_files_than_the_servers(files, tmp_path: Path) -> None:
    from eckart.jobs.federate.plan import Plan

    task = load_task(files["model"], files["data"], max_length=16)
    plan = Plan(
        model=files["model"], data=files["data"], task={"max_length": 16}, fingerprint="other", strategy="fedit",
        options={}, clients=2, fraction=1.0, min_clients=1, rounds=1, partition="iid", ranks=[2], lora_alpha=4.0,
        target_modules=["query"], local_epochs=1, batch_size=8, lr=0.1, head_lr=0.1, robust=None, malicious=0,
        clip=None, noise=0.0, delta=None, norm_ratio=20.0, seed=0,
    )  # fmt: skip
    assert task.fingerprint != plan.fingerprint
    with pytest.raises(InputError, match="are not the server's"):
        client.local_round(plan, 0, {}, number=1, fresh_seed=0)


def test_pictures(tmp_path: Path, in_process) -> None:
    labels = np.arange(60) % 2
    light = np.random.default_rng(0).integers(0, 120, (60, 16, 16, 3)) + 100 * labels[:, None, None, None]
    np.savez(tmp_path / "data.npz", images=light.astype(np.uint8), labels=labels)
    files = {"model": str(save_vit(tmp_path / "vit")), "data": str(tmp_path / "data.npz")}
    given = {"clients": 3, "fraction": 1.0, "local_epochs": 4, "strategy": "flexlora", "partition": "iid"}
    metrics = federate(**small(files, tmp_path / "run", **given))
    assert metrics["kind"] == "image-classification"
    assert metrics["validation"]["score"] > 0.9  # bright against dark
    assert not any(in_process["contexts"].values())  # pixels are not kept in the context
    assert adapter(tmp_path / "run")
