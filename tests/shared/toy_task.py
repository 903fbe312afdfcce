"""A task small enough to compare on in seconds: a two-layer BERT and sentences of made-up tokens.

`install` puts it in the place of `eckart.tasks.task.load_task`, so that everything above is the real thing.
As a script it runs one comparison in a process of its own: ``python toy_task.py '{"output": …}'``.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eckart.tasks.options import Memory

METHODS = "lora,randlora"
SIZES = {"train": 96, "validation": 48, "test": 64}


class Examples(torch.utils.data.Dataset):
    """Token rows of unequal length; one token tells the label, mostly. Notes what is read."""

    def __init__(self, split: str, size: int, classes: int = 3) -> None:
        generator = torch.Generator().manual_seed(sum(map(ord, split)))
        self.rows: list[dict[str, Any]] = []
        self.read: list[int] = []
        for _ in range(size):
            label = int(torch.randint(classes, (), generator=generator))
            length = int(torch.randint(5, 11, (), generator=generator))
            tokens = torch.randint(10, 60, (length,), generator=generator)
            told = label if torch.rand((), generator=generator) < 0.75 else 0
            tokens[: length // 2] = 3 + told
            self.rows.append({"input_ids": tokens.tolist(), "labels": label, "at": len(self.rows)})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.read.append(index)
        return self.rows[index]


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        mask[i, : len(row["input_ids"])] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([row["labels"] for row in rows])}


@dataclass
class ToyTask:
    fingerprint: str = "toy"
    kind: str = "text-classification"
    model_name: str = "tiny-bert"
    max_length: int = 10
    data_name: str = "tokens"
    labels: list[str] = field(default_factory=lambda: ["a", "b", "c"])
    metric: str = "accuracy"
    greater_is_better: bool = True
    head_modules: list[str] = field(default_factory=lambda: ["classifier"])
    default_targets: Any = field(default_factory=lambda: ["query", "value"])
    memory: Memory = field(default_factory=Memory)
    pause: float = 0.0
    log: Path | None = None
    batched: list[int] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self.train, self.validation, self.test = (Examples(split, size) for split, size in SIZES.items())

    def collator(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        self.batched += [row["at"] for row in rows]
        return collate(rows)

    def fresh_model(self, seed: int) -> torch.nn.Module:
        from tiny_models import bert_config
        from transformers import BertForSequenceClassification

        if self.log is not None:
            with self.log.open("a") as file:
                file.write("model\n")
        time.sleep(self.pause)
        shape = {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 512}
        with torch.random.fork_rng():
            torch.manual_seed(99)
            model = BertForSequenceClassification(bert_config(vocab_size=64, num_labels=3, **shape))
            torch.manual_seed(seed)
            torch.nn.init.normal_(model.classifier.weight, std=0.02)
        return model.eval()

    groups: list[str] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    general = None
    harness = None
    sequences = 1

    def given(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch

    def trivial(self) -> tuple[str, np.ndarray]:
        return "majority class", np.array([float(row["labels"] == 0) for row in self.test.rows])

    def describe(self) -> dict[str, Any]:
        names = {"kind": self.kind, "model": self.model_name, "data": self.data_name}
        return names | {"sizes": SIZES, "labels": self.labels, "fingerprint": self.fingerprint}

    def outcomes(self, outputs: Any, batch: Any) -> np.ndarray:
        return np.stack([batch["labels"].cpu().numpy(), outputs.logits.argmax(-1).cpu().numpy()], axis=1)

    def answered(self, model: Any, split: Any, outcomes: np.ndarray, batch_size: int) -> np.ndarray:
        return outcomes

    def scores(self, outcomes: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        return (outcomes[:, 0] == outcomes[:, 1]).astype(float), {}

    def predictions(self, outcomes: np.ndarray) -> list[int]:
        return outcomes[:, 1].tolist()


def install(**fields: Any) -> ToyTask:
    """Make `load_task` give this task."""
    import eckart.tasks.task as tasks

    task = ToyTask(**fields)
    tasks.load_task = lambda *args, **options: task  # type: ignore[assignment]
    return task


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = json.loads(sys.argv[1])
    toy = given.pop("toy", {})
    install(**(toy | ({"log": Path(toy["log"])} if "log" in toy else {})))
    from eckart.jobs.compare.comparison import compare

    try:
        compare(**({"methods": METHODS, "budget": "2k", "steps": 6, "seeds": 2, "batch_size": 8} | given))
    except KeyboardInterrupt:
        sys.exit(130)
