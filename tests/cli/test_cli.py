"""The command line in process: every command's happy path, exit codes, one-line errors, options from a file."""

from __future__ import annotations

import csv
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_models import save_bert, save_gpt2, save_mixtral, save_reviews
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from typer.main import get_command

import eckart
from eckart.cli import app, main
from eckart.cli.app import COMMANDS as HEADINGS
from eckart.cli.console import scores, show
from eckart.errors import InputError

SMALL = ("--steps", "2", "--batch-size", "8", "--option", "r=2")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("model") / "bert")


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reviews(tmp_path_factory.mktemp("data") / "reviews.csv")


@pytest.fixture(scope="module")
def adapter(bert: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    assert main(["adapt", "--model", str(bert), "--data", str(reviews), "--output", str(folder), *SMALL]) == 0
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


Run = Callable[..., tuple[int, str, str]]


def refusal(result: tuple[int, str, str]) -> str:
    """The one line of an error with exit code 2."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("eckart: error: ")
    assert err.count("\n") == 1
    return err


# What every command has


def commands(group: Any, *words: str) -> dict[str, Any]:
    """Every command by the words that call it, those of groups among them."""
    found = {}
    for word, command in group.commands.items():
        inner = hasattr(command, "commands")
        found.update(commands(command, *words, word) if inner else {" ".join((*words, word)): command})
    return found


COMMANDS = commands(get_command(app))


@pytest.mark.parametrize("words", COMMANDS)
def test_help_has_an_example_and_every_option_a_description(run: Run, words: str) -> None:
    code, out, err = run(*words.split(), "--help")
    assert (code, err) == (0, "")
    assert f"Example: eckart {words} " in " ".join(out.split())
    parameters = COMMANDS[words].params
    names = {parameter.name for parameter in parameters}
    assert {"config", "debug", "json_"} <= names
    assert all(parameter.help for parameter in parameters)


def test_help_is_quick_because_it_loads_no_model_library() -> None:
    code = "import sys; from eckart.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "compare" in done.stdout
    assert not {"torch", "transformers", "peft", "numpy", "pandas"} & set(done.stderr.split())


def headings(text: str) -> list[str]:
    """The headings that help shows its options or commands under."""
    return re.findall(r"^╭─ (.+?) ─+╮$", text, re.MULTILINE)


def test_help_is_grouped_and_names_values_by_what_they_are(run: Run) -> None:
    shown = headings(run("--help")[1])
    assert shown == ["Options", *HEADINGS, "Recover matrices"]
    shown = headings(run("adapt", "--help")[1])
    assert set(shown) == {"Options", "Model and data", "Method", "Training", "Output", "Common"}
    for words in COMMANDS:
        text = run(*words.split(), "--help")[1]
        assert headings(text)[-1] == "Common"
        options = "\n".join(line for line in text.splitlines() if " --" in line and "--help" not in line)
        assert not re.search(r"TEXT|INTEGER|FLOAT|PATH|BOOLEAN|<(str|int|float|path|bool)>", options)


def test_names_that_the_command_line_knows_are_those_of_the_library() -> None:
    from eckart.cli import measure, options
    from eckart.jobs.measure.measuring import METRICS
    from eckart.tasks.task import KINDS

    assert measure.USUAL == METRICS
    known = (*eckart.metrics.METRICS, *eckart.metrics.RAW_METRICS)
    assert sorted((*measure.USUAL, *measure.FURTHER)) == sorted(known)
    assert get_args(get_args(options.Kind)[0]) == ("auto", *KINDS)


def test_version_and_no_command(run: Run) -> None:
    assert run("--version") == (0, f"eckart {eckart.__version__}\n", "")
    code, out, err = run()
    assert code == 2
    assert "Usage" in out + err
    assert "error" not in out + err


def test_bad_usage(run: Run) -> None:
    assert "No such command 'adpat'" in refusal(run("adpat"))
    assert "--energy" in refusal(run("inspect", "x", "--enrgy", "0.5"))
    assert "--output" in refusal(run("merge", "x"))
    assert "'--steps'" in refusal(run("adapt", "--output", "x", "--steps", "many"))


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("model is\nbad"), 2, "eckart: error: model is bad\n"),
        (RuntimeError("it broke"), 1, "eckart: error: RuntimeError: it broke\n"),
        (ValueError(), 1, "eckart: error: ValueError:\n"),
        (
            OSError(28, "No space left on device", "out/x.csv"),
            1,
            "no space left on the disk while writing out/x.csv",
        ),
        (
            RuntimeError("I/O error: No space left on device (os error 28)"),
            1,
            "no space left on the disk while writing",
        ),
        (KeyboardInterrupt(), 130, "eckart: interrupted\n"),
    ],
)
def test_exit_codes(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr("eckart.jobs.inspect.inspection.inspect_model", fail)
    found, out, err = run("inspect", "model")
    assert (found, out) == (code, "")
    assert line in err
    assert err.count("\n") == 1
    if not isinstance(error, KeyboardInterrupt):
        found, _, err = run("inspect", "model", "--debug")
        assert found == code
        assert "Traceback" in err
        assert "in fail" in err


def test_logging_is_as_before_afterwards(run: Run) -> None:
    import logging

    before = logging.root.manager.disable
    run("inspect", "/nowhere")
    assert logging.root.manager.disable == before


# Options from a file


def test_config_gives_options_and_the_command_line_wins(run: Run, bert: Path, tmp_path: Path) -> None:
    config = tmp_path / "inspect.yaml"
    config.write_text(f"model: {bert}\nenergy: 0.75\njson: true\noutput:\n")
    code, out, _ = run("inspect", "--config", config)
    assert code == 0
    assert json.loads(out)["energy"] == 0.75
    assert json.loads(run("inspect", "--config", config, "--energy", "0.6")[1])["energy"] == 0.6


def test_every_kind_of_option_can_come_from_a_file(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def catch(*args: Any, **kwargs: Any) -> None:
        given.update(kwargs, args=args)
        raise InputError("enough")

    monkeypatch.setattr(eckart, "compare", catch)
    config = tmp_path / "compare.yaml"
    config.write_text(
        """
data: reviews.csv
methods: [lora, svfit]
budget: 200000
lr: {lora: [1e-4, 3e-4], svfit: [0.01, 0.03]}
limit: {train: 100, test: 50}
target-modules: [query, value]
batch_size: 4
quick: true
time: 90s
"""
    )
    assert "enough" in refusal(run("compare", "--config", config))
    assert given["args"] == (None, "reviews.csv")
    expected = {
        "methods": "lora,svfit",
        "budget": "200000",
        "learning_rates": {"lora": [1e-4, 3e-4], "svfit": [0.01, 0.03]},
        "limits": {"train": 100, "test": 50},
        "target_modules": ["query", "value"],
        "batch_size": 4,
        "quick": True,
        "time": "90s",
    }
    assert {name: given[name] for name in expected} == expected
    refusal(run("compare", "--config", config, "--lr", "1e-3,2e-3", "--target-modules", r".*\.(query|key)"))
    assert given["learning_rates"] == [1e-3, 2e-3]
    assert given["target_modules"] == r".*\.(query|key)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("enrgy: 0.5", "'enrgy' is no option of inspect: did you mean 'energy'?"),
        ("debug: true", "'debug' is no option of inspect"),
        ("- energy", "must hold 'option: value' lines, not a list"),
        ("energy: [", "cannot be read"),
        ("energy: lots", "'--energy'"),
    ],
)
def test_config_that_is_refused(run: Run, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert message in refusal(run("inspect", "--config", tmp_path / "c.yaml"))


def test_config_that_is_not_there(run: Run, tmp_path: Path) -> None:
    assert "cannot be read" in refusal(run("inspect", "--config", tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--lr", "fast"), "--lr fast: write numbers"),
        (("--limit", "train"), "--limit 'train': write it as NAME=VALUE"),
        (("--limit", "dev=3"), "--limit dev=3"),
        (("--limit", "train=few"), "--limit train=few"),
    ],
)
def test_words_with_structure(run: Run, words: tuple[str, ...], message: str) -> None:
    assert message in refusal(run("compare", *words))


# The commands


def test_methods(run: Run) -> None:
    code, out, _ = run("methods")
    assert code == 0
    rows = json.loads(run("methods", "--json")[1])
    assert all(row["slug"] in out and row["arxiv"] in out for row in rows)
    names = ("adapters", "compression", "federated", "layers", "metrics", "optim", "recovery", "training")
    families = [json.loads(run("methods", "--family", name, "--json")[1]) for name in names]
    assert [row for family in families for row in family] == rows
    assert [row["slug"] for row in families[0]] == sorted(
        [*eckart.adapters.ADAPTERS, *eckart.adapters.PROMPTS]
    )
    assert "unknown family 'adaptors'" in refusal(run("methods", "--family", "adaptors"))


def test_inspect(run: Run, bert: Path, tmp_path: Path) -> None:
    code, out, err = run("inspect", bert, "--output", tmp_path / "spectra")
    assert (code, err.strip()) == (0, "")
    with (tmp_path / "spectra/spectra.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(row["name"] in out for row in rows)
    assert f"of {len(rows)} weights are nearly low-rank" in out
    assert json.loads(run("inspect", bert, "--json")[1])["layers"][0]["name"] == rows[0]["name"]
    assert "not empty" in refusal(run("inspect", bert, "--output", tmp_path / "spectra"))
    assert run("inspect", bert, "--output", tmp_path / "spectra", "--overwrite")[0] == 0


def test_inspect_names_a_broken_weight(run: Run, tmp_path: Path) -> None:
    save_file({"a.weight": torch.full((3, 3), torch.nan)}, tmp_path / "model.safetensors")
    assert "a.weight holds 9 NaN or Inf" in refusal(run("inspect", tmp_path))


def test_adapt_writes_an_adapter_that_peft_loads(
    run: Run, adapter: Path, bert: Path, reviews: Path, tmp_path: Path
) -> None:
    metrics = json.loads((adapter / "metrics.json").read_text())
    config = AutoConfig.from_pretrained(adapter)
    base = AutoModelForSequenceClassification.from_pretrained(
        bert, config=config, ignore_mismatched_sizes=True
    )
    assert isinstance(PeftModel.from_pretrained(base, adapter), PeftModel)
    words = ("adapt", "--model", bert, "--data", reviews, "--output", tmp_path / "x", *SMALL)
    code, out, err = run(*words, "--method", "bone", "--json")
    assert code == 0
    for line in (
        "task: text-classification",
        "columns: text, label",
        "examples: train 128, validation 16, test 16",
        "labels: negative 64, positive 64",
        "note: one split given: cut into 80 % train, 10 % validation, 10 % test",
        "training: 1 of 2",
        "training: 2 of 2",
    ):
        assert f"{line}\n" in err
    assert re.search(r"^first example: .+ \u2192 (negative|positive)$", err, re.MULTILINE)
    told = json.loads(out)
    assert (told["method"], told["steps"], told["batch_size"], told["options"]) == ("bone", 2, 8, {"r": 2})
    assert told == json.loads((tmp_path / "x/metrics.json").read_text())
    assert "a finished run" in refusal(run(*words))
    code, out, _ = run(*words, "--overwrite", "--lr", "0.01")
    assert code == 0
    assert f"{metrics['trainable_parameters']:,} numbers trained in adapters" in out
    assert run(*words, "--resume", "--lr", "0.01")[0] == 0
    assert "lr is 0.01 there" in refusal(run(*words, "--resume"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "lorra"), "unknown method 'lorra': did you mean 'lora'?"),
        (("--target-modules", "qery"), "layers there are: classifier, dense, key"),
        (("--budget", "10"), "the smallest possible is 416 parameters"),
        (("--budget", "much"), "budget 'much' is not understood"),
        (("--option", "rank=3"), "lora has no option 'rank'"),
        (("--option", "r=0"), "r is 0"),
        (("--option", "r"), "--option 'r': write it as NAME=VALUE"),
        (("--text-column", "body"), "text, label"),
        (("--model", "/nowhere"), "--model /nowhere: no such directory"),
        (("--data", "/nowhere.csv"), "--data /nowhere.csv"),
        (("--steps", "0"), "steps is 0"),
        (("--resume",), "holds no run to go on with"),
    ],
)
def test_adapt_refuses(
    run: Run, bert: Path, reviews: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    folder = tmp_path / "out"
    given = ("adapt", "--model", bert, "--data", reviews, "--output", folder, *words)
    assert message in refusal(run(*given))
    assert not folder.exists()


def test_interrupted_adapt_says_how_to_go_on(
    run: Run, bert: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eckart.jobs.adapt.training import Follow

    words = (
        "adapt",
        "--model",
        bert,
        "--data",
        reviews,
        "--output",
        tmp_path / "x",
        *SMALL,
        "--save-every",
        1,
    )
    with monkeypatch.context() as patch:

        def interrupt(*args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(Follow, "on_step_end", interrupt)
        code, out, err = run(*words)
    assert (code, out) == (130, "")
    assert "--resume" in err
    assert "unfinished" in refusal(run(*words))
    assert run(*words, "--resume")[0] == 0


def test_merge_and_export(run: Run, adapter: Path, bert: Path, tmp_path: Path) -> None:
    code, out, err = run("merge", "--model", bert, adapter, "--output", tmp_path / "merged", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["layers"] == 12
    code, out, _ = run("export", adapter, "--output", tmp_path / "lora")
    assert code == 0
    assert "as LoRA of rank 2, exact to rounding" in out
    report = json.loads(run("export", adapter, "--r", 1, "--output", tmp_path / "small", "--json")[1])
    assert report["exact"] is False
    assert {layer["r"] for layer in report["layers"]} == {1}
    assert report["error"] == max(layer["error"] for layer in report["layers"]) > 1e-3

    inputs = AutoTokenizer.from_pretrained(tmp_path / "merged")("the film was good", return_tensors="pt")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert merged.config.id2label == {0: "negative", 1: "positive"}
    base = AutoModelForSequenceClassification.from_pretrained(
        bert, config=merged.config, ignore_mismatched_sizes=True
    )
    exported = PeftModel.from_pretrained(base, tmp_path / "lora").eval()
    torch.testing.assert_close(merged(**inputs).logits, exported(**inputs).logits, rtol=1e-4, atol=1e-5)

    for command in ("merge", "export"):
        assert "not empty" in refusal(run(command, adapter, "--output", tmp_path / "lora"))
        assert "neither a directory nor found" in refusal(run(command, "nowhere", "--output", tmp_path / "y"))


@pytest.mark.parametrize(("method", "size", "pefts"), [("lora", "r=2", True), ("svfit", "r=3", False)])
def test_experts_are_adapted_merged_and_exported(
    run: Run, method: str, size: str, pefts: bool, reviews: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    base, folder = save_mixtral(tmp_path / "mixtral"), tmp_path / "adapter"
    words = [
        "adapt",
        "--kind",
        "causal-lm",
        "--model",
        base,
        "--data",
        reviews,
        "--output",
        folder,
        *SMALL[:4],
    ]
    experts = ("--option", "target_parameters=[experts.gate_up_proj, experts.down_proj]")
    code, _, err = run(*words, "--method", method, "--option", size, *experts)
    assert code == 0, err
    saved = json.loads((folder / "adapter_config.json").read_text())
    assert (saved["peft_type"] == "LORA") is pefts
    code, out, _ = run("merge", folder, "--output", tmp_path / "merged", "--json")
    assert code == 0
    modules = 8 if json.loads((folder / "metrics.json").read_text())["target_modules"] == "all-linear" else 4
    assert json.loads(out)["layers"] == modules + 4
    ids = torch.arange(6).view(1, 6)
    plain = AutoModelForCausalLM.from_pretrained(base).eval()(ids).logits
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()(ids).logits
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()(ids).logits
    assert not torch.allclose(merged, plain, atol=1e-5)
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-5)
    assert run("export", folder, "--output", tmp_path / "lora")[0] == 0
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "lora").eval()
    torch.testing.assert_close(theirs(ids).logits, adapted, rtol=1e-4, atol=1e-5)
    assert "takes no LoRA on a parameter" in refusal(
        run("export", folder, "--for", "vllm", "--output", tmp_path / "served")
    )
    assert "fits no parameter of this model: did you mean 'down_proj'?" in refusal(
        run(*words[:-6], "--output", tmp_path / "x", *SMALL[:4], "--option", "target_parameters=[downproj]")
    )


def test_checkpoints_that_are_refused(run: Run, adapter: Path, tmp_path: Path) -> None:
    import shutil

    gpt2 = save_gpt2(tmp_path / "gpt2", pad="[EOS]")
    for command in ("merge", "export"):
        assert "lacks bert." in refusal(run(command, "--model", gpt2, adapter, "--output", tmp_path / "y"))
    damaged = tmp_path / "damaged"
    shutil.copytree(adapter, damaged)
    weights = damaged / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    assert "damaged" in refusal(run("export", damaged, "--output", tmp_path / "y"))
    other = json.loads((damaged / "adapter_config.json").read_text())
    shutil.copy(adapter / "adapter_model.safetensors", weights)
    (damaged / "adapter_config.json").write_text(json.dumps(other | {"peft_type": "ECKART_BONE"}))
    assert "bone has no option" in refusal(run("export", damaged, "--output", tmp_path / "y"))
    assert not (tmp_path / "y").exists()


def test_full_disk_while_exporting_leaves_nothing(
    run: Run, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("eckart.adapters._export.save_file", full)
    code, out, err = run("export", adapter, "--output", tmp_path / "lora")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "no space left on the disk" in err
    assert list(tmp_path.iterdir()) == []


def test_compare_prints_the_leaderboard(run: Run, bert: Path, reviews: Path, tmp_path: Path) -> None:
    words = (
        *(
            "compare",
            "--model",
            bert,
            "--data",
            reviews,
            "--methods",
            "svfit",
            "--budget",
            "1k",
            "--seeds",
            1,
        ),
        *("--steps", 4, "--batch-size", 8, "--lr", "1e-3", "--output", tmp_path / "results"),
    )
    code, out, err = run(*words)
    assert code == 0, err
    for label in ("head only", "full fine-tuning", "LoRA", "SVFit"):
        assert label in out
    assert "report.html" in out
    assert (tmp_path / "results/report.html").is_file()
    told = json.loads(run(*words, "--json")[1])
    assert {row["method"] for row in told["leaderboard"]} == {"head-only", "full", "lora", "svfit", "trivial"}
    assert all(re.search(re.escape(f"{100 * row['score']:.1f}%"), out) for row in told["leaderboard"])
    assert "unknown method" in refusal(run(*words[:5], "--methods", "svfitt", "--output", tmp_path / "z"))
    assert load_file(tmp_path / "results/adapters/svfit/adapter_model.safetensors")


def test_measure(run: Run, bert: Path, reviews: Path, tmp_path: Path) -> None:
    words = ("measure", "--data", reviews, "--max-length", 64, "--limit", 9, "--layers", "0,-1")
    code, out, err = run(*words, "--model", bert, "--output", tmp_path / "out")
    assert (code, err) == (0, "")
    assert "0 (embeddings)" in out and "2 (last)" in out
    assert f"Means over 9 texts of {reviews}" in out
    assert "Note: test: 9 of 16 texts." in out
    with (tmp_path / "out" / "measure.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["layer"] for row in rows} == {"0", "2"}
    assert all(f"{float(row['mean']):.4g} ± {float(row['ci']):.2g}" in out for row in rows)

    gpt2 = save_gpt2(tmp_path / "gpt2", pad="[EOS]")
    both = (*words, "--model", bert, "--model", gpt2, "--output", tmp_path / "out")
    out = run(*both)[1]
    assert "2 (last)" in out and "1 (last)" in out and "embeddings" not in out
    assert "the tokenizers differ" in out
    told = json.loads(run(*both, "--json")[1])
    assert told == json.loads((tmp_path / "out" / "measure.json").read_text())
    assert [model["model"] for model in told["models"]] == [str(bert), str(gpt2)]
    assert "skip_first is 0 there and 1 here" in refusal(run(*both, "--skip-first", 1))
    assert run(*both, "--skip-first", 1, "--overwrite")[0] == 0

    config = tmp_path / "measure.yaml"
    config.write_text(
        f"model: [{bert}, {gpt2}]\ndata: {reviews}\nmetrics: [stable_rank, nuclear_norm]\n"
        "window: true\nmax-length: 16\nsplit: all\njson: true\n"
    )
    told = json.loads(run("measure", "--config", config)[1])
    assert len(told["models"]) == 2
    assert {score["metric"] for score in told["models"][0]["scores"]} == {
        *("stable_rank", "nuclear_norm", "nuclear_norm_relative"),
    }
    assert all(model["tokens"] == 16 for model in told["models"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--metrics", "matrix_entropie"),
            "unknown metric 'matrix_entropie': did you mean 'matrix_entropy'?",
        ),
        (("--layers", "first"), "--layers first: write all, last, or numbers with commas"),
        (("--layers", "0,4"), "there is no layer 4: this model has 0 (embeddings) to 2 (last)"),
        (("--split", "dev"), "split is 'dev'"),
        (("--max-length", "999"), "--max-length 999: this model takes 2 to 128 tokens"),
        (("--model", "/nowhere"), "--model /nowhere: no such directory"),
        (("--data", "/nowhere.csv"), "--data /nowhere.csv"),
        (("--limit", "train=3"), "'--limit'"),
    ],
)
def test_measure_refuses(run: Run, bert: Path, reviews: Path, words: tuple[str, ...], message: str) -> None:
    assert message in refusal(run("measure", "--model", bert, "--data", reviews, "--max-length", 64, *words))


def test_interrupted_measure_says_how_to_go_on(
    run: Run, bert: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("measure", "--model", bert, "--data", reviews, "--max-length", 64, "--output", tmp_path / "out")
    with monkeypatch.context() as patch:

        def interrupt(*args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr("eckart.jobs.measure.measuring.measure_model", interrupt)
        code, out, err = run(*words)
    assert (code, out) == (130, "")
    assert "go on with the same command" in err
    assert run(*words)[0] == 0


def test_the_package_is_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torchrun starts."""
    monkeypatch.setattr(sys, "argv", ["eckart", "methods", "--json"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("eckart", run_name="__main__")
    assert not ended.value.code
    whole = capsys.readouterr().out
    assert json.loads(whole)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("eckart", run_name="__main__")
    assert not ended.value.code and capsys.readouterr().out == "", "the first of several speaks for all"


def test_scores_are_shown_with_those_beside_them(capsys: pytest.CaptureFixture[str]) -> None:
    scored = {"score": 0.5, "ci_low": 0.25, "ci_high": 0.75, "also": {}}
    show(scores("split", "micro_f1", {"test": scored}))
    alone = capsys.readouterr().out
    assert "micro f1" in alone and "0.5000" in alone and "0.2500 to 0.7500" in alone and "also" not in alone
    beside = {**scored, "also": {"token_accuracy": 0.125, "mcc": 1.0}}
    show(scores("split", "micro_f1", {"validation": scored, "test": beside}))
    told = capsys.readouterr().out
    assert "also" in told and "token accuracy 0.1250, mcc 1.0000" in told and "validation" in told
