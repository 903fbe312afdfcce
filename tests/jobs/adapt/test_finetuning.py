"""Fine-tuning one method: what it leaves behind, and that a killed run ends with the numbers it would have had."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from tiny_models import save_bert, save_gpt2, save_reviews, save_vit
from transformers import AutoConfig, BertForSequenceClassification, Trainer

from eckart.adapters import export_lora, load_adapted, merge_checkpoint
from eckart.errors import InputError
from eckart.jobs.adapt.checkpoints import last_whole
from eckart.jobs.adapt.finetuning import finetune

SETTINGS: dict[str, Any] = {
    "steps": 12,
    "batch_size": 8,
    "save_every": 4,
    "validate_every": 6,
    "options": {"r": 2},
}
STARTED = "run.json"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("files")
    return str(save_bert(folder / "bert")), str(save_reviews(folder / "reviews.csv"))


@pytest.fixture(scope="module")
def whole(files: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "lora"
    seen: list[tuple[int, int]] = []
    metrics = finetune(*files, "lora", output=folder, on_step=lambda *step: seen.append(step), **SETTINGS)
    assert seen == [(step, 12) for step in range(1, 13)]
    return folder, metrics


def same_numbers(one: dict[str, Any], other: dict[str, Any]) -> bool:
    apart = ("seconds", "resumed_at_step")
    return {k: v for k, v in one.items() if k not in apart} == {
        k: v for k, v in other.items() if k not in apart
    }


def test_directory_and_numbers(whole: tuple[Path, dict[str, Any]], files: tuple[str, str]) -> None:
    folder, metrics = whole
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert not (folder / "checkpoints").exists()
    assert not list(folder.glob(".*"))
    assert metrics["method"] == "lora"
    assert metrics["options"] == {"r": 2}
    assert metrics["budget"] is None
    # two layers of query, key, value and output (16 → 16), up (16 → 24) and down (24 → 16), and the pooler's is a head
    assert metrics["trainable_parameters"] == 2 * 2 * (4 * 32 + 2 * 40)
    assert metrics["saved_bytes"] == 4 * metrics["trainable_parameters"]
    assert [step for step, _ in metrics["losses"]] == list(range(1, 13))
    assert [point["step"] for point in metrics["validations"]] == [6, 12]
    assert metrics["validations"][-1]["score"] == metrics["validation"]["score"]
    assert metrics["labels"] == ["negative", "positive"]
    weights = load_file(folder / "adapter_model.safetensors")
    assert sum(name.endswith("lora_B.weight") for name in weights) == 12
    assert all(value.any() for name, value in weights.items() if "lora_B" in name)


def test_adapter_loads_in_peft_and_gives_the_scores(
    whole: tuple[Path, dict[str, Any]], files: tuple[str, str]
) -> None:
    from eckart.tasks.scoring import evaluate
    from eckart.tasks.task import load_task

    folder, metrics = whole
    base = BertForSequenceClassification.from_pretrained(
        files[0], config=AutoConfig.from_pretrained(folder), ignore_mismatched_sizes=True
    )
    model = PeftModel.from_pretrained(base, folder).eval()
    assert model.config.id2label == {0: "negative", 1: "positive"}
    task = load_task(*files)
    again = evaluate(model, task, task.test, 16)
    assert again.score == metrics["test"]["score"]
    assert again.loss == pytest.approx(metrics["test"]["loss"], rel=1e-5)


def test_lora_is_pefts_own_where_eckart_is_not(
    whole: tuple[Path, dict[str, Any]], files: tuple[str, str], tmp_path: Path
) -> None:
    folder, _ = whole
    code = f"""
