"""Compressing from the command line: what is written and loads, a stopped run that goes on, bad words refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import WORDS, save_bert, save_gpt2, save_reviews
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from eckart.cli.app import main
from eckart.compression import FactorizedLinear
from eckart.errors import InputError
from eckart.jobs.compress.compressing import compress_model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("files")
    text = folder / "text.txt"
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(0, len(WORDS), (6000,), generator=generator).tolist()
    text.write_text("\n".join(" ".join(WORDS[i] for i in picks[j : j + 20]) for j in range(0, 6000, 20)))
    return str(save_gpt2(folder / "gpt2")), str(text)


OPTIONS = {"kind": "causal-lm", "max_length": 32, "calibration": 16, "limits": {"test": 8, "validation": 8}}


def test_written_loaded_and_scored(files: tuple[str, str], tmp_path: Path) -> None:
    metrics = compress_model(*files, "lord", ratio=0.3, output=tmp_path / "small", **OPTIONS)
    assert metrics == json.loads((tmp_path / "small" / "metrics.json").read_text())
    assert set(metrics["test"]) == {"dense", "compressed"} and metrics["calibration_tokens"] == 16 * 32
    assert metrics["parameters_after"] < metrics["parameters_before"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    changed = [n for n, m in model.named_modules() if isinstance(m, FactorizedLinear)]
    with (tmp_path / "small" / "layers.csv").open(newline="") as file:
        assert [row["layer"] for row in csv.DictReader(file) if row["rank"]] == changed
    AutoTokenizer.from_pretrained(tmp_path / "small")
    card = (tmp_path / "small" / "README.md").read_text()
    assert "bits per token on test, compressed" in card
    right = metrics["test"]["compressed"]["also"]["token_accuracy"]
    assert f"| token accuracy on test, compressed | {right:.4f} |" in card
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


@pytest.mark.parametrize("heal_method", ["factors", "lora"])
def test_healed(files: tuple[str, str], tmp_path: Path, heal_method: str) -> None:
    seen: list[tuple[int, int]] = []
    metrics = compress_model(
        *files,
        "svd",
        ratio=0.6,
        output=tmp_path / "small",
        heal=12,
        heal_method=heal_method,
        heal_lr=1e-2,
        on_step=lambda *step: seen.append(step),
        **OPTIONS,
    )
    assert metrics["test"]["healed"]["score"] < metrics["test"]["compressed"]["score"]
    assert seen[-1] == (12, 12)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert any(isinstance(m, FactorizedLinear) for m in model.modules())
    assert f"12 steps of {heal_method}" in (tmp_path / "small" / "README.md").read_text()


def test_merged_needs_nothing_of_us(files: tuple[str, str], tmp_path: Path) -> None:
    compress_model(
        *files,
        "whitened-svd",
        ratio=0.3,
        output=tmp_path / "small",
        merge=True,
        options={"rank": None},
        **OPTIONS,
    )
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert "quantization_config" not in config
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert not any(isinstance(m, FactorizedLinear) for m in model.modules())


def test_a_classifier_keeps_its_head(tmp_path: Path) -> None:
    model, data = str(save_bert(tmp_path / "bert")), str(save_reviews(tmp_path / "reviews.csv"))
    compress_model(
        model, data, "svd", ratio=0.3, output=tmp_path / "small", calibration=8, limits={"test": 16}
    )
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
    assert type(loaded.classifier) is torch.nn.Linear


def test_a_stopped_run_goes_on(files: tuple[str, str], tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    arguments = {"ratio": 0.3, "output": tmp_path / "small", **OPTIONS}
    with pytest.raises(KeyboardInterrupt):
        compress_model(*files, "lord", on_block=stop, **arguments)
    assert not (tmp_path / "small").exists() and (tmp_path / "small.partial" / "block-0000.json").is_file()
    with pytest.raises(InputError, match="--resume"):
        compress_model(*files, "lord", **arguments)
    compress_model(*files, "lord", resume=True, **arguments)
    assert (tmp_path / "small" / "metrics.json").is_file() and not (tmp_path / "small.partial").exists()
    with pytest.raises(InputError, match="no finished blocks"):
        compress_model(*files, "lord", resume=True, **{**arguments, "output": tmp_path / "other"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ratio", "1.5"], "ratio is 1.5"),
        (["--ratio", "0.2", "--method", "zip"], "method 'zip' is not known"),
        (["--ratio", "0.2", "--calibration", "0"], "calibration is 0"),
        (["--ratio", "0.2", "--heal", "-1"], "heal is -1"),
        (["--ratio", "0.2", "--method", "trp"], "has no layer to compress: needed is a Conv2d"),
        (["--ratio", "0.2", "--option", "radius=2"], "radius"),
        (["--ratio", "0.2", "--merge", "--method", "afm", "--option", "act=relu"], "leave act out to merge"),
        (["--ratio", "0.2", "--option", "rank=8"], "ratio (0.2) and rank (8) are both given"),
        ([], "ratio is not given"),
    ],
)
def test_bad_words(
    files: tuple[str, str], tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = files
    common = [
        "--model",
        model,
        "--data",
        data,
        "--kind",
        "causal-lm",
        "--max-length",
        "32",
        "--limit",
        "test=4",
    ]
    assert main(["compress", *common, *words, "--output", str(tmp_path / "small")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_the_command(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = files
    words = [
        "--model",
        model,
        "--data",
        data,
        "--kind",
        "causal-lm",
        "--max-length",
        "32",
        "--limit",
        "test=4",
    ]
    output = tmp_path / "small"
    assert main(["compress", *words, "--ratio", "0.3", "--method", "svd", "--output", str(output)]) == 0
    told = capsys.readouterr()
    assert "of the compressed layers removed" in told.out and "examples: train " in told.err
    assert main(["compress", *words, "--ratio", "0.3", "--method", "svd", "--output", str(output)]) == 2
    words += ["--overwrite", "--json"]
    assert main(["compress", *words, "--ratio", "0.3", "--method", "svd", "--output", str(output)]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "svd"


@pytest.mark.parametrize(
    ("method", "number", "told"),
    [("whitened-svd", 13, True), ("whitened-svd", 12, False), ("pela", 13, True), ("svd", 13, False)],
)
def test_fewer_examples_than_the_statistics_are_to_see_are_told(
    files: tuple[str, str], tmp_path: Path, method: str, number: int, told: bool
) -> None:
    seen: list[dict[str, Any]] = []
    arguments = {**OPTIONS, "calibration": number, "limits": {"train": 12, "validation": 1, "test": 1}}
    if method == "pela":
        arguments["options"] = {"steps": 1, "alpha": 0}
    compress_model(*files, method, ratio=0.3, output=tmp_path / "small", on_task=seen.append, **arguments)
    note = "calibration sees all 12 training examples, 13 were asked for"
    assert (note in seen[0]["notes"]) is told


def test_what_is_excluded_is_excluded_beside_the_head(files: tuple[str, str], tmp_path: Path) -> None:
    arguments = {"ratio": 0.3, "output": tmp_path / "small", **OPTIONS}
    compress_model(*files, "svd", options={"exclude": "c_fc"}, **arguments)
    with (tmp_path / "small" / "layers.csv").open(newline="") as file:
        layers = [row["layer"] for row in csv.DictReader(file)]
    assert layers and not any(layer.endswith("c_fc") for layer in layers)


def test_what_is_refused_leaves_finished_blocks_and_input_alone(
    files: tuple[str, str], tmp_path: Path
) -> None:
    partial = tmp_path / "small.partial"
    partial.mkdir()
    (partial / "block-0000.json").write_text("{}")
    arguments = {"output": tmp_path / "small", "overwrite": True, **OPTIONS}
    with pytest.raises(InputError, match="has no layer to compress"):
        compress_model(*files, "trp", ratio=0.3, **arguments)
    assert (partial / "block-0000.json").is_file()
    with pytest.raises(InputError, match="choose a place apart"):
        compress_model(*files, "svd", ratio=0.3, **{**arguments, "output": files[0]})
    assert (Path(files[0]) / "config.json").is_file()


def test_healing_that_ends_in_nan_writes_nothing(files: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="lower --heal-lr"):
        compress_model(*files, "svd", ratio=0.3, heal=2, heal_lr=1e9, output=tmp_path / "small", **OPTIONS)
    assert not (tmp_path / "small").exists()
