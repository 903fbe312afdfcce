"""Nested list operations: S4D of both kinds and a GRU of equal width, trained by transformers.Trainer.

DIR holds train, validation and test files with the columns expression and label: MIN, MAX, MED and SM (the sum
modulo 10) of up to five digits or lists, in Polish notation, ten classes. Prints the accuracy on the test split with
its 95 % interval, in all and by length.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from benchmarks._harness import table
from eckart.data.read import read_data
from eckart.data.splits import Split
from eckart.layers import S4DConfig, S4DForSequenceClassification, param_groups
from eckart.tasks.encode import Rows as Encoded
from eckart.tasks.statistics import interval
from evidence._record import Rows
from evidence.s4d_fashion import Recurrent, among

LONGEST = 1024
BUCKETS = (0, 16, 64, LONGEST)


def encode(split: Split, vocabulary: dict[str, int]) -> Encoded:
    """Token ids, 0 being the padding."""
    ids = [[vocabulary[token] for token in text.split()] for text in split.inputs]
    return Encoded(
        [
            {"input_ids": row, "labels": label, "length": len(row)}
            for row, label in zip(ids, split.labels or [], strict=True)
        ]
    )


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True)
    return {
        "input_ids": ids,
        "attention_mask": (ids > 0).long(),
        "labels": torch.tensor([r["labels"] for r in rows]),
    }


def make_model(kind: str, vocabulary: int, classes: int, options: argparse.Namespace) -> nn.Module:
    torch.manual_seed(options.seed)
    model = S4DForSequenceClassification(
        S4DConfig(
            vocab_size=vocabulary,
            hidden_size=options.width,
            num_hidden_layers=options.layers,
            num_labels=classes,
            max_position=LONGEST,
            dropout=options.dropout,
            bidirectional=kind == "s4d-bidirectional",
        )
    )
    if kind == "gru":
        blocks = [Recurrent(options.width, options.dropout) for _ in range(options.layers)]
        model.s4d.layers = nn.ModuleList(blocks)
    return model


def train(
    kind: str, data: dict[str, Encoded], vocabulary: int, classes: int, options: argparse.Namespace
) -> Any:
    """Train one model; its per-example correctness on the test split, its size, and the seconds."""
    model = make_model(kind, vocabulary, classes, options)
    steps = options.epochs * -(-len(data["train"]) // options.batch)
    optimizer = torch.optim.AdamW(param_groups(model, options.lr, 0.01))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=steps, pct_start=0.1
    )
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(
                folder,
                num_train_epochs=options.epochs,
                per_device_train_batch_size=options.batch,
                per_device_eval_batch_size=options.batch,
                train_sampling_strategy="group_by_length",
                length_column_name="length",
                remove_unused_columns=False,
                eval_strategy="epoch",
                save_strategy="no",
                logging_strategy="epoch",
                report_to="none",
                use_cpu=True,
                seed=options.seed,
            ),
            data_collator=collate,
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
            optimizers=(optimizer, schedule),
        )
        trainer.train()
        seconds = time.perf_counter() - started
        found = trainer.predict(data["test"])
    right = (found.predictions.argmax(-1) == found.label_ids).astype(float)
    return right, sum(p.numel() for p in model.parameters()), seconds


def arguments(parser: argparse.ArgumentParser) -> None:
    """The data, the models and how they are trained."""
    parser.add_argument(
        "--data", type=Path, required=True, help="directory of train, validation and test files"
    )
    kinds = ("s4d", "s4d-bidirectional", "gru")
    parser.add_argument("--model", type=among(*kinds), default=",".join(kinds), help=", ".join(kinds))
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.004)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace) -> Rows:
    """Train every model, and score it in all and by length."""
    read = read_data(options.data, labelled=True, text_column="expression", label_column="label")
    tokens = sorted({token for text in read.splits["train"].inputs for token in text.split()})
    vocabulary = {token: i for i, token in enumerate(tokens, start=1)}
    data = {part: encode(split, vocabulary) for part, split in read.splits.items()}
    labels = np.array([row["labels"] for row in data["test"].rows])
    lengths = np.array([row["length"] for row in data["test"].rows])
    commonest = np.bincount([row["labels"] for row in data["train"].rows]).argmax()
    results = {"always the commonest label": ((labels == commonest).astype(float), 0, 0.0)}
    for kind in options.model:
        results[kind] = train(kind, data, len(vocabulary) + 1, len(read.labels or []), options)
    rows = []
    for kind, (right, parameters, seconds) in results.items():
        score, low, high = interval(right)
        row = {"model": kind, "parameters": parameters, "accuracy": score, "low": low, "high": high}
        for least, most in itertools.pairwise(BUCKETS):
            row[f"{least + 1}-{most} tokens"] = float(right[(lengths > least) & (lengths <= most)].mean())
        rows.append({**row, "seconds": round(seconds)})
    table(rows)
    kept = ("width", "layers", "dropout", "batch", "lr", "epochs", "seed")
    return [{"settings": {key: getattr(options, key) for key in kept}}, *rows]