import sys, torch
from peft import PeftModel
from transformers import AutoConfig, BertForSequenceClassification
base = BertForSequenceClassification.from_pretrained(
    {files[0]!r}, config=AutoConfig.from_pretrained({str(folder)!r}), ignore_mismatched_sizes=True
)
model = PeftModel.from_pretrained(base, {str(folder)!r}).eval()
assert model.peft_config["default"].peft_type == "LORA" and "eckart" not in sys.modules
torch.save(model(torch.arange(8)[None]).logits, {str(tmp_path / "logits")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    bare = torch.load(tmp_path / "logits")
    ours = load_adapted(files[0], folder, ours=True).eval()
    assert ours.peft_config["default"].peft_type == "ECKART_LORA"
    torch.testing.assert_close(ours(torch.arange(8)[None]).logits, bare)
    merged = merge_checkpoint(None, folder, tmp_path / "merged")
    again = BertForSequenceClassification.from_pretrained(merged.path).eval()
    torch.testing.assert_close(again(torch.arange(8)[None]).logits, bare, rtol=1e-4, atol=1e-5)
    assert export_lora(ours, tmp_path / "lora").exact
    card = (folder / "README.md").read_text()
    assert "This is PEFT's own LoRA" in card and "KeyError" not in card


def test_card_tells_the_run_and_its_snippet_runs(
    whole: tuple[Path, dict[str, Any]], files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, metrics = whole
    card = (folder / "README.md").read_text()
    front = ModelCard.load(folder / "README.md").data
    assert (front.base_model, front.library_name) == (files[0], "peft")
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == files[0]
    assert (front.pipeline_tag, front.tags) == ("text-classification", ["eckart", "adapter", "lora"])
    assert f"{metrics['trainable_parameters']:,} in adapters" in card
    assert f"{metrics['test']['score']:.4f}" in card
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert snippet
    exec(compile(snippet[1], "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() in ("negative", "positive")


def test_names_in_a_card_are_only_names(
    files: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A relative model is written down as an absolute one, and the card's example is one of the task's."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(files[0], "<b>|model")
    quoted = ['said "it" \\ and {left}', "'''", "```\n```"]
    rows = [{"text": f"{quoted[i % 3]} {i}", "label": ("|a|", "<b>")[i % 2]} for i in range(40)]
    Path("a|b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    finetune("<b>|model", "a|b.jsonl", "lora", output="#out `x`", **(SETTINGS | {"steps": 1}))
    monkeypatch.chdir("/")
    card = (tmp_path / "#out `x`/README.md").read_text()
    assert "# LoRA adapter for &lt;b&gt;\\|model\n" in card
    assert "| data | a\\|b.jsonl |" in card
    front = ModelCard.load(tmp_path / "#out `x`/README.md").data
    assert front.base_model == str(tmp_path / "<b>|model")
    snippet = re.search(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE)
    assert snippet and any(repr(text)[1:-1] in snippet[1] for text in quoted)
    exec(compile(snippet[1], "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() in ("|a|", "<b>")


@pytest.mark.parametrize("form", ["folder", "array"])
def test_the_card_of_an_image_model_opens_an_image(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(save_vit(tmp_path / "vit"))
    images = np.random.default_rng(0).integers(0, 255, (40, 12, 16, 3), np.uint8)
    if form == "array":
        np.savez(tmp_path / "data.npz", images=images, labels=np.arange(40) % 2)
    for i, image in enumerate(images):
        path = tmp_path / "data" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    data = str(tmp_path / ("data.npz" if form == "array" else "data"))
    told: list[dict[str, Any]] = []
    finetune(model, data, "lora", output=tmp_path / "out", on_task=told.append, **(SETTINGS | {"steps": 1}))
    assert told[0]["kind"] == "image-classification"
    card = (tmp_path / "out/README.md").read_text()
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert snippet and ("Image.open(" if form == "folder" else 'Image.new("RGB", (16, 12))') in snippet[1]
    exec(compile(snippet[1], "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() in ("a", "b", "0", "1")


class Stop(BaseException):
    """Ends a run from inside, as an interrupt does."""


def stop_at(step: int) -> Any:
    def check(done: int, total: int) -> None:
        if done == step:
            raise Stop

    return check


@pytest.mark.parametrize("step", [3, 10])
def test_resumed_run_ends_with_the_same_numbers(
    whole: tuple[Path, dict[str, Any]], files: tuple[str, str], tmp_path: Path, step: int
) -> None:
    folder = tmp_path / "lora"
    with pytest.raises(Stop):
        finetune(*files, "lora", output=folder, on_step=stop_at(step), **SETTINGS)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoints", "config.yaml", STARTED]
    metrics = finetune(*files, "lora", output=folder, resume=True, **SETTINGS)
    assert metrics["resumed_at_step"] == (step - step % 4)
    assert same_numbers(metrics, whole[1])
    ours, theirs = (load_file(path / "adapter_model.safetensors") for path in (folder, whole[0]))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    # A finished run is not done again.
    assert finetune(*files, "lora", output=folder, resume=True, on_step=stop_at(1), **SETTINGS) == metrics


def test_killed_process_and_half_a_checkpoint(
    whole: tuple[Path, dict[str, Any]], files: tuple[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "lora"
    code = f"""
import os, torch
torch.set_num_threads(1)
from eckart.jobs.adapt.finetuning import finetune
def die(done, total):
    if done == 9:
        os._exit(9)
finetune(*{files!r}, "lora", output={str(folder)!r}, on_step=die, **{SETTINGS!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    checkpoints = folder / "checkpoints"
    half = checkpoints / "checkpoint-9"
    shutil.copytree(checkpoints / "checkpoint-8", half)
    state = (half / "trainer_state.json").read_text()
    (half / "trainer_state.json").write_text(state[: len(state) // 2])
    metrics = finetune(*files, "lora", output=folder, resume=True, **SETTINGS)
    assert metrics["resumed_at_step"] == 8
    assert [loss for _, loss in metrics["losses"]] == pytest.approx([loss for _, loss in whole[1]["losses"]])
    plain, also = ({**found["test"]} for found in (metrics, whole[1]))
    assert plain.pop("also") == pytest.approx(also.pop("also"))
    assert plain == pytest.approx(also)


@pytest.fixture
def halted(files: tuple[str, str], tmp_path: Path) -> Path:
    """A run that was stopped at step 10, with checkpoints at 4 and 8."""
    folder = tmp_path / "lora"
    with pytest.raises(Stop):
        finetune(*files, "lora", output=folder, on_step=stop_at(10), **SETTINGS)
    return folder


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json", "files.json"]
)
def test_a_torn_checkpoint_falls_back_to_the_whole_one_before_it(
    whole: tuple[Path, dict[str, Any]], files: tuple[str, str], halted: Path, name: str
) -> None:
    torn = halted / "checkpoints/checkpoint-8" / name
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    metrics = finetune(*files, "lora", output=halted, resume=True, **SETTINGS)
    assert metrics["resumed_at_step"] == 4
    assert same_numbers(metrics, whole[1])


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_file_that_is_gone_stops_the_resumption(files: tuple[str, str], halted: Path, name: str) -> None:
    (halted / "checkpoints/checkpoint-8" / name).unlink()
    with pytest.raises(InputError, match=f"checkpoint-8 lacks {name}, without which the numbers"):
        finetune(*files, "lora", output=halted, resume=True, **SETTINGS)
    assert (halted / "checkpoints/checkpoint-8").is_dir()


def test_a_checkpoint_of_an_earlier_version_has_no_list(
    whole: tuple[Path, dict[str, Any]], files: tuple[str, str], halted: Path
) -> None:
    for path in (halted / "checkpoints").glob("*/files.json"):
        path.unlink()
    metrics = finetune(*files, "lora", output=halted, resume=True, **SETTINGS)
    assert metrics["resumed_at_step"] == 8
    assert same_numbers(metrics, whole[1])


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_without_a_list_each_file_is_read_to_its_end(halted: Path, name: str) -> None:
    newest, before = (halted / f"checkpoints/checkpoint-{step}" for step in (8, 4))
    for path in (newest, before):
        (path / "files.json").unlink()
    torn = newest / name
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    assert last_whole(halted / "checkpoints") == before
    assert not newest.exists()
    (before / name).unlink()
    if name == "trainer_state.json":  # what is written last: the checkpoint was never finished
        assert last_whole(halted / "checkpoints") is None
    else:
        with pytest.raises(InputError, match=f"checkpoint-4 lacks {name}"):
            last_whole(halted / "checkpoints")


def test_a_directory_has_one_run_at_a_time(files: tuple[str, str], tmp_path: Path) -> None:
    def second(done: int, total: int) -> None:
        with pytest.raises(InputError, match="is being written by another run"):
            finetune(*files, "lora", output=tmp_path / "lora", overwrite=True, **SETTINGS)

    finetune(*files, "lora", output=tmp_path / "lora", on_step=second, **(SETTINGS | {"steps": 1}))
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]


def test_a_kill_between_training_and_the_last_file(
    whole: tuple[Path, dict[str, Any]],
    files: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    folder = tmp_path / "lora"
    with monkeypatch.context() as patch:
        patch.setattr("eckart.jobs.adapt.finetuning.model_card", full)
        with pytest.raises(OSError, match="No space left"):
            finetune(*files, "lora", output=folder, **SETTINGS)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoints", "config.yaml", STARTED]
    metrics = finetune(*files, "lora", output=folder, resume=True, **SETTINGS)
    assert metrics["resumed_at_step"] == 12
    assert same_numbers(metrics, whole[1])


def test_full_disk_while_a_checkpoint_is_saved(
    whole: tuple[Path, dict[str, Any]],
    files: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("basic_ios::clear: iostream error")

    folder, usage = tmp_path / "lora", shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(RuntimeError, match="iostream"):
            finetune(*files, "lora", output=folder, **SETTINGS)
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
        with pytest.raises(OSError, match="No space left on device"):
            finetune(*files, "lora", output=folder, resume=True, **SETTINGS)
    assert same_numbers(finetune(*files, "lora", output=folder, resume=True, **SETTINGS), whole[1])


def test_resume_refuses_another_run(files: tuple[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    with pytest.raises(InputError, match="holds no run to go on with"):
        finetune(*files, "lora", output=folder, resume=True, **SETTINGS)
    with pytest.raises(Stop):
        finetune(*files, "lora", output=folder, on_step=stop_at(5), **SETTINGS)
    for name, value in (("steps", 20), ("lr", 0.5), ("options", {"r": 3})):
        with pytest.raises(
            InputError, match=f"holds another run: {name} is .* there and .* here: .*--overwrite"
        ):
            finetune(*files, "lora", output=folder, resume=True, **(SETTINGS | {name: value}))
    with pytest.raises(InputError, match="method is lora there and bone here"):
        finetune(*files, "bone", output=folder, resume=True, **SETTINGS)
    with pytest.raises(InputError, match="an unfinished run: continue it with --resume"):
        finetune(*files, "lora", output=folder, **SETTINGS)
    assert (folder / "checkpoints/checkpoint-4").is_dir()


def test_what_the_scores_need_is_asked_for_before_the_training(
    files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(InputError, match=r"scipy is not installed: .*eckart\[compare\]"):
        finetune(*files, "lora", output=tmp_path / "lora", **SETTINGS)
    assert not (tmp_path / "lora").exists()


def test_output_is_kept_or_replaced_as_asked(
    whole: tuple[Path, dict[str, Any]], files: tuple[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "lora"
    shutil.copytree(whole[0], folder)
    (folder / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    short = SETTINGS | {"steps": 2}
    with pytest.raises(InputError, match="holds a finished run"):
        finetune(*files, "lora", output=folder, **short)
    with pytest.raises(InputError, match="match no layer"):
        finetune(*files, "lora", output=folder, overwrite=True, target_modules=["nothing"], **short)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/mine").write_text("mine")
    metrics = finetune(*files, "bone", output=folder, overwrite=True, **short)
    assert (folder / "checkpoints/mine").read_text() == "mine"
    assert metrics["steps"] == 2
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "ECKART_BONE"
    assert (folder / "notes.txt").read_text() == "mine"
    strangers = tmp_path / "strangers"
    strangers.mkdir()
    (strangers / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        finetune(*files, "lora", output=strangers, **short)


def test_budget_sets_the_knob(files: tuple[str, str], tmp_path: Path) -> None:
    settings = SETTINGS | {"steps": 1, "options": {}}
    by_default = finetune(*files, "svfit", output=tmp_path / "a", **settings, target_modules=["query"])
    assert by_default["budget"] == "0.5%"
    assert by_default["trainable_parameters"] == 2 * by_default["options"]["r"] == 32
    asked = finetune(*files, "lora", output=tmp_path / "b", budget="900", **settings)
    assert 832 == 2 * (4 * 32 + 2 * 40) * asked["options"]["r"] <= asked["trainable_parameters"] <= 900
    assert asked["options"]["r"] == 2
    with pytest.raises(InputError, match="the smallest possible is 416 parameters"):
        finetune(*files, "lora", output=tmp_path / "c", budget="10", **settings)
    assert not (tmp_path / "c").exists()


def test_a_language_model_and_numbers_that_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(save_gpt2(tmp_path / "gpt2", pad="[EOS]"))
    (tmp_path / "story.txt").write_text("\n".join(["the film was very good and a long book"] * 200))
    settings = SETTINGS | {"max_length": 16, "steps": 4}
    metrics = finetune(model, str(tmp_path / "story.txt"), "bone", output=tmp_path / "out", **settings)
    assert metrics["metric"] == "bits_per_token"
    assert metrics["head_parameters"] == 0
    card = (tmp_path / "out/README.md").read_text()
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert snippet
    exec(compile(snippet[1], "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()

    step = Trainer.training_step
    monkeypatch.setattr(Trainer, "training_step", lambda *args, **kwargs: step(*args, **kwargs) * torch.nan)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1: lower --lr"):
        finetune(model, str(tmp_path / "story.txt"), "bone", output=tmp_path / "lost", **settings)
    assert not (tmp_path / "lost/adapter_config.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"save_every": -2}, "save_every is -2"),
        ({"lr": 0}, "lr is 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"head_lr": -0.1}, "head_lr is -0.1"),
        ({"options": {"seed": 3}}, "option 'seed' .* give seed itself"),
        ({"options": {"target_modules": "query"}}, "option 'target_modules'"),
    ],
)
def test_settings_that_are_refused(
    files: tuple[str, str], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        finetune(*files, "lora", output=tmp_path / "out", **(SETTINGS | change))
    assert not (tmp_path / "out").exists()
