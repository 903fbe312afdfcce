"""Curves shown elsewhere, through transformers' callbacks, and adapters uploaded to the hub."""

from __future__ import annotations

import json
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from tiny_models import save_bert, save_reviews
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from eckart.errors import InputError
from eckart.jobs.adapt import reports
from eckart.jobs.adapt.finetuning import finetune

SETTINGS: dict[str, Any] = {"steps": 4, "batch_size": 8, "validate_every": 2, "options": {"r": 2}}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("files")
    return str(save_bert(folder / "bert")), str(save_reviews(folder / "reviews.csv"))


class Recorder(TrainerCallback):
    """In the place of one of transformers' callbacks."""

    made: list[Recorder]

    def __init__(self) -> None:
        self.logging_dir: str | None = None
        self.logs: list[tuple[int, dict[str, Any]]] = []
        self.made.append(self)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append((state.global_step, logs))


def test_losses_and_scores_are_reported(
    files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recorder, "made", [], raising=False)
    monkeypatch.setattr(reports, "find_spec", lambda name: ModuleSpec(name, None, origin="here"))
    for name in ("tensorboard", "mlflow"):
        monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, name, Recorder)
    metrics = finetune(
        *files, "lora", output=tmp_path / "run", report_to="tensorboard, mlflow,tensorboard", **SETTINGS
    )
    board, flow = Recorder.made
    assert (board.logging_dir, flow.logging_dir) == (str(tmp_path / "run" / "runs"), None)
    for recorder in (board, flow):
        losses = [(step, logs["loss"]) for step, logs in recorder.logs if "loss" in logs]
        assert [list(pair) for pair in losses] == metrics["losses"]
        scores = [(step, logs["eval_accuracy"]) for step, logs in recorder.logs if "eval_accuracy" in logs]
        assert scores == [(found["step"], found["score"]) for found in metrics["validations"]]
        told = next(logs for _, logs in recorder.logs if "eval_loss" in logs)
        assert told["eval_macro_f1"] == metrics["validations"][0]["also"]["macro_f1"]
    plain = finetune(*files, "lora", output=tmp_path / "plain", **SETTINGS)
    assert plain["losses"] == metrics["losses"] and len(Recorder.made) == 2
    assert (tmp_path / "run" / "run.json").read_bytes() == (tmp_path / "plain" / "run.json").read_bytes()


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--report-to wandb: wandb is not installed: pip install wandb$"):
        reports.report_names(["wandb"])
    # what W&B itself leaves where it was run: a directory of its name, which Python takes for a package
    monkeypatch.setattr(reports, "find_spec", lambda name: ModuleSpec(name, None))
    with pytest.raises(InputError, match=r"pip install wandb$"):
        reports.report_names("wandb")
    assert reports.report_names(None) == []


def test_tensorboard_itself(files: tuple[str, str], tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    metrics = finetune(*files, "lora", output=tmp_path / "run", report_to=["tensorboard"], **SETTINGS)
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "runs"))
    events.Reload()
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx([x for _, x in metrics["losses"]])
    assert [e.step for e in events.Scalars("eval/accuracy")] == [2, 4]
    finetune(*files, "lora", output=tmp_path / "run", overwrite=True, **SETTINGS)
    assert not (tmp_path / "run" / "runs").exists()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub that takes everything; what it was given."""
    given: dict[str, Any] = {}

    def create_repo(self: Any, name: str, **options: Any) -> Any:
        given["repo"] = name
        return huggingface_hub.RepoUrl(f"https://huggingface.co/me/{name.split('/')[-1]}")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    monkeypatch.setattr(huggingface_hub, "whoami", lambda: {"name": "me"})
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda self, **told: given.update(told))
    return given


def test_a_finished_adapter_is_uploaded(files: tuple[str, str], tmp_path: Path, hub: dict[str, Any]) -> None:
    metrics = finetune(*files, "lora", output=tmp_path / "run", push_to_hub="mine", **SETTINGS)
    assert (hub["repo"], hub["repo_id"], hub["folder_path"]) == ("mine", "me/mine", tmp_path / "run")
    taken = {
        path.name
        for path in (tmp_path / "run").iterdir()
        if any(path.match(pattern) for pattern in hub["allow_patterns"])
    }
    left = {path.name for path in (tmp_path / "run").iterdir()} - taken
    assert left == {"run.json", "config.yaml"}, "they name places on this machine"
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "tokenizer.json"} <= taken
    hub.clear()
    again = finetune(*files, "lora", output=tmp_path / "run", push_to_hub="mine", resume=True, **SETTINGS)
    assert again == metrics and hub["repo_id"] == "me/mine", "a finished run is only pushed"


def test_what_the_hub_does_not_take_stays_on_the_disk(
    files: tuple[str, str], tmp_path: Path, hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, **told: Any) -> None:
        raise RuntimeError("429 Client Error: Too Many Requests\nfor url")

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", refuse)
    with pytest.raises(
        ConnectionError, match=r"--push-to-hub mine: .*Too Many Requests.* --resume"
    ) as caught:
        finetune(*files, "lora", output=tmp_path / "run", push_to_hub="mine", **SETTINGS)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 4


@pytest.mark.parametrize("what", ["offline", "token", "refused"])
def test_a_hub_that_cannot_be_reached_is_said_before(
    files: tuple[str, str],
    tmp_path: Path,
    hub: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    def refuse() -> None:
        raise RuntimeError("Invalid user token.")

    if what == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif what == "token":
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    else:
        monkeypatch.setattr(huggingface_hub, "whoami", refuse)
    told = {"offline": "HF_HUB_OFFLINE is set", "token": "hf auth login", "refused": "Invalid user token"}
    with pytest.raises(InputError, match=f"--push-to-hub me/mine: .*{told[what]}.*leave --push-to-hub out"):
        finetune(*files, "lora", output=tmp_path / "run", push_to_hub="me/mine", **SETTINGS)
    assert not (tmp_path / "run").exists()
